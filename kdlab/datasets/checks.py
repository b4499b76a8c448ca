"""What is looked at in a data set before the first step: labels and images of all splits."""

import math

import torch
from torch import Tensor

from kdlab.datasets.data import TASKS, UNLABELLED, Data, Split
from kdlab.words import check_known


def check_labels(data: Data) -> None:
    """Raise ValueError that names the split, unless its labels can be learnt from and measured.

    Each image has one label, a whole number from 0 to C - 1; -1 (unlabelled) in training alone.
    Only shapes and the smallest and largest label are looked at, unless there is something to say.

    Raises:
        ValueError: labels that are no tensor, one-hot or of another shape, not as many as images,
            not whole numbers, out of range, or -1 where they are measured; an empty training or
            validation split; no classes.
    """
    if data.num_classes < 1:
        raise ValueError("data.classes: got none, expected the name of each class; give them")
    check_known("task", data.task, TASKS, " of data")
    if data.task != "classes":
        for part, split in _splits(data):
            _check_targets(f"data.{part}", split, data, part)
        return
    for part, split in _splits(data):
        _check_form(f"data.{part}", split, empty=part == "test")
        if len(split.y):
            _check_range(f"data.{part}.y", split.y, data.num_classes, part == "train")


def check_inputs(data: Data) -> None:
    """Raise ValueError unless the images of all splits are finite numbers of one shape.

    Token numbers (whole numbers ``[N, L]``) are left alone. Any floating type is kept. A data set
    is looked at once; again only if its tensors were changed in place.

    Raises:
        ValueError: NaN or infinity, with the split, how many images hold some and which is first;
            whole numbers where images are expected; splits of different shapes; images with a
            gradient.
    """
    state = [(id(split.x), _version(split.x)) for _, split in _splits(data)]
    if data.__dict__.get("_checked_inputs") == state:
        return
    for part, split in _splits(data):
        name, x = f"data.{part}.x", split.x
        if not isinstance(x, Tensor) or x.ndim < 2:
            shape = f" {list(x.shape)}" if isinstance(x, Tensor) else ""
            raise ValueError(
                f"{name}: got {type(x).__name__}{shape}, expected a tensor [N, ...] with an image "
                "or a text in each row; see kdlab.datasets.from_arrays"
            )
        if len(x) and x.shape[1:] != data.train.x.shape[1:]:
            raise ValueError(
                f"{name}: got images of shape {list(x.shape[1:])}, expected "
                f"{list(data.train.x.shape[1:])} as in data.train; bring all splits to one shape"
            )
        _check_numbers(name, x)
    data.__dict__["_checked_inputs"] = state


def _splits(data: Data) -> list[tuple[str, Split]]:
    return [("train", data.train), ("val", data.val), ("test", data.test)]


def _version(x: Tensor) -> int:
    """How often a tensor was changed in place; -1 where PyTorch does not count."""
    return -1 if not isinstance(x, Tensor) or x.is_inference() else x._version


def _check_form(name: str, split: Split, empty: bool) -> None:
    y = split.y
    if not isinstance(y, Tensor):
        raise ValueError(
            f"{name}.y: got {type(y).__name__}, expected an int64 tensor [N]; use torch.as_tensor"
        )
    if y.ndim != 1:
        one_hot = y.ndim == 2 and y.shape[1] > 1
        advice = ".argmax(1), if its rows are one-hot or probabilities" if one_hot else ".flatten()"
        raise ValueError(
            f"{name}.y: got shape {list(y.shape)}, expected one label per image, [N]; use y{advice}"
        )
    if len(y) != len(split.x):
        raise ValueError(
            f"{name}.y: got {len(y)} labels, expected one for each of {len(split.x)} images; "
            "are both of the same split and in the same order?"
        )
    if y.dtype != torch.int64:
        raise ValueError(
            f"{name}.y: got {y.dtype}, expected whole numbers (int64); "
            "use y.long(), where all are whole, and -1 in place of NaN for unlabelled images"
        )
    if not len(y) and not empty:
        raise ValueError(f"{name}: got no images, expected at least one; give some")


def _check_targets(name: str, split: Split, data: Data, part: str) -> None:
    """As for classes, where each sample has C labels in [0, 1], or C values."""
    y, wanted = split.y, [len(split.x), data.num_classes]
    if not isinstance(y, Tensor) or not y.is_floating_point() or list(y.shape) != wanted:
        got = f"{y.dtype} {list(y.shape)}" if isinstance(y, Tensor) else type(y).__name__
        raise ValueError(
            f"{name}.y: got {got}, expected floating {wanted} for the task {data.task!r}, one "
            "column for each name in data.classes"
        )
    if not len(y):
        if part == "test":
            return
        raise ValueError(f"{name}: got no samples, expected at least one; give some")
    labelled = split.labelled
    if part != "train" and not labelled.all():
        raise ValueError(
            f"{name}.y: got {int((~labelled).sum())} of {len(y)} rows with NaN, expected numbers; "
            "leave unlabelled samples out: validation and test are measured"
        )
    known = y[labelled]
    low, high = (0.0, 1.0) if data.task == "labels" else (-math.inf, math.inf)
    if len(known) and not bool(((known >= low) & (known <= high) & known.isfinite()).all()):
        expected = "0 (absent) to 1 (present)" if data.task == "labels" else "finite numbers"
        raise ValueError(
            f"{name}.y: got values from {float(known.min()):g} to {float(known.max()):g}, expected "
            f"{expected}"
        )


def _check_range(name: str, y: Tensor, classes: int, training: bool) -> None:
    least, most = (int(end) for end in torch.aminmax(y))
    if least >= (UNLABELLED if training else 0) and most < classes:
        return
    wrong = (y >= classes) | (y < (UNLABELLED if training else 0))
    first = int(wrong.nonzero()[0])
    also = ", or -1 for unlabelled" if training else ""
    advice = (
        "leave unlabelled images out: validation and test images are measured"
        if not training and least == UNLABELLED and most < classes
        else "number the labels from 0, and name as many classes as there are"
    )
    raise ValueError(
        f"{name}: got {least} to {most} ({int(wrong.sum())} of {len(y)} wrong, the first, "
        f"{int(y[first])}, at index {first}), expected 0 to {classes - 1}{also}; {advice}"
    )


def _check_numbers(name: str, x: Tensor) -> None:
    if x.requires_grad:
        raise ValueError(f"{name}: got images with a gradient, expected data; use x.detach()")
    if not (x.is_floating_point() or x.is_complex()):
        if x.ndim > 2 or x.dtype == torch.bool:
            raise ValueError(
                f"{name}: got {x.dtype} images, expected floating-point ones; use x.float() / 255, "
                "or kdlab.datasets.from_arrays, which also normalises"
            )
        return
    if not x.numel() or _is_finite(x):
        return
    counts = (~torch.isfinite(x)).flatten(1).sum(1)
    broken = counts.nonzero().flatten()
    raise ValueError(
        f"{name}: got NaN or infinity in {len(broken)} of {len(x)} images (the first at index "
        f"{int(broken[0])}, {int(counts[broken[0]])} values), expected finite numbers; repair or "
        "leave out these images"
    )


def _is_finite(x: Tensor) -> bool:
    """Whether all numbers are finite, in one pass and without a mask as large as the data."""
    if x.is_complex():
        x = torch.view_as_real(x.resolve_conj())
    return all(math.isfinite(float(end)) for end in torch.aminmax(x))
