"""One archive of the course: what is in it, that it is the same each time, and that it works."""

import hashlib
import os
import re
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
from typer.testing import CliRunner

from kdlab import cli, files
from kdlab.cli import bundle, classroom, doctor
from kdlab.cli.student import linked
from kdlab.datasets.downloads import files_of

ROOT = Path(__file__).parents[1]
PROJECT = {"requires-python": ">=3.11"}


@pytest.fixture
def kdlab(kdlab, monkeypatch):
    """Run the command in the project's folder; gives exit code and all it printed."""
    monkeypatch.chdir(ROOT)
    return kdlab


def unpack(path, folder):
    if path.suffix == ".zip":
        with zipfile.ZipFile(path) as archive:
            archive.extractall(folder)
    else:
        with tarfile.open(path) as archive:
            archive.extractall(folder, filter="data")
    return folder / bundle.TOP


def content(folder):
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*.*")}


@pytest.fixture(scope="module")
def course(tmp_path_factory):
    """The course without solutions, packed twice and unpacked: archive and folder."""
    folder = tmp_path_factory.mktemp("bundle")
    made = [folder / "one.tar.gz", folder / "two.tar.gz"]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        for path in made:
            done = CliRunner().invoke(cli.app, ["bundle", str(path), "--student"])
            assert done.exit_code == 0, done.output
    return made, unpack(made[0], folder)


def test_the_same_content_gives_the_same_bytes(course):
    (one, two), _ = course
    sums = {hashlib.sha256(path.read_bytes()).hexdigest() for path in (one, two)}
    assert len(sums) == 1
    with tarfile.open(one) as archive:
        members = archive.getmembers()
    assert [m.name for m in members] == sorted(m.name for m in members)
    assert {(m.mtime, m.uid, m.gid, m.uname, m.mode) for m in members} == {
        (bundle.BIRTH_SECONDS, 0, 0, "", 0o644)
    }


def test_what_is_in_it(course):
    _, folder = course
    there = set(content(folder))
    package = {p.relative_to(ROOT).as_posix() for p in (ROOT / "kdlab").rglob("*.py")}
    teachers = {f"data/teachers/{n}.safetensors" for n in ("digits", "glyphs", "docstrings")}
    lessons = {f"notebooks/{p.name}" for p in (ROOT / "notebooks").glob("*.ipynb")}
    results = {f"data/results/{p.name}" for p in (ROOT / "data" / "results").glob("*.csv")}
    wanted = package | teachers | lessons | results | {"pyproject.toml", "requirements.lock"}
    assert wanted - there == set()
    assert "docs/troubleshooting.md" in there and "docs/teaching.md" not in there
    assert not [name for name in there if re.search(r"tests|\.pyc|__pycache__|/\.", name)]
    sources = [(folder / name).read_text() for name in lessons]
    assert not any('"solution"' in text or '"image/png"' in text for text in sources)
    readme = (folder / "README.md").read_text()
    (commands,) = re.findall(r"```\n(.*?)```", readme, re.S)
    assert len(commands.splitlines()) == 3 and "needs a network" in readme
    assert "-c requirements.lock -e" in commands and "--no-index" not in commands


def test_what_was_unpacked_works_where_it_lies(course, tmp_path):
    """The package of the archive finds its own teachers, results and lessons."""
    _, folder = course
    source = (
        "import kdlab, kdlab.files as f\n"
        "from kdlab.cli import doctor\n"
        "from kdlab.lab.progress import exercises_of\n"
        "assert f.project_folder().samefile('.'), f.project_folder()\n"
        "checks = (doctor.check_teachers, doctor.check_reading, doctor.check_results)\n"
        "states = [finding.state for check in checks for finding in check()]\n"
        "assert states == ['ok'] * 5, states\n"
        "assert f.cache_folder().resolve().is_relative_to(f.project_folder())\n"
    )
    alone = {k: v for k, v in os.environ.items() if not k.startswith("KDLAB_")}
    done = subprocess.run(
        [sys.executable, "-c", source],
        cwd=folder,
        env=alone | {"PYTHONPATH": str(folder), "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr


def test_zip_holds_the_same_as_tar(tmp_path, monkeypatch):
    some = {"b/a.whl": b"x" * 999, "a.txt": ROOT / "LICENSE", "b/c.md": "é".encode()}
    unpacked = []
    for name in ("a.zip", "a.tgz", "a.tar.gz"):
        monkeypatch.setattr("time.time", lambda: 1e9)
        bundle.pack(some, tmp_path / name)
        monkeypatch.setattr("time.time", lambda: 1.5e9)
        first = (tmp_path / name).read_bytes()
        bundle.pack(dict(reversed(some.items())), tmp_path / name)
        assert (tmp_path / name).read_bytes() == first
        unpacked.append(content(unpack(tmp_path / name, tmp_path / f"of {name}")))
    wanted = {k: v if isinstance(v, bytes) else v.read_bytes() for k, v in some.items()}
    assert unpacked == [wanted] * 3


def test_a_full_archive_has_solutions_and_what_teachers_need():
    lessons = {"01_a.ipynb": b"{}"}
    for student in (True, False):
        found = bundle.contents(ROOT, lessons, student=student, cached=[Path("x/cifar.gz")])
        assert (bundle.FOR_TEACHERS in found) is not student
        assert found["notebooks/01_a.ipynb"] == b"{}"
        assert found["data/cache/cifar.gz"] == Path("x/cifar.gz")


def test_whole_lessons_link_only_to_those_that_come_along():
    names = ["00_start_here.ipynb", "01_soft_targets.ipynb"]
    some = linked([ROOT / "notebooks" / name for name in names])
    assert list(some) == names and "](01_soft_targets.ipynb)" in some[names[0]]
    assert not any(f"]({other}" in text for text in some.values() for other in ("02_", "03_"))
    whole = linked(sorted((ROOT / "notebooks").glob("*.ipynb")))
    assert whole[names[0]] == (ROOT / "notebooks" / names[0]).read_text(encoding="utf-8")


def test_a_downloaded_data_set_comes_along(monkeypatch, tmp_path):
    monkeypatch.setenv("KDLAB_DATA_DIR", str(tmp_path))
    assert classroom.cached_files("digits") == []
    with pytest.raises(ValueError, match="`kdlab data fetch fashion_mnist` first"):
        classroom.cached_files("fashion_mnist")
    for path in files_of("fashion_mnist"):
        path.touch()
    assert len(classroom.cached_files("fashion_mnist")) == 4
    with pytest.raises(ValueError, match="unknown data set 'cifar'"):
        classroom.cached_files("cifar")


def fake_pip(monkeypatch, code, stderr, *wheels):
    """Let pip leave these wheels and words; gives the calls."""
    calls = []

    def run(command, **options):
        calls.append(command)
        staged = Path(options["cwd"])
        assert (staged / "pyproject.toml").is_file() and (staged / "kdlab/__init__.py").is_file()
        folder = Path(command[command.index("-w") + 1])
        folder.mkdir()
        for name in wheels:
            (folder / name).write_bytes(name.encode())
        return subprocess.CompletedProcess(command, code, "", stderr)

    monkeypatch.setattr(bundle.subprocess, "run", run)
    return calls


def test_wheels_are_in_the_archive_and_the_readme_uses_them(kdlab, monkeypatch, tmp_path):
    wheels = ("torch-2-py3.whl", "setuptools-80-py3.whl")
    calls = fake_pip(monkeypatch, 0, "", "kdlab-0.1.0-py3.whl", *wheels)
    target = tmp_path / "new" / "course.zip"
    code, told = kdlab("bundle", target, "01", "--wheels")
    assert code == 0, told
    assert {"-c", "requirements.lock", ".[compression]"} <= set(calls[0])
    assert any(word.startswith("setuptools") for word in calls[0]), (
        "what pip needs to install kdlab"
    )
    folder = unpack(target, tmp_path)
    assert {p.name for p in (folder / "wheels").iterdir()} == set(wheels)
    readme = (folder / "README.md").read_text()
    assert "--no-index -f wheels -c requirements.lock" in readme and "without a network" in readme
    assert f"Python {sys.version_info[0]}.{sys.version_info[1]} on" in readme
    assert [p.name for p in (folder / "notebooks").iterdir()] == ["01_soft_targets.ipynb"]
    assert list(tmp_path.joinpath("new").iterdir()) == [target], "nothing temporary is left"


def test_without_a_network_wheels_end_with_a_kind_word(kdlab, monkeypatch, tmp_path):
    said = "WARNING: retrying\nERROR: No matching distribution found for torch\n"
    fake_pip(monkeypatch, 1, said)
    target = tmp_path / "course.tar.gz"
    target.write_text("the last one")
    code, told = kdlab("bundle", target, "--wheels")
    assert code == 1 and "is there already; --force overwrites it" in told
    code, told = kdlab("bundle", target, "--wheels", "--force")
    assert code == 1 and "No matching distribution found for torch Nothing was written" in told
    assert "Is there a network here? Without --wheels" in told
    assert target.read_text() == "the last one" and list(tmp_path.iterdir()) == [target]


def test_wrong_input_is_told_in_a_sentence(kdlab, monkeypatch, tmp_path):
    for words, complaint in [
        (["course.rar"], "'course.rar' came, expected a name with .tar.gz, .tgz, .zip"),
        ([tmp_path / "a.zip", "99"], "no such notebook"),
        ([tmp_path / "a.zip", "--data", "cifar"], "unknown data set 'cifar'"),
        ([tmp_path / "a.zip", "--lessons", "nowhere"], "no notebook in nowhere"),
    ]:
        code, told = kdlab("bundle", *words)
        assert code == 1 and complaint in told, told
    monkeypatch.setattr(files, "project_folder", lambda: None)
    assert "run in a checkout" in kdlab("bundle", tmp_path / "a.zip")[1]
    assert not list(tmp_path.iterdir())


# --- what the doctor says of such a machine


def state_of(check, name):
    (found,) = (f for f in check() if f.name == name)
    return found.state, found.found, found.advice


def test_doctor_looks_at_what_a_bundle_brings(monkeypatch, tmp_path):
    assert state_of(doctor.check_results, "results")[0] == doctor.OK
    assert "9" in state_of(doctor.check_reading, "reading")[1]
    monkeypatch.setattr(files, "project_folder", lambda: tmp_path)
    state, _, advice = state_of(doctor.check_results, "results")
    assert state == doctor.MISSING and "unpack the course anew" in advice


def test_doctor_notices_that_torch_computes_wrongly(monkeypatch):
    monkeypatch.setattr("kdlab.training.predict", lambda model, x: -model(x).detach())
    state, found, advice = state_of(doctor.check_reading, "reading")
    assert state == doctor.MISSING and "digits" in found and "torch computes wrongly" in advice


def test_doctor_names_what_the_lessons_on_compression_lack(monkeypatch):
    assert state_of(doctor.check_extras, "compression")[0] == doctor.OK
    needs = ["numpy>=1", "no-such-onnx>=1; extra == 'compression'", "other; extra == 'dev'"]
    monkeypatch.setattr(doctor.importlib.metadata, "requires", lambda name: needs)
    state, found, advice = state_of(doctor.check_extras, "compression")
    assert (state, found) == (doctor.CHANGE, "not installed: no-such-onnx")
    assert ".[compression]" in advice


def test_doctor_says_where_progress_is_kept(monkeypatch, tmp_path):
    monkeypatch.setenv("KDLAB_PROGRESS", str(tmp_path / "new" / "p.json"))
    assert state_of(doctor.check_progress, "progress")[:2] == (
        doctor.OK, str(tmp_path / "new" / "p.json"),
    )  # fmt: skip
    (tmp_path / "new").write_text("a file where a folder should be")
    state, _, advice = state_of(doctor.check_progress, "progress")
    assert state == doctor.CHANGE and "KDLAB_PROGRESS" in advice
    monkeypatch.setenv("KDLAB_PROGRESS", "off")
    assert state_of(doctor.check_progress, "progress")[1] == "not kept (KDLAB_PROGRESS)"
