"""The command line: what it refuses before anything runs, what it writes, what it says."""

import base64
import io
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from kdlab import cli, files
from kdlab.cli import doctor, pages, parameters, running
from kdlab.cli.parameters import Parameter

PARAMETERS = """\
profile: str = "fast"  # fast or full
seed: int = 0  # of everything random
dataset: str = "glyphs"  # any set, or a path
method: str = "kd"  # what is compared
temperature: float = 4.0  # softens the teacher
hidden: list[int] = [32]  # widths
limit: int | None = None  # images
shuffle: bool = True  # the batches"""
START = """\
from kdlab import lab
lab = lab.start(globals(), lesson="tiny", method=["kd", "dkd"], temperature=(1, 20),
                hidden=(1, 256), dataset=None, limit=None, shuffle=None)"""
BODY = 'lab.record("softness", temperature + seed)'


def lesson_at(path, *body, title="Tiny lesson"):
    first = new_code_cell(PARAMETERS)
    first.metadata["tags"] = ["parameters"]
    text = new_markdown_cell(f"# {title}\nLoss $L = T^2$ and [next](b.ipynb).")
    cells = [text, first, *map(new_code_cell, body)]
    path.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(new_notebook(cells=cells), path)
    return path


@pytest.fixture
def kdlab(kdlab, tmp_path, monkeypatch):
    """Run the command in an empty folder; gives exit code and all it printed."""
    monkeypatch.chdir(tmp_path)
    return kdlab


def test_help_is_quick_and_imports_nothing_heavy():
    source = (
        "import sys, kdlab.cli; heavy = {'torch', 'numpy', 'matplotlib', 'papermill', 'nbformat'};"
        "sys.exit(', '.join(heavy & sys.modules.keys()) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_it_says_its_version_and_runs_as_a_module(kdlab):
    import kdlab as package

    assert kdlab("--version") == (0, f"kdlab {package.__version__} ")
    assert "Commands" in kdlab()[1]
    command = [sys.executable, "-m", "kdlab", "--version"]
    told = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert told == f"kdlab {package.__version__}\n"


def test_what_the_disk_refuses_is_told_in_a_sentence(tmp_path, kdlab):
    lesson_at(tmp_path / "notebooks" / "01_a.ipynb", START)
    (tmp_path / "file").touch()
    for words in (["student", "file"], ["bundle", "file/x.zip"], ["sweep", "01", "-o", "file"]):
        code, told = kdlab(*words)
        assert code == 1 and ("file: File exists" in told or "file: Not a directory" in told), told


def test_declared_parameters_and_their_limits(tmp_path):
    found = parameters.read(nbformat.read(lesson_at(tmp_path / "a.ipynb", START), 4))
    assert list(found) == re.findall(r"^(\w+):", PARAMETERS, re.M)
    assert found["temperature"] == Parameter("temperature", float, 4.0, (1, 20))
    assert found["method"].limits == ["kd", "dkd"]
    assert found["seed"].limits == (0, 2**31 - 1) and found["dataset"].limits is None


@pytest.mark.parametrize(
    ("word", "value"),
    [
        ("seed=7", 7),
        ("temperature=2", 2.0),
        ("temperature=1e1", 10.0),
        ("dataset=007", "007"),
        ("dataset=none", "none"),
        ("method=dkd", "dkd"),
        ("hidden=[64, 32]", [64, 32]),
        ("limit=none", None),
        ("limit=5", 5),
        ("shuffle=false", False),
        ("profile=full", "full"),
    ],
)
def test_what_is_typed_is_read_as_the_declared_type(tmp_path, word, value):
    declared = parameters.read(nbformat.read(lesson_at(tmp_path / "a.ipynb", START), 4))
    (got,) = parameters.accept(declared, cli.split_assignments([word], "")).values()
    assert got == value and type(got) is type(value)


@pytest.mark.parametrize(
    ("word", "complaint"),
    [
        ("temprature=2", "unknown parameter 'temprature' (did you mean 'temperature'?)"),
        ("zzz=2", "unknown parameter 'zzz'; known: profile, seed"),
        ("seed=x", "parameter seed = 'x' is a str; expected int"),
        ("seed=1.5", "seed = 1.5 is a float; expected int"),
        ("seed=true", "seed = True is a bool; expected int"),
        ("seed=-1", "seed = -1 is out of range; expected 0 to"),
        ("temperature=0.5", "temperature = 0.5 is out of range; expected 1 to 20"),
        ("temperature=nan", "temperature = 'nan' is a str; expected float"),
        ("method=ttm", "expected one of kd, dkd"),
        ("hidden=[64, 1000]", "out of range"),
        ("hidden=64", "expected list[int]"),
        ("hidden=[1.5]", "expected list[int]"),
        ("shuffle=1", "expected bool"),
        ("profile=huge", "expected one of fast, full"),
        ("temperature=1,2", "expected one value; `kdlab sweep NOTEBOOK -g temperature=1,2`"),
        ("seed", "expected NAME=VALUE, as in -p seed=1"),
        ("=3", "expected NAME=VALUE"),
    ],
)
def test_wrong_parameters_end_before_anything_runs(tmp_path, kdlab, monkeypatch, word, complaint):
    lesson_at(tmp_path / "a.ipynb", START)
    monkeypatch.setattr(running, "run_lesson", lambda *a, **k: pytest.fail("it ran"))
    code, told = kdlab("run", "a.ipynb", "-p", word)
    assert code == 1 and complaint in told


def test_wrong_input_is_told_in_a_sentence(tmp_path, kdlab):
    lesson = lesson_at(tmp_path / "notebooks" / "01_a.ipynb", START)
    lesson_at(tmp_path / "notebooks" / "01_b.ipynb", START)
    (tmp_path / "no.ipynb").write_text("{")
    for words, complaint in [
        (["run", "02"], "no such notebook; give a path or one of: 01_a, 01_b"),
        (["run", "01"], "several fit; give a path or one of: 01_a, 01_b"),
        (["run", "no.ipynb"], "is not a Jupyter notebook"),
        (["run", "01_a", "-o", lesson], "is the lesson itself"),
        (["run", "01_a", "-p", "seed=1", "-p", "seed=2"], "'seed' came twice"),
        (["course", "out", "--lessons", "nowhere"], "no notebook in nowhere"),
        (["data", "fetch", "cifar"], "unknown data set 'cifar'"),
        (["teachers", "nobody", "--rebuild"], "'nobody'"),
    ]:
        code, told = kdlab(*words)
        assert code == 1 and complaint in told, told
    plain = lesson_at(tmp_path / "plain.ipynb")
    notebook = nbformat.read(plain, 4)
    notebook.cells[1].source = "seed: int = 1 + 1"
    nbformat.write(notebook, plain)
    assert "the parameter seed is computed" in kdlab("run", "plain.ipynb")[1]


def test_a_number_names_its_lesson_and_not_the_supplement(tmp_path):
    for name in ("01_a", "01b_b", "02_c"):
        (tmp_path / f"{name}.ipynb").touch()
    found = [running.find_lesson(start, tmp_path).stem for start in ("01", "01b", "02", "01_")]
    assert found == ["01_a", "01b_b", "02_c", "01_a"]


def test_a_run_has_its_own_folder_and_leaves_the_lesson_alone(tmp_path, kdlab):
    lesson = lesson_at(tmp_path / "notebooks" / "01_tiny.ipynb", START, BODY)
    before = lesson.read_bytes()
    code, told = kdlab("run", "01", "-p", "temperature=2", "-p", "seed=3", "--profile", "fast")
    assert code == 0, told
    (output,) = tmp_path.glob("build/runs/*/01_tiny.ipynb")
    assert output.parent.name.startswith("01_tiny--profile-fast--seed-3--temperature-2.0-")
    (record,) = output.parent.glob("01_tiny-*.json")
    report = json.loads(record.read_text())
    assert report["records"] == [{"name": "softness", "value": 5.0}]
    assert lesson.read_bytes() == before and "KDLAB_RECORDS" not in os.environ


def test_a_failing_cell_is_named(tmp_path, kdlab):
    lesson_at(tmp_path / "a.ipynb", "x = 1", "y = 2\n1 / (x - 1)")
    code, told = kdlab("run", "a.ipynb", "-o", "out/a.ipynb")
    assert code == 1
    for part in ("code cell 3", "“Tiny lesson”", "ZeroDivisionError: division", "| 1 / (x - 1)"):
        assert part in told
    assert (tmp_path / "out" / "a.ipynb").is_file()


def test_a_slow_cell_is_given_up(tmp_path, kdlab):
    lesson_at(tmp_path / "a.ipynb", "import time; time.sleep(60)")
    start = time.perf_counter()
    code, told = kdlab("run", "a.ipynb", "--timeout", 1)
    assert code == 1 and "longer than 1 s" in told and time.perf_counter() - start < 40


def test_the_course_as_pages(tmp_path, kdlab):
    picture = "from matplotlib.figure import Figure\nf = Figure((1, 1)); f.subplots(); f"
    lesson_at(tmp_path / "notebooks" / "a.ipynb", picture, title="First <one>")
    lesson_at(tmp_path / "notebooks" / "b.ipynb", "raise KeyError('lost')", title="Second")
    code, told = kdlab("course", "out")
    assert code == 1 and "2 lessons, 1 failed" in told and "KeyError: 'lost'" in told
    index = (tmp_path / "out" / "index.html").read_text()
    assert 'href="a.html">First &lt;one&gt;' in index and "failed" in index and "done" in index
    page = (tmp_path / "out" / "a.html").read_text()
    assert "data:image/png" in page and 'href="b.html"' in page
    assert re.search(r'<img [^>]*alt="L = T\^2"[^>]* src="data:image/svg', page)
    for text in (page, index):  # nothing is fetched when the page opens
        assert not re.search(r"<(?:script|link|img|iframe)[^>]*(?:src|href)=[\"']?https?:", text)
        assert not re.search(r"@import|import\([\"']?http|url\([\"']?https?:", text)


@pytest.mark.parametrize(
    ("text", "alternatives"),
    [
        ("$T^2$ and $\\frac{a}{b}$", ["T^2", "\\frac{a}{b}"]),
        ("$$\n\\begin{aligned} a &= b \\\\ c &= d \\end{aligned}\n$$", ["a = b", "c = d"]),
        ("$\\lVert z \\rVert$", ["\\lVert z \\rVert"]),
        ("costs $5 and $6", []),
        ("`$T$`\n```\n$T$\n```", []),
        ("a | $|x|$ | b", ["&#124;x&#124;"]),
    ],
    ids=["inline", "rows", "synonym", "money", "code", "table"],
)
def test_formulas_are_drawn(text, alternatives):
    drawn = pages.prepare_markdown(text)
    assert re.findall(r'alt="(.*?)"', drawn) == alternatives
    for svg in re.findall(r"base64,([^\"]+)", drawn):
        assert b"<path" in base64.b64decode(svg)
    if not alternatives:
        assert drawn == text


def test_a_formula_that_cannot_be_drawn_stays_readable():
    drawn = pages.prepare_markdown(r"$\underbrace{a < b}_{c}$")
    assert drawn == r"<code>\underbrace{a &lt; b}_{c}</code>"


def test_doctor(kdlab):
    code, told = kdlab("doctor")
    assert code == 0, told
    for name in ("torch", "device", "precision", "threads", "memory", "cache", "kernel"):
        assert f" {name} " in told


def test_doctor_says_what_is_missing_and_goes_on(kdlab, monkeypatch):
    def broken():
        raise RuntimeError("no driver")

    needs = ["no-such-package>=1", "numpy>=99", "pytest>=1; extra == 'dev'"]
    monkeypatch.setattr(doctor.importlib.metadata, "requires", lambda name: needs)
    broken.__name__ = "check_device"
    monkeypatch.setattr(doctor, "CHECKS", (broken, doctor.check_packages, doctor.check_memory))
    code, told = kdlab("doctor")
    assert code == 1
    assert "missing device RuntimeError: no driver" in told
    assert "missing no-such-package" in told and "missing numpy" in told and "pytest" not in told
    assert "GiB free" in told


@pytest.mark.parametrize(
    ("change", "check", "name", "advice"),
    [
        ((doctor, "usable_cores", lambda: 1), "device", "threads", "OMP_NUM_THREADS=1"),
        ((doctor.os, "access", lambda *a: False), "cache", "cache", "KDLAB_DATA_DIR"),
        ((doctor, "GIB", 2**60), "memory", "memory", "close other kernels"),
    ],
    ids=["threads", "cache", "memory"],
)
def test_doctor_says_what_to_change(monkeypatch, change, check, name, advice):
    monkeypatch.setattr("torch.get_num_threads", lambda: 2)
    monkeypatch.setattr(*change)
    found = {finding.name: finding for finding in getattr(doctor, f"check_{check}")()}
    assert found[name].state == doctor.CHANGE and advice in found[name].advice
    assert doctor.is_fit(list(found.values()))


def test_data_sets_are_listed(kdlab, monkeypatch, tmp_path):
    monkeypatch.setenv("KDLAB_DATA_DIR", str(tmp_path))
    code, told = kdlab("data")
    assert code == 0 and "digits comes with kdlab" in told
    assert "cifar10 needs a download" in told and "fashion_mnist needs a download" in told
    (tmp_path / "cifar-10-binary.tar.gz").touch()
    told = kdlab("data")[1]
    assert "cifar10 cached" in told and "cifar100 needs a download" in told
    code, told = kdlab("data", "fetch", "digits")
    assert code == 0 and "10 classes" in told


@pytest.fixture
def quick(monkeypatch):
    """Runs take no kernel: they leave their parameters."""

    def stand_in(lesson, output, values, **options):
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_text(json.dumps(values))

    monkeypatch.setattr(running, "run_lesson", stand_in)


def test_no_run_overwrites_another(tmp_path, kdlab, quick):
    lesson_at(tmp_path / "a.ipynb", START)
    texts = ["a b", "a_b", "a+b", "x" * 200 + "1", "x" * 200 + "2", "A_b"]
    for text in [*texts, texts[0]]:
        code, told = kdlab("run", "a.ipynb", "-p", f"dataset={text}")
        assert code == 0, told
    kept = [json.loads(path.read_text())["dataset"] for path in tmp_path.glob("build/runs/*/*")]
    assert sorted(kept) == sorted([*texts, texts[0]])


def test_an_output_that_is_there_is_overwritten_only_by_force(tmp_path, kdlab, quick):
    lesson_at(tmp_path / "a.ipynb", START)
    words = ["run", "a.ipynb", "-o", "pair/T1.ipynb", "-p"]
    assert kdlab(*words, "seed=1")[0] == 0
    code, told = kdlab(*words, "seed=2")
    assert code == 1 and "pair/T1.ipynb is there already; --force overwrites it" in told
    assert json.loads((tmp_path / "pair/T1.ipynb").read_text()) == {"seed": 1}
    assert kdlab(*words, "seed=2", "--force")[0] == 0
    assert json.loads((tmp_path / "pair/T1.ipynb").read_text()) == {"seed": 2}


@pytest.mark.parametrize("encoding", ["cp1252", "ascii", "utf-8"])
def test_a_terminal_may_lack_letters(monkeypatch, encoding):
    finding = doctor.Finding("threads ∞", doctor.CHANGE, "日本", "less → more")
    monkeypatch.setattr(doctor, "CHECKS", (lambda: [finding],))
    monkeypatch.setattr(doctor.CHECKS[0], "__name__", "check_x")
    stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    monkeypatch.setattr(sys, "stdout", stream)
    cli.app(["doctor"], standalone_mode=False)
    stream.flush()
    assert b"less" in stream.buffer.getvalue()


def test_names_are_no_markup_and_steer_no_terminal(tmp_path, kdlab, capsys):
    lesson_at(tmp_path / "[red]a.ipynb", START)
    code, told = kdlab("sweep", "[red]a.ipynb", "-o", "[/x]", "--dry-run")
    assert code == 0 and "[/x]: 1 run" in told
    cli.complain("a\x1b[2Jb\x07")
    assert "\x1b" not in (told := capsys.readouterr().err) and "a?[2Jb?" in told


def test_a_home_that_cannot_be_read_costs_nothing_but_what_is_kept_there(tmp_path, monkeypatch):
    locked, exists = tmp_path / "home", Path.exists

    def refusing(path, **options):
        if locked in (path, *path.parents) and path != locked:
            raise PermissionError(13, "Permission denied", str(path))
        return exists(path, **options)

    monkeypatch.setattr(Path, "exists", refusing)
    monkeypatch.setattr(Path, "home", lambda: locked)
    monkeypatch.setattr(files, "project_folder", lambda: None)
    monkeypatch.delenv("KDLAB_DATA_DIR", raising=False)
    monkeypatch.delenv("KDLAB_PROGRESS", raising=False)
    assert locked not in files.cache_folder().parents
    found = [*doctor.check_cache(), *doctor.check_progress()]
    assert doctor.is_fit(found)
    monkeypatch.setattr(Path, "home", lambda: (_ for _ in ()).throw(RuntimeError("nobody")))
    assert files.cache_folder().is_absolute()
    monkeypatch.setenv("KDLAB_DATA_DIR", "~nobody-of-this-name/data")
    assert files.cache_folder()


def test_a_notebook_that_papermill_cannot_take_is_told_in_a_sentence(tmp_path, kdlab):
    cell = {"cell_type": "code", "source": "1 + 1"}
    (tmp_path / "a.ipynb").write_text(json.dumps({"cells": [cell]}))
    code, told = kdlab("run", "a.ipynb")
    assert code == 1 and "a.ipynb: it cannot be run (" in told
