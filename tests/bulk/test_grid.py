"""The grid of a sweep: what is refused before anything starts, and what a setting is called."""

import sys
from pathlib import Path

import nbformat
import pytest
from bulk_hands import kdlab, state

from kdlab.cli import grid, parameters, running, runs, sweep


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["-g", "temprature=1,2"], "unknown parameter 'temprature' (did you mean 'temperature'?)"),
        (["-g", "temperature=1,x"], "temperature = 'x' is a str; expected float"),
        (["-g", "temperature=1,50"], "temperature = 50.0 is out of range; expected 1 to 20"),
        (["-g", "temperature=1,1.0"], "temperature=1.0 comes twice"),
        (["-g", "temperature=1,,2"], "has an empty value"),
        (["-g", "temperature="], "has an empty value"),
        (["-g", "temperature"], "expected NAME=VALUE, as in -g temperature=1,2"),
        (["-g", "dataset=digits,none.npz"], "'none.npz': there is no such file or folder"),
        (["-g", "dataset=/with,comma"], "'/with': there is no such file or folder"),
        (["-g", "temperature=1", "-g", "temperature=2"], "'temperature' came twice"),
        (["-g", "hidden=[8],[8,999]"], "out of range"),
        (["-g", "../temperature=1"], "expected NAME=VALUE"),
        (["-g", "dataset=digits,../secret"], "dataset = '../secret' leaves its folder"),
        (["-g", r"dataset=data\..\..\secret"], "leaves its folder"),
        (["-g", "dataset=.."], "leaves its folder"),
        (["-g", "profile=huge"], "expected one of fast, full"),
        (["-g", "profile=fast", "--profile", "full"], "not both"),
        (["-g", "seed=1,2", "--seeds", 2], "not both"),
        (["-g", f"seed={','.join(map(str, range(400)))}", "-g", "temperature="
          + ",".join(f"{1 + n / 100}" for n in range(400))], "160000 runs came"),
        (["--jobs", 2, "--scheduler", "tcp://nowhere:8786"], "leave --jobs out"),
    ],
)  # fmt: skip
def test_wrong_grids_end_before_anything_runs(lesson, quick, words, complaint):
    code, told = kdlab("sweep", lesson, *words, "-o", "out")
    assert code == 1 and complaint in told, told
    assert quick() == [] and not Path("out").exists()


def test_without_dask_or_without_a_seed_it_says_so(lesson, quick, monkeypatch):
    monkeypatch.setitem(sys.modules, "distributed", None)
    code, told = kdlab("sweep", lesson, "--scheduler", "local")
    assert code == 1 and "pip install 'kdlab[bulk]'" in told
    bare = nbformat.read(lesson, 4)
    bare.cells[0].source = 'profile: str = "fast"'
    nbformat.write(bare, lesson)
    assert "unknown parameter 'seed' (--seeds sets it)" in kdlab("sweep", lesson, "--seeds", 2)[1]
    assert quick() == []


def planned(lesson, seeds=None, **given):
    return grid.plan(lesson, runs.read_notebook(lesson), given, seeds, Path("out"))


def test_the_grid_is_typed_and_whole(lesson):
    made = planned(lesson, seeds=2, temperature="1,2.5", hidden="[64,32],[8]")
    assert len({run.name for run in made}) == len(made) == 8
    assert [run.given for run in made[:3]] == [
        {"temperature": 1.0, "hidden": [64, 32], "seed": 0},
        {"temperature": 1.0, "hidden": [64, 32], "seed": 1},
        {"temperature": 1.0, "hidden": [8], "seed": 0},
    ]
    assert made[0].values["dataset"] == "glyphs" and type(made[0].given["temperature"]) is float
    assert planned(lesson)[0].given == {}


def test_a_setting_has_one_name_however_it_is_typed(lesson):
    (as_it_is,), (typed,) = planned(lesson), planned(lesson, temperature="4", dataset="glyphs")
    (other_way,) = planned(lesson, dataset="glyphs", temperature="4.0")
    assert as_it_is.name == typed.name == other_way.name == "8a8922f1eeb0"
    assert planned(lesson, temperature="5")[0].name != typed.name
    renamed = lesson.rename(lesson.with_name("other.ipynb"))
    assert planned(renamed)[0].name != typed.name


def test_a_path_in_a_list_may_not_climb_either(lesson):
    notebook = nbformat.read(lesson, 4)
    notebook.cells[0].source += '\nfiles: list[str] = ["a"]  # what is read'
    nbformat.write(notebook, lesson)
    assert planned(lesson, files='["a/b", "c..d"]')[0].given == {"files": ["a/b", "c..d"]}
    with pytest.raises(ValueError, match=r"parameter files = .* leaves its folder"):
        planned(lesson, files='["a", "../b"]')


def test_the_digest_of_a_notebook_is_that_of_its_code(lesson):
    notebook = runs.read_notebook(lesson)
    before = grid.source_digest(notebook)
    text = {"cell_type": "markdown", "source": "Words.", "metadata": {}}
    code = {"cell_type": "code", "source": "1 + 1", "metadata": {}, "outputs": []}
    assert grid.source_digest({"cells": [text, *notebook["cells"]]}) == before
    assert grid.source_digest({"cells": [*notebook["cells"], code]}) != before


def test_no_value_says_where_a_run_is_kept(lesson, quick):
    notebook = nbformat.read(lesson, 4)
    notebook.cells[0].source += '\nnote: str = "x"  # anything'
    nbformat.write(notebook, lesson)
    values = "note=/etc/passwd,a/b,$HOME,{seed},~,a b"
    code, told = kdlab("sweep", lesson, "-g", values, "-o", "out")
    assert code == 0 and len(state(Path("out"))) == len(quick()) == 6, told


def test_threads_are_divided(lesson, quick, monkeypatch):
    seen = []
    monkeypatch.setattr("kdlab.cli.doctor.usable_cores", lambda: 8)
    monkeypatch.setattr(running, "run_lesson", lambda *a, threads, **k: seen.append(threads))
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    for number, jobs in enumerate((1, 3, 8, 20)):
        kdlab("sweep", lesson, "--jobs", jobs, "-o", f"out{number}")
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    kdlab("sweep", lesson, "--jobs", 1, "-o", "out")
    assert seen == [8, 2, 1, 1, 2]


def test_an_order_repeats_nothing_of_its_own():
    order = sweep.Order(again=True)
    assert order.redo({"status": runs.DONE, "sweep": "another"})
    assert not order.redo({"status": runs.DONE, "sweep": order.sweep})


@pytest.mark.parametrize(
    ("name", "text", "values"),
    [
        ("seed", "0..4", [0, 1, 2, 3, 4]),
        ("seed", "7,0..2", [7, 0, 1, 2]),
        ("temperature", "1..3", [1.0, 2.0, 3.0]),
        ("note", '"a, b",c', ["a, b", "c"]),
        ("note", "'a, b'", ["a, b"]),
        ("note", '""', [""]),
        ("note", '"",x', ["", "x"]),
        ("note", '"say ""hi"", now",it\'s', ['say "hi", now', "it's"]),
        ("note", "0..2", ["0..2"]),
        ("hidden", "[64,32],[8]", [[64, 32], [8]]),
        ("names", '["a,b", "c"],["d"]', [["a,b", "c"], ["d"]]),
        ("layer", 'none,"none",5', [None, "none", "5"]),
    ],
)
def test_what_is_typed_for_a_grid(lesson, name, text, values):
    notebook = nbformat.read(lesson, 4)
    notebook.cells[0].source += '\nnote: str = "x"\nnames: list[str] = []\nlayer: str | None = None'
    nbformat.write(notebook, lesson)
    assert [run.given[name] for run in planned(lesson, **{name: text})] == values


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        ("seed=4..0", "expected LOW..HIGH"),
        ("seed=0..99999999999", "expected LOW..HIGH"),
        ("temperature=19..21", "out of range"),
        ("seed=1,0..2", "seed=1 comes twice"),
        ('dataset="a,b', 'expected a second " behind'),
        ("dataset=", "an empty text is"),
    ],
)
def test_wrong_ranges_and_quotes(lesson, quick, words, complaint):
    code, told = kdlab("sweep", lesson, "-g", words, "-o", "out")
    assert code == 1 and complaint in told and quick() == [], told


def test_help_says_how_to_quote(lesson):
    told = kdlab("sweep", "--help")[1]
    assert "quotes" in told and "0..4" in told


def test_a_path_is_seen_from_where_one_stands(lesson, quick, tmp_path, monkeypatch):
    """Not from where the lesson lies, where a file of this name may be, too."""
    here = tmp_path / "here"
    (here / "pets").mkdir(parents=True)
    (here / "mine.npz").touch()
    (tmp_path / "theirs.npz").touch()
    monkeypatch.chdir(here)
    (run,) = planned(lesson, dataset="mine.npz")
    assert run.given == {"dataset": str(here / "mine.npz")}
    assert planned(lesson, dataset="pets,digits")[0].given == {"dataset": str(here / "pets")}
    assert planned(lesson, dataset="../theirs.npz")[0].given["dataset"] == str(
        tmp_path / "theirs.npz"
    )
    declared = parameters.read(runs.read_notebook(lesson))
    accepted = parameters.accept(declared, {"dataset": "mine.npz"})
    assert accepted == run.given, "kdlab run takes the same way"
    code, told = kdlab("sweep", lesson, "-g", "dataset=theirs.npz", "-o", "out")
    assert code == 1 and f"there is no such file or folder, seen from {here}" in told
