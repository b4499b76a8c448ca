"""Your own images: a folder of pictures, one subfolder per class."""

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from kdlab.datasets.arrays import from_arrays
from kdlab.datasets.data import Data, in_stratified_order

_SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff"}
_FORMATS = ("PNG", "JPEG", "BMP", "GIF", "WEBP", "TIFF")  # of an EPS it runs Ghostscript
_LARGEST_WITHOUT_ASKING = 256  # pixels a side: beyond it, photographs would fill the memory


def load_folder(
    path: Path,
    *,
    seed: int = 0,
    size: int | tuple[int, int] | None = None,
    val_fraction: float = 0.1,
    test_fraction: float = 0.2,
    n_train: int | None = None,
    n_val: int | None = None,
    n_test: int | None = None,
) -> Data:
    """Read ``train/<class>/*.png`` and, where present, ``test/``, ``val/``; or just ``<class>/``.

    Without a test folder, ``test_fraction`` of the images becomes the test split, the same for
    every seed. ``size`` (a side, or height and width, in pixels) cuts the middle out and resizes;
    without it all pictures must have one size already.
    """
    target = (size, size) if isinstance(size, int) else size
    if target is not None and (len(target) != 2 or min(target) < 1):
        raise ValueError(f"size must be a side or (height, width) in pixels, got {size}")
    train = path / "train" if (path / "train").is_dir() else path
    names = tuple(_subfolders(train))
    if not names:
        raise ValueError(
            f"{path} must hold folders train/<class>/ or <class>/ with pictures in them"
        )
    parts = {"train": _files(train, names)}
    for part in ("val", "test"):
        if train != path and (path / part).is_dir():
            parts[part] = _files(path / part, names)
    if "test" not in parts:
        if not 0 < test_fraction < 1:
            raise ValueError(f"test_fraction must be between 0 and 1, got {test_fraction}")
        files = parts["train"]
        # One seed for good: another seed must never move a test image into training.
        order = in_stratified_order(np.array([label for _, label in files]), 0)
        n = max(1, round(len(files) * test_fraction))
        parts["test"] = [files[i] for i in order[:n]]
        parts["train"] = [files[i] for i in order[n:]]
    grey = all([_is_grey(file) for files in parts.values() for file, _ in files])  # looks at all
    arrays: dict[str, Any] = {}
    for part, files in parts.items():
        if target is None and files:
            target = _own_size(files[0][0])
        arrays[f"x_{part}"] = np.stack([_picture(f, target, grey, size is None) for f, _ in files])
        arrays[f"y_{part}"] = np.array([label for _, label in files], np.int64)
    return from_arrays(
        **arrays,
        classes=names,
        val_fraction=val_fraction,
        seed=seed,
        n_train=n_train,
        n_val=n_val,
        n_test=n_test,
        name=path.name,
        card={"source": f"{path.name}/", "size": size, "test_fraction": test_fraction},
    )


def _subfolders(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))


def _files(folder: Path, names: tuple[str, ...]) -> list[tuple[Path, int]]:
    strange = sorted(set(_subfolders(folder)) - set(names))
    if strange:
        raise ValueError(f"{folder} has the class {strange[0]!r}, which training has not")
    found = []
    for label, name in enumerate(names):
        for file in sorted((folder / name).glob("*")):
            if file.suffix.lower() in _SUFFIXES and not file.name.startswith("."):
                found.append((file, label))
    if not found:
        raise ValueError(f"{folder} holds no pictures ({', '.join(sorted(_SUFFIXES))})")
    return found


def _own_size(file: Path) -> tuple[int, int]:
    with Image.open(file, formats=_FORMATS) as image:
        height, width = image.height, image.width
    if max(height, width) > _LARGEST_WITHOUT_ASKING:
        raise ValueError(f"{file} is {width} × {height} pixels: choose a size, such as size=32")
    return height, width


def _is_grey(file: Path) -> bool:
    try:
        with Image.open(file, formats=_FORMATS) as image:
            if image.mode.startswith(("I", "F")):
                raise ValueError(f"{file} has more than 8 bits a channel; convert it to 8 bits")
            return image.mode in ("1", "L", "LA")
    except (OSError, UnidentifiedImageError) as error:
        raise ValueError(f"{file} is no whole picture ({error}); replace or remove it") from error


def _picture(file: Path, target: tuple[int, int] | None, grey: bool, exact: bool) -> np.ndarray:
    assert target is not None
    try:
        with Image.open(file, formats=_FORMATS) as opened:
            image = ImageOps.exif_transpose(opened)
            if image.has_transparency_data:  # as on white paper
                image = image.convert("RGBA")
                image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
            image = image.convert("L" if grey else "RGB")
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"{file} is no whole picture ({error}); replace or remove it") from error
    size = target[::-1]
    if exact and image.size != size:
        raise ValueError(
            f"{file} is {image.width} × {image.height} pixels, others are {size[0]} × {size[1]}: "
            "choose a size, such as size=32"
        )
    return np.asarray(image if exact else ImageOps.fit(image, size, Image.Resampling.BILINEAR))
