"""What every method is: named, weighted loss terms from the outputs of student and teacher."""

from __future__ import annotations

import inspect
import numbers
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import wraps
from itertools import chain, count
from typing import Any

import torch
from torch import Tensor, nn

from kdlab.datasets import Split
from kdlab.datasets.data import TASKS
from kdlab.distillers.adapters import rows_of, shapes
from kdlab.losses import hard_label_loss, multi_label_loss, value_loss
from kdlab.losses.checks import check_weight, compute_dtype
from kdlab.models.modes import device_of, uncompiled

Layers = str | Sequence[str] | Mapping[str, str]


@dataclass(frozen=True)
class Outputs:
    """What one model said about one batch.

    Attributes:
        logits: ``[B, C]`` float32, or float64 from a model in float64.
        taps: inner tensors by module path, as asked for in ``student_taps`` or ``teacher_taps``.
        inputs: the images that the model saw, ``[B, c, h, w]``.
        index: which training images they are, ``[B]`` int64; for methods that remember images.
        progress: the share of all steps that are done, 0 in the first and below 1 in the last;
            for methods that follow a schedule.
        class_weights: by which the labels' classes count, ``[C]``; None for all alike.
        task: what is learned, as in ``kdlab.datasets.Data``.
    """

    logits: Tensor
    taps: Mapping[str, Tensor] = field(default_factory=dict)
    inputs: Tensor | None = None
    index: Tensor | None = None
    progress: float = 0.0
    class_weights: Tensor | None = None
    task: str = "classes"

    def label_loss(
        self, targets: Tensor, label_smoothing: float = 0.0, logits: Tensor | None = None
    ) -> Tensor:
        """Return the loss of these logits, or of other ones, on the labels, as the run weighs it.

        Args:
            targets: ``[B]`` int64, -1 unlabelled; of other tasks ``[B, C]``, NaN unlabelled.
            label_smoothing: from 0 to 1, of classes.
            logits: of another head of the same model.
        """
        logits = self.logits if logits is None else logits
        if self.task != "classes":
            return {"labels": multi_label_loss, "values": value_loss}[self.task](logits, targets)
        return hard_label_loss(
            logits,
            targets,
            label_smoothing,
            class_weights=self.class_weights,
        )


class Distiller(nn.Module):
    """A distillation method.

    A subclass stores its options, builds its adapters in ``prepare`` (they train with the student)
    and returns named, weighted terms from ``forward``. ``fit`` adds the terms up and logs each by
    its name. Two methods combine with ``+``.

    Attributes:
        student_taps: module paths to read in the student.
        teacher_taps: module paths to read in the teacher.
        needs_teacher: False for a control that works without one.
        needs_input_gradients: True for a method that differentiates logits by the images.
        remembers_images: True for a method with state that moves in `forward`, such as a memory of
            each training image or a running mean; several processes, each with its share of the
            images, cannot train with it.
        complete: False for a method that never trains the student's classifier, such as a hint;
            it is there to be added to one that does: ``Labels() + Hints()``.
        labelled_terms: names of the terms that are means over the *labelled* images of a batch,
            such as "hard"; all others are means over the whole batch. Where a batch comes in
            parts, a part's term then counts by its number of labelled images.
        relates_images: True where a term compares the images of a batch with each other, so that
            the parts of a batch do not add up to its value. Batch norms, of a model or an adapter,
            are not meant: in training mode they relate images under any method.
        tasks: of ``kdlab.datasets.Data`` that it can learn; a method that compares softmaxes can
            learn "classes" alone.
        in_tournament: False for a method that the stored comparisons of lessons 01 to 03 leave
            out, because not every pair of models has what it reads: attention, exits, several
            teachers, another method.
    """

    student_taps: tuple[str, ...] = ()
    teacher_taps: tuple[str, ...] = ()
    _as_rows: tuple[frozenset[str], frozenset[str]] = (frozenset(), frozenset())
    needs_teacher: bool = True
    needs_input_gradients: bool = False
    remembers_images: bool = False
    complete: bool = True
    labelled_terms: tuple[str, ...] = ()
    relates_images: bool = False
    in_tournament: bool = True
    tasks: tuple[str, ...] = ("classes",)

    @property
    def needs_only_logits(self) -> bool:
        """True when the teacher's logits can be computed once and cached."""
        return not self.teacher_taps and not self.needs_input_gradients

    def prepare(self, student: nn.Module, teacher: nn.Module | None, train: Split) -> None:
        """Build what the method owns, anew for each run: adapters, memory, starting weights.

        Called once, before training, with both models in eval mode on the training device and
        without gradients. ``train`` holds the training images and labels, on the CPU. What it
        builds is then brought to the student's device and to the dtype to compute in: float64 if
        the weights of a model are, else float32.
        """

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if "prepare" in vars(cls):  # one place for what is to hold of everything that is built
            cls.prepare = _finished(cls.prepare)  # type: ignore[assignment, method-assign]

    def __call__(self, student: Outputs, teacher: Outputs | None, targets: Tensor) -> Any:
        """Run `forward` on taps in the dtype of the adapters, ``[B, c, l]`` as ``[B, l, c]``."""
        return super().__call__(self._readable(student, 0), self._readable(teacher, 1), targets)

    def _readable(self, outputs: Outputs | None, side: int) -> Outputs | None:
        if outputs is None or not outputs.taps:
            return outputs
        rows = self._as_rows[side]
        dtype = next((p.dtype for p in self.parameters() if p.is_floating_point()), None)
        taps = {path: tap.mT if path in rows else tap for path, tap in outputs.taps.items()}
        if dtype is not None:
            taps = {p: tap.to(dtype) if tap.is_floating_point() else tap for p, tap in taps.items()}
        return replace(outputs, taps=taps)

    def forward(
        self, student: Outputs, teacher: Outputs | None, targets: Tensor
    ) -> dict[str, Tensor]:
        """Return ``{name: weighted scalar term}``; ``targets`` is ``[B]`` int64, -1 unlabelled."""
        raise NotImplementedError(f"{type(self).__name__} must define forward")

    def measures(self) -> dict[str, Tensor]:
        """Return what the last ``forward`` measured, ``{name: scalar}``: logged, never trained on.

        Each is a mean over the samples of the batch, such as the share that a gate let through.
        """
        return {}

    def extra_repr(self) -> str:
        """Show the options, so that a printed distiller says what it does.

        A checkpoint and the ranks of one run tell methods apart by this.

        Raises:
            ValueError: an option that is not stored under its own name, so that it would not show.
        """
        shown = {*vars(self), *self._modules}
        for name, option in inspect.signature(type(self)).parameters.items():
            if name not in shown and option.kind not in (option.VAR_POSITIONAL, option.VAR_KEYWORD):
                raise ValueError(
                    f"{name}: {type(self).__name__} does not store this option under its own name, "
                    "so that a checkpoint could not tell two values apart; "
                    f"in __init__ write self.{name} = {name}"
                )
        return options_of(self, hidden=("labelled_terms", "relates_images"))

    def __add__(self, other: Distiller) -> Sum:
        return Sum(self, other)

    def __mul__(self, factor: float) -> Scaled:
        return Scaled(self, factor)

    __rmul__ = __mul__


Prepare = Callable[[Any, nn.Module, nn.Module | None, Split], None]


def _finished(prepare: Prepare) -> Prepare:
    """Return a ``prepare`` that leaves what it built where, and in what, the models compute."""

    @wraps(prepare)
    def prepared(
        self: Distiller, student: nn.Module, teacher: nn.Module | None, train: Split
    ) -> None:
        models = [student] if teacher is None else [student, teacher]
        with torch.no_grad(), uncompiled():
            prepare(self, student, teacher, train)
            taps = (self.student_taps, self.teacher_taps)
            rows = [rows_of(*each, train) for each in zip(models, taps, strict=False)]
        self._as_rows = (rows[0], rows[-1] if teacher is not None else frozenset())
        _bring(self, models, device_of(student), computing_dtype(*models))

    return prepared


def computing_dtype(*models: nn.Module) -> torch.dtype:
    """Return float64 if a model has its weights in it, else float32."""
    weights = [next((p for p in m.parameters() if p.is_floating_point()), None) for m in models]
    return compute_dtype(*(weight for weight in weights if weight is not None))


def _bring(
    method: nn.Module, models: Iterable[nn.Module], device: torch.device, dtype: torch.dtype
) -> None:
    """Bring what a method owns to a device and dtype; what it shares with a model stays."""
    shared = {id(tensor) for model in models for tensor in (*model.parameters(), *model.buffers())}
    for tensor in (*method.parameters(), *method.buffers()):
        if id(tensor) not in shared:
            tensor.data = tensor.data.to(device, dtype if tensor.is_floating_point() else None)


def options_of(module: nn.Module, hidden: Iterable[str] = ()) -> str:
    """Return a module's public attributes as ``name=value, ...``: its options, when printed."""
    hidden = {"training", *hidden}
    options = {k: v for k, v in vars(module).items() if not k.startswith("_") and k not in hidden}
    return ", ".join(f"{name}={value!r}" for name, value in options.items())


class Wrapper(Distiller):
    """What holds other methods: it wants whatever one of its parts wants.

    Args:
        parts: the methods.
    """

    def __init__(self, *parts: Distiller) -> None:
        super().__init__()
        self.parts = nn.ModuleList(parts)
        self._collect_taps()
        self.needs_teacher = any(part.needs_teacher for part in parts)
        self.needs_input_gradients = any(part.needs_input_gradients for part in parts)
        self.remembers_images = any(part.remembers_images for part in parts)
        self.complete = any(part.complete for part in parts)
        self.tasks = tuple(task for task in TASKS if all(task in part.tasks for part in parts))
        self.relates_images = any(part.relates_images for part in parts)
        self.labelled_terms = self._labelled([part.labelled_terms for part in parts])

    def _readable(self, outputs: Outputs | None, side: int) -> Outputs | None:
        return outputs  # each part reads for itself

    @property
    def _parts(self) -> list[Distiller]:
        return [part for part in self.parts if isinstance(part, Distiller)]

    @property
    def needs_only_logits(self) -> bool:
        """True when that holds for every part."""
        return all(part.needs_only_logits for part in self._parts)

    def prepare(self, student: nn.Module, teacher: nn.Module | None, train: Split) -> None:
        """Prepare each part, and read what the parts then want to read."""
        for part in self._parts:
            part.prepare(student, teacher, train)
        self._collect_taps()

    def side_by_side(self, parts: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
        """Return the terms of all parts, and note under which names the labelled ones stand.

        Only now that is certain: a number depends on which terms the parts before returned.
        """
        self.labelled_terms = self._labelled(parts)
        return side_by_side(parts)

    def _labelled(self, terms: Sequence[Iterable[str]]) -> tuple[str, ...]:
        named = zip(self._parts, numbered(terms), strict=True)
        return tuple(
            new[name] for part, new in named for name in part.labelled_terms if name in new
        )

    def _collect_taps(self) -> None:
        self.student_taps = tuple({tap: None for part in self._parts for tap in part.student_taps})
        self.teacher_taps = tuple({tap: None for part in self._parts for tap in part.teacher_taps})

    def measures(self) -> dict[str, Tensor]:
        """Return what the parts measured, equal names told apart by a number."""
        return side_by_side(part.measures() for part in self._parts)

    def extra_repr(self) -> str:
        """Show its own options; the parts show themselves, and what they want is no option."""
        return options_of(self, hidden=vars(Distiller))


class Sum(Wrapper):
    """Several methods at once: their terms side by side, equal names told apart by a number."""

    def __init__(self, *parts: Distiller) -> None:
        leaves: list[Distiller] = []
        for part in parts:
            leaves += part._parts if isinstance(part, Sum) else [part]
        super().__init__(*leaves)

    def forward(
        self, student: Outputs, teacher: Outputs | None, targets: Tensor
    ) -> dict[str, Tensor]:
        """Return the terms of all parts."""
        return self.side_by_side([part(student, teacher, targets) for part in self._parts])


class Scaled(Wrapper):
    """A method with all its terms times a factor: ``0.5 * Hints()``.

    Raises:
        ValueError: a factor that is negative or no number.
    """

    def __init__(self, part: Distiller, factor: float) -> None:
        check_weight("factor", factor)
        super().__init__(part)
        self.factor = float(factor)

    def forward(
        self, student: Outputs, teacher: Outputs | None, targets: Tensor
    ) -> dict[str, Tensor]:
        """Return the part's terms, scaled."""
        (part,) = self._parts
        terms = self.side_by_side([part(student, teacher, targets)])
        return {name: self.factor * value for name, value in terms.items()}


def side_by_side(parts: Iterable[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Return the values of all parts by name; a name that is taken gets its part's number."""
    parts = list(parts)
    named = zip(parts, numbered(parts), strict=True)
    return {new[name]: value for part, new in named for name, value in part.items()}


def numbered(parts: Iterable[Iterable[str]]) -> list[dict[str, str]]:
    """Return for each part its names, and what they become side by side: ``hard`` → ``hard_2``.

    The number is that of the part, or the next that is free: a part that is itself a sum may have
    brought that name.
    """
    taken: set[str] = set()
    found: list[dict[str, str]] = []
    for number, part in enumerate(parts, start=1):
        found.append({})
        for name in part:
            numbers = (f"{name}_{n}" for n in count(number))
            found[-1][name] = new = next(n for n in chain([name], numbers) if n not in taken)
            taken.add(new)
    return found


class LayerDistiller(Distiller):
    """A method that compares pairs of inner layers.

    Args:
        layers: a module path that both models have, several of them, or student's path →
            teacher's path. ``kdlab.models.paths(model)`` lists a model's paths.
        weight: of the method's term, at least 0.

    Raises:
        ValueError: no layer, or a weight that is negative or not finite.
    """

    complete = False
    tasks = TASKS

    def __init__(self, layers: Layers, weight: float) -> None:
        super().__init__()
        check_weight("weight", weight)
        self.layers = layer_pairs(layers)
        self.weight = float(weight)
        self.student_taps = tuple(dict.fromkeys(student for student, _ in self.layers))
        self.teacher_taps = tuple(dict.fromkeys(teacher for _, teacher in self.layers))

    def prepare(self, student: nn.Module, teacher: nn.Module | None, train: Split) -> None:
        """Check in a dry run that all layers can be read."""
        for model, taps in ((student, self.student_taps), (teacher, self.teacher_taps)):
            if model is not None:
                shapes(model, taps, train)

    def pairs(self, student: Outputs, teacher: Outputs | None) -> list[tuple[Tensor, Tensor]]:
        """Return the tensors of each pair of layers, the student's first, in one dtype."""
        return read_layers(self.layers, student, checked_teacher(teacher, self))


def read_layers(
    layers: Sequence[tuple[str, str]], student: Outputs, teacher: Outputs
) -> list[tuple[Tensor, Tensor]]:
    """Return each pair's tensors in single precision: a forward pass in bf16 gives bf16 ones."""
    both = [(student.taps[mine], teacher.taps[theirs]) for mine, theirs in layers]
    return [(mine.to(compute_dtype(mine)), its.to(compute_dtype(its))) for mine, its in both]


def layer_pairs(layers: Layers) -> tuple[tuple[str, str], ...]:
    """Return ``layers`` in any of its three forms as pairs (student's path, teacher's path)."""
    if isinstance(layers, str):
        layers = (layers,)
    items = layers.items() if isinstance(layers, Mapping) else zip(layers, layers, strict=True)
    found = tuple((mine, theirs) for mine, theirs in items)
    if not found:
        raise ValueError('layers: none came, expected at least one, such as "stage2"')
    return found


def checked_teacher(teacher: Outputs | None, who: Distiller) -> Outputs:
    """Return the teacher's outputs, or say kindly that there is no teacher."""
    if teacher is None:
        raise ValueError(
            f"teacher: {type(who).__name__} needs a teacher and got none; "
            "give one, as in fit(student, data, distiller, teacher=teacher)"
        )
    return teacher


def teacher_logits(teacher: Outputs | None, who: Distiller) -> Tensor:
    """Return the teacher's logits, or say kindly that there is no teacher."""
    return checked_teacher(teacher, who).logits


def check_fraction(name: str, value: float) -> float:
    """Return ``value`` if it lies in [0, 1]; raise ValueError that names it otherwise."""
    if not isinstance(value, numbers.Real) or not 0 <= value <= 1:
        raise ValueError(f"{name}: {value!r} came, expected a weight from 0 to 1, a number")
    return float(value)
