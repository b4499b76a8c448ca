"""SimKD: the student learns the teacher's last features and answers with its classifier."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from kdlab.datasets import Split
from kdlab.distillers.adapters import as_map, match_size, read_features, resize, rows_of
from kdlab.distillers.base import LayerDistiller, Layers, Outputs
from kdlab.distillers.connectors import given, map_shapes
from kdlab.losses import hint_loss
from kdlab.losses.checks import check_count, compute_dtype
from kdlab.models import Taps, logits_of
from kdlab.models.modes import as_written, device_of, inputs_for
from kdlab.models.taps import check_path

IMAGES = 64  # of the teacher's features, to see whether they are ever negative


class ReusedClassifier(LayerDistiller):
    """``weight · mean (P(F_S) − F_T)²``, and the answer is C_T(mean over places of P(F_S)).

    F are the last feature maps, P a projector that trains with the student, C_T a frozen copy of
    the teacher's classifier. With features that fit exactly the student answers as the teacher
    does. No label is used, and the student's own classifier is never trained: what ``fit`` measures
    in validation is that one and means nothing here. The history has ``reused_accuracy``, that of
    the new answer on the batches it trained on, and afterwards

        student = method.assemble(student)

    is the student, projector and classifier as one model, to be measured and used.

    Source: Chen, Mei, Zhang, Wang, Feng, Chen, "Knowledge Distillation with the Reused Teacher
    Classifier" (SimKD), CVPR 2022, arXiv:2203.14001. As in its code: the larger map is pooled to
    the size of the smaller, P is 1×1, 3×3, 1×1 with a bottleneck of 1/factor, a batch norm and a
    ReLU after each, the mean over all features, weight 1. Here the 3×3 is no wider than the map,
    and the last ReLU is left out for a teacher whose features are negative at times.

    Args:
        layers: one pair: the student's path, and the teacher's, from which a mean over places (or
            nothing) leads to its classifier. Maps, tokens or embeddings; "head:input" is always
            right for the teacher.
        classifier: the path of the teacher's classifier.
        factor: of the projector's bottleneck, at least 1.
        weight: of the term, at least 0.

    Raises:
        ValueError: an option out of its range, more than one pair; in ``prepare`` a path that a
            model does not have, or a classifier that on the teacher's layer does not give the
            teacher's logits.
    """

    in_tournament = False

    def __init__(
        self,
        layers: Layers = "pool:input",
        classifier: str = "head",
        factor: int = 2,
        weight: float = 1.0,
    ) -> None:
        super().__init__(layers, weight)
        check_count("factor", factor)
        if len(self.layers) != 1:
            raise ValueError(
                f"layers: got {len(self.layers)} pairs, expected one: where the last features are"
            )
        self.classifier = classifier
        self.factor = factor
        self._measured: dict[str, Tensor] = {}

    def prepare(self, student: nn.Module, teacher: nn.Module | None, train: Split) -> None:
        """Copy the teacher's classifier, and build the projector."""
        teacher, ((_, path),) = given(teacher), self.layers
        ((mine, theirs),) = map_shapes(self.layers, student, teacher, train)
        self.reused = copy.deepcopy(checked_classifier(teacher, self.classifier))
        self.reused.requires_grad_(False).eval()
        images, rows = train.x[:IMAGES], rows_of(teacher, [path], train)
        features = read_features(teacher, [path], images, rows)[path]
        logits = logits_of(teacher(inputs_for(teacher, images)), "teacher")
        check_answer(self.reused, features, logits, path, self.classifier)
        self.size = tuple(min(*sides) for sides in zip(mine[2:], theirs[2:], strict=True))
        self.projector = projector(
            mine[1], theirs[1], self.size, self.factor, positive=bool((features >= 0).all())
        )

    def train(self, mode: bool = True) -> ReusedClassifier:
        """Set the mode of all but the classifier, whose norms and dropout stay those of eval."""
        super().train(mode)
        if hasattr(self, "reused"):
            self.reused.eval()
        return self

    def forward(
        self, student: Outputs, teacher: Outputs | None, targets: Tensor
    ) -> dict[str, Tensor]:
        """Return the term ``features``."""
        ((mine, theirs),) = self.pairs(student, teacher)
        mine, theirs = match_size(as_map(mine), as_map(theirs))
        projected = self.projector(mine)
        with torch.no_grad():
            right = reused_answer(self.reused, projected).argmax(-1) == targets
        labelled = (targets >= 0).sum().clamp(min=1)
        self._measured = {"reused_accuracy": right.sum() / labelled}
        return {"features": self.weight * hint_loss(projected, theirs)}

    def measures(self) -> dict[str, Tensor]:
        """Return the accuracy, in training mode, of the answer that `assemble` gives."""
        return self._measured

    def assemble(self, student: nn.Module) -> ReusedAnswer:
        """Return the trained student with projector and classifier as one model, in eval mode.

        Args:
            student: the model that was trained; neither it nor the parts are copied.

        Raises:
            ValueError: a method that has not been prepared by training.
        """
        if not hasattr(self, "projector"):
            raise ValueError("assemble: got a method without a projector; train with it first")
        ((path, _),) = self.layers
        parts = self.size, self.projector, self.reused
        whole = ReusedAnswer(student, path, *parts, path in self._as_rows[0])
        return whole.to(device_of(student)).eval()


class ReusedAnswer(nn.Module):
    """A student that answers with its teacher's classifier; `ReusedClassifier` makes it.

    Args:
        model: the student, whose own logits are not used.
        path: its features.
        size: of the map that the projector takes.
        projector: to the teacher's channels.
        classifier: the teacher's; frozen, and in eval mode whatever the mode of the whole.
        rows: whether the features are ``[B, c, l]``, tokens in columns.
    """

    def __init__(
        self,
        model: nn.Module,
        path: str,
        size: tuple[int, ...],
        projector: nn.Module,
        classifier: nn.Module,
        rows: bool = False,
    ) -> None:
        super().__init__()
        self.model = model
        self.path = path
        self.size = size
        self.projector = projector
        self.classifier = classifier
        self.rows = rows

    def train(self, mode: bool = True) -> ReusedAnswer:
        """Set the mode of all but the classifier."""
        super().train(mode)
        self.classifier.eval()
        return self

    def forward(self, inputs: Tensor) -> Tensor:
        """Return logits ``[B, C]``."""
        with as_written(self.model), Taps(self.model, [self.path]) as taps:
            self.model(inputs)
            read = taps[self.path]
        features = read.mT if self.rows else read
        features = resize(as_map(features.to(compute_dtype(features))), self.size)
        return reused_answer(self.classifier, self.projector(features))


def projector(
    before: int, after: int, size: tuple[int, ...], factor: int, *, positive: bool
) -> nn.Sequential:
    """Return three convolutions with a bottleneck, for maps of this size."""
    middle = max(1, after // factor)
    kernel = tuple(min(3, side) for side in size)  # 3 or, where there is one place, 1
    kernel = tuple(side if side % 2 else 1 for side in kernel)
    steps = [(before, middle, (1, 1)), (middle, middle, kernel), (middle, after, (1, 1))]
    layers: list[nn.Module] = []
    for here, there, window in steps:
        padding = tuple(side // 2 for side in window)
        layers += [
            nn.Conv2d(here, there, window, padding=padding, bias=False),  # type: ignore[arg-type]
            nn.BatchNorm2d(there),
            nn.ReLU(),
        ]
    return nn.Sequential(*layers if positive else layers[:-1])


def reused_answer(classifier: nn.Module, features: Tensor) -> Tensor:
    """Return the classifier's logits for maps ``[B, c, h, w]``."""
    embedding = features.mean((2, 3))
    dtype = next((p.dtype for p in classifier.parameters()), embedding.dtype)
    return logits_of(classifier(embedding.to(dtype)), "classifier")


def checked_classifier(teacher: nn.Module, path: str) -> nn.Module:
    """Return the teacher's layer, or raise ValueError that names the argument."""
    try:
        return check_path(teacher, path, inputs=False)
    except ValueError as error:
        said = str(error).removeprefix("paths: ")
        raise ValueError(
            f"classifier: got {path!r}, expected a path of the teacher; {said}"
        ) from None


def check_answer(
    classifier: nn.Module, features: Tensor, logits: Tensor, path: str, name: str
) -> None:
    """Raise ValueError unless the classifier gives the teacher's logits for its features."""
    advice = f"read what it takes, as in layers={{...: {name + ':input'!r}}}"
    try:
        answer = reused_answer(classifier, as_map(features))
    except Exception as error:
        raise ValueError(
            f"classifier: got {type(error).__name__} from {name!r} on the mean over places of the "
            f"teacher's {path!r} {list(features.shape)} ({error!s:.200}), expected the "
            f"teacher's logits; {advice}"
        ) from error
    rounding = max(1e-4, 4 * torch.finfo(logits.dtype).eps) * float(logits.abs().max())
    if answer.shape != logits.shape or float((answer - logits).abs().max()) > rounding:
        raise ValueError(
            f"classifier: got other logits from {name!r} on the mean over places of the teacher's "
            f"{path!r} than the teacher gives, expected the same, or more than that lies between; "
            f"{advice}"
        )
