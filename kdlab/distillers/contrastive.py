"""Contrastive representation distillation: find your own image in the other model's memory."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from kdlab.datasets import Split
from kdlab.distillers.base import LayerDistiller, Layers, Outputs
from kdlab.distillers.connectors import pair_shapes
from kdlab.losses import contrastive_loss
from kdlab.losses.checks import check_count, check_temperature, check_weight, unit


class Contrastive(LayerDistiller):
    """``weight · (student's embeddings in the teacher's bank + teacher's in the student's)``.

    CRD. Two linear layers embed both models' features on one sphere; both learn, also the
    teacher's (the teacher itself does not). Two banks remember an embedding of every training
    image, ``[M, dimension]`` with rows of unit length. Each embedding must tell its own image's row
    of the *other* bank from N rows of other images. Then the batch's rows move on:
    row ← unit(momentum · row + (1 − momentum) · embedding). The banks are part of the state dict.

    Negatives are drawn evenly and with replacement, as noise-contrastive estimation assumes, with
    torch's generator: runs with one seed are equal. There are at most as many as images to draw
    from, which for small data is less than the usual 16384.

    Source: Tian, Krishnan, Isola, "Contrastive Representation Distillation", 2020,
    arXiv:1910.10699; the defaults are its released code's. This differs from that code in that the
    banks start with rows of unit length (there: about), that the constant Z is a closed form
    (see `contrastive_loss`; there: measured on the first batch), and that negatives are drawn anew
    with replacement (there: without, where there are enough). Compared in lesson 02.

    Args:
        layers: one path, or one student's path → teacher's path; of any two shapes.
        weight: of the term.
        negatives: N, at most.
        dimension: of the embeddings.
        temperature: τ > 0 of the cosines.
        momentum: how much of a bank's row stays, from 0 to 1.
        other_classes: True to draw negatives from other classes only, as the released code does;
            an image without a label is its own class. False: any other image.

    Raises:
        ValueError: not exactly one pair of layers, an option out of range, training images all of
            one class, or outputs without ``index``.
    """

    remembers_images = True
    student_bank: Tensor
    teacher_bank: Tensor
    _order: Tensor
    _first: Tensor
    _kin: Tensor

    def __init__(
        self,
        layers: Layers = "pool",
        weight: float = 0.8,
        negatives: int = 16384,
        dimension: int = 128,
        temperature: float = 0.07,
        momentum: float = 0.5,
        other_classes: bool = True,
    ) -> None:
        super().__init__(layers, weight)
        if len(self.layers) != 1:
            raise ValueError(
                f"layers: {len(self.layers)} pairs came, expected one, as each has its own memory; "
                "add several methods: Contrastive(a) + Contrastive(b)"
            )
        check_count("negatives", negatives)
        check_count("dimension", dimension)
        check_temperature("temperature", temperature)
        check_weight("momentum", momentum, highest=1.0)
        self.negatives = negatives
        self.dimension = dimension
        self.temperature = temperature
        self.momentum = momentum
        self.other_classes = other_classes

    def prepare(self, student: nn.Module, teacher: nn.Module | None, train: Split) -> None:
        """Make embeddings and banks, and note which images each image must not be told from."""
        ((mine_shape, their_shape),) = pair_shapes(self.layers, student, teacher, train)
        self.student_embedding = nn.Linear(math.prod(mine_shape[1:]), self.dimension)
        self.teacher_embedding = nn.Linear(math.prod(their_shape[1:]), self.dimension)
        for bank in ("student_bank", "teacher_bank"):
            self.register_buffer(bank, unit(torch.randn(len(train), self.dimension), -1))
        order, first, kin = in_kinds(train.y, self.other_classes)
        self.register_buffer("_order", order, persistent=False)
        self.register_buffer("_first", first, persistent=False)
        self.register_buffer("_kin", kin, persistent=False)
        self._count = min(self.negatives, len(train) - int(kin.max()))
        if self._count < 1:
            raise ValueError(
                f"train: {len(train)} images, all of one class, leave no negatives; "
                "take more classes, or other_classes=False and at least two images"
            )

    def forward(
        self, student: Outputs, teacher: Outputs | None, targets: Tensor
    ) -> dict[str, Tensor]:
        """Return the term ``contrastive``; in training mode, remember the batch."""
        ((mine, theirs),) = self.pairs(student, teacher)
        index = student.index
        if index is None:
            raise ValueError(
                "student.index: None came, expected int64 [B], which training images the batch "
                "holds; Contrastive remembers each image. fit gives it"
            )
        mine = unit(self.student_embedding(mine.flatten(1)), -1)
        theirs = unit(self.teacher_embedding(theirs.detach().flatten(1)), -1)
        negatives = self.draw(index)
        value = contrastive_loss(
            mine, self.teacher_bank, index, negatives, self.temperature
        ) + contrastive_loss(theirs, self.student_bank, index, negatives, self.temperature)
        if self.training:
            self.student_bank = self.moved(self.student_bank, index, mine)
            self.teacher_bank = self.moved(self.teacher_bank, index, theirs)
        return {"contrastive": self.weight * value}

    def draw(self, index: Tensor) -> Tensor:
        """Return negatives ``[B, N]`` for the images at ``index`` ``[B]``, never of their kind."""
        first, kin = self._first[index].unsqueeze(1), self._kin[index].unsqueeze(1)
        size = (len(index), self._count)
        places = torch.randint(2**31, size, device=index.device) % (len(self._order) - kin)
        return self._order[places + kin * (places >= first)]

    @torch.no_grad()
    def moved(self, bank: Tensor, index: Tensor, embeddings: Tensor) -> Tensor:
        """Return a bank whose rows at ``index`` have moved on; a new one, for the graph's sake."""
        rows = self.momentum * bank[index] + (1 - self.momentum) * embeddings
        return bank.index_copy(0, index, unit(rows, -1))


def in_kinds(labels: Tensor, other_classes: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Sort images so that those of one kind stand in a row, which a draw can then step over.

    Returns the order ``[M]`` of the images, and for each image ``[M]`` the place at which its kind
    begins and how many are of it. A kind is a class, or one image.
    """
    alone = torch.arange(len(labels))
    kinds = labels.where(labels >= 0, labels.max() + 1 + alone) if other_classes else alone
    _, kind, sizes = kinds.unique(return_inverse=True, return_counts=True)
    firsts = sizes.cumsum(0) - sizes
    return kind.argsort(stable=True), firsts[kind], sizes[kind]
