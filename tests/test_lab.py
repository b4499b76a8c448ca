"""What a lesson says: parameters, checks, claims, records; in plain Python and in real kernels."""

import json
import math
import random
import re
import subprocess
import sys

import matplotlib
import nbformat
import numpy as np
import pandas as pd
import pytest
import torch
from nbformat.v4 import new_code_cell, new_notebook

import kdlab
from kdlab import exercises, lab, plots
from kdlab.exercises import Exercise, choice, number
from kdlab.lab import ClaimError, Lab, plain, session
from kdlab.metrics import mean_interval

CELL = """profile: str = "fast"  # fast or full
seed: int = 0  # of everything
temperature: float = 4.0  # softens
dataset: str = "glyphs"  # which images
hidden: list[int] = [32, 16]  # widths
layer: str | None = None  # which
device: str = "auto"  # where"""
RANGES = {
    "temperature": (0.1, 100),
    "dataset": ("glyphs", "digits"),
    "hidden": (1, 64),
    "layer": None,
}


def notebook(*cells, run=CELL, **values):
    """The namespace of a notebook whose cells have run; its history too, if asked for."""
    namespace = {}
    exec(run, namespace)
    namespace.update(values, In=["", *cells])
    return namespace


@pytest.fixture(autouse=True)
def _isolated(tmp_path, monkeypatch):
    monkeypatch.setenv("KDLAB_RECORDS", str(tmp_path / "records"))
    monkeypatch.delenv("KDLAB_THREADS", raising=False)
    with matplotlib.rc_context():
        yield


def only_json(folder):
    (path,) = folder.glob("*.json")
    return json.loads(path.read_text())


@pytest.fixture
def stored(tmp_path):
    return lambda: only_json(tmp_path / "records")


def start(*cells, lesson="lesson", ranges=RANGES, run=CELL, **values):
    return lab.start(notebook(*cells, run=run, **values), lesson=lesson, **ranges)


# --- start


def test_start_prints_one_stable_line(capsys):
    made = start(CELL, lesson="01_soft_targets")
    line = "kdlab · lesson 01_soft_targets · profile fast · seed 0 · dataset glyphs\n"
    assert capsys.readouterr().out == line
    assert made.parameters["temperature"] == 4.0 and made.parameters["hidden"] == [32, 16]
    assert made.fast and made.pick(1, 2) == 1
    assert made.is_default and made.changed == {}


def test_full_profile():
    made = start(CELL, profile="full")
    assert not made.fast and made.pick(1, 2) == 2
    assert made.is_default, "the profile does not change what is studied"
    assert made.changed == {"profile": "full"}


def test_changed_parameters_are_listed(capsys):
    made = start(CELL, "# Parameters\ntemperature = 8.0", temperature=8.0, dataset="digits")
    assert capsys.readouterr().out.splitlines()[1:] == [
        "changed: temperature = 8.0, dataset = 'digits'"
    ]
    assert not made.is_default


def test_without_history_nothing_is_said_of_defaults(capsys):
    made = start(temperature=8.0)
    assert made.changed is None and made.is_default
    assert "changed" not in capsys.readouterr().out


def test_an_edit_of_the_cell_in_place_is_a_change():
    edited = CELL.replace("4.0", "9.0")
    assert start(CELL, edited, run=edited).changed == {"temperature": 9.0}


def test_cells_that_failed_or_are_magic_do_not_disturb():
    assert start("%load x", "def (", CELL, None).changed == {}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"temperature": "4"}, "parameter temperature = '4' is a str; expected float"),
        (
            {"temperature": 0.05},
            "parameter temperature = 0.05 is out of range; expected 0.1 to 100",
        ),
        ({"temperature": 101}, "parameter temperature = 101 is out of range"),
        ({"temperature": math.nan}, "parameter temperature = nan is out of range"),
        ({"temperature": True}, "parameter temperature = True is a bool; expected float"),
        ({"seed": True}, "parameter seed = True is a bool; expected int"),
        ({"seed": 1.0}, "parameter seed = 1.0 is a float; expected int"),
        ({"seed": -1}, "parameter seed = -1 is out of range; expected 0 to 2147483647"),
        ({"profile": "quick"}, "parameter profile = 'quick' is not allowed; expected one of fast"),
        ({"device": "gpu"}, "parameter device = 'gpu' is not allowed"),
        ({"dataset": "glyph"}, "'glyph' is not allowed (did you mean 'glyphs'?);"),
        ({"hidden": [32, "16"]}, r"parameter hidden = [32, '16'] is a list; expected list[int]"),
        ({"hidden": [32, 99]}, "parameter hidden = [32, 99] is out of range; expected 1 to 64"),
        ({"hidden": 32}, "parameter hidden = 32 is a int; expected list[int]"),
        ({"layer": 3}, "parameter layer = 3 is a int; expected str | None"),
    ],
)
def test_start_refuses_values(values, message):
    with pytest.raises(ValueError) as caught:
        start(**values)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    "values",
    [
        {"temperature": 4}, {"temperature": 0.1}, {"temperature": 100}, {"seed": 2**31 - 1},
        {"hidden": []}, {"hidden": [1]}, {"layer": "stage2"}, {"device": "mps"},
    ],
)  # fmt: skip
def test_start_accepts_values(values):
    made = start(**values)
    assert all(made.parameters[name] == value for name, value in values.items())


def test_unknown_injected_name_gets_the_nearest_match():
    with pytest.raises(ValueError, match=r"'temprature' \(did you mean 'temperature'\?\)"):
        start(CELL, "# Parameters\nseed = 1\ntemprature = 8\n", temprature=8)
    with pytest.raises(ValueError, match="unknown parameter 'zzz'; known: profile, seed"):
        start(CELL, "# Parameters\nzzz = 8\n", zzz=8)


def test_ordinary_cells_may_assign_what_they_like():
    start(CELL, "other = 3", "# Parametric\nzzz = 2", other=3)


@pytest.mark.parametrize(
    "cells",
    [
        (CELL, "# Parameters of my own\nwidth = 3"),
        (CELL, "x = 1", "# Parameters\nwidth = 3"),
        ("# Parameters\nwidth = 3", CELL),
        (CELL, "# Parameters\nwidth = len('abc')"),
        (CELL, "# Parameters\nwidth = 3\nprint(width)"),
        (CELL, "# Parameters\nPAPERMILL_INPUT_PATH = 'a'\nPAPERMILL_OUTPUT_PATH = 'b'\nseed = 1"),
    ],
)
def test_what_papermill_did_not_set_is_the_learners_own(cells):
    start(*cells)


def test_where_a_person_works_nothing_was_injected(monkeypatch):
    cells = (CELL, "# Parameters\nwidth = 3")
    with pytest.raises(ValueError, match="unknown parameter 'width'"):
        start(*cells)
    monkeypatch.setattr(session.progress, "is_live", lambda: True)
    start(*cells)


def test_numbers_that_papermill_writes_as_calls_are_injected():
    with pytest.raises(ValueError, match="unknown parameter 'width'"):
        start(CELL, "# Parameters\nwidth = [1, float('nan')]")


@pytest.mark.parametrize("run", ["", "temperature = 4.0"])
def test_no_parameters_cell_shows_one(run):
    with pytest.raises(ValueError, match="declares no parameters") as caught:
        start(run=run, ranges={})
    assert "temperature: float = 4.0   # softens the teacher" in str(caught.value)


@pytest.mark.parametrize(
    ("run", "ranges", "message"),
    [
        (CELL.replace("seed: int", "sed: int"), RANGES, "seed is not declared in the"),
        (CELL, {**RANGES, "temprature": None}, "temprature is not declared in the parameters"),
        (CELL.replace("temperature: float", "temperature"), RANGES, "temperature is not declared"),
        (CELL, {}, "the parameter temperature has no range"),
        (CELL.replace("4.0", "2.0 * 2"), RANGES, "temperature is computed in the parameters cell"),
    ],
)  # fmt: skip
def test_mistakes_of_the_author_are_named(run, ranges, message):
    with pytest.raises(ValueError) as caught:
        start(run, run=run, ranges=ranges)
    assert message in str(caught.value)


def test_device_may_be_left_out():
    run = CELL.replace("device: str", "# device")
    assert "device" not in start(run, run=run).parameters


def test_annotations_of_python_3_14_are_read_through_their_function():
    namespace = notebook()
    annotations = namespace.pop("__annotations__")
    namespace["__annotate__"] = lambda form: annotations
    with pytest.raises(ValueError, match="expected float"):
        lab.start({**namespace, "temperature": "4"}, **RANGES)
    assert lab.start(namespace, **RANGES).parameters["temperature"] == 4.0


def test_annotations_are_read_from_the_cell_where_python_keeps_only_the_last():
    namespace = notebook(CELL, temperature="4")
    namespace["__annotations__"] = {"device": str}
    with pytest.raises(ValueError, match="temperature = '4' is a str; expected float"):
        lab.start(namespace, **RANGES)


def test_annotations_as_text_are_understood():
    run = "from __future__ import annotations\n" + CELL
    with pytest.raises(ValueError, match="temperature = '4' is a str"):
        start(run=run, temperature="4")


def test_start_seeds_everything():
    def draw(seed):
        start(seed=seed)
        return random.random(), np.random.rand(), torch.rand(1).item()

    first, second, other = draw(3), draw(3), draw(4)
    assert first == second
    assert all(a != b for a, b in zip(first, other, strict=True))


def test_threads_are_left_alone_unless_asked_for(monkeypatch):
    before = torch.get_num_threads()
    start()
    assert torch.get_num_threads() == before
    try:
        monkeypatch.setenv("KDLAB_THREADS", str(before + 1))
        start()
        assert torch.get_num_threads() == before + 1
    finally:
        torch.set_num_threads(before)


def test_start_sets_the_figure_style():
    start()
    assert matplotlib.rcParams["axes.spines.top"] is False
    assert matplotlib.rcParams["axes.prop_cycle"].by_key()["color"] == list(plots.PALETTE)


# --- check


@pytest.fixture
def two_exercises(monkeypatch):
    found = {
        "temperature": Exercise(
            "temperature", number(4, 0.1, 1), ("look", "look closer", "it is 4")
        ),
        "bug": Exercise("bug", choice("roles"), ("a", "b", "c")),
    }
    monkeypatch.setattr(exercises, "find", found.get)
    monkeypatch.setattr(exercises, "available", lambda: tuple(found))


@pytest.mark.usefixtures("two_exercises")
def test_check_gives_three_hints_one_by_one_and_none_for_placeholders(capsys):
    made = Lab("lesson", {"profile": "fast"})
    for answer in (..., 9, None, 4.5, ..., 9, 9, 4):
        assert made.check("temperature", answer) is None
    assert capsys.readouterr().out.splitlines() == [
        "… temperature: not yet: replace the ...",
        "✗ temperature: too large · hint 1 of 3: look",
        "… temperature: not yet: replace the ...",
        "≈ temperature: a little too large · hint 2 of 3: look closer",
        "… temperature: not yet: replace the ...",
        "✗ temperature: too large · hint 3 of 3: it is 4",
        "✗ temperature: too large · hint 3 of 3: it is 4",
        "✓ temperature: right",
    ]
    assert [entry["status"] for entry in made.checks][-1] == "right"
    assert made.checks[-1] == {"name": "temperature", "status": "right", "hints": 3}


@pytest.mark.usefixtures("two_exercises")
def test_hints_of_exercises_are_counted_apart(capsys):
    made = Lab("lesson", {"profile": "fast"})
    made.check("temperature", 9)
    made.check("bug", "x")
    assert "hint 1 of 3: a" in capsys.readouterr().out


@pytest.mark.usefixtures("two_exercises")
def test_unknown_exercise_says_which_there_are(capsys):
    Lab("lesson", {"profile": "fast"}).check("temprature", 4)
    assert capsys.readouterr().out == (
        "✗ temprature: no such exercise (did you mean 'temperature'?); "
        "there are: temperature, bug\n"
    )


def test_check_survives_a_broken_exercise_file(monkeypatch, capsys):
    def broken(name):
        raise ImportError("no file")

    monkeypatch.setattr(exercises, "find", broken)
    Lab("lesson", {"profile": "fast"}).check("temperature", 4)
    assert "the check itself failed (ImportError: no file)" in capsys.readouterr().out


# --- claim


@pytest.mark.parametrize(
    ("value", "bounds"),
    [
        (0.5, {"at_least": 0.5}),
        (0.5, {"at_most": 0.5}),
        (0.5, {"at_least": 0.4, "at_most": 0.6}),
        (0.5, {"equals": 0.5}),
        (0.5, {"equals": 0.6, "within": 0.11}),
        (torch.tensor(0.5), {"at_least": 0.4}),
        (np.float32(0.5), {"at_least": 0.4}),
        (True, {"equals": True}),
        (np.True_, {"equals": True}),
        ("a", {"equals": "a"}),
        ([1, 2], {"equals": [1, 2]}),
        (math.inf, {"equals": math.inf}),
        (0, {"equals": 0}),
    ],
)
def test_claims_that_hold_print_the_sentence_only(value, bounds, capsys):
    made = Lab("lesson", {"profile": "fast"})
    made.claim("it holds", value, **bounds)
    assert capsys.readouterr().out == "✓ it holds\n"
    assert made.claims[0]["holds"] is True


@pytest.mark.parametrize(
    ("value", "bounds", "message"),
    [
        (0.4999, {"at_least": 0.5}, r"it holds \(value 0.4999, wanted at least 0.5\)"),
        (0.5001, {"at_most": 0.5}, "value 0.5001, wanted at most 0.5"),
        (0.7, {"at_least": 0.4, "at_most": 0.6}, "wanted at least 0.4 and at most 0.6"),
        (0.5, {"equals": 0.6}, "wanted 0.6"),
        (0.5, {"equals": 0.6, "within": 0.05}, "wanted 0.6 ± 0.05"),
        (False, {"equals": True}, "wanted True"),
        ("a", {"equals": "b"}, "value 'a', wanted 'b'"),
        ([1, 2], {"equals": [1, 3]}, r"value \[1, 2\]"),
        (math.nan, {"at_least": 0}, "value nan"),
        (math.nan, {"at_most": 0}, "value nan"),
        (math.nan, {"equals": math.nan, "within": 9}, "value nan"),
        (0.5, {"at_least": math.nan}, "wanted at least nan"),
    ],
)
def test_claims_that_do_not_hold_raise(value, bounds, message):
    made = Lab("lesson", {"profile": "fast"})
    with pytest.raises(ClaimError, match=message):
        made.claim("it holds", value, **bounds)
    assert made.claims[0]["holds"] is False
    assert issubclass(ClaimError, AssertionError)


@pytest.mark.parametrize(
    ("value", "bounds", "message"),
    [
        (1, {}, "claim needs a bound"),
        (1, {"at_least": 0, "within": 0.1}, "within=0.1 needs equals"),
        ("big", {"at_least": 0}, "value='big' is no number"),
        (torch.zeros(2), {"at_least": 0}, "is no number"),
    ],
)
def test_claim_refuses_nonsense(value, bounds, message):
    with pytest.raises(ValueError, match=message):
        Lab("lesson", {"profile": "fast"}).claim("x", value, **bounds)


def test_under_changed_parameters_a_broken_claim_is_a_finding(capsys, stored):
    made = start(CELL, temperature=8.0)
    capsys.readouterr()
    made.claim("soft targets help", -0.01, at_least=0.02)
    assert capsys.readouterr().out == (
        "✗ does not hold here: soft targets help (value -0.01, wanted at least 0.02)\n"
    )
    assert stored()["claims"] == [
        {"sentence": "soft targets help", "holds": False, "value": -0.01, "wanted": "at least 0.02"}
    ]
    with pytest.raises(ClaimError):
        made.claim("a law", -1, at_least=0, always=True)


@pytest.mark.parametrize(
    ("cells", "values"),
    [((), {"temperature": 8.0}), ((CELL,), {"profile": "full"}), ((CELL,), {"device": "cpu"})],
)
def test_claims_are_strict_when_defaults_hold_or_are_unknown(cells, values):
    with pytest.raises(ClaimError):
        start(*cells, **values).claim("x", 0, at_least=1)


# --- record


def test_record_outside_ipython_prints_and_stores(capsys, stored):
    made = start(CELL, temperature=8.0)
    capsys.readouterr()
    made.record("gain", 0.123456789)
    made.record("both", mean=0.5, runs=[1, 2, 3])
    made.claim("fine", 1, equals=1)
    assert capsys.readouterr().out == (
        "recorded gain: 0.1235\nrecorded both: mean = 0.5, runs = 3 values\n✓ fine\n"
    )
    on_disk = stored()
    assert on_disk["records"] == [
        {"name": "gain", "value": 0.123456789},
        {"name": "both", "mean": 0.5, "runs": [1, 2, 3]},
    ]
    assert on_disk["parameters"]["temperature"] == 8.0 and on_disk["is_default"] is False
    assert on_disk["kdlab"] == kdlab.__version__ and on_disk["device"] == "auto"
    assert on_disk["claims"][0]["sentence"] == "fine" and on_disk["checks"] == []
    assert on_disk["machine"]["torch"] == torch.__version__ and on_disk["lesson"] == "lesson"


def test_record_of_the_same_name_replaces(stored):
    made = Lab("lesson", {"profile": "fast"})
    made.record("gain", 1)
    made.record("loss", 3)
    made.record("gain", 2)
    assert [(r["name"], r["value"]) for r in stored()["records"]] == [("loss", 3), ("gain", 2)]


def test_record_in_ipython_displays_the_mime_type(monkeypatch):
    calls = []
    monkeypatch.setattr(session, "get_ipython", object)
    monkeypatch.setattr(session, "display", lambda data, **kw: calls.append((data, kw)))
    Lab("lesson", {"profile": "fast"}).record("gain", 0.123456)
    entry = {"name": "gain", "value": 0.123456}
    assert calls == [
        ({lab.MIME: entry, "text/plain": "recorded gain: 0.1235"}, {"raw": True}),
    ]


def test_record_refuses_nothing_and_objects():
    made = Lab("lesson", {"profile": "fast"})
    with pytest.raises(ValueError, match="has no value"):
        made.record("gain")
    with pytest.raises(ValueError, match="cannot record a object"):
        made.record("gain", object())
    assert made.records == []


FRAME = pd.DataFrame({"seed": [0, 1], "acc": [0.5, math.nan]})


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (3, 3), (True, True), (np.bool_(True), True), ("a", "a"), (None, None),
        (np.int64(3), 3), (np.float64(0.5), 0.5), (math.nan, None), (-math.inf, None),
        (np.array([[1.0, math.nan]]), [[1.0, None]]), (torch.tensor([1, 2]), [1, 2]),
        (torch.tensor(0.5), 0.5), ((1, [2, {"a": math.nan}]), [1, [2, {"a": None}]]),
        ({1: np.float32(0.5)}, {"1": 0.5}),
        (FRAME, [{"seed": 0, "acc": 0.5}, {"seed": 1, "acc": None}]),
        (FRAME.set_index("seed"), [{"seed": 0, "acc": 0.5}, {"seed": 1, "acc": None}]),
        (pd.Series({"a": 1}), {"a": 1}),
        (mean_interval([1.0]), {"mean": 1.0, "low": None, "high": None, "n": 1}),
    ],
)  # fmt: skip
def test_plain_gives_json(value, expected):
    got = plain(value)
    assert got == expected and type(got) is type(expected)
    assert json.loads(json.dumps(got, allow_nan=False)) == got


def test_a_folder_that_cannot_be_written_costs_one_line(monkeypatch, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("KDLAB_RECORDS", str(tmp_path / "file" / "below"))
    made = Lab("lesson", {"profile": "fast"})
    made.claim("fine", 1, equals=1)
    made.record("gain", 1)
    made.record("loss", 2)
    assert capsys.readouterr().out == (
        "✓ fine\nrecorded gain: 1\n"
        "kept in the notebook only: the records folder cannot be written (KDLAB_RECORDS)\n"
        "recorded loss: 2\n"
    )


def test_records_go_to_the_cache_by_default(monkeypatch, tmp_path):
    monkeypatch.delenv("KDLAB_RECORDS")
    monkeypatch.setenv("KDLAB_DATA_DIR", str(tmp_path / "cache"))
    Lab("lesson", {"profile": "fast"}).record("gain", 1)
    (name,) = [path.name for path in (tmp_path / "cache" / "records").iterdir()]
    assert re.fullmatch(r"lesson-[0-9a-f]{8}\.json", name)


# --- in real kernels

LESSON = [
    ("parameters", CELL.split("hidden")[0] + 'device: str = "auto"  # where'),
    ("", "import kdlab.lab\nlab = kdlab.lab.start("
         "globals(), lesson='tiny', temperature=(0.1, 100), dataset=None)"),
    ("", "from kdlab import plots\nplots.show(plots.image_grid([[[0.0, 1.0]]]))"),
    ("", "import ipywidgets as widgets\nfrom kdlab.explorers import TemperatureExplorer\n"
         "explorer = TemperatureExplorer([[[0.0, 1.0]]], [[2.0, 1.0]], ['a', 'b'])\nexplorer"),
    ("", "_ = explorer.set(temperature=temperature)\nprint(explorer)"),
    ("", "lab.claim('four', temperature, equals=4)"),
    ("", "lab.check('no such exercise', ...)"),
    ("nbval-ignore-output", "lab.record('gain', temperature / 3)"),
]  # fmt: skip


@pytest.fixture
def lesson(tmp_path):
    cells = [
        new_code_cell(source, id=f"cell-{i}", metadata={"tags": [tag] if tag else []})
        for i, (tag, source) in enumerate(LESSON)
    ]
    path = tmp_path / "tiny.ipynb"
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbformat.write(new_notebook(cells=cells, metadata={"kernelspec": kernel}), path)
    return path


def papermill(path, **parameters):
    pm = pytest.importorskip("papermill")
    return pm.execute_notebook(
        path, path.with_name("out.ipynb"), parameters, kernel_name="python3",
        progress_bar=False, execution_timeout=120,
    )  # fmt: skip


def outputs(notebook, containing):
    (cell,) = (c for c in notebook.cells if containing in c.source)
    return cell.outputs


@pytest.mark.notebook
def test_a_lesson_runs_in_papermill_and_repeats_in_nbval(lesson):
    pytest.importorskip("nbval")
    done = papermill(lesson)
    assert outputs(done, "lab.start")[0].text == (
        "kdlab · lesson tiny · profile fast · seed 0 · dataset glyphs\n"
    )
    (figure,) = outputs(done, "image_grid")
    assert figure.data["text/plain"] == "Grid of 1 images, 1 × 1."
    assert figure.metadata["image/png"]["alt"] == figure.data["text/plain"]
    (widget,) = outputs(done, "\nexplorer = ")
    assert widget.data["text/plain"].startswith("<TemperatureExplorer T=1.0 | ")
    assert widget.data["image/png"] and "application/vnd.jupyter.widget-view+json" in widget.data
    (record,) = outputs(done, "lab.record")
    assert record.data[lab.MIME] == {"name": "gain", "value": 4 / 3}
    command = [
        sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--nbval",
        "--nbval-current-env", str(lesson.with_name("out.ipynb")),
    ]  # fmt: skip
    ran = subprocess.run(command, capture_output=True, text=True, cwd=lesson.parent)
    assert ran.returncode == 0, ran.stdout[-3000:]
    assert f"{len(LESSON)} passed" in ran.stdout or ran.stdout.startswith("." * len(LESSON))


@pytest.mark.notebook
def test_papermill_with_another_value_turns_claims_into_findings(lesson, tmp_path):
    done = papermill(lesson, temperature=8.0)
    assert outputs(done, "lab.start")[0].text.endswith("changed: temperature = 8.0\n")
    assert outputs(done, "lab.claim")[0].text.startswith("✗ does not hold here: four")
    assert "T=8.0" in outputs(done, "print(explorer)")[0].text
    stored = only_json(tmp_path / "records")
    assert stored["parameters"]["temperature"] == 8.0 and not stored["is_default"]


@pytest.mark.notebook
def test_papermill_with_an_unknown_name_fails(lesson):
    with pytest.raises(Exception, match="did you mean 'temperature'"):
        papermill(lesson, temprature=8.0)


def test_two_runs_share_no_record(tmp_path, monkeypatch):
    """Neither two outputs of ``kdlab run``, nor two settings of one lesson."""
    for output in ("T1", "T8", "a b", "a_b"):
        monkeypatch.setenv("KDLAB_RECORD", output)
        start().record("n", 1)
    monkeypatch.delenv("KDLAB_RECORD")
    for temperature in (1.0, 2.0, 2.0):
        start(temperature=temperature).record("n", 1)
    start(lesson="../../x").record("n", 1)
    names = [path.name for path in (tmp_path / "records").iterdir()]
    assert len(names) == 7 and not list(tmp_path.glob("*.json"))
    assert all(re.fullmatch(r"[\w.-]+-[0-9a-f]{8}\.json", name) for name in names)


def test_a_record_says_what_its_data_were(tmp_path, monkeypatch, stored):
    monkeypatch.chdir(tmp_path)
    digests = []
    for content in (b"old", b"new", b"old"):
        (tmp_path / "mine.npz").write_bytes(content)
        start(dataset="mine.npz", ranges={**RANGES, "dataset": None}).record("n", 1)
        digests.append(stored()["data"]["mine.npz"])
    assert digests[0] == digests[2] != digests[1]


def test_a_parameter_that_names_a_class_adapts_to_fewer_and_says_so(capsys):
    lab = Lab("x", {"missing": 3})
    assert lab.adapt("missing", 10, "classes") == 3 and capsys.readouterr().out == ""
    assert lab.adapt("missing", 2, "classes") == 1 and lab.parameters == {"missing": 3}
    said = "missing = 3: there are 2 classes, counted from 0; 1 is taken\n"
    assert capsys.readouterr().out == said
