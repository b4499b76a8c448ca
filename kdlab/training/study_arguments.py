"""What a study is told: its lines, and what is refused before anything is trained."""

from __future__ import annotations

import inspect
import numbers
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor, nn

from kdlab.datasets import Data
from kdlab.distillers import Distiller
from kdlab.models import build_for
from kdlab.training.asking import as_teacher
from kdlab.training.distributed import Alone
from kdlab.training.loop import check_budget, fit
from kdlab.training.teacher_outputs import TeacherOutputs
from kdlab.words import check_known

Student = str | tuple[str, dict[str, Any]] | Callable[[int], nn.Module]
DEFAULTS = {name: one.default for name, one in inspect.signature(fit).parameters.items()}
# arguments of fit that are no options of a study, and what to do instead
ELSEWHERE = {
    "model": "the student is study's first argument, or Setting(student=...)",
    "data": "give Setting(data=...)",
    "distiller": "methods are the values of settings",
    "teacher": "give Setting(teacher=...)",
    "seed": "give seeds=..., how many or which",
    "teacher_outputs": "leave it out: a study asks each teacher once and keeps what it said",
    "checkpoint": "all runs would write to one file; `kdlab sweep` keeps each run and goes on "
    "where it was",
}
OPTIONS = [name for name in DEFAULTS if name not in ELSEWHERE]
EXPECTED: dict[str, tuple[Any, str]] = {
    "distiller": (
        Distiller | None,
        "a method such as SoftTargets() (not the class, not a name), None for the labels alone, "
        "or a Setting",
    ),
    "data": (Data, "a data set, such as datasets.load('glyphs')"),
    "teacher": (Callable | None, "a trained model, such as load_teacher(data)[0]"),
    "options": (Mapping, "arguments of fit by name, such as {'lr': 0.05}"),
}


@dataclass(frozen=True)
class Setting:
    """One line of a comparison: a method, and where it departs from the study's own arguments.

    Attributes:
        distiller: the method, or None for the labels alone.
        data: other data, such as the same images with fewer labels.
        teacher: another teacher.
        student: another student.
        options: other arguments of ``fit``, such as ``{"lr": 0.05}``.
    """

    distiller: Distiller | None = None
    data: Data | None = None
    teacher: nn.Module | None = None
    student: Student | None = None
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Line:
    """One setting, with what it takes over from the study."""

    student: Student
    data: Data | Any  # None while it travels to a worker
    distiller: Distiller | None
    teacher: nn.Module | None
    options: dict[str, Any]
    outputs: TeacherOutputs | None = None  # the teacher's logits for the training images
    answers: Tensor | None = None  # and for the test images

    @property
    def asks_teacher(self) -> bool:
        """Whether the method needs what the teacher says."""
        return self.distiller is not None and self.distiller.needs_teacher


def build_student(student: Student, data: Data, seed: int) -> nn.Module:
    """Return a fresh student for ``data`` with the initial weights of ``seed``."""
    if callable(student):
        return student(seed)
    name, options = (student, {}) if isinstance(student, str) else student
    return build_for(name, data.shape, data.num_classes, seed=seed, **options)


def check_seeds(seeds: int | Sequence[int]) -> list[int]:
    """Return the seeds one by one; raise ValueError where there are none, or equal ones."""
    chosen: list[Any] = list(seeds) if isinstance(seeds, Iterable) else []
    if _is_whole(seeds):
        chosen = list(range(seeds))  # type: ignore[arg-type]  # it is whole
    if (
        not chosen
        or not all(_is_whole(seed) and seed >= 0 for seed in chosen)
        or len(set(chosen)) < len(chosen)
    ):
        raise ValueError(
            f"seeds: {seeds!r:.80} came, expected how many, such as 5, or a list of different "
            "whole numbers from 0 on (equal seeds give equal rows, which tell nothing new)"
        )
    return [int(seed) for seed in chosen]


def check_workers(workers: int | None, ranks: Alone) -> None:
    """Raise ValueError unless a study can take so many worker processes."""
    if workers is not None and (not _is_whole(workers) or workers < 1):
        raise ValueError(
            f"workers: {workers!r} came, expected a whole number from 1 on; None takes one per core"
        )
    if ranks.size > 1 and workers not in (None, 1):
        raise ValueError(
            f"workers: {workers} came under torchrun, whose {ranks.size} ranks share each run; "
            "leave workers out, or start the study without torchrun"
        )


def check_options(options: Mapping[str, Any], known: Iterable[str], where: str) -> None:
    """Raise ValueError for an argument that is none of ``fit`` or not for all runs of a study."""
    for name in options:
        if name in ELSEWHERE:
            raise ValueError(
                f"{name}: it came{where}, but a study cannot hand it to fit; {ELSEWHERE[name]}"
            )
        check_known("argument", name, known, where)


def complete(
    name: str,
    value: Distiller | Setting | None,
    student: Student,
    data: Data,
    teacher: nn.Module | None,
    options: Mapping[str, Any],
    seeds: Sequence[int],
) -> Line:
    """Return the line of one setting; refuse what would stop a long study half-way."""
    setting = value if isinstance(value, Setting) else Setting(value)
    _check_kind("options", setting.options, name)
    check_options(setting.options, OPTIONS, f" in setting {name!r}")
    line = Line(
        student if setting.student is None else setting.student,
        data if setting.data is None else setting.data,
        setting.distiller,
        teacher if setting.teacher is None else setting.teacher,
        {**options, **setting.options},
    )
    for part in ("distiller", "data", "teacher"):
        _check_kind(part, getattr(line, part), name)
    line = replace(line, teacher=as_teacher(line.teacher, line.data))
    if line.asks_teacher and line.teacher is None:
        kind = type(line.distiller).__name__
        raise ValueError(f"teacher: {kind} needs one, and none came for setting {name!r}")
    budget = [part for part in inspect.signature(check_budget).parameters if part != "seed"]
    values = {part: line.options.get(part, DEFAULTS[part]) for part in budget}
    check_budget(**values, seed=max(seeds))
    _check_student(line, seeds[0], name)
    return line


def _is_whole(value: object) -> bool:
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)


def _check_kind(what: str, value: object, name: str) -> None:
    kinds, expected = EXPECTED[what]
    if not isinstance(value, kinds):
        raise ValueError(f"{what}: {_shown(value)} came in setting {name!r}, expected {expected}")


def _check_student(line: Line, seed: int, name: str) -> None:
    student: Any = line.student
    is_pair = isinstance(student, tuple | list) and [*map(type, student)] == [str, dict]
    is_function = callable(student) and not isinstance(student, nn.Module)
    if not (isinstance(student, str) or is_pair or is_function):
        raise ValueError(
            f"student: {_shown(student)} came in setting {name!r}, expected a name of "
            "models.available(), a pair such as ('mlp', {'hidden': (64,)}), or a function such as "
            "lambda seed: MyModel(): each run trains a new model"
        )
    if is_function:
        try:
            inspect.signature(student).bind(seed)
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"student: got a function that does not take a seed in setting {name!r} ({error}), "
                "expected one such as lambda seed: MyModel()"
            ) from error
    model: Any = build_student(student, line.data, seed)
    if not isinstance(model, nn.Module) or (is_function and student(seed) is model):
        raise ValueError(
            f"student: the function of setting {name!r} gave {_shown(model)}, expected a new "
            "model at each call"
        )


def _shown(value: object) -> str:
    return f"{' '.join(repr(value).split()):.80}"
