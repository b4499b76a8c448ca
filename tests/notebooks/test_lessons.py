"""The lessons themselves: well formed, fresh, and sound under other parameters and offline."""

import json
import os
import re
import time
from pathlib import Path

import lint_notebooks
import nbformat
import papermill
import pytest
import rerun
import teaching

from kdlab.cli import parameters, running, student
from kdlab.lab import MIME
from kdlab.lab.progress import exercises_of

FOLDER = Path(os.environ.get("KDLAB_NOTEBOOKS", Path(__file__).parents[2] / "notebooks"))
LESSONS = sorted(FOLDER.glob("*.ipynb"))
OTHER_DATA = ({"dataset": "glyphs", "seed": "1"}, {"seed": "3"})
# two other ways to run each lesson, all in the fast profile; by file name. The second is run of the
# hand-out, without solutions
VARIANTS = {
    "00_start_here": OTHER_DATA,
    "01_soft_targets": (
        {"dataset": "digits", "seed": "1"},
        {"temperature": "2.0", "seed": "3"},
    ),
    "01b_broken_distillers": OTHER_DATA,
    "02_feature_distillation": (
        {"stage": "stage2", "hint_weight": "1.0"},
        {"seed": "3"},
    ),
    "03_gradient_distillation": (
        {"dataset": "digits", "images": "200", "seed": "1"},
        {"images": "128", "sigma": "0.3", "seed": "3"},
    ),
    "04_attention_and_depth": (
        {"texts": "300", "relation_heads": "4", "seed": "1"},
        {"texts": "500", "relation_heads": "16", "seed": "3"},
    ),
    "05_gated_distillation": (
        {"images": "1500", "labels": "120", "seed": "1"},
        {"sizes": "[0.4, 0.7, 0.9, 1.4]", "difficulty": "0.8", "seed": "3"},
    ),
    "06_compression": (
        {"dataset": "digits", "images": "600", "seed": "1"},
        {"share": "0.3", "bits": "6", "seed": "3"},
    ),
    "07_nested_networks": (
        {"dataset": "digits", "images": "600", "seed": "1"},
        {"narrowest": "0.3", "between": "2", "images": "1500", "seed": "3"},
    ),
}

lessons = pytest.mark.parametrize("lesson", LESSONS, ids=lambda path: path.stem)


def runs(number):
    """Each lesson with the first or the second of its variants."""
    return pytest.mark.parametrize(
        ("lesson", "given"),
        [(path, VARIANTS[path.stem][number]) for path in LESSONS if path.stem in VARIANTS],
        ids=lambda x: x.stem if isinstance(x, Path) else "-".join(f"{k}={v}" for k, v in x.items()),
    )


def declared(lesson):
    return parameters.read(nbformat.read(lesson, 4))


def test_every_lesson_has_variants():
    assert LESSONS, f"no lesson in {FOLDER}"
    assert {path.stem for path in LESSONS} <= VARIANTS.keys()
    assert all(len(variants) == 2 for variants in VARIANTS.values())


@lessons
def test_well_formed(lesson):
    assert lint_notebooks.lint(lesson) == []


@lessons
def test_outputs_belong_to_the_source(lesson):
    assert rerun.stale(lesson) == []


@pytest.mark.notebook
@runs(0)
def test_runs_with_other_parameters_and_no_network(lesson, given, tmp_path, offline):
    known = declared(lesson)
    values = parameters.accept(known, given)
    assert any(values[name] != known[name].default for name in values), "nothing is varied"
    values |= parameters.accept(known, {"profile": "fast"})
    output = tmp_path / "runs" / lesson.name
    executed = running.run_lesson(lesson, output, values, timeout=300, progress=False)
    assert offline.read_text() == "", "the lesson tried to reach the network"
    shown = [o for cell in executed.cells for o in cell.get("outputs", [])]
    kept = [o["data"][MIME] for o in shown if MIME in o.get("data", {})]
    on_disk = list(output.parent.glob("*.json"))
    assert len(on_disk) == 1, "lab.record leaves one report beside the run"
    report = json.loads(on_disk[0].read_text())
    names = [entry["name"] for entry in report["records"]]
    assert sorted({entry["name"] for entry in kept}) == sorted(names) and names
    assert {k: report["parameters"][k] for k in values} == values


@pytest.mark.notebook
@runs(1)
def test_hand_out_runs_unsolved_within_its_time(lesson, given, tmp_path, offline, monkeypatch):
    """Without solutions, with a seed of its own; a class waits a tenth of the time it has."""
    monkeypatch.setenv("KDLAB_PROGRESS", str(tmp_path / "progress.json"))
    (handed,) = student.write([lesson], tmp_path / "handout")
    values = parameters.accept(declared(handed), given | {"profile": "fast"})
    begin = time.monotonic()
    done = running.run_lesson(handed, tmp_path / "run.ipynb", values, timeout=300, progress=False)
    seconds = time.monotonic() - begin
    assert offline.read_text() == "", "the lesson tried to reach the network"
    asked = [cell for cell in done.cells if "exercise" in cell.metadata.get("tags", [])]
    said = [o.text for cell in asked for o in cell.outputs if o.output_type == "stream"]
    marks = [line[0] for text in said for line in text.splitlines() if line[:1] in "…✗≈✓"]
    assert marks == ["…"] * len(exercises_of(lesson)) and len(marks) >= len(asked)
    assert not (tmp_path / "progress.json").exists(), "nobody solved anything"
    planned = [
        m for steps, _ in teaching.ROUTES.values() for stem, _, m in steps if stem == lesson.stem
    ]
    assert seconds < 0.1 * 60 * min(planned), "too long for the routes of docs/teaching.md"


@lessons
@pytest.mark.parametrize(
    ("given", "complaint"),
    [
        ({"sead": "1"}, "did you mean 'seed'"),
        ({"seed": "-1"}, "out of range"),
        ({"seed": "one"}, "expected int"),
        ({"profile": "huge"}, "one of fast, full"),
    ],
    ids=["unknown", "range", "type", "choice"],
)
def test_wrong_parameters_are_refused_before_a_kernel_starts(lesson, given, complaint):
    with pytest.raises(ValueError, match=complaint):
        parameters.accept(declared(lesson), given)


# the range of the seed is not the lesson's own, so that one lesson speaks for all
@pytest.mark.notebook
@pytest.mark.parametrize(
    ("lesson", "values"),
    [*((path, {"sead": 1}) for path in LESSONS), *((path, {"seed": -1}) for path in LESSONS[:1])],
    ids=lambda x: x.stem if isinstance(x, Path) else next(iter(x)),
)
def test_papermill_alone_cannot_pass_wrong_parameters(lesson, values, tmp_path, offline):
    notebook = nbformat.read(lesson, 4)
    calls = re.compile(r"\.start\(\s*globals\(\)")
    start = next(n for n, c in enumerate(notebook.cells) if calls.search(c.source))
    notebook.cells = notebook.cells[: start + 1]  # the refusal must come from here
    short = tmp_path / lesson.name
    nbformat.write(notebook, short)
    with pytest.raises(papermill.PapermillExecutionError, match=next(iter(values))):
        papermill.execute_notebook(
            str(short),
            None,
            values,
            kernel_name="python3",
            progress_bar=False,
            execution_timeout=60,
        )
