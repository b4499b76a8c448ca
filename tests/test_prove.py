"""tools/prove.py: every test belongs to one job, and what a job says reaches the last line."""

import re
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tools"))
import prove  # noqa: E402

QUIET = ("-q", "-p", "no:cacheprovider", "--rootdir")
MAIN = "import os, sys, prove; os.cpu_count = lambda: 1; sys.exit(prove.main({jobs!r}))"


@pytest.fixture(autouse=True)
def no_plugins(monkeypatch):
    """Plugins are half of what a small pytest costs."""
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")


@pytest.fixture
def job(tmp_path):
    """Write a test file; return the arguments of a job that runs it alone."""

    def write(name: str, source: str) -> list[str]:
        path = tmp_path / f"test_{name}.py"
        path.write_text(source.format(here=str(tmp_path)))
        return [*QUIET, str(tmp_path), str(path)]

    return write


def start(jobs):
    """The script in a process of its own, with other jobs and one core."""
    command = [sys.executable, "-c", MAIN.format(jobs=jobs)]
    return subprocess.Popen(
        command, cwd=ROOT / "tools", stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def finish(process):
    told, _ = process.communicate(timeout=120)
    return process.returncode, told.splitlines()


def test_every_test_file_and_every_lesson_belongs_to_one_job():
    jobs = prove.all_jobs()
    files = [*(ROOT / "tests").rglob("test_*.py"), *(ROOT / "notebooks").glob("*.ipynb")]
    assert len(files) > 50
    for path in files:
        name = path.relative_to(ROOT).as_posix()
        takes = [
            job
            for job, arguments in jobs.items()
            if any(name == a or name.startswith(f"{a}/") for a in arguments)
            and not any(name.startswith(f"{a}/".removeprefix("--ignore=")) for a in arguments[1:])
        ]
        assert len(takes) == 1, f"{name} belongs to the jobs {takes}"
        assert ("--nbval" in jobs[takes[0]]) == (path.suffix == ".ipynb")


def test_the_last_line_sums_up_and_failures_are_named(job):
    jobs = {
        "good": job("good", "import os\ndef test_a(): assert os.environ['OMP_NUM_THREADS'] == '1'"),
        "mixed": job(
            "mixed",
            "import pytest\ndef test_a(): pass\ndef test_skipped(): pytest.skip('so')\n"
            "def test_bad():\n    print('9 passed in 1s')\n    print('FAILED by design')\n"
            "    assert not 1\n"
            "@pytest.fixture\ndef broken(): raise OSError\ndef test_broken(broken): pass\n",
        ),
    }
    code, lines = finish(start(jobs))
    assert code == 1
    assert re.fullmatch(r"1 failed, 2 passed, 1 skipped, 1 error in \d+\.\d\ds", lines[-1])
    assert any(re.match(r"good +\| 1 passed in ", line) for line in lines)
    assert [line.split(" - ")[0].split("::")[-1] for line in lines[-3:-1]] == [
        "test_bad",
        "test_broken",
    ]
    assert lines[-3].startswith("mixed: FAILED ") and lines[-2].startswith("mixed: ERROR ")


def test_all_is_well(job):
    code, lines = finish(start({"a": job("a", "def test_a(): pass")}))
    assert code == 0 and re.fullmatch(r"1 passed in \d+\.\d\ds", lines[-1])


def test_ci_finds_the_last_line():
    """.ci/run repeats pytest's closing line below make's own error."""
    pattern = re.search(r"grep -E '([^']+)'", (ROOT / ".ci" / "run").read_text())[1]
    counts = Counter(failed=2, passed=4600, skipped=1, warning=3, error=2)
    line = prove.closing_line(counts, 3725.4)
    assert line == "2 failed, 4600 passed, 1 skipped, 3 warnings, 2 errors in 3725.40s (1:02:05)"
    assert re.search(pattern, line) and prove.CLOSING.match(line)
    assert prove.closing_line(Counter(passed=1, error=1), 59.4) == "1 passed, 1 error in 59.40s"
    assert not re.search(pattern, f"package | {line}")


@pytest.mark.parametrize("code", [0, 3])
def test_a_pytest_that_dies_is_an_error(job, code):
    fatal = job("fatal", f"import os\ndef test_a(): os._exit({code})")
    ended, lines = finish(start({"fatal": fatal, "next": job("next", "def test_a(): pass")}))
    assert ended == 1 and lines[-2] == f"fatal: ERROR pytest ended with code {code}"
    assert lines[-1].startswith("1 passed, 1 error in ")


def test_no_tests_is_an_error(job):
    code, lines = finish(start({"none": job("none", "")}))
    assert code == 1 and lines[-1].startswith("1 error in ")


MEETING = """
import pathlib, time
mine, other = (pathlib.Path("{here}") / name for name in NAMES)
def test_meet():
    mine.touch()
    patience = time.monotonic() + SECONDS
    while not other.exists() and time.monotonic() < patience:
        time.sleep(0.05)
    assert other.exists() == MEETS
def teardown_module():
    if not MEETS:
        mine.unlink()
"""


@pytest.mark.parametrize(("cores", "seconds"), [(1, 0.5), (2, 60)])
def test_as_many_at_once_as_there_are_cores(job, cores, seconds):
    def meeting(*names):
        return job(names[0], f"NAMES, SECONDS, MEETS = {names}, {seconds}, {cores > 1}" + MEETING)

    jobs = {"a": meeting("a", "b"), "b": meeting("b", "a")}
    done = prove.run_all(jobs, cores, threading.Event())
    assert [dict(job.counts) for job in done] == [{"passed": 1}] * 2


LONG = """
import pathlib, time
here = pathlib.Path("{here}")
def test_long():
    try:
        (here / "started").touch()
        time.sleep(100)
    finally:
        (here / "tidied").touch()
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_reaches_what_runs_and_starts_nothing_more(job, tmp_path, number):
    process = start({"long": job("long", LONG), "next": job("next", "def test_a(): pass")})
    patience = time.monotonic() + 60
    while not (tmp_path / "started").exists() and time.monotonic() < patience:
        time.sleep(0.05)
    process.send_signal(number)
    code, lines = finish(process)
    assert code == 130 and (tmp_path / "tidied").exists()
    assert lines[-2] == "interrupted; 1 of 2 jobs were never started"
    assert lines[-1].startswith("1 error in ") and not any(
        line.startswith("next") for line in lines
    )
