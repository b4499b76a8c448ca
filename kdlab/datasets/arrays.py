"""Your own images: arrays in memory, or an ``.npz`` file."""

import math
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from kdlab.datasets.account import accounted
from kdlab.datasets.data import UNLABELLED, Data, Split, in_stratified_order, within_limit
from kdlab.datasets.labels import class_names, named, without_gaps
from kdlab.words import check_known

LAYOUTS = ("NHWC", "NCHW")
_UNPACKED, _RATIO = 2**28, 100  # bytes and ratio beyond which an archive is no honest one


def from_arrays(
    x_train: Any,
    y_train: Any,
    x_test: Any,
    y_test: Any,
    classes: Sequence[str] | None = None,
    *,
    x_val: Any = None,
    y_val: Any = None,
    layout: str | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    val_fraction: float = 0.1,
    seed: int = 0,
    n_train: int | None = None,
    n_val: int | None = None,
    n_test: int | None = None,
    name: str = "arrays",
    card: dict[str, Any] | None = None,
) -> Data:
    """Check arrays and make a ``Data`` of them.

    x: uint8, uint16, or float in [0, 1], ``[N, h, w]`` or ``[N, h, w, c]`` with 1 or 3 channels;
    tensors may be ``[N, c, h, w]``, and so may arrays with ``layout="NCHW"``. They are normalised
    by the training split, unless ``mean`` and ``std`` (one number per channel) say that this is
    done already; float tensors with negative values are taken as they are, too. What is in other
    shapes is for `from_tensors`.

    y: whole numbers ``[N]`` from 0, of any type; in ``y_train`` -1, NaN or None is an image without
    a label, from which ``fit`` learns what a teacher says. Without ``classes``, labels that leave
    numbers out, such as 1 to 10, are counted from 0 and keep their number as their name.

    Without ``x_val`` and ``y_val``, ``val_fraction`` of the labelled training part becomes the
    validation split, in the classes' proportions. ``n_train``, ``n_val`` and ``n_test`` are upper
    limits, drawn in the same way. ``seed`` decides what is drawn.

    Raises ValueError that names the argument, for anything else.
    """
    if (x_val is None) != (y_val is None):
        raise ValueError("x_val and y_val belong together: give both or neither")
    if layout is not None:
        check_known("layout", layout, LAYOUTS)
    if (mean is None) != (std is None):
        raise ValueError("mean and std belong together: give both or neither")
    given = {"train": (x_train, y_train), "test": (x_test, y_test)}
    if x_val is not None:
        given["val"] = x_val, y_val
    ready = mean is not None or _is_normalised(x_train)
    parts = {part: _part(part, x, y, layout, ready) for part, (x, y) in given.items()}
    _check_shapes(parts)
    scales = _scales({part: x for part, (x, _) in parts.items()})
    labels = {part: y for part, (_, y) in parts.items()}
    if classes is None:
        labels, count, names = without_gaps(labels)
    else:
        names = class_names(classes)
        count = len(names)
    if count < 2:
        raise ValueError(f"y_train must tell at least 2 classes apart, got {count}")
    _check_labels(labels, count)
    names = names or named(count)
    parts = {part: (x, labels[part]) for part, (x, _) in parts.items()}
    options: dict[str, Any] = {"n_train": n_train, "n_val": n_val, "n_test": n_test}
    if x_val is None:
        options["val_fraction"] = val_fraction
        parts["val"], parts["train"] = _set_aside(*parts["train"], val_fraction, seed)
    left_out = {}
    for part, (x, y) in parts.items():
        keep = within_limit(part, y, options[f"n_{part}"], seed)
        if len(keep) < len(y):
            left_out[f"beyond n_{part}"] = len(y) - len(keep)
            parts[part] = x[keep], y[keep]
    scales.setdefault("val", scales["train"])
    tensors = {part: _tensor(x, scales[part]) for part, (x, _) in parts.items()}
    channels = tensors["train"].shape[1]
    if ready:
        mean, std = checked_statistics(mean, std, channels)
    else:
        mean, std = _statistics(tensors["train"])
        center, width = (torch.tensor(v).view(-1, 1, 1) for v in (mean, std))
        for images in tensors.values():
            images.sub_(center).div_(width)
    train, val, test = (
        Split(tensors[part], torch.from_numpy(parts[part][1])) for part in ("train", "val", "test")
    )
    facts = {
        "name": name,
        "source": "arrays given by the reader",
        "licence": "as the reader's own",
        "how": "given arrays, "
        + ("normalised already" if ready else "normalised by the training split"),
        **(card or {}),
        "sizes": {"train": len(train), "val": len(val), "test": len(test)},
        "seed": seed,
        "options": options,
    }
    if unlabelled := int((train.y == UNLABELLED).sum()):
        facts["unlabelled"] = unlabelled
    if left_out:
        facts["left_out"] = left_out
    data = Data(name, train, val, test, names, mean, std, facts)
    return accounted(data) if card is None else data


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
        with zipfile.ZipFile(path) as archive:
            _check_archive(path, archive, {f"{key}.npy" for key in needed | optional})
        with np.load(path, allow_pickle=False) as file:
            for key in sorted(needed - set(file.files)):
                raise ValueError(f"{path} lacks the array {key!r}; it has {', '.join(file.files)}")
            arrays: dict[str, Any] = {
                key: _read(file, key, path) for key in file.files if key in needed | optional
            }
    except (
        OSError, EOFError, zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError,
        MemoryError,
    ) as error:  # fmt: skip
        raise ValueError(f"{broken} ({error})") from error
    unread = sorted(set(file.files) - needed - optional)
    data = from_arrays(
        **arrays,
        val_fraction=val_fraction,
        seed=seed,
        n_train=n_train,
        n_val=n_val,
        n_test=n_test,
        name=path.stem,
        card={"source": path.name},
    )
    return accounted(data, {f"array {key!r}": 1 for key in unread})


def _check_archive(path: Path, archive: zipfile.ZipFile, wanted: set[str]) -> None:
    """Raise ValueError before anything is unpacked that is encrypted, a bomb, or a false header."""
    entries = archive.infolist()
    packed, unpacked = (sum(e.compress_size for e in entries), sum(e.file_size for e in entries))
    if unpacked > _UNPACKED and unpacked > _RATIO * packed:
        raise ValueError(
            f"{path}: got {packed:,} bytes that unpack to {unpacked:,}, expected at most "
            f"{_RATIO} times as many; write it again with numpy.savez, without compression"
        )
    for entry in entries:
        if entry.flag_bits & 1:
            raise ValueError(f"{path}: {entry.filename} is encrypted, expected plain arrays")
        if entry.filename not in wanted:
            continue
        with archive.open(entry) as file:
            try:
                version = np.lib.format.read_magic(file)
                read = {
                    (1, 0): np.lib.format.read_array_header_1_0,
                    (2, 0): np.lib.format.read_array_header_2_0,
                }[version]
                shape, _, dtype = read(file)
            except (ValueError, KeyError):
                continue  # numpy says what is wrong with it
            told = file.tell() + math.prod(shape) * dtype.itemsize
            if not dtype.hasobject and (told != entry.file_size or min(shape, default=0) < 0):
                raise ValueError(
                    f"{path}: {entry.filename} has {entry.file_size:,} bytes, but its header says "
                    f"{list(shape)} of {dtype}, {told:,} bytes; write it again"
                )


def _part(
    part: str, x: Any, y: Any, layout: str | None, ready: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Checked images and labels of one split, equally many."""
    images = _images(f"x_{part}", x, layout, ready)
    labels = _labels(f"y_{part}", y, part == "train")
    if len(images) != len(labels):
        raise ValueError(
            f"x_{part} has {len(images)} images, but y_{part} has {len(labels)} labels"
        )
    return images, labels


def _check_shapes(parts: dict[str, tuple[np.ndarray, np.ndarray]]) -> None:
    """Raise unless all splits have images of one shape."""
    shape = list(parts["train"][0].shape[1:])
    for part, (x, _) in parts.items():
        if list(x.shape[1:]) != shape:
            raise ValueError(
                f"x_{part} has images of {list(x.shape[1:])} (height, width, channels), "
                f"but x_train has {shape}"
            )


def _check_labels(labels: dict[str, np.ndarray], count: int) -> None:
    """Raise unless all splits have labels of the same ``count`` classes."""
    for part, y in labels.items():
        training = part == "train"
        if y.min() < (UNLABELLED if training else 0) or y.max() >= count:
            also = f"({count} classes)" + (", or -1 for unlabelled" if training else "")
            hint = "" if training or y.min() >= 0 else "; it is measured: leave unlabelled ones out"
            if y.min() > 0 and y.max() == count:
                hint = f"; count them from 0: y_{part} - 1"
            elif y.max() in (255, 65535) or y.min() == -100:
                hint = (
                    "; where 255 or -100 means 'ignore', leave the image out, or in y_train say -1"
                )
            raise ValueError(
                f"y_{part} must hold labels from 0 to {count - 1} {also}, "
                f"got {y.min()} to {y.max()}{hint}"
            )


def _scales(images: dict[str, np.ndarray]) -> dict[str, int]:
    """What each split is divided by: 255, 1 where uint8 holds 0 and 1 alone, or as many bits.

    Pictures of 10, 12 or 14 bits are stored as uint16, too.
    """
    largest = {
        kind: max((int(x.max()) for x in images.values() if x.dtype == kind), default=0)
        for kind in (np.uint8, np.uint16)
    }
    if 0 < largest[np.uint16] <= 255:
        part = next(part for part, x in images.items() if x.dtype == np.uint16)
        raise ValueError(
            f"x_{part} has dtype uint16, but no value above {largest[np.uint16]}: if they are "
            f"of 8 bits, convert all splits: x_{part}.astype('uint8')"
        )
    bits = next(bits for bits in (10, 12, 14, 16) if largest[np.uint16] < 2**bits)
    by = {np.dtype("u1"): 255 if largest[np.uint8] > 1 else 1, np.dtype("u2"): 2**bits - 1}
    return {part: by.get(x.dtype, 1) for part, x in images.items()}


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


def _is_normalised(given: Any) -> bool:
    """Whether it is a float tensor with negative values, as a data loader gives it."""
    floating = isinstance(given, torch.Tensor) and given.is_floating_point()
    return floating and given.numel() > 0 and float(given.min()) < 0


def _images(name: str, given: Any, layout: str | None, ready: bool) -> np.ndarray:
    """Checked images ``[N, h, w, c]``."""
    x = _array(name, given)
    kinds = "normalised floats" if ready else "uint8, uint16, or float in [0, 1]"
    expected = f"expected {kinds}, of shape [N, h, w] or [N, h, w, 1 or 3]"
    if x.ndim == 4 and layout is None and x.shape[1] in (1, 3):
        first_only = x.shape[-1] not in (1, 3)
        if isinstance(given, torch.Tensor):
            if not first_only:
                raise ValueError(
                    f"{name} has shape {list(x.shape)}, with channels first or last; say which: "
                    "layout='NCHW' or layout='NHWC'"
                )
            layout = "NCHW"
        elif first_only:
            raise ValueError(
                f"{name} has its channels first, {list(x.shape)}; {expected}: "
                f"turn it with {name}.transpose(0, 2, 3, 1), or say layout='NCHW'"
            )
    if x.ndim == 4 and layout == "NCHW":
        x = np.moveaxis(x, 1, -1)
    if x.ndim not in (3, 4) or (x.ndim == 4 and x.shape[-1] not in (1, 3)):
        raise ValueError(
            f"{name} has shape {list(x.shape)}; {expected}; for other shapes there is "
            "kdlab.datasets.from_tensors"
        )
    if 0 in x.shape:
        raise ValueError(f"{name} is empty, {list(x.shape)}; {expected}")
    if x.dtype not in (np.uint8, np.uint16) or ready:
        if not np.issubdtype(x.dtype, np.floating):
            raise ValueError(f"{name} has dtype {x.dtype}; {expected}{_advice(name, x)}")
        low, high = float(x.min()), float(x.max())
        if not np.isfinite([low, high]).all():
            raise ValueError(f"{name} holds NaN or infinity; {expected}")
        if not ready and (low < 0 or high > 1):
            hint = f": divide {name} by 255" if low >= 0 and 1 < high <= 255 else _advice(name, x)
            raise ValueError(f"{name} holds values from {low:g} to {high:g}; {expected}{hint}")
    return x[..., None] if x.ndim == 3 else x


def _advice(name: str, x: np.ndarray) -> str:
    """How numbers of another range become images."""
    if x.dtype.kind not in "iuf":
        return f": convert it with {name}.astype('uint8') * 255" if x.dtype.kind == "b" else ""
    low, high = x.min(), x.max()
    if x.dtype.kind in "iu" and low >= 0 and high <= 255:
        return f": convert it with {name}.astype('uint8')"
    also = ", or give mean and std if it is normalised already" if x.dtype.kind == "f" else ""
    return (
        f": rescale all splits by the range of the training images, as in ({name} - ({low:g})) / "
        f"{float(high) - float(low):g}{also}"
    )


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
    if isinstance(given, torch.utils.data.Dataset):
        raise ValueError(
            f"{name}: got {type(given).__name__}, expected an array; "
            "kdlab.datasets.from_tensors takes data sets of PyTorch"
        )
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


def _tensor(x: np.ndarray, scale: int) -> torch.Tensor:
    """float32 ``[N, c, h, w]`` in [0, 1]; always a copy, as it is normalised in place."""
    out = torch.from_numpy(np.array(x.transpose(0, 3, 1, 2), np.float32, order="C"))
    return out.div_(scale) if scale > 1 else out


def _statistics(x: torch.Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel, one image after the other in float64."""
    planes, count = x.flatten(2), x[:, 0].numel()
    total = planes.sum(2).double().numpy().sum(0)
    squares = torch.linalg.vector_norm(planes, dim=2).double().square().numpy().sum(0)
    mean = total / count
    variance = squares / count - mean**2
    for channel in np.flatnonzero(variance <= 1e-6):  # too near to rounding: once more, exactly
        values = planes[:, channel].double()
        is_constant = bool(values.min() == values.max())  # it becomes 0
        variance[channel] = 1 if is_constant else float(values.var(correction=0))
    return tuple(mean.tolist()), tuple(np.sqrt(variance).tolist())


def checked_statistics(
    mean: Any, std: Any, channels: int
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """What was said of images that are normalised: 0 and 1 where nothing was."""
    if (mean is None) != (std is None):
        raise ValueError("mean and std belong together: give both or neither")
    if mean is None:
        return (0.0,) * channels, (1.0,) * channels
    found = []
    for name, given in (("mean", mean), ("std", std)):
        try:
            values = np.asarray(given, np.float64).reshape(-1)
        except (TypeError, ValueError):
            values = np.empty(0)
        wrong = not np.isfinite(values).all() or (name == "std" and (values <= 0).any())
        if len(values) != channels or wrong:
            kind = "positive numbers" if name == "std" else "finite numbers"
            raise ValueError(
                f"{name}: got {given!r:.80}, expected {channels} {kind}, one a channel"
            )
        found.append(tuple(values.tolist()))
    return found[0], found[1]


def _read(file: Any, key: str, path: Path) -> np.ndarray:
    try:
        return file[key]
    except ValueError as error:
        raise ValueError(
            f"{key} in {path} cannot be read as plain numbers ({error}); "
            "an object array (ragged rows, mixed types) must become a rectangular one"
        ) from error
