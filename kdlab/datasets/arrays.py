"""Your own images: arrays in memory, or an ``.npz`` file."""

import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from kdlab.datasets.data import Data, Split, in_stratified_order, within_limit


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
    if (x_val is None) != (y_val is None):
        raise ValueError("x_val and y_val belong together: give both or neither")
    parts = {"train": _part("train", x_train, y_train), "test": _part("test", x_test, y_test)}
    if x_val is not None:
        parts["val"] = _part("val", x_val, y_val)
    names = _class_names(classes, parts["train"][1])
    _check_together(parts, names)
    options: dict[str, Any] = {"n_train": n_train, "n_val": n_val, "n_test": n_test}
    if x_val is None:
        options["val_fraction"] = val_fraction
        parts["val"], parts["train"] = _set_aside(*parts["train"], val_fraction, seed)
    for part, (x, y) in parts.items():
        keep = within_limit(part, y, options[f"n_{part}"], seed)
        if len(keep) < len(y):
            parts[part] = x[keep], y[keep]
    tensors = {part: _tensor(x) for part, (x, _) in parts.items()}
    mean, std = _statistics(tensors["train"])
    center, width = (torch.tensor(v).view(-1, 1, 1) for v in (mean, std))
    train, val, test = (
        Split(tensors[part].sub_(center).div_(width), torch.from_numpy(parts[part][1]))
        for part in ("train", "val", "test")
    )
    facts = {
        "name": name,
        "source": "arrays given by the reader",
        "licence": "as the reader's own",
        "how": "given arrays, normalised by the training split",
        **(card or {}),
        "sizes": {"train": len(train), "val": len(val), "test": len(test)},
        "seed": seed,
        "options": options,
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
                raise ValueError(f"{path} lacks the array {key!r}; it has {', '.join(file.files)}")
            arrays: dict[str, Any] = {
                key: _read(file, key, path) for key in file.files if key in needed | optional
            }
    except (OSError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(f"{broken} ({error})") from error
    return from_arrays(
        **arrays,
        val_fraction=val_fraction,
        seed=seed,
        n_train=n_train,
        n_val=n_val,
        n_test=n_test,
        name=path.stem,
        card={"source": path.name},
    )


def _part(part: str, x: Any, y: Any) -> tuple[np.ndarray, np.ndarray]:
    """Checked images and labels of one split, equally many."""
    images, labels = _images(f"x_{part}", x), _labels(f"y_{part}", y)
    if len(images) != len(labels):
        raise ValueError(
            f"x_{part} has {len(images)} images, but y_{part} has {len(labels)} labels"
        )
    return images, labels


def _check_together(
    parts: dict[str, tuple[np.ndarray, np.ndarray]], names: tuple[str, ...]
) -> None:
    """Raise unless all splits have images of one shape, and labels of the same classes."""
    shape = list(parts["train"][0].shape[1:])
    for part, (x, y) in parts.items():
        if list(x.shape[1:]) != shape:
            raise ValueError(
                f"x_{part} has images of {list(x.shape[1:])} (height, width, channels), "
                f"but x_train has {shape}"
            )
        if y.min() < 0 or y.max() >= len(names):
            raise ValueError(
                f"y_{part} must hold labels from 0 to {len(names) - 1} ({len(names)} classes), "
                f"got {y.min()} to {y.max()}"
            )


def _set_aside(
    x: np.ndarray, y: np.ndarray, fraction: float, seed: int
) -> tuple[tuple[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]:
    """Split into validation and training, each in the classes' proportions."""
    if not 0 < fraction < 1:
        raise ValueError(f"val_fraction must be between 0 and 1, got {fraction}")
    n = max(1, round(len(y) * fraction))
    if n >= len(y):
        raise ValueError(
            f"x_train has {len(y)} images: too few to set {n} aside for validation; "
            "give more, or x_val and y_val"
        )
    order = in_stratified_order(y, seed)
    val, train = np.sort(order[:n]), np.sort(order[n:])
    return (x[val], y[val]), (x[train], y[train])


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
