"""Weight transfer: the student starts with weights of its teacher."""

from __future__ import annotations

from torch import Tensor, nn

from kdlab.datasets import Split
from kdlab.datasets.data import TASKS
from kdlab.distillers.base import Distiller, Outputs
from kdlab.models import inherit
from kdlab.models.blocks import BLOCKS
from kdlab.models.channels import IMPORTANCE
from kdlab.words import check_known


class WeightTransfer(Distiller):
    """No term at all: before the first step the student takes over weights of its teacher.

    It combines with every method: ``WeightTransfer() + SoftTargets()``. Where the student has
    fewer blocks, some of the teacher's are chosen; where it is narrower, the most important
    channels. ``kdlab.models.inherit`` does it, says how, and gives a report of what went where.

    Sources: Sanh, Debut, Chaumond, Wolf, "DistilBERT, a distilled version of BERT", 2019,
    arXiv:1910.01108 (blocks); Li, Kadav, Durdanovic, Samet, Graf, "Pruning Filters for Efficient
    ConvNets", 2016, arXiv:1608.08710 (channels). Compared in lesson 02.

    Args:
        importance: which channels: ``l1``, ``batch_norm`` or ``random``.
        blocks: which blocks: ``spread``, ``every``, ``first`` or ``last``.
        strict: if False, layers that do not fit keep their random start.

    Raises:
        ValueError: an unknown option; when training begins, layers that do not fit.
    """

    complete = False

    tasks = TASKS

    def __init__(self, importance: str = "l1", blocks: str = "spread", strict: bool = True) -> None:
        super().__init__()
        check_known("importance", importance, IMPORTANCE)
        check_known("blocks", blocks, BLOCKS)
        self.importance = importance
        self.blocks = blocks
        self.strict = strict

    def prepare(self, student: nn.Module, teacher: nn.Module | None, train: Split) -> None:
        """Change the student's weights, in place."""
        if teacher is None:
            raise ValueError(
                "teacher: WeightTransfer needs one to take weights from, and none came; "
                "give one, as in fit(student, data, distiller, teacher=teacher)"
            )
        inherit(
            student,
            teacher,
            train.x[:1],
            importance=self.importance,
            blocks=self.blocks,
            strict=self.strict,
        )

    def forward(
        self, student: Outputs, teacher: Outputs | None, targets: Tensor
    ) -> dict[str, Tensor]:
        """Return no terms."""
        return {}
