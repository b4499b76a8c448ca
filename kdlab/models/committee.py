"""Several models as one teacher: a committee of specialists, or of receptive fields."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from kdlab.models.outputs import WithOutput, logits_of
from kdlab.models.staged import Staged, conv_norm_relu, global_pool, initialise


class Committee(nn.Module):
    """Several classifiers as one: its logits are the mean of the members' logits.

    Taps reach each member's own logits as ``members.0``, ``members.1``, ..., and its inner layers
    as ``members.0.stage2``. So a committee is a teacher for any method, and for one that weighs its
    members (`kdlab.distillers.GatedTeachers`, lesson 05).

    Args:
        members: at least one model, or function of a batch, each with logits ``[B, C]`` for the
            same inputs and classes.

    Raises:
        ValueError: no member, one that cannot be called, or one model twice (taps would read its
            last answer alone); in a forward, members that disagree about the shape of the logits.
    """

    def __init__(self, members: Iterable[nn.Module | Callable[[Tensor], Any]]) -> None:
        super().__init__()
        self.members = nn.ModuleList(_as_module(member) for member in members)
        if len(self.members) == 0:
            raise ValueError("members: none came, expected at least one model")
        if len(set(self.members)) < len(self.members):
            raise ValueError("members: one model came twice; give a copy.deepcopy of it")

    def forward(self, inputs: Tensor) -> Tensor:
        """The members' mean logits ``[B, C]``."""
        logits = [logits_of(member(inputs), "members") for member in self.members]
        shapes = [list(answer.shape) for answer in logits]
        if any(shape != shapes[0] for shape in shapes):
            raise ValueError(
                f"members: they answer with shapes {', '.join(map(str, shapes))}; expected one "
                "shape [B, C]: do all predict the same classes?"
            )
        return torch.stack(logits).mean(0)


def _as_module(member: Any) -> nn.Module:
    if not callable(member):
        raise ValueError(
            f"members: got {type(member).__name__}, expected models, or functions of a batch"
        )
    return member if isinstance(member, nn.Module) else WithOutput(member)


def multi_scale(
    num_classes: int,
    in_channels: int = 3,
    *,
    fields: Sequence[int] = (7, 15, 27),
    width: int = 32,
) -> Committee:
    """A committee of small CNNs that differ in how much of the image one place of theirs sees.

    Each branch sums up local evidence: convolutions 3x3 until its receptive field is reached, then
    the mean over all places, then a classifier. A branch with a small field reads fine strokes and
    cannot see a large glyph whole; one with a large field can. `fit` trains the mean of all; for
    branches that are good alone train each in ``.members`` by itself.

    Args:
        num_classes: C, at least 2.
        in_channels: channels of an image.
        fields: pixels across, each 4k + 3 with k at least 1: 7, 11, 15, ...
        width: channels of every layer.

    Raises:
        ValueError: no fields, or one that is not among those sizes.

    Source: Brendel, Bethge, "Approximating CNNs with Bag-of-Local-Features Models Works
    Surprisingly Well on ImageNet", ICLR 2019, arXiv:1904.00760 (the bounded fields). Lesson 05.
    """
    wrong = [field for field in fields if field < 7 or field % 4 != 3]
    if wrong or not fields:
        raise ValueError(f"fields: {list(fields)!r}, expected one or more of 7, 11, 15, 19, ...")
    return Committee(_branch(num_classes, in_channels, field, width) for field in fields)


def _branch(num_classes: int, in_channels: int, field: int, width: int) -> Staged:
    # The stem sees 3 pixels and halves the image; each further 3x3 then adds 4.
    body: list[nn.Module] = []
    for _ in range((field - 3) // 4):
        body += conv_norm_relu(width, width)
    model = Staged(
        in_channels,
        {
            "stem": nn.Sequential(*conv_norm_relu(in_channels, width, stride=2)),
            "body": nn.Sequential(*body),
            "pool": global_pool(),
            "head": nn.Linear(width, num_classes),
        },
    )
    initialise(model)
    return model
