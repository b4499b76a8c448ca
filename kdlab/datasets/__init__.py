"""What teachers and students see: generated, bundled, downloaded, or your own images.

``load`` gives tensors in memory with a training, a validation and a test split. ``glyphs`` and
``digits`` need no network.
"""

import inspect
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from kdlab.datasets import digits, downloads, glyphs
from kdlab.datasets.arrays import from_arrays, load_npz
from kdlab.datasets.data import UNLABELLED, Data, Split
from kdlab.datasets.folders import load_folder
from kdlab.words import check_known, nearest

__all__ = ["UNLABELLED", "Data", "Split", "available", "from_arrays", "glyphs", "load"]

_LOADERS: dict[str, Callable[..., Data]] = {
    "glyphs": glyphs.load,
    "digits": digits.load,
    **{name: partial(downloads.load, name) for name in downloads.READERS},
}


def available() -> tuple[str, ...]:
    """Names that ``load`` knows; the first two work offline."""
    return tuple(_LOADERS)


def load(name_or_path: str | Path, *, seed: int = 0, **options: Any) -> Data:
    """Load a data set by name, or your own by the path of an ``.npz`` file or an image folder.

    ``n_train``, ``n_val`` and ``n_test`` work for all; further options are those of the loader:
    ``glyphs.load``, ``digits.load``, ``downloads.load``, ``arrays.load_npz`` and
    ``folders.load_folder``.

    Raises ValueError for an unknown name or option (with the nearest match) and for bad arrays,
    ConnectionError where a download is needed and fails.
    """
    loader, leading = _loader(name_or_path)
    if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
        raise ValueError(f"seed must be a whole number from 0, got {seed!r}")
    valid = [n for n, p in inspect.signature(loader).parameters.items() if p.kind == p.KEYWORD_ONLY]
    for option in options:
        check_known("option", option, valid, f" for {str(name_or_path)!r}")
    return loader(*leading, seed=seed, **options)


def _loader(name_or_path: str | Path) -> tuple[Callable[..., Data], tuple[Path, ...]]:
    if isinstance(name_or_path, str) and name_or_path in _LOADERS:
        return _LOADERS[name_or_path], ()
    path = Path(name_or_path).expanduser()
    if path.is_dir():
        return load_folder, (path,)
    if path.is_file():
        if path.suffix != ".npz":
            raise ValueError(f"{path} must be an .npz file or a folder of pictures")
        return load_npz, (path,)
    if isinstance(name_or_path, Path) or path.suffix or len(path.parts) > 1:
        raise ValueError(f"there is no file or folder {path}; seen from {Path.cwd()}")
    raise ValueError(
        f"unknown data set {name_or_path!r}{nearest(name_or_path, _LOADERS)}; there are "
        f"{', '.join(_LOADERS)}, or the path of an .npz file or an image folder"
    )
