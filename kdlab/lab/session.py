"""A lesson that is running: its start, and what it may ask for afterwards."""

from __future__ import annotations

import contextlib
import functools
import io
import json
import os
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import matplotlib
import numpy as np
import pandas as pd
import torch
from IPython import get_ipython
from IPython.display import display

import kdlab
from kdlab import exercises, plots
from kdlab.files import atomic_write, cache_folder, content_of, contents_of, safe_name, short_hash
from kdlab.lab import parameters, progress
from kdlab.lab.records import MIME, plain, readable
from kdlab.training.device import describe
from kdlab.words import check_known, nearest

MARKS = {"not yet": "…"} | progress.MARKS

T = TypeVar("T")


class ClaimError(AssertionError):
    """A finding of the lesson that does not hold."""


def start(namespace: dict[str, Any], *, lesson: str = "lesson", **ranges: Any) -> Lab:
    """Check the parameters, seed everything, set the figure style, print one line.

    Args:
        namespace: the notebook's ``globals()``.
        lesson: its file name without ending; names the record on disk, unless ``kdlab run`` does.
        ranges: one per parameter of the lesson: (low, high) inclusive for numbers, a sequence of
            texts as choices, None for anything. Of a list every element must fit. ``profile``,
            ``seed`` and ``device`` need none.

    Returns:
        The lesson's ``Lab``.

    Raises:
        ValueError: no parameters cell; a parameter that is not declared, has no range, is of the
            wrong type or out of range; or an injected name that is no parameter.
    """
    lab = Lab(lesson, *parameters.read(namespace, ranges, live=progress.is_live()))
    seed_everything(lab.parameters["seed"])
    if threads := os.environ.get("KDLAB_THREADS"):
        torch.set_num_threads(int(threads))
    matplotlib.rcParams.update(plots.STYLE)
    print(lab.headline())
    return lab


def seed_everything(seed: int) -> None:
    """Seed Python's, NumPy's and PyTorch's global generators (all devices)."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


class Lab:
    """A lesson that is running; made by ``start``.

    Attributes:
        lesson: its name.
        parameters: the values in use.
        changed: the parameters that differ from the defaults of the parameters cell, None when the
            defaults are not known (nbval keeps no history of inputs).
        claims, checks, records: all there were, in order.
    """

    def __init__(
        self,
        lesson: str,
        values: Mapping[str, Any],
        defaults: Mapping[str, Any] | None = None,
    ) -> None:
        self.lesson = lesson
        self.parameters = dict(values)
        self.changed: dict[str, Any] | None = None
        if defaults is not None:
            changed = (name for name, default in defaults.items() if values.get(name) != default)
            self.changed = {name: values[name] for name in changed if name in values}
        self.claims: list[dict[str, Any]] = []
        self.checks: list[dict[str, Any]] = []
        self.records: list[dict[str, Any]] = []
        self._data = contents_of(values, functools.partial(content_of, Path.cwd()))
        self._hints: dict[str, int] = {}
        self._told: set[str] = set()

    @property
    def fast(self) -> bool:
        """Whether the profile is ``fast``."""
        return self.parameters["profile"] == "fast"

    @property
    def is_default(self) -> bool:
        """Whether what is studied is as declared; profile and device only say how it is run."""
        return not set(self.changed or ()) - {"profile", "device"}

    def pick(self, fast: T, full: T) -> T:
        """Return the value for the profile in use."""
        return fast if self.fast else full

    def adapt(self, name: str, count: int, of: str) -> int:
        """Return the number of a class or an image that a parameter names, or the last one.

        For data of the reader's own that have fewer: one line says what is taken instead. Call it
        where the data are loaded, before anything is trained.

        Args:
            name: of the parameter, a number from 0.
            count: how many there are.
            of: what is counted, such as "classes".
        """
        value = int(self.parameters[name])
        if value < count:
            return value
        print(f"{name} = {value}: there are {count} {of}, counted from 0; {count - 1} is taken")
        return count - 1

    def headline(self) -> str:
        """Return what ``start`` prints: lesson, profile, seed, data set, changed parameters."""
        shown = [n for n in ("profile", "seed", "dataset") if n in self.parameters]
        words = [f"lesson {self.lesson}", *(f"{name} {self.parameters[name]}" for name in shown)]
        lines = [" · ".join(["kdlab", *words])]
        if self.changed:
            changes = ", ".join(f"{name} = {value!r}" for name, value in self.changed.items())
            lines.append(f"changed: {changes}")
        return "\n".join(lines)

    def check(self, name: str, answer: Any) -> None:
        """Judge the answer to an exercise: print … / ✗ / ≈ / ✓, and the next of three hints.

        Never raises. A placeholder (``...`` or None) uses up no hint. What a person has solved in
        a notebook is kept in a file of theirs (see :mod:`kdlab.lab.progress`).
        """
        self._judge(name, answer)

    def points(self, name: str, answer: Any) -> float:
        """Check an answer and return its points: 1 for ✓, a half for ≈, else 0.

        The last line of a cell that nbgrader grades. nbgrader takes any warning for a failure, so
        nothing is written to stderr.
        """
        with contextlib.redirect_stderr(io.StringIO()):
            return {"right": 1.0, "close": 0.5}.get(self._judge(name, answer), 0.0)

    def stand_in(self, name: str, answer: T) -> T | exercises.StandIn:
        """Return a function if it is right, else the package's, so that the lesson can go on.

        Hand-outs call it where a later cell needs what an exercise asks for.

        Raises:
            ValueError: the exercise is unknown, or is not about a function of the package.
        """
        check_known("exercise", name, exercises.available())
        exercise = exercises.find(name)
        if exercise is None or exercise.reference is None:
            raise ValueError(f"exercise {name!r} compares with no function that could stand in")
        if exercise.judge(answer).status == "right":
            return answer
        print(f"until {name} is ✓, the package's own function stands in for yours")
        return exercises.StandIn(exercise.reference)

    def progress(self, folder: str = ".") -> pd.DataFrame | None:
        """Return the learner's progress, lessons × exercises; where nobody looks, print one line.

        Args:
            folder: where the lessons are; a kernel starts beside them.
        """
        return progress.show(folder)

    def claim(
        self,
        sentence: str,
        value: Any,
        *,
        at_least: float | None = None,
        at_most: float | None = None,
        equals: Any = None,
        within: float = 0.0,
        always: bool = False,
    ) -> None:
        """State a finding of the lesson, and check it.

        Prints ``✓ sentence``, without the measured number. If it does not hold: in a run with
        changed parameters this is a finding and printed as such; otherwise it is an error.
        NaN never holds.

        Args:
            sentence: the finding; no numbers that are measured.
            value: a number (or anything that ``equals`` can be compared with).
            at_least, at_most: inclusive bounds; both may be given.
            equals: the value must be this, give or take ``within``.
            within: absolute tolerance of ``equals``.
            always: an error under changed parameters too (a law, not a finding).

        Raises:
            ClaimError: it does not hold.
            ValueError: no bound, ``within`` without ``equals``, or a value that is no number.
        """
        if within and equals is None:
            raise ValueError(f"within={within} needs equals; bounds have no tolerance")
        if equals is None and at_least is None and at_most is None:
            raise ValueError("claim needs a bound: at_least, at_most or equals")
        number = _number(value)
        if number is None and equals is None:
            raise ValueError(f"value={value!r} is no number; bounds need one")
        tests: list[tuple[str, bool]] = []
        if equals is not None:
            wish = f"{equals!r} ± {within:g}" if within else repr(equals)
            tests.append((wish, _equal(value, equals, within)))
        if at_least is not None:
            tests.append((f"at least {at_least:g}", number is not None and number >= at_least))
        if at_most is not None:
            tests.append((f"at most {at_most:g}", number is not None and number <= at_most))
        holds = all(passed for _, passed in tests)
        wanted = " and ".join(text for text, _ in tests)
        shown = f"{number:.6g}" if number is not None else repr(value)
        stored = plain(number) if number is not None else repr(value)[:200]
        self.claims.append(
            {"sentence": sentence, "holds": holds, "value": stored, "wanted": wanted}
        )
        self._save()
        if holds:
            print(f"✓ {sentence}")
            return
        if always or self.is_default:
            raise ClaimError(f"{sentence} (value {shown}, wanted {wanted})")
        print(f"✗ does not hold here: {sentence} (value {shown}, wanted {wanted})")

    def record(self, name: str, value: Any = None, **values: Any) -> None:
        """Keep a result: in this notebook's output and as JSON on disk.

        The output carries all digits (MIME type ``application/vnd.kdlab.record+json``), so that
        an executed notebook is all that ``kdlab report`` needs. Digits differ from machine to
        machine: tag a cell that records measured numbers ``nbval-ignore-output``.

        On disk: in ``$KDLAB_RECORDS``, else in ``records`` of the cache, written whole or not at
        all, with parameters, versions, device, claims and checks of this run. The file is named
        after the notebook that ``kdlab run`` writes, else after the lesson, with a hash of the
        parameters: two runs share none. A folder that cannot be written costs one printed line and
        nothing else.

        Args:
            name: of the result; a second result of this name replaces the first.
            value: numbers, texts, lists, mappings, arrays, tensors, DataFrames (a list of rows),
                dataclasses. NaN and infinities become null.
            values: the same by name, instead of or beside ``value``.

        Raises:
            ValueError: nothing to record, or a value of another type.
        """
        if value is None and not values:
            raise ValueError(f"record({name!r}) has no value")
        entry = {"name": name}
        if value is not None:
            entry["value"] = plain(value)
        entry.update({key: plain(item) for key, item in values.items()})
        self.records = [old for old in self.records if old["name"] != name] + [entry]
        words = ", ".join(readable(key, item) for key, item in entry.items() if key != "name")
        text = f"recorded {name}: {words}"
        if get_ipython() is None:
            print(text)
        else:
            display({MIME: entry, "text/plain": text}, raw=True)
        if not self._save():
            where = "the records folder cannot be written (KDLAB_RECORDS)"
            self._tell_once(f"kept in the notebook only: {where}")

    def report(self) -> dict[str, Any]:
        """Return what is stored on disk: the parameters of the run beside its results."""
        return {
            "lesson": self.lesson,
            "parameters": plain(self.parameters),
            "is_default": self.is_default,
            "data": self._data,
            "kdlab": kdlab.__version__,
            "device": self.parameters.get("device", "auto"),
            "machine": describe(),
            "records": self.records,
            "claims": self.claims,
            "checks": self.checks,
        }

    def _judge(self, name: str, answer: Any) -> str:
        """Print the verdict on an answer, keep it, and return its status; raise nothing."""
        try:
            exercise = exercises.find(name)
            if exercise is None:
                names = exercises.available()
                there_are = ", ".join(names) or "none"
                print(f"✗ {name}: no such exercise{nearest(name, names)}; there are: {there_are}")
                return "wrong"
            verdict = exercise.judge(answer)
            words = [verdict.message] if verdict.message else []
            if verdict.status in ("wrong", "close"):
                shown = min(self._hints.get(name, 0) + 1, len(exercise.hints))
                self._hints[name] = shown
                words.append(f"hint {shown} of 3: {exercise.hints[shown - 1]}")
            print(f"{MARKS[verdict.status]} {name}: {' · '.join(words) or verdict.status}")
            used = self._hints.get(name, 0)
            self.checks.append({"name": name, "status": verdict.status, "hints": used})
            self._save()
            self._tell_once(progress.note(self.lesson, name, verdict.status, used))
            return verdict.status
        except Exception as error:
            print(f"✗ {name}: the check itself failed ({type(error).__name__}: {error})")
            return "wrong"

    def _tell_once(self, text: str) -> None:
        if text and text not in self._told:
            self._told.add(text)
            print(text)

    def _save(self) -> bool:
        """Write the report; say whether that worked."""
        folder = os.environ.get("KDLAB_RECORDS")
        name = safe_name(os.environ.get("KDLAB_RECORD", self.lesson), 110)
        file = f"{name}-{short_hash(plain(self.parameters), 8)}.json"
        path = (Path(folder) if folder else cache_folder() / "records") / file
        try:
            text = json.dumps(plain(self.report()), indent=1, ensure_ascii=False, allow_nan=False)
            with atomic_write(path) as temporary:
                temporary.write_text(text + "\n", encoding="utf-8")
        except OSError:
            return False
        return True


def _number(value: Any) -> float | None:
    """Return a value as a float; None for texts and whatever is no single number."""
    if isinstance(value, str):
        return None
    try:
        return float(value)
    except (TypeError, ValueError, RuntimeError):
        return None


def _equal(value: Any, equals: Any, within: float) -> bool:
    number, wanted = _number(value), _number(equals)
    if number is None or wanted is None:
        return bool(np.all(value == equals))
    return number == wanted or abs(number - wanted) <= within
