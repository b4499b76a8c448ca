"""Gates as modules: what `Gated` asks for one weight per sample, with all that a gate may need."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdlab.datasets import Split
from kdlab.distillers.base import Outputs, check_fraction, computing_dtype, options_of
from kdlab.distillers.gate_networks import batches, build_network, take_examples, train_mixture
from kdlab.losses.checks import check_count, check_weight
from kdlab.losses.gates import GATES, median_gate
from kdlab.models import logits_of
from kdlab.models.modes import device_of
from kdlab.words import check_known

GateFunction = Callable[..., Tensor]


class Gate(nn.Module):
    """How much of the teacher to let through, one weight from 0 to 1 per sample. Lesson 05.

    Attributes:
        detached: False for the one bad example whose weights are trained by the loss they weigh.
        relates_images: True where a sample's weight depends on the others of its batch.
    """

    detached: bool = True
    relates_images: bool = False

    def prepare(self, student: nn.Module, teacher: nn.Module, train: Split) -> None:
        """Build what the gate owns, anew for each run; as `Distiller.prepare`."""

    def forward(self, student: Outputs, teacher: Outputs, targets: Tensor) -> Tensor:
        """Return the weights ``[B]``; ``targets`` is ``[B]`` int64, -1 unlabelled."""
        raise NotImplementedError(f"{type(self).__name__} must define forward")

    def extra_repr(self) -> str:
        """Show the options."""
        return options_of(self, hidden=vars(Gate))


class FunctionGate(Gate):
    """A function of `kdlab.losses.gates`, or one's own of the same form.

    Args:
        function: ``f(student_logits, teacher_logits, targets) -> [B]``; options go in with
            ``functools.partial(better_gate, scale=2.0)``. One that looks at the whole batch at
            once, as `median_gate` does, says so: ``function.relates_images = True``.
    """

    def __init__(self, function: GateFunction) -> None:
        super().__init__()
        self._function = function
        inner = function.func if isinstance(function, partial) else function
        # a name and its options, not an address: a checkpoint must know the gate in a new session
        self.function = getattr(inner, "__qualname__", type(inner).__name__)
        self.relates_images = inner is median_gate or getattr(inner, "relates_images", False)
        if isinstance(function, partial):
            self.options = dict(function.keywords)

    def forward(self, student: Outputs, teacher: Outputs, targets: Tensor) -> Tensor:
        """Return the function's weights ``[B]``."""
        return self._function(student.logits, teacher.logits, targets)


class ScheduledGate(Gate):
    """The same weight for all samples, from ``start`` to ``end`` in a straight line over the run.

    Source: Minami, Hirakawa, Yamashita, Fujiyoshi, "Knowledge Transfer Graph for Deep Collaborative
    Learning", ACCV 2020, arXiv:1909.04286: the linear gate (0 to 1); there per epoch, here per
    step. Falling is the early decay of the teacher in arXiv:2006.01683 drawn straight. Lesson 05.

    Args:
        start, end: from 0 to 1; equal ones make a constant, "through" (1) or "cutoff" (0).
    """

    def __init__(self, start: float = 0.0, end: float = 1.0) -> None:
        super().__init__()
        self.start = check_fraction("start", start)
        self.end = check_fraction("end", end)

    def forward(self, student: Outputs, teacher: Outputs, targets: Tensor) -> Tensor:
        """Return the weight of this moment, ``[B]``."""
        now = self.start + (self.end - self.start) * student.progress
        return torch.full_like(teacher.logits[:, 0], now)


class ConstantGate(ScheduledGate):
    """One weight for all samples: the control that has a gate's strength and none of its choice.

    Unlike ``weight * method`` it leaves the term on the hard labels as it is. Lesson 05.

    Args:
        weight: from 0 to 1.
    """

    def __init__(self, weight: float) -> None:
        super().__init__(check_fraction("weight", weight), weight)


class RandomGate(Gate):
    """Open (1) for a random share of the samples, else closed (0): a control without any sense.

    Args:
        mean: the share, from 0 to 1.
        fresh: True draws anew in every step, so that the teacher is heard on every image at times.
            False decides once for each training image, as a gate does that depends on the teacher
            and the label alone; the share is then exact. Lesson 05.

    Raises:
        ValueError: a share outside [0, 1]; with ``fresh=False`` outputs without ``index``.
    """

    is_open: Tensor

    def __init__(self, mean: float, fresh: bool = True) -> None:
        super().__init__()
        self.mean = check_fraction("mean", mean)
        self.fresh = fresh

    def prepare(self, student: nn.Module, teacher: nn.Module, train: Split) -> None:
        """Decide for each training image, if that is wanted."""
        if not self.fresh:
            rank = torch.randperm(len(train))
            self.register_buffer("is_open", rank < round(self.mean * len(train)))

    def forward(self, student: Outputs, teacher: Outputs, targets: Tensor) -> Tensor:
        """Return ones and zeros ``[B]``."""
        if self.fresh:
            return (torch.rand_like(teacher.logits[:, 0]) < self.mean).to(teacher.logits.dtype)
        if student.index is None:
            raise ValueError(
                "student.index: None came, expected int64 [B], which training images the batch "
                "holds; RandomGate(fresh=False) remembers each image. fit gives it"
            )
        return self.is_open[student.index].to(teacher.logits.dtype)


class LearnedGate(Gate):
    """A small network that has learned where the teacher knows the label better than a bare guess.

    Before the run it is trained on examples with labels, on an objective of its own: the likelihood
    of the mixture g · p_teacher(y) + (1 − g) · p_guess(y). Then it is frozen. It is not trained by
    the loss that it weighs, which would close it (`CollapsingGate`).

    Sources: Jacobs, Jordan, Nowlan, Hinton, "Adaptive Mixtures of Local Experts", 1991 (the
    objective). Lesson 05.

    Args:
        sees: "image": a small CNN on the image; "answer": an MLP on the teacher's
            log-probabilities, which also serves texts.
        examples: images that neither teacher nor student learns from are best. None takes a random
            ``share`` of the training images.
        share: of the training images, above 0 and at most 1.
        guess: the know-nothing expert: "uniform", or "prior" for the classes' frequencies among the
            examples.
        budget: wanted mean of g, or None for what the likelihood asks for.
        budget_weight: of (mean g − budget)² beside the likelihood.
        steps: batches of the gate's training.

    Raises:
        ValueError: an option out of range; in `prepare`, no labelled example, or inputs that are no
            images with ``sees="image"``.
    """

    SEES = ("image", "answer")
    GUESSES = ("uniform", "prior")

    def __init__(
        self,
        sees: str = "image",
        examples: Split | None = None,
        share: float = 0.5,
        guess: str = "uniform",
        budget: float | None = None,
        budget_weight: float = 10.0,
        steps: int = 300,
    ) -> None:
        super().__init__()
        check_known("sees", sees, self.SEES)
        check_known("guess", guess, self.GUESSES)
        check_weight("budget_weight", budget_weight)
        check_count("steps", steps)
        self.sees = sees
        self._examples = examples
        self.examples = None if examples is None else f"{len(examples)} images"
        self.share = check_fraction("share", share)
        self.guess = guess
        self.budget = None if budget is None else check_fraction("budget", budget)
        self.budget_weight = float(budget_weight)
        self.steps = steps

    def prepare(self, student: nn.Module, teacher: nn.Module, train: Split) -> None:
        """Train the network, anew for each run."""
        examples = take_examples(self._examples, self.share, train)
        said = (logits_of(teacher(part), "teacher") for part in batches(examples.x, teacher))
        answers = torch.cat(list(said))
        log_p = F.log_softmax(answers.to(computing_dtype(student, teacher)), dim=-1)
        y = examples.y.to(log_p.device)
        experts = torch.stack(
            [log_p.gather(1, y.unsqueeze(1)).squeeze(1), self._guess(log_p, y)], 1
        )
        inputs = examples.x.to(log_p) if self.sees == "image" else log_p
        budget = None if self.budget is None else log_p.new_tensor([self.budget, 1 - self.budget])
        self.network = train_mixture(
            inputs, experts, budget=budget, budget_weight=self.budget_weight, steps=self.steps
        )

    def _guess(self, log_p: Tensor, y: Tensor) -> Tensor:
        classes = log_p.shape[1]
        if self.guess == "uniform":
            return torch.full_like(log_p[:, 0], -math.log(classes))
        # one more of each class, so that none has the probability 0
        counts = torch.bincount(y, minlength=classes) + 1
        return (counts / counts.sum()).to(log_p.dtype).log()[y]

    def forward(self, student: Outputs, teacher: Outputs, targets: Tensor) -> Tensor:
        """Return the network's weight of the teacher, ``[B]``."""
        answer = teacher.logits.log_softmax(-1)
        seen = seen_images(teacher.inputs) if self.sees == "image" else answer
        return F.softmax(self.network(seen.to(weights_of(self.network))), dim=-1)[:, 0]


class CollapsingGate(Gate):
    """The bad example of lesson 05: a gate on the image that is trained by the loss it weighs.

    A closed gate costs nothing, so it closes on everything. `LearnedGate` is the cure.
    """

    detached = False

    def prepare(self, student: nn.Module, teacher: nn.Module, train: Split) -> None:
        """Build the network, which then trains together with the student."""
        self.network = build_network(train.x[:1].to(device_of(student)), outputs=1)

    def forward(self, student: Outputs, teacher: Outputs, targets: Tensor) -> Tensor:
        """Return the network's weights ``[B]``, with gradients."""
        seen = seen_images(teacher.inputs).to(weights_of(self.network))
        return self.network(seen).squeeze(1).sigmoid()


NAMED: dict[str, Callable[[], Gate]] = {
    **{name: partial(FunctionGate, function) for name, function in GATES.items()},
    "rising": ScheduledGate,
    "falling": partial(ScheduledGate, 1.0, 0.0),
    "learned": LearnedGate,
    "collapsing": CollapsingGate,
}


def as_gate(gate: str | GateFunction | Gate) -> Gate:
    """Return a gate from its name, from a function, or as it is.

    Raises:
        ValueError: an unknown name, or nothing that could be a gate.
    """
    if isinstance(gate, Gate):
        return gate
    if isinstance(gate, str):
        check_known("gate", gate, NAMED)
        return NAMED[gate]()
    if not callable(gate):
        raise ValueError(
            f"gate: {gate!r}, expected a name ({', '.join(NAMED)}), a function "
            "(student, teacher, targets) -> [B], or a Gate"
        )
    return FunctionGate(gate)


def weights_of(network: nn.Module) -> Tensor:
    """Return a weight of a network, which tells dtype and device."""
    return next(network.parameters())


def seen_images(images: Tensor | None) -> Tensor:
    """Return the images that a gate looks at; raise ValueError where the outputs hold none."""
    if images is None:
        raise ValueError(
            "inputs: None came, expected the images [B, c, h, w] that the gate looks at; fit gives "
            "them with the teacher's outputs"
        )
    return images.detach()
