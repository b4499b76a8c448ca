"""Your own images: arrays in memory, or an ``.npz`` file."""

import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from kdlab.datasets.data import UNLABELLED, Data, Split, in_stratified_order, within_limit


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
    y: whole numbers ``[N]`` from 0, of any type; in ``y_train`` -1, NaN or None is an image without
    a label, from which ``fit`` learns what a teacher says. Without ``x_val`` and ``y_val``,
    ``val_fraction`` of the labelled training part becomes the validation split, in the classes'
    proportions. ``n_train``, ``n_val`` and ``n_test`` are upper limits, drawn in the same way.
    ``seed`` decides what is drawn.

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
    if unlabelled := int((train.y == UNLABELLED).sum()):
        facts["unlabelled"] = unlabelled
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
    images, labels = _images(f"x_{part}", x), _labels(f"y_{part}", y, part == "train")
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
        training = part == "train"
        if y.min() < (UNLABELLED if training else 0) or y.max() >= len(names):
            also = f"({len(names)} classes)" + (", or -1 for unlabelled," if training else "")
            hint = "" if training or y.min() >= 0 else "; it is measured: leave unlabelled ones out"
            raise ValueError(
                f"y_{part} must hold labels from 0 to {len(names) - 1} {also} "
                f"got {y.min()} to {y.max()}{hint}"
            )


def _set_aside(
    x: np.ndarray, y: np.ndarray, fraction: float, seed: int
) -> tuple[tuple[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]:
    """Split into validation, of labelled images, and training, in the classes' proportions."""
    if not 0 < fraction < 1:
        raise ValueError(f"val_fraction must be between 0 and 1, got {fraction}")
    labelled = np.flatnonzero(y != UNLABELLED)
    n = max(1, round(len(labelled) * fraction))
    if n >= len(labelled):
        raise ValueError(
            f"x_train has {len(labelled)} images with a label: too few to set {n} aside for "
            "validation; give more, or x_val and y_val"
        )
    val = np.sort(labelled[in_stratified_order(y[labelled], seed)[:n]])
    train = np.delete(np.arange(len(y)), val)
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


def _labels(name: str, given: Any, training: bool) -> np.ndarray:
    """Checked labels int64 ``[N]``; in training, those that are missing are -1."""
    missing = np.ma.getmaskarray(given) if isinstance(given, np.ma.MaskedArray) else None
    y = _array(name, given, objects=True)
    if y.ndim != 1:
        hint = f": use {name}.argmax(1) if its rows are one-hot" if y.ndim == 2 else ""
        raise ValueError(
            f"{name} has shape {list(y.shape)}; expected one label per image, [N]{hint}"
        )
    if not len(y):
        raise ValueError(f"{name} is empty; expected one label per image, [N]")
    if missing is None:
        missing = np.array([*map(_is_missing, y)]) if y.dtype == object else y != y
    present = y[~missing]
    if y.dtype == object and all(isinstance(v, int | float | np.number) for v in present):
        present = np.array(present.tolist())
    if missing.any() and not training:
        raise ValueError(
            f"{name} has no label for {missing.sum()} of {len(y)} images; expected one for each, "
            "as they are measured: leave these images out"
        )
    if present.dtype.kind not in "iufb":
        raise ValueError(f"{name} has dtype {y.dtype}; expected whole numbers (int64) from 0")
    labels = np.full(len(y), UNLABELLED)
    with np.errstate(invalid="ignore"):
        labels[~missing] = present.astype(np.int64)
    if (labels[~missing] != present).any():
        raise ValueError(
            f"{name} has dtype {y.dtype} and labels that are no whole numbers, such as "
            f"{present[labels[~missing] != present][0]}; expected whole numbers (int64) from 0"
        )
    return labels


def _is_missing(label: Any) -> bool:
    """Whether it is None, NaN, or what pandas has in their place."""
    missing = label is None or type(label).__name__ in ("NAType", "NaTType")
    return missing or (isinstance(label, float | np.floating) and bool(np.isnan(label)))


def _array(name: str, given: Any, objects: bool = False) -> np.ndarray:
    if isinstance(given, torch.Tensor):
        given = given.detach().cpu()
        given = (given.float() if given.dtype == torch.bfloat16 else given).numpy()
    try:
        array = np.asarray(given)
    except ValueError as error:
        raise ValueError(f"{name} is ragged: its rows differ in length") from error
    if array.dtype == object and not objects:
        raise ValueError(
            f"{name} has dtype object (ragged rows, or something not a number in it); "
            "expected one rectangular array of numbers"
        )
    return array


def _class_names(classes: Any, y_train: np.ndarray) -> tuple[str, ...]:
    if classes is None:
        names = tuple(str(i) for i in range(max(0, int(y_train.max()) + 1)))
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
