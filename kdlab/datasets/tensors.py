"""Your own tensors, ready for the model: any shape, any of the three tasks."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset, TensorDataset

from kdlab.datasets.account import accounted
from kdlab.datasets.arrays import checked_statistics
from kdlab.datasets.checks import check_inputs, check_labels
from kdlab.datasets.data import TASKS, Data, Split
from kdlab.datasets.labels import class_names, named, without_gaps
from kdlab.words import check_known


def from_tensors(
    x_train: Tensor | Dataset,
    y_train: Tensor | Dataset | None = None,
    x_test: Tensor | Dataset | None = None,
    y_test: Tensor | None = None,
    classes: Sequence[str] | None = None,
    *,
    x_val: Tensor | Dataset | None = None,
    y_val: Tensor | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    val_fraction: float = 0.1,
    task: str = "classes",
    seed: int = 0,
    name: str = "tensors",
) -> Data:
    """Make a ``Data`` of tensors, or data sets, ready for the model: nothing is scaled or moved.

    ``from_tensors(training_set, test_set)`` reads each sample ``(x, y)`` of two map-style data sets
    once, in their order and with the transforms that they have; a third one may follow as
    ``x_val``. The names of the classes are theirs where they have them in ``classes``.

    For arrays of pictures with values from 0 to 255 or 0 to 1 there is `from_arrays`, which also
    normalises.

    Args:
        x_train, x_test: floating ``[N, ...]`` of any shape, such as images ``[N, c, h, w]`` that
            are normalised already, or rows ``[N, d]``; or token numbers int64 ``[N, L]``; or a
            `torch.utils.data.Dataset` with a length, such as a ``TensorDataset``, and no y.
        y_train, y_test: for "classes" whole numbers ``[N]``, -1 for unlabelled training samples;
            for "labels" ``[N, C]`` in [0, 1]; for "values" ``[N]`` or ``[N, D]``. Training rows
            with NaN are unlabelled. Labels that leave numbers out are counted from 0, and keep
            their number as their name.
        classes: names of the outputs; None numbers them.
        x_val, y_val: None sets ``val_fraction`` of the labelled training samples aside, drawn with
            ``seed``.
        mean, std: with which images ``[N, c, h, w]`` were normalised, c numbers each, so that
            `Data.image` can undo it; None is 0 and 1.
        val_fraction: above 0 and below 1.
        task: "classes", "labels" or "values".
        seed: of what is set aside.
        name: of the data set.

    Raises:
        ValueError: names the argument that does not fit.
    """
    check_known("task", task, TASKS)
    if isinstance(y_train, Dataset) and x_test is None:
        y_train, x_test = None, y_train
    given = {"train": (x_train, y_train), "test": (x_test, y_test), "val": (x_val, y_val)}
    if classes is None and isinstance(x_train, Dataset) and task == "classes":
        classes = getattr(x_train, "classes", None)
    for part, (x, y) in given.items():
        if isinstance(x, Dataset) and y is None:
            given[part] = _samples(f"x_{part}", x)
    if (given["val"][0] is None) != (given["val"][1] is None):
        raise ValueError("x_val and y_val belong together: give both or neither")
    splits = {}
    for part, (x, y) in given.items():
        if part == "val" and x is None:
            continue
        x, y = _tensor(f"x_{part}", x), _tensor(f"y_{part}", y)
        if len(x) != len(y):
            raise ValueError(
                f"y_{part}: got {len(y)} targets, expected one for each of {len(x)} samples"
            )
        splits[part] = Split(x, _targets(f"y_{part}", y, task))
    names = class_names(classes) if classes is not None else ()
    if task == "classes" and not names and len(splits["train"]):
        labels, count, names = without_gaps({p: s.y.numpy() for p, s in splits.items()})
        splits = {p: Split(s.x, torch.from_numpy(labels[p])) for p, s in splits.items()}
        names = names or named(count)
    if x_val is None:
        splits |= _set_aside(splits["train"], val_fraction, seed)
    if task != "classes":
        names = names or named(splits["train"].y.shape[1])
    sizes = {part: len(split) for part, split in splits.items()}
    card: dict[str, Any] = {
        "name": name,
        "source": "tensors given by the reader",
        "licence": "as the reader's own",
        "how": "taken as they are",
        "sizes": sizes,
        "seed": seed,
        "options": {"val_fraction": val_fraction if x_val is None else None, "task": task},
    }
    shape = splits["train"].x.shape
    statistics = checked_statistics(mean, std, shape[1] if len(shape) == 4 else 0)
    data = Data(
        name,
        splits["train"],
        splits["val"],
        splits["test"],
        names,
        *statistics,
        card,
        task=task,
    )
    check_labels(data)
    check_inputs(data)
    return accounted(data)


def _samples(argument: str, source: Dataset) -> tuple[Tensor, Tensor]:
    """The samples of a map-style data set, one after the other, as two tensors."""
    kind = type(source).__name__
    if isinstance(source, IterableDataset) or not hasattr(source, "__len__"):
        raise ValueError(
            f"{argument}: got {kind}, expected a data set with a length; gather its samples in two "
            "tensors, and give those"
        )
    if isinstance(source, TensorDataset):
        if len(source.tensors) != 2:
            raise ValueError(
                f"{argument}: got {kind} of {len(source.tensors)} tensors, expected two, x and y"
            )
        return source.tensors[0], source.tensors[1]
    if not len(source):
        raise ValueError(f"{argument}: got {kind} without a sample, expected some")
    rows: list[Tensor] = []
    targets: list[Tensor] = []
    for index in range(len(source)):
        sample = source[index]
        if not isinstance(sample, tuple | list) or len(sample) != 2:
            raise ValueError(
                f"{argument}: got {type(sample).__name__} as sample {index}, expected pairs (x, y)"
            )
        for value, found in zip(sample, (rows, targets), strict=True):
            try:
                found.append(torch.as_tensor(value))
            except (TypeError, ValueError, RuntimeError) as error:
                raise ValueError(
                    f"{argument}: got a {type(value).__name__} in sample {index}, expected pairs "
                    "of numbers; give the data set a transform, such as ToTensor"
                ) from error
            if found[-1].shape != found[0].shape:
                raise ValueError(
                    f"{argument}: got samples of shape {list(found[0].shape)} and, at {index}, "
                    f"{list(found[-1].shape)}, expected one shape; give the data set a transform"
                )
    return torch.stack(rows), torch.stack(targets)


def _tensor(argument: str, value: Any) -> Tensor:
    if not isinstance(value, Tensor) or value.dim() == 0:
        raise ValueError(
            f"{argument}: got {type(value).__name__}, expected a tensor [N, ...]; "
            "use torch.as_tensor"
        )
    if value.is_meta or value.layout != torch.strided or 0 in value.shape[1:]:
        kind = "meta" if value.is_meta else str(value.layout).removeprefix("torch.")
        raise ValueError(
            f"{argument}: got a {kind} tensor {list(value.shape)}, expected dense values and no "
            "side of 0; use to_dense(), or leave empty features out"
        )
    return value.detach().cpu()


def _targets(argument: str, y: Tensor, task: str) -> Tensor:
    if task != "classes":
        y = y.unsqueeze(1) if y.dim() == 1 and task == "values" else y
        return y if y.is_floating_point() else y.float()
    whole = y.nan_to_num(-1).long() if y.is_floating_point() else y.long()
    if y.is_floating_point() and not bool((y.isnan() | (whole == y)).all()):
        raise ValueError(
            f"{argument}: got {y.dtype} with fractions, expected whole class numbers [N]; for "
            "numbers to predict give task='values'"
        )
    return whole


def _set_aside(train: Split, fraction: float, seed: int) -> dict[str, Split]:
    if not 0 < fraction < 1:
        raise ValueError(f"val_fraction: got {fraction}, expected a number between 0 and 1")
    labelled = train.labelled.nonzero().flatten()
    count = max(1, round(len(labelled) * fraction))
    if count >= len(labelled):
        raise ValueError(
            f"y_train: got {len(labelled)} samples with a label, expected more than {count}, which "
            "are set aside for validation; give more, or x_val and y_val"
        )
    order = torch.randperm(len(labelled), generator=torch.Generator().manual_seed(seed))
    val = labelled[order[:count]].sort().values
    rest = torch.ones(len(train), dtype=torch.bool)
    rest[val] = False
    return {"train": train.select(rest), "val": train.select(val)}
