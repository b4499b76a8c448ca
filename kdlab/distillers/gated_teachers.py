"""Several teachers at once, and for each sample a choice of whom to follow."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdlab.datasets import Split
from kdlab.distillers.adapters import read_features
from kdlab.distillers.base import (
    Distiller,
    Outputs,
    check_fraction,
    checked_teacher,
    computing_dtype,
    options_of,
)
from kdlab.distillers.gate_networks import build_network, take_examples, train_mixture
from kdlab.distillers.gates import seen_images, weights_of
from kdlab.losses import soft_target_loss
from kdlab.losses.checks import check_count, check_temperature, check_weight, compute_dtype
from kdlab.losses.gates import confidence_aware_weights
from kdlab.models.modes import device_of
from kdlab.words import check_known


class TeachersGate(nn.Module):
    """Which of K teachers to follow: weights ``[B, K]`` of at least 0 with the sum 1. Lesson 05.

    Attributes:
        detached: False for the one bad example whose weights are trained by the loss they weigh.
    """

    detached: bool = True

    def prepare(self, student: nn.Module, teacher: nn.Module, train: Split) -> None:
        """Build what the gate owns, anew for each run; ``teacher`` has ``members``."""

    def forward(self, members: Tensor, inputs: Tensor | None, targets: Tensor) -> Tensor:
        """Return ``[B, K]`` for the members' logits ``[B, K, C]`` and the images they saw."""
        raise NotImplementedError(f"{type(self).__name__} must define forward")

    def extra_repr(self) -> str:
        """Show the options."""
        return options_of(self)


class EvenTeachers(TeachersGate):
    """All the same, 1/K: the plain mean of the teachers."""

    def forward(self, members: Tensor, inputs: Tensor | None, targets: Tensor) -> Tensor:
        """Return 1/K everywhere, ``[B, K]``."""
        return torch.full_like(members[..., 0], 1 / members.shape[1])


class ConfidenceAware(TeachersGate):
    """CA-MKD: less of a teacher the worse it knows the label, `confidence_aware_weights`.

    Source: Zhang, Chen, Wang, "Confidence-Aware Multi-Teacher Knowledge Distillation", ICASSP 2022,
    arXiv:2201.00007; its answers alone, without the term on inner layers. As in the paper the
    weighted losses are added up, K times the released code's mean over the K teachers: divide the
    method's weight by K to train as that does. Lesson 05.
    """

    def forward(self, members: Tensor, inputs: Tensor | None, targets: Tensor) -> Tensor:
        """Return the weights ``[B, K]``."""
        return confidence_aware_weights(members, targets)


class LearnedTeachers(TeachersGate):
    """A small network on the image that has learned which teacher knows this one.

    Before the run it is trained on examples with labels on the mixture's likelihood,
    −log Σ_k g_k p_k(y), then frozen; never on the loss that it weighs (`CollapsingTeachers`).

    Source: Jacobs, Jordan, Nowlan, Hinton, "Adaptive Mixtures of Local Experts", 1991. Lesson 05.

    Args:
        examples: images that neither teachers nor student learn from are best. None takes a random
            ``share`` of the training images.
        share: of the training images, above 0 and at most 1.
        budget: wanted mean weight of each teacher, with the sum 1; None for what the likelihood
            asks for.
        budget_weight: of Σ_k (mean g_k − budget_k)² beside the likelihood.
        steps: batches of the gate's training.

    Raises:
        ValueError: an option out of range; in `prepare`, no labelled example, inputs that are no
            images, or a budget for another number of teachers.
    """

    def __init__(
        self,
        examples: Split | None = None,
        share: float = 0.5,
        budget: Sequence[float] | None = None,
        budget_weight: float = 10.0,
        steps: int = 300,
    ) -> None:
        super().__init__()
        check_weight("budget_weight", budget_weight)
        check_count("steps", steps)
        self._examples = examples
        self.examples = None if examples is None else f"{len(examples)} images"
        self.share = check_fraction("share", share)
        self.budget = None if budget is None else check_shares("budget", budget)
        self.budget_weight = float(budget_weight)
        self.steps = steps

    def prepare(self, student: nn.Module, teacher: nn.Module, train: Split) -> None:
        """Train the network, anew for each run."""
        members = members_of(teacher)
        examples = take_examples(self._examples, self.share, train)
        said = (read_features(teacher, members, part) for part in examples.x.split(256))
        answers = torch.cat([torch.stack(list(each.values()), 1) for each in said])
        log_p = F.log_softmax(answers.to(computing_dtype(student, teacher)), dim=-1)
        y = examples.y.to(log_p.device).view(-1, 1, 1).expand(-1, len(members), 1)
        budget = None if self.budget is None else log_p.new_tensor(self.budget)
        if budget is not None and len(budget) != len(members):
            raise ValueError(f"budget: {len(budget)} shares came, expected {len(members)}")
        self.network = train_mixture(
            examples.x.to(log_p),
            log_p.gather(-1, y).squeeze(-1),
            budget=budget,
            budget_weight=self.budget_weight,
            steps=self.steps,
        )

    def forward(self, members: Tensor, inputs: Tensor | None, targets: Tensor) -> Tensor:
        """Return the network's weights ``[B, K]``."""
        seen = seen_images(inputs).to(weights_of(self.network))
        return F.softmax(self.network(seen), dim=-1)


class CollapsingTeachers(TeachersGate):
    """The bad example of lesson 05: a gate on the image that is trained by the loss it weighs.

    It goes where matching costs least, to the teacher that is easiest to imitate, whatever the
    image shows. `LearnedTeachers` is the cure.
    """

    detached = False

    def prepare(self, student: nn.Module, teacher: nn.Module, train: Split) -> None:
        """Build the network, which then trains together with the student."""
        images = train.x[:1].to(device_of(student))
        self.network = build_network(images, len(members_of(teacher)))

    def forward(self, members: Tensor, inputs: Tensor | None, targets: Tensor) -> Tensor:
        """Return the network's weights ``[B, K]``, with gradients."""
        seen = seen_images(inputs).to(weights_of(self.network))
        return F.softmax(self.network(seen), dim=-1)


class FixedShares(TeachersGate):
    """The same weights for every sample: a control with a gate's mean and none of its choice.

    Args:
        shares: one for each teacher, at least 0, with the sum 1.
        random: True to follow one teacher alone for each sample, drawn with these probabilities.
    """

    def __init__(self, shares: Sequence[float], random: bool = False) -> None:
        super().__init__()
        self.shares = check_shares("shares", shares)
        self.random = random

    def forward(self, members: Tensor, inputs: Tensor | None, targets: Tensor) -> Tensor:
        """Return the weights ``[B, K]``."""
        shares = members.new_tensor(self.shares)
        if len(shares) != members.shape[1]:
            raise ValueError(f"shares: {len(shares)} came, expected {members.shape[1]}")
        if not self.random:
            return shares.expand(len(members), -1)
        chosen = torch.multinomial(shares, len(members), replacement=True)
        return F.one_hot(chosen, len(shares)).to(members.dtype)


TEACHERS: dict[str, Callable[[], TeachersGate]] = {
    "mean": EvenTeachers,
    "confidence_aware": ConfidenceAware,
    "learned": LearnedTeachers,
    "collapsing": CollapsingTeachers,
}


class GatedTeachers(Distiller):
    """``(1 − α) · CE(labels) + α · 1/B Σ_i Σ_k g_ik T² KL(teacher k at T ‖ student at T)``.

    The teacher is a `kdlab.models.Committee`, or any model whose ``members`` give logits, such as
    the branches of a multi-scale one: then the gate chooses a receptive field for each image. The
    student's gradient equals that of matching the mixture Σ_k g_k p_k at temperature T; the value
    differs by what the teachers disagree about.

    The history gets ``teacher_0``, ``teacher_1``, ... (the mean weight of each) and ``gate_right``
    (the weight on teachers that were right, of labelled samples).

    Sources: Hinton, Vinyals, Dean, 2015, arXiv:1503.02531 (soft targets); Zhang, Chen, Wang,
    ICASSP 2022, arXiv:2201.00007 (a weight per sample and teacher). Lesson 05.

    Args:
        gate: "mean", "confidence_aware", "learned", "collapsing" or a `TeachersGate`.
        temperature: T > 0.
        alpha: weight of the soft term, 0 to 1.

    Raises:
        ValueError: an unknown gate, an option out of range; in training, a teacher without members.
    """

    labelled_terms = ("hard",)
    in_tournament = False

    def __init__(
        self, gate: str | TeachersGate = "mean", temperature: float = 4.0, alpha: float = 0.9
    ) -> None:
        super().__init__()
        check_temperature("temperature", temperature)
        if isinstance(gate, str):
            check_known("gate", gate, TEACHERS)
            gate = TEACHERS[gate]()
        self.gate = gate
        self.temperature = temperature
        self.alpha = check_fraction("alpha", alpha)
        self._measured: dict[str, Tensor] = {}

    @property
    def needs_only_logits(self) -> bool:
        """False: it reads the members, whose names it learns in `prepare`."""
        return False

    def prepare(self, student: nn.Module, teacher: nn.Module | None, train: Split) -> None:
        """Find the members and prepare the gate."""
        if teacher is None:
            raise ValueError("teacher: none came, expected several in one, Committee([...])")
        self.teacher_taps = members_of(teacher)
        self.gate.prepare(student, teacher, train)

    def forward(
        self, student: Outputs, teacher: Outputs | None, targets: Tensor
    ) -> dict[str, Tensor]:
        """Return the terms ``hard`` and ``soft``."""
        teacher = checked_teacher(teacher, self)
        members = read_members(teacher)
        weights = self.gate(members, teacher.inputs, targets)
        if weights.shape != members.shape[:2]:
            raise ValueError(
                f"gate: weights {list(weights.shape)} came, expected {list(members.shape[:2])}"
            )
        if self.gate.detached:
            weights = weights.detach()
        values = torch.stack(
            [
                soft_target_loss(student.logits, answer, self.temperature, reduction="none")
                for answer in members.unbind(1)
            ],
            dim=1,
        )
        self._measured = _what_it_did(weights.detach(), members, targets)
        return {
            "hard": (1 - self.alpha) * student.label_loss(targets),
            "soft": self.alpha * (weights * values).sum(1).mean(),
        }

    def measures(self) -> dict[str, Tensor]:
        """Return each teacher's mean weight, and the weight on teachers that were right."""
        return self._measured


def _what_it_did(weights: Tensor, members: Tensor, targets: Tensor) -> dict[str, Tensor]:
    right = (members.argmax(-1) == targets.unsqueeze(1)).to(weights.dtype)
    shares = {f"teacher_{k}": share for k, share in enumerate(weights.mean(0).unbind())}
    return {**shares, "gate_right": (weights * right).sum(1).mean()}


def members_of(teacher: nn.Module) -> tuple[str, ...]:
    """Return the paths ``members.0``, ``members.1``, ... of a committee.

    Raises:
        ValueError: the teacher has no members.
    """
    members = getattr(teacher, "members", None)
    if not isinstance(members, nn.ModuleList) or len(members) == 0:
        raise ValueError(
            f"teacher: {type(teacher).__name__} has no members, expected several teachers in one; "
            "give kdlab.models.Committee([first, second])"
        )
    return tuple(f"members.{k}" for k in range(len(members)))


def read_members(teacher: Outputs) -> Tensor:
    """Return the members' logits ``[B, K, C]``, in float32 or, if they are, float64."""
    paths = [path for path in teacher.taps if path.startswith("members.")]
    if not paths:
        raise ValueError(
            "teacher.taps: no members.0, members.1, ... came, expected the members' logits; "
            "fit(student, data, GatedTeachers(), teacher=Committee([...])) gives them"
        )
    members = torch.stack([teacher.taps[path] for path in paths], dim=1)
    return members.to(compute_dtype(members))


def check_shares(name: str, shares: Sequence[float]) -> tuple[float, ...]:
    """Return shares as a tuple; raise ValueError unless each is at least 0 and the sum is 1."""
    found = tuple(float(share) for share in shares)
    if not found or min(found) < 0 or abs(sum(found) - 1) > 1e-3:
        raise ValueError(f"{name}: {list(found)}, expected one share per teacher with the sum 1")
    return found


def teacher_controls(
    method: GatedTeachers, history: Sequence[Mapping[str, float]]
) -> dict[str, GatedTeachers]:
    """Return the two controls of a run with several teachers: the same mean weight of each.

    "random" follows one teacher for each sample, drawn by these weights; "constant" has them for
    all samples.

    Args:
        method: the method that ran.
        history: its ``run.history.rows``.

    Raises:
        ValueError: a history without ``teacher_0``.
    """
    rows = [row for row in history if "teacher_0" in row]
    if not rows:
        raise ValueError(
            "history: no row with teacher_0 came, expected run.history.rows of a run with this "
            "method"
        )
    names = [name for name in rows[0] if name.startswith("teacher_") and name[8:].isdigit()]
    means = [sum(row[name] for row in rows) / len(rows) for name in names]
    shares = [mean / sum(means) for mean in means]
    return {
        kind: GatedTeachers(FixedShares(shares, kind == "random"), method.temperature, method.alpha)
        for kind in ("random", "constant")
    }
