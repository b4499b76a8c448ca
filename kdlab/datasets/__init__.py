"""What teachers and students see: generated, bundled, downloaded, or your own images or texts.

``load`` gives tensors in memory with a training, a validation and a test split. ``glyphs``,
``digits`` and ``docstrings`` need no network.
"""

import inspect
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from kdlab.datasets import digits, downloads, glyphs, text
from kdlab.datasets.account import tell
from kdlab.datasets.arrays import from_arrays, load_npz
from kdlab.datasets.checks import check_inputs, check_labels
from kdlab.datasets.data import UNLABELLED, Data, Split
from kdlab.datasets.folders import load_folder
from kdlab.datasets.tensors import from_tensors
from kdlab.words import check_known, nearest

__all__ = [
    "UNLABELLED",
    "Data",
    "Split",
    "available",
    "check_inputs",
    "check_labels",
    "from_arrays",
    "from_tensors",
    "glyphs",
    "load",
]

_LOADERS: dict[str, Callable[..., Data]] = {
    "glyphs": glyphs.load,
    "digits": digits.load,
    "docstrings": text.load,
    **{name: partial(downloads.load, name) for name in downloads.READERS},
}

_FILES: dict[str, Callable[..., Data]] = {
    ".npz": load_npz,
    ".csv": text.load_csv,
    ".csv.gz": text.load_csv,
}


def available() -> tuple[str, ...]:
    """Names that ``load`` knows; the first three work offline."""
    return tuple(_LOADERS)


def load(name_or_path: str | Path, *, seed: int = 0, **options: Any) -> Data:
    """Load a data set by name, or your own by path.

    Your own are images in an ``.npz`` file or a folder, or texts in a ``.csv`` or ``.csv.gz``.

    ``n_train``, ``n_val`` and ``n_test`` work for all; further options are those of the loader:
    ``glyphs.load``, ``digits.load``, ``text.load``, ``downloads.load``, ``arrays.load_npz``,
    ``folders.load_folder`` and ``text.load_csv``.

    Of your own data one line is printed, which ``card["line"]`` keeps: how many of each class and
    split, what was left out and why, copies, unknown tokens or the range of values.

    Raises ValueError for an unknown name or option (with the nearest match) and for bad arrays,
    ConnectionError where a download is needed and fails.
    """
    loader, leading = _loader(name_or_path)
    if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
        raise ValueError(f"seed must be a whole number from 0, got {seed!r}")
    valid = [n for n, p in inspect.signature(loader).parameters.items() if p.kind == p.KEYWORD_ONLY]
    for option in options:
        check_known("option", option, valid, f" for {str(name_or_path)!r}")
    data = loader(*leading, seed=seed, **options)
    if leading:
        tell(data)
    return data


def _loader(name_or_path: str | Path) -> tuple[Callable[..., Data], tuple[Path, ...]]:
    if isinstance(name_or_path, str) and name_or_path in _LOADERS:
        return _LOADERS[name_or_path], ()
    path = Path(name_or_path).expanduser()
    if path.is_dir():
        return load_folder, (path,)
    if path.is_file():
        for ending, loader in _FILES.items():
            if path.name.lower().endswith(ending):
                return loader, (path,)
        raise ValueError(
            f"{path} must be a folder of pictures, or a file that ends in {', '.join(_FILES)}"
        )
    if isinstance(name_or_path, Path) or path.suffix or len(path.parts) > 1:
        raise ValueError(f"there is no file or folder {path}; seen from {Path.cwd()}")
    raise ValueError(
        f"unknown data set {name_or_path!r}{nearest(name_or_path, _LOADERS)}; there are "
        f"{', '.join(_LOADERS)}, or the path of an .npz or .csv file or an image folder"
    )
