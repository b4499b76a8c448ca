"""Your own images: arrays in memory, an ``.npz`` file, or a folder of pictures."""

import difflib
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError

from kdlab.datasets.data import Data, Split, in_stratified_order

_SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff"}
_LARGEST_WITHOUT_ASKING = 256  # pixels a side: beyond it, photographs would fill the memory


def from_arrays(
    x_train: Any,
    y_train: Any,
    x_test: Any,
    y_test: Any,
    classes: Sequence[str] | None = None,
    *,
    x_val: Any = None,
    y_val: Any = None,
    val_fraction: float = 0.1,
    seed: int = 0,
    n_train: int | None = None,
    n_val: int | None = None,
    n_test: int | None = None,
    name: str = "arrays",
    card: dict[str, Any] | None = None,
) -> Data:
    """Check arrays and make a ``Data`` of them.

    x: uint8, or float in [0, 1], ``[N, h, w]`` or ``[N, h, w, c]`` with 1 or 3 channels;
    y: whole numbers ``[N]`` from 0. Without ``x_val`` and ``y_val``, ``val_fraction`` of the
    training part becomes the validation split, in the classes' proportions. ``n_train``, ``n_val``
    and ``n_test`` are upper limits, drawn in the same way. ``seed`` decides what is drawn.

    Raises ValueError that names the argument, for anything else.
    """
    images = {"x_train": _images("x_train", x_train), "x_test": _images("x_test", x_test)}
    labels = {"y_train": _labels("y_train", y_train), "y_test": _labels("y_test", y_test)}
    if (x_val is None) != (y_val is None):
        raise ValueError("x_val and y_val belong together: give both or neither")
    if x_val is not None:
        images["x_val"], labels["y_val"] = _images("x_val", x_val), _labels("y_val", y_val)
    for part in [key[2:] for key in images]:
        x, y = images[f"x_{part}"], labels[f"y_{part}"]
        if len(x) != len(y):
            raise ValueError(f"x_{part} has {len(x)} images, but y_{part} has {len(y)} labels")
        if x.shape[1:] != images["x_train"].shape[1:]:
            raise ValueError(
                f"x_{part} has images of {list(x.shape[1:])} (height, width, channels), "
                f"but x_train has {list(images['x_train'].shape[1:])}"
            )
    names = _class_names(classes, labels["y_train"])
    for key, y in labels.items():
        if y.min() < 0 or y.max() >= len(names):
            raise ValueError(
                f"{key} must hold labels from 0 to {len(names) - 1} ({len(names)} classes), "
                f"got {y.min()} to {y.max()}"
            )
    if x_val is None:
        if not 0 < val_fraction < 1:
            raise ValueError(f"val_fraction must be between 0 and 1, got {val_fraction}")
        order, count = in_stratified_order(labels["y_train"], seed), len(labels["y_train"])
        n = max(1, round(count * val_fraction))
        if n >= count:
            raise ValueError(
                f"x_train has {count} images: too few to set {n} aside for validation; "
                "give more, or x_val and y_val"
            )
        for kind, arrays in (("x", images), ("y", labels)):
            whole = arrays[f"{kind}_train"]
            arrays[f"{kind}_val"] = whole[np.sort(order[:n])]
            arrays[f"{kind}_train"] = whole[np.sort(order[n:])]
    for part, limit in (("train", n_train), ("val", n_val), ("test", n_test)):
        if limit is None:
            continue
        if limit < 1:
            raise ValueError(f"n_{part} must be at least 1, got {limit}")
        if limit < len(labels[f"y_{part}"]):
            keep = np.sort(in_stratified_order(labels[f"y_{part}"], seed)[:limit])
            images[f"x_{part}"] = images[f"x_{part}"][keep]
            labels[f"y_{part}"] = labels[f"y_{part}"][keep]
    tensors = {part: _tensor(images[f"x_{part}"]) for part in ("train", "val", "test")}
    mean, std = _statistics(tensors["train"])
    center, width = (torch.tensor(v).view(-1, 1, 1) for v in (mean, std))
    train, val, test = (
        Split(x.sub_(center).div_(width), torch.from_numpy(labels[f"y_{part}"]))
        for part, x in tensors.items()
    )
    facts = {
        "name": name,
        "source": "arrays given by the reader",
        "licence": "as the reader's own",
        "how": "given arrays, normalised by the training split",
        **(card or {}),
        "sizes": {"train": len(train), "val": len(val), "test": len(test)},
        "seed": seed,
    }
    return Data(name, train, val, test, names, mean, std, facts)


def load_npz(
    path: Path,
    *,
    seed: int = 0,
    val_fraction: float = 0.1,
    n_train: int | None = None,
    n_val: int | None = None,
    n_test: int | None = None,
) -> Data:
    """Read x_train, y_train, x_test, y_test and, where present, x_val, y_val and classes."""
    optional = {"x_val", "y_val", "classes"}
    needed = {"x_train", "y_train", "x_test", "y_test"}
    broken = f"{path} is not a whole .npz file, as numpy.savez writes it; copy or write it again"
    if not zipfile.is_zipfile(path):
        raise ValueError(broken)
    try:
        with np.load(path, allow_pickle=False) as file:
            for key in sorted(needed - set(file.files)):
                near = difflib.get_close_matches(key, set(file.files) - needed, 1)
                hint = f" (is {near[0]!r} it?)" if near else ""
                raise ValueError(
                    f"{path} lacks the array {key!r}{hint}; it has {', '.join(file.files)}"
                )
            arrays: dict[str, Any] = {
                key: _read(file, key, path) for key in file.files if key in needed | optional
            }
    except (OSError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(f"{broken} ({error})") from error
    limits: dict[str, Any] = {"n_train": n_train, "n_val": n_val, "n_test": n_test}
    return from_arrays(
        **arrays,
        val_fraction=val_fraction,
        seed=seed,
        **limits,
        name=path.stem,
        card={
            "source": path.name,
            "options": {**limits, "val_fraction": val_fraction},
        },
    )


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
    limits: dict[str, Any] = {"n_train": n_train, "n_val": n_val, "n_test": n_test}
    options = {**limits, "size": size, "val_fraction": val_fraction, "test_fraction": test_fraction}
    return from_arrays(
        **arrays,
        classes=names,
        val_fraction=val_fraction,
        seed=seed,
        **limits,
        name=path.name,
        card={"source": f"{path.name}/", "options": options},
    )


def _images(name: str, given: Any) -> np.ndarray:
    """Checked images ``[N, h, w, c]``."""
    x = _array(name, given)
    expected = "expected uint8, or float in [0, 1], of shape [N, h, w] or [N, h, w, 1 or 3]"
    if x.ndim == 4 and x.shape[-1] not in (1, 3) and x.shape[1] in (1, 3):
        raise ValueError(
            f"{name} has its channels first, {list(x.shape)}; {expected}: "
            f"turn it with {name}.transpose(0, 2, 3, 1)"
        )
    if x.ndim not in (3, 4) or (x.ndim == 4 and x.shape[-1] not in (1, 3)):
        raise ValueError(f"{name} has shape {list(x.shape)}; {expected}")
    if 0 in x.shape:
        raise ValueError(f"{name} is empty, {list(x.shape)}; {expected}")
    if x.dtype != np.uint8:
        if not np.issubdtype(x.dtype, np.floating):
            hint = f": convert it with {name}.astype('uint8')" if x.dtype.kind in "iu" else ""
            raise ValueError(f"{name} has dtype {x.dtype}; {expected}{hint}")
        low, high = float(x.min()), float(x.max())
        if not np.isfinite([low, high]).all():
            raise ValueError(f"{name} holds NaN or infinity; {expected}")
        if low < 0 or high > 1:
            hint = f": divide {name} by 255" if low >= 0 and 1 < high <= 255 else ""
            raise ValueError(f"{name} holds values from {low:g} to {high:g}; {expected}{hint}")
    return x[..., None] if x.ndim == 3 else x


def _labels(name: str, given: Any) -> np.ndarray:
    y = _array(name, given)
    if y.ndim != 1:
        raise ValueError(f"{name} has shape {list(y.shape)}; expected one label per image, [N]")
    if not len(y):
        raise ValueError(f"{name} is empty; expected one label per image, [N]")
    if not np.issubdtype(y.dtype, np.integer):
        raise ValueError(f"{name} has dtype {y.dtype}; expected whole numbers (int64) from 0")
    return y.astype(np.int64)


def _array(name: str, given: Any) -> np.ndarray:
    if isinstance(given, torch.Tensor):
        given = given.detach().cpu().numpy()
    try:
        array = np.asarray(given)
    except ValueError as error:
        raise ValueError(f"{name} is ragged: its rows differ in length") from error
    if array.dtype == object:
        raise ValueError(
            f"{name} has dtype object (ragged rows, or something not a number in it); "
            "expected one rectangular array of numbers"
        )
    return array


def _class_names(classes: Any, y_train: np.ndarray) -> tuple[str, ...]:
    if classes is None:
        names = tuple(str(i) for i in range(int(y_train.max()) + 1))
    else:
        names = tuple(c.decode() if isinstance(c, bytes) else str(c) for c in classes)
        if len(set(names)) < len(names):
            raise ValueError(f"classes must differ from one another, got {', '.join(names)}")
    if len(names) < 2:
        raise ValueError(f"y_train must tell at least 2 classes apart, got {len(names)}")
    return names


def _tensor(x: np.ndarray) -> torch.Tensor:
    """float32 ``[N, c, h, w]`` in [0, 1]; always a copy, as it is normalised in place."""
    out = torch.from_numpy(np.array(x.transpose(0, 3, 1, 2), np.float32, order="C"))
    return out.div_(255) if x.dtype == np.uint8 else out


def _statistics(x: torch.Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel, one image after the other in float64."""
    planes, count = x.flatten(2), x[:, 0].numel()
    total = planes.sum(2).double().numpy().sum(0)
    squares = torch.linalg.vector_norm(planes, dim=2).double().square().numpy().sum(0)
    mean = total / count
    variance = squares / count - mean**2
    std = np.sqrt(np.where(variance > 1e-6, variance, 1))  # a constant channel becomes 0
    return tuple(mean.tolist()), tuple(std.tolist())


def _read(file: Any, key: str, path: Path) -> np.ndarray:
    try:
        return file[key]
    except ValueError as error:
        raise ValueError(
            f"{key} in {path} cannot be read as plain numbers ({error}); "
            "an object array (ragged rows, mixed types) must become a rectangular one"
        ) from error


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
    with Image.open(file) as image:
        height, width = image.height, image.width
    if max(height, width) > _LARGEST_WITHOUT_ASKING:
        raise ValueError(f"{file} is {width} × {height} pixels: choose a size, such as size=32")
    return height, width


def _is_grey(file: Path) -> bool:
    try:
        with Image.open(file) as image:
            if image.mode.startswith(("I", "F")):
                raise ValueError(f"{file} has more than 8 bits a channel; convert it to 8 bits")
            return image.mode in ("1", "L", "LA")
    except (OSError, UnidentifiedImageError) as error:
        raise ValueError(f"{file} is no whole picture ({error}); replace or remove it") from error


def _picture(file: Path, target: tuple[int, int] | None, grey: bool, exact: bool) -> np.ndarray:
    assert target is not None
    try:
        with Image.open(file) as opened:
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
