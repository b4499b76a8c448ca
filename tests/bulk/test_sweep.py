"""What a sweep keeps: failed runs too, nothing twice, nothing half made on a full disk."""

import re
import subprocess
from pathlib import Path

import pytest
from bulk_hands import assert_tidy, kdlab, notebook_at, state

from kdlab.cli import running, runs


def test_a_failed_run_is_kept_and_stops_nothing(lesson, quick):
    words = ["sweep", lesson, "-g", "temperature=2,3,5", "--seeds", 2, "-o", "out"]
    code, told = kdlab(*words)
    assert code == 1 and "out: 6 runs: 4 ran, 0 were there already, 2 failed" in told
    assert "(temperature=3.0, seed=1): too cold" in told and "6 of 6" in told and "s left" in told
    failed = [facts for facts in state(Path("out")).values() if facts["status"] == runs.FAILED]
    assert {facts["reason"] for facts in failed} == {"too cold"} and len(failed) == 2
    for facts in failed:  # the path that it names is where the notebook is now
        assert Path(facts["error"].split()[-1]).is_file()
    code, told = kdlab(*words)
    assert code == 1 and len(quick()) == 6
    assert "0 ran, 4 were there already, 2 failed (2 of them before; --retry makes" in told
    assert "failed before, 2 times: too cold" in told and "out: 6 runs, 6 there already" in told
    code, told = kdlab(*words, "--retry")
    assert code == 1 and len(quick()) == 8 and quick()[6:] == sorted(set(quick()[6:]))
    assert all('"temperature": 3.0' in line for line in quick()[6:])
    assert_tidy(Path("out"))


def test_nothing_runs_twice_unless_asked(lesson, quick):
    words = ["sweep", lesson, "-g", "temperature=2,5", "-o", "out"]
    assert "2 ran, 0 were there already, 0 failed" in kdlab(*words)[1]
    before = state(Path("out"))
    code, told = kdlab(*words)
    assert code == 0 and "0 ran, 2 were there already, 0 failed" in told
    told = kdlab("sweep", lesson, "-g", "temperature=2,5,7", "-o", "out")[1]
    assert "1 ran, 2 were" in told and "3 of 3: " in told and "1 of 3" not in told
    assert len(quick()) == 3 and before.items() <= state(Path("out")).items()
    assert "2 ran, 0 were" in kdlab(*words, "--again")[1]
    after = state(Path("out"))
    assert len(quick()) == 5 and len(after) == 3
    assert all(after[name]["started"] > before[name]["started"] for name in before)
    assert_tidy(Path("out"))


def test_a_dry_run_tells_the_runs_and_makes_none(lesson, quick):
    words = ["sweep", lesson, "-g", "temperature=2,5", "-o", "out"]
    code, told = kdlab(*words, "--dry-run")
    assert code == 0 and "out: 2 runs, 0 there already, 1 at a time" in told
    assert told.count("to be made: ") == 2 and "(temperature=5.0)" in told
    assert quick() == [] and not Path("out").exists()
    kdlab("sweep", lesson, "-g", "temperature=2", "-o", "out")
    told = kdlab(*words, "--dry-run")[1]
    assert "1 there already" in told and told.count("to be made: ") == 1 == len(quick())


def test_a_stale_run_is_named_and_made_again(lesson, quick, monkeypatch):
    """The notebook, the data and the package decide, by content; nothing else does."""
    data, words = Path("my.npz"), ["sweep", lesson, "-g", "dataset=my.npz,digits", "-o", "out"]
    data.write_bytes(b"old")
    assert "2 ran" in kdlab(*words)[1]
    lesson.touch()
    data.touch()
    assert "0 ran, 2 were there already" in kdlab(*words)[1]
    data.write_bytes(b"new")
    code, told = kdlab(*words, "--dry-run")
    assert code == 0 and "1 there already" in told and "stale, the data changed since" in told
    code, told = kdlab(*words)
    assert code == 0 and "1 ran, 1 were there already" in told and len(quick()) == 3
    assert re.search(r"stale: [0-9a-f]{12} \(dataset=\S+/my\.npz\), the data changed since", told)
    notebook_at(lesson, "1 + 1")
    told = kdlab(*words)[1]
    assert "2 ran, 0 were" in told and told.count("the notebook changed since") == 2
    monkeypatch.setattr("kdlab.__version__", "99")
    told = kdlab(*words)[1]
    assert "2 ran, 0 were" in told and told.count("kdlab changed since") == 2
    assert "0 ran, 2 were there already" in kdlab(*words)[1] and len(quick()) == 7


def test_a_folder_of_data_counts_by_what_is_in_it(lesson, quick):
    Path("pets/cat").mkdir(parents=True)
    Path("pets/cat/1.png").write_bytes(b"1")
    words = ["sweep", lesson, "-g", "dataset=pets", "-o", "out"]
    for change, ran in [(lambda: None, 1), (lambda: None, 0),
                        (lambda: Path("pets/cat/2.png").write_bytes(b""), 1),
                        (lambda: Path("pets/cat/2.png").rename("pets/cat/3.png"), 1),
                        (lambda: Path("pets/cat/1.png").write_bytes(b"2"), 1)]:  # fmt: skip
        change()
        assert f"{ran} ran" in kdlab(*words)[1]


def test_data_that_change_while_a_run_is_made_fail_it(lesson, quick, monkeypatch):
    Path("my.npz").write_bytes(b"old")
    before = running.run_lesson
    words = ["sweep", lesson, "-g", "dataset=my.npz", "-o", "out"]
    with monkeypatch.context() as patch:

        def run(*arguments, **options):
            before(*arguments, **options)
            Path("my.npz").write_bytes(b"newer")

        patch.setattr(running, "run_lesson", run)
        code, told = kdlab(*words)
    assert code == 1 and "the data or the notebook changed while it ran" in told
    assert "1 ran, 0 were there already, 0 failed" in kdlab(*words)[1]


def test_a_clock_that_is_set_back_makes_no_run_shorter_and_none_older(lesson, quick, monkeypatch):
    clock = iter(range(10_000, 0, -1000))
    monkeypatch.setattr(runs, "now", lambda: float(next(clock)))
    kdlab("sweep", lesson, "-o", "out")
    (first,) = state(Path("out")).values()
    kdlab("sweep", lesson, "-o", "out", "--again")
    (second,) = state(Path("out")).values()
    assert first["seconds"] >= 0 and second["seconds"] >= 0 and second["ended"] > first["ended"]


def test_what_no_notebook_raised_fails_a_run_and_not_the_sweep(lesson, monkeypatch):
    def broken(*arguments, **options):
        raise RuntimeError("Kernel didn't respond")

    monkeypatch.setattr(running, "run_lesson", broken)
    code, told = kdlab("sweep", lesson, "--seeds", 2, "-o", "out")
    assert code == 1 and "2 failed" in told and "RuntimeError: Kernel didn't respond" in told


@pytest.fixture
def small_disk(tmp_path):
    """A folder with room for about 300 kB, and a function that makes more."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", str(folder)]
    try:
        done = subprocess.run(mount, capture_output=True, text=True)
    except OSError as error:
        pytest.skip(f"no mount: {error}")
    if done.returncode:
        pytest.skip(f"no small disk without root: {done.stderr.strip()}")
    yield (
        folder,
        lambda: subprocess.run(["mount", "-o", "remount,size=9m", str(folder)], check=True),
    )
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_full_disk_stops_it_and_breaks_nothing(lesson, quick, small_disk):
    out, more = small_disk
    quick.size = 60_000
    words = ["sweep", lesson, "--seeds", 12, "-o", out, "--jobs", 2]
    code, told = kdlab(*words)
    assert code == 1 and "No space left" in told and "the same command goes on" in told
    fit = state(out)
    assert 1 <= len(fit) < 12
    assert_tidy(out)
    more()
    code, told = kdlab(*words)
    assert code == 0 and f"{12 - len(fit)} ran, {len(fit)} were there already" in told
    assert fit.items() <= state(out).items() and len(state(out)) == 12


def test_what_no_disk_can_hold_is_no_failed_run(lesson, monkeypatch):
    def full(*arguments, **options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(running, "run_lesson", full)
    code, told = kdlab("sweep", lesson, "--seeds", 3, "-o", "out", "--jobs", 1)
    assert code == 1 and "No space left" in told and "the same command goes on" in told
    assert state(Path("out")) == {}
    assert_tidy(Path("out"))


def test_a_folder_that_cannot_be_made_is_told(lesson, quick):
    Path("out").write_text("in the way")
    code, told = kdlab("sweep", lesson, "-o", "out")
    assert code == 1 and "out: File exists" in told and quick() == []
