"""Your own tensors, ready for the model: any shape, any of the three tasks."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from kdlab.datasets.checks import check_inputs, check_labels
from kdlab.datasets.data import TASKS, Data, Split
from kdlab.words import check_known


def from_tensors(
    x_train: Tensor,
    y_train: Tensor,
    x_test: Tensor,
    y_test: Tensor,
    classes: Sequence[str] | None = None,
    *,
    x_val: Tensor | None = None,
    y_val: Tensor | None = None,
    val_fraction: float = 0.1,
    task: str = "classes",
    seed: int = 0,
    name: str = "tensors",
) -> Data:
    """Make a ``Data`` of tensors that are ready for the model: nothing is scaled or moved.

    For arrays of pictures with values from 0 to 255 or 0 to 1 there is `from_arrays`, which also
    normalises.

    Args:
        x_train, x_test: floating ``[N, ...]`` of any shape, such as images ``[N, c, h, w]`` that
            are normalised already, or rows ``[N, d]``; or token numbers int64 ``[N, L]``.
        y_train, y_test: for "classes" whole numbers ``[N]``, -1 for unlabelled training samples;
            for "labels" ``[N, C]`` in [0, 1]; for "values" ``[N]`` or ``[N, D]``. Training rows
            with NaN are unlabelled.
        classes: names of the outputs; None numbers them.
        x_val, y_val: None sets ``val_fraction`` of the labelled training samples aside, drawn with
            ``seed``.
        val_fraction: above 0 and below 1.
        task: "classes", "labels" or "values".
        seed: of what is set aside.
        name: of the data set.

    Raises:
        ValueError: names the argument that does not fit.
    """
    check_known("task", task, TASKS)
    given = {"train": (x_train, y_train), "val": (x_val, y_val), "test": (x_test, y_test)}
    if (x_val is None) != (y_val is None):
        raise ValueError("x_val and y_val belong together: give both or neither")
    splits = {}
    for part, (x, y) in given.items():
        if x is None or y is None:
            continue
        for argument, value in ((f"x_{part}", x), (f"y_{part}", y)):
            if not isinstance(value, Tensor) or value.dim() == 0:
                raise ValueError(
                    f"{argument}: got {type(value).__name__}, expected a tensor [N, ...]; "
                    "use torch.as_tensor"
                )
        if len(x) != len(y):
            raise ValueError(
                f"y_{part}: got {len(y)} targets, expected one for each of {len(x)} samples"
            )
        splits[part] = Split(x.detach().cpu(), _targets(f"y_{part}", y.detach().cpu(), task))
    if x_val is None:
        splits |= _set_aside(splits["train"], val_fraction, seed)
    y = splits["train"].y
    count = int(y.max()) + 1 if task == "classes" else y.shape[1]
    names = tuple(map(str, range(count) if classes is None else classes))
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
    channels = x_train.shape[1] if x_train.dim() == 4 else 0
    data = Data(
        name,
        splits["train"],
        splits["val"],
        splits["test"],
        names,
        (0.0,) * channels,
        (1.0,) * channels,
        card,
        task=task,
    )
    check_labels(data)
    check_inputs(data)
    return data


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
