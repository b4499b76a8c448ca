"""Kill -9 at any moment, and rivals in one folder: no run is lost, doubled or broken."""

import itertools
import os
import random
import re
import signal
from pathlib import Path

import pytest
from bulk_hands import assert_tidy, forking, in_a_fork, kdlab, state, wait_for

from kdlab.cli import runs


@forking
def test_killed_at_any_moment_it_goes_on(lesson, quick):
    quick.wait, dice, kills, whole = 0.2, random.Random(0), 0, {}
    out = Path("out").absolute()
    words = ["sweep", lesson, "-g", "temperature=1,2,3,4,5", "--seeds", 8, "-o", out, "--jobs", 3]
    for _ in range(8):
        process = in_a_fork(*words)
        process.join(0.05 + 0.25 * dice.random())
        kills += process.is_alive()
        process.kill()
        process.join()
        before, whole = whole, state(out)
        assert before.items() <= whole.items(), "a finished run was lost or made again"
    assert kills >= 3, "it was always done before the kill"
    quick.wait = 0.0
    code, told = kdlab(*words)
    kept = state(out)
    assert code == 1 and whole.items() <= kept.items() and len(kept) == 40
    assert f"{40 - len(whole)} ran" in told or whole
    assert sum(facts["status"] == runs.FAILED for facts in kept.values()) == 8
    assert_tidy(out)


@forking
@pytest.mark.parametrize("step", range(1, 7))
@pytest.mark.parametrize("again", [False, True])
def test_killed_between_any_two_steps_of_keeping(lesson, quick, monkeypatch, step, again):
    out = Path("out").absolute()
    words = ["sweep", lesson, "-o", out]
    if again:
        kdlab(*words)
    before, steps = state(out), itertools.count(1)

    def dying(original):
        def call(*arguments, **options):
            if next(steps) == step:
                os.kill(os.getpid(), signal.SIGKILL)
            return original(*arguments, **options)

        return call

    places = [(Path, "write_text"), (runs, "_flush"), (Path, "rename"), (runs.shutil, "rmtree")]
    with monkeypatch.context() as patch:
        for owner, name in places:
            patch.setattr(owner, name, dying(getattr(owner, name)))
        process = in_a_fork(*words, *["--again"] * again)
        process.join()
    # the facts; two files on the disk; the old folder away, if there is one; the new; the old gone
    assert (process.exitcode == -signal.SIGKILL) == (step <= 5 + again)
    begun, complete = len(quick()), step > 1
    assert kdlab(*words)[0] == 0
    assert len(quick()) == begun + (not complete and not again), "complete, and made again"
    after = state(out)
    assert len(after) == 1 and (after != before) == (complete or not again)
    assert_tidy(out)


@forking
def test_two_sweeps_share_a_folder(lesson, quick):
    quick.wait, out = 0.1, Path("out").absolute()
    words = ["sweep", lesson, "--seeds", 30, "-o", out, "--jobs", 2]
    first, second, third = (in_a_fork(*words) for _ in range(3))
    wait_for(lambda: len(quick()) >= 8)
    third.kill()
    for process in (first, second, third):
        process.join(60)
    assert [first.exitcode, second.exitcode, third.exitcode] == [0, 0, -signal.SIGKILL]
    assert len(state(out)) == 30
    once = len(quick()) - len(set(quick()))
    assert once <= 2, "only what the killed one had begun is made again"
    assert_tidy(out)


@forking
def test_two_sweeps_make_each_run_once_and_wait_for_each_other_at_the_end(lesson, quick):
    quick.wait, out = 0.6, Path("out").absolute()
    rival = in_a_fork("sweep", lesson, "--seeds", 8, "-o", out, "--jobs", 2)
    wait_for(quick)
    code, told = kdlab("sweep", lesson, "--seeds", 8, "-o", out, "--jobs", 2)
    rival.join(60)
    assert code == rival.exitcode == 0 and len(quick()) == len(set(quick())) == len(state(out)) == 8
    ran, there = map(int, re.findall(r"(\d+) ran, (\d+) were", told)[0])
    assert 1 <= ran <= 7 and ran + there == 8


@forking
def test_an_interrupt_ends_it_at_once(lesson, quick):
    quick.wait, out = 1000, Path("out").absolute()
    random.seed(1)  # not near zero
    process = in_a_fork("sweep", lesson, "-o", out)
    wait_for(quick)
    os.kill(process.pid, signal.SIGINT)
    process.join(30)
    assert process.exitcode == 130
    quick.wait = 0
    assert kdlab("sweep", lesson, "-o", out)[0] == 0
    assert_tidy(out)
