"""The machinery behind ``lab.check``: what an exercise is, and how an answer is judged.

Each lesson has one file in this folder with a list ``EXERCISES``. A check takes the learner's
answer and returns a ``Verdict``; the functions below make the usual checks. None of them reveals
the answer, and none lets an error of the learner's code through.
"""

from __future__ import annotations

import importlib
import math
import pkgutil
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Any, Literal

import torch
from torch import Tensor

Status = Literal["not yet", "wrong", "close", "right"]
NOT_YET = "not yet: replace the ..."


@dataclass(frozen=True)
class Verdict:
    """What a check says: a status and one line about the answer, without the hint."""

    status: Status
    message: str = ""


Check = Callable[[Any], Verdict]


@dataclass(frozen=True)
class StandIn:
    """The package's function in the place of a learner's; as an answer it counts as none."""

    function: Callable[..., Any]

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        """Call the function."""
        return self.function(*arguments, **named)


@dataclass(frozen=True)
class Exercise:
    """A task of a lesson.

    Attributes:
        name: as given to ``lab.check``; unique over all lessons.
        check: judges an answer.
        hints: three, each saying more than the one before; shown one by one.

    Raises:
        ValueError: not three hints.
    """

    name: str
    check: Check
    hints: tuple[str, str, str]

    def __post_init__(self) -> None:
        if len(self.hints) != 3 or not all(self.hints):
            raise ValueError(f"exercise {self.name!r} has hints {self.hints!r}; expected three")

    @property
    def reference(self) -> Callable[..., Any] | None:
        """The package's own function, if the check compares with one (see ``function``)."""
        return self.check.keywords["reference"] if isinstance(self.check, partial) else None

    def judge(self, answer: Any) -> Verdict:
        """Return the verdict on any answer whatever; raise nothing."""
        try:
            return Verdict("not yet", NOT_YET) if is_placeholder(answer) else self.check(answer)
        except (Exception, SystemExit) as error:  # a learner's function may do anything
            return _failed(error)


def available() -> tuple[str, ...]:
    """Return the names of all exercises."""
    return tuple(_registry())


def find(name: str) -> Exercise | None:
    """Return the exercise of that name, None if there is none."""
    return _registry().get(name)


@cache
def _registry() -> Mapping[str, Exercise]:
    """Collect ``EXERCISES`` from every file of this folder."""
    found: dict[str, Exercise] = {}
    for module in pkgutil.iter_modules(__path__):
        for exercise in importlib.import_module(f"{__name__}.{module.name}").EXERCISES:
            if exercise.name in found:
                raise ValueError(f"two exercises are called {exercise.name!r}; names are unique")
            found[exercise.name] = exercise
    return found


def is_placeholder(answer: Any) -> bool:
    """Say whether an answer is still ``...``, None or a stand-in, or holds one of them."""
    if isinstance(answer, Mapping):
        return any(is_placeholder(value) for value in answer.values())
    if isinstance(answer, list | tuple):
        return any(is_placeholder(value) for value in answer)
    return answer is None or answer is ... or isinstance(answer, StandIn)


def number(
    expected: float,
    tolerance: float = 0.0,
    close: float = 0.0,
    diagnoses: Mapping[float, str] | None = None,
) -> Check:
    """Accept a number within ``tolerance`` of ``expected``; within ``close`` it is close.

    Both are absolute. Tensors and arrays with one element are numbers too.

    Args:
        expected: the right number.
        tolerance, close: how far from it an answer may lie.
        diagnoses: wrong number → what to say to who gave it, or one within ``tolerance`` of it.
    """

    def check(answer: Any) -> Verdict:
        value = _as_number(answer)
        if value is None:
            return Verdict("wrong", f"expected one number, got {_kind(answer)}")
        if math.isnan(value):
            return Verdict("wrong", "the answer is nan, not a number")
        distance = 0.0 if value == expected else abs(value - expected)
        if distance <= tolerance:
            return Verdict("right")
        for wrong, hint in (diagnoses or {}).items():
            if abs(value - wrong) <= tolerance:
                return Verdict("wrong", hint)
        side = "too large" if value > expected else "too small"
        if distance <= close:
            return Verdict("close", f"a little {side}")
        return Verdict("wrong", side)

    return check


def choice(expected: str | Collection[str], options: Sequence[str] = ()) -> Check:
    """Accept the text ``expected``, or the set of all texts in it; case and spaces do not count.

    With several expected texts an answer that has some of them and no other is close; any other is
    told how many of its texts do not belong and how many are missing.

    Args:
        expected: the right option, or all right options.
        options: all there are; any other answer is told so.
    """
    right = _texts(expected)
    known = _texts(options)
    if right is None or known is None:
        raise ValueError(f"expected={expected!r}, options={options!r}; expected texts")

    def check(answer: Any) -> Verdict:
        given = _texts(answer)
        if given is None or not given:
            return Verdict("wrong", f"expected text, got {_kind(answer)}")
        if known and given - known:
            return Verdict("wrong", f"choose from: {', '.join(options)}")
        if given == right:
            return Verdict("right")
        if right and given < right:
            return Verdict("close", "right so far, but something is missing")
        return Verdict("wrong", _counted(given - right, right - given) if len(right) > 1 else "")

    return check


def function(
    reference: Callable[..., Tensor],
    probes: Sequence[tuple[Any, ...]],
    tolerance: float = 1e-5,
    diagnoses: Sequence[tuple[Callable[..., Tensor], str]] = (),
    gradients: bool = True,
) -> Check:
    """Accept a function whose values and gradients equal those of ``reference``.

    Both are called on clones of every probe; gradients are those of the summed value with respect
    to the first argument. A function that equals a wrong reference of ``diagnoses`` in value on all
    probes gets the hint that belongs to this mistake. Right values with another gradient are close.

    Args:
        reference: the package's function.
        probes: argument tuples; the first argument is a floating tensor.
        tolerance: relative to the largest entry of the reference (and absolute below 1).
        diagnoses: (a wrong function, what to say to who wrote it).
        gradients: False for a function that is not to be differentiated, such as rounding; then
            values decide alone.

    Raises:
        ValueError: no probes.
    """
    if not probes:
        raise ValueError("probes is empty: give at least one tuple of arguments")

    return partial(
        _compare,
        reference=reference,
        probes=probes,
        tolerance=tolerance,
        diagnoses=diagnoses,
        gradients=gradients,
    )


def _compare(
    answer: Any,
    *,
    reference: Callable[..., Tensor],
    probes: Sequence[tuple[Any, ...]],
    tolerance: float,
    diagnoses: Sequence[tuple[Callable[..., Tensor], str]],
    gradients: bool,
) -> Verdict:
    """Judge a function as ``function`` says."""
    if not callable(answer):
        return Verdict("wrong", f"expected a function, got {_kind(answer)}")
    try:
        given = [_value_and_gradient(answer, probe) for probe in probes]
    except _NotYetError:
        return Verdict("not yet", NOT_YET)
    except (Exception, SystemExit) as error:
        return _failed(error)
    wanted = [_value_and_gradient(reference, probe) for probe in probes]
    if all(_alike(g[0], w[0], tolerance) for g, w in zip(given, wanted, strict=True)):
        if not gradients:
            return Verdict("right")
        if any(gradient is None for _, gradient in given):
            return Verdict("close", "the value is right, but no gradient flows through it")
        if all(_alike(g[1], w[1], tolerance) for g, w in zip(given, wanted, strict=True)):
            return Verdict("right")
        return Verdict("close", "the value is right, its gradient is not")
    for wrong, hint in diagnoses:
        mistaken = [_value_and_gradient(wrong, probe)[0] for probe in probes]
        if all(_alike(g[0], m, tolerance) for g, m in zip(given, mistaken, strict=True)):
            return Verdict("wrong", hint)
    for (value, _), (target, _) in zip(given, wanted, strict=True):
        if value.shape != target.shape:
            shapes = f"{tuple(value.shape)}; expected {tuple(target.shape)}"
            return Verdict("wrong", f"the result has shape {shapes}")
    return Verdict("wrong", "the value differs from the reference")


def detached(
    check: Check, reference: Callable[..., Tensor], probe: tuple[Tensor, Tensor], hint: str
) -> Check:
    """Return ``check``, for which a right answer is close if it teaches its second argument, too.

    Args:
        check: of a function with two arguments, made by ``function`` with this ``reference``.
        reference: the package's function, for a stand-in.
        probe: two arguments, at which a gradient into the second would not be 0.
        hint: what to say to who lets it flow.
    """
    return partial(_detached, check=check, reference=reference, probe=probe, hint=hint)


def _detached(
    answer: Any,
    *,
    check: Check,
    reference: Callable[..., Tensor],
    probe: tuple[Tensor, Tensor],
    hint: str,
) -> Verdict:
    """Judge a function as ``detached`` says."""
    verdict = check(answer)
    if verdict.status != "right":
        return verdict
    first, second = (x.clone().requires_grad_() for x in probe)
    with torch.enable_grad():
        value = answer(first * 1, second * 1)
    (gradient,) = torch.autograd.grad(value.sum(), second, allow_unused=True)
    flows = gradient is not None and bool(gradient.any())
    return Verdict("close", hint) if flows else verdict


class _NotYetError(Exception):
    """The learner's function still returns its placeholder."""


def _value_and_gradient(f: Callable[..., Any], probe: tuple[Any, ...]) -> tuple[Tensor, Any]:
    """Call ``f`` on clones; return its value and d(sum)/d(first argument), None if it has none."""
    arguments = [a.detach().clone() if isinstance(a, Tensor) else a for a in probe]
    first = arguments[0].requires_grad_()
    with torch.enable_grad():
        try:
            # a copy: a function that writes into its arguments must not write into a leaf
            value = f(first * 1, *arguments[1:])
        except NotImplementedError:
            raise _NotYetError from None
        if is_placeholder(value):
            raise _NotYetError
        value = torch.as_tensor(value)
        if not value.requires_grad:
            return value, None
        (gradient,) = torch.autograd.grad(value.sum(), first, allow_unused=True)
    return value.detach(), gradient


def _alike(given: Tensor | None, wanted: Tensor | None, tolerance: float) -> bool:
    if given is None or wanted is None:
        return given is wanted
    if given.shape != wanted.shape:
        return False
    given, wanted = given.double(), wanted.double()
    scale = max(1.0, float(wanted.abs().max())) if wanted.numel() else 1.0
    return bool(torch.allclose(given, wanted, rtol=0.0, atol=tolerance * scale))


def _as_number(answer: Any) -> float | None:
    """Return a number, or the one number in a tensor or array; None for all else."""
    if getattr(answer, "size", None) is not None and hasattr(answer, "item"):
        try:
            answer = answer.item()
        except (RuntimeError, ValueError, TypeError):
            return None
    if isinstance(answer, bool) or not isinstance(answer, int | float):
        return None
    return float(answer)


def _texts(answer: Any) -> set[str] | None:
    if isinstance(answer, str):
        answer = [answer]
    if not isinstance(answer, Collection) or not all(isinstance(text, str) for text in answer):
        return None
    return {" ".join(text.split()).casefold() for text in answer}


def _counted(wrong: set[str], missing: set[str]) -> str:
    """Say how many texts of an answer are wrong and how many it lacks, and not which."""
    told = f"{len(wrong)} {'does' if len(wrong) == 1 else 'do'} not belong"
    lacking = f", {len(missing)} {'is' if len(missing) == 1 else 'are'} missing"
    return told + (lacking if missing else "")


def _kind(answer: Any) -> str:
    return f"a {type(answer).__name__}"


def _failed(error: BaseException) -> Verdict:
    """Return the verdict on code that raised: type and text, on one line of bounded length."""
    text = " ".join(str(error).split())
    text = text if len(text) <= 200 else text[:199] + "…"
    return Verdict("wrong", f"your answer raised {type(error).__name__}: {text}")
