"""Run all tests: as many pytest processes side by side as there are cores, each with one thread.

Two processes of one thread get more done than one of two: what small students compute leaves a
second thread little to do. Each job is an ordinary pytest, because interrupts do not work in
pytest-xdist's workers. Its lines are shown as they come, with its name before them; the last line
sums up all jobs in pytest's words.
"""

import contextlib
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).parents[1]
NBVAL = (
    *("--nbval", "--nbval-current-env", "--nbval-cell-timeout=300"),
    *("--nbval-sanitize-with", "tests/notebooks/sanitize.cfg"),
)
# passive: threads that spin while they wait starve the browser and the kernels beside them
ONE_THREAD = {"OMP_NUM_THREADS": "1", "KDLAB_THREADS": "1", "OMP_WAIT_POLICY": "passive"}
# stored outputs come from two threads: with one, sums are rounded otherwise, and training drifts
TWO_THREADS = ONE_THREAD | {"OMP_NUM_THREADS": "2", "KDLAB_THREADS": "2"}
TIMED = ("--durations=0", "--durations-min=5")  # of the lessons, as a class would wait for them
CLOSING = re.compile(r"=* ?(\d+ [a-z ]+(?:, \d+ [a-z ]+)*) in [\d.]+s")
COUNTED = ("failed", "passed", "skipped", "deselected", "xfailed", "xpassed", "warning", "error")
GRACE = 60  # seconds in which pytest may shut down kernels, server and browser


def all_jobs() -> dict[str, Sequence[str]]:
    """The arguments of each pytest, by name; long ones first, so that no core idles at the end."""
    lessons = sorted((ROOT / "notebooks").glob("*.ipynb"))
    variants, browser = "tests/notebooks", "tests/browser"
    return {
        "variants": [variants, *TIMED],
        "package": ["tests", f"--ignore={variants}", f"--ignore={browser}"],
        "browser": [browser],
        **{p.stem: [*NBVAL, p.relative_to(ROOT).as_posix()] for p in lessons},
    }


class Job(threading.Thread):
    """One pytest: shows its lines and keeps what it tells at the end.

    Attributes:
        counts: how many tests passed, failed, ..., by pytest's word for it.
        failures: the lines of its short summary.
    """

    def __init__(self, name: str, arguments: Sequence[str], width: int = 0) -> None:
        super().__init__(name=name, daemon=True)
        self.counts: Counter[str] = Counter()
        self.failures: list[str] = []
        self._prefix = f"{name:<{width}} | "
        self._process = subprocess.Popen(
            [sys.executable, "-m", "pytest", *arguments],
            cwd=ROOT,
            env=os.environ | (TWO_THREADS if "--nbval" in arguments else ONE_THREAD),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
            errors="replace",
            process_group=0,  # Ctrl-C in a terminal reaches this script alone, which passes it on
        )
        self.start()

    def run(self) -> None:
        """Read until pytest ends (the thread's part)."""
        assert self._process.stdout is not None
        for line in self._process.stdout:
            sys.stdout.write(self._prefix + line)
            sys.stdout.flush()
            if "= short test summary info =" in line:
                self.failures.clear()  # what looked like one was the output of a test
            if line.startswith(("FAILED ", "ERROR ")):
                self.failures.append(line.rstrip())
            if closing := CLOSING.match(line):
                pairs = (pair.split(" ", 1) for pair in closing[1].split(", "))
                self.counts = Counter({word.removesuffix("s"): int(n) for n, word in pairs})
        code = self._process.wait()
        told = self.counts["failed"] + self.counts["error"]
        if (code and not told) or not self.counts:  # it was stopped, or died before its last line
            self.counts["error"] += 1
            self.failures.append(f"ERROR pytest ended with code {code}")

    def stop(self) -> None:
        """Interrupt pytest as Ctrl-C would, so that it shuts down what it has started."""
        self._process.send_signal(signal.SIGINT)

    def kill(self) -> None:
        """End pytest and its children, if any of them is still there."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)


def run_all(jobs: Mapping[str, Sequence[str]], cores: int, stopped: threading.Event) -> list[Job]:
    """Start each job when a core is free, until all are done or ``stopped`` is set."""
    started: list[Job] = []
    waiting = list(jobs.items())
    width = max(map(len, jobs))
    while not stopped.wait(0.1) and (waiting or any(job.is_alive() for job in started)):
        while waiting and sum(job.is_alive() for job in started) < cores:
            started.append(Job(*waiting.pop(0), width=width))
    running = [job for job in started if job.is_alive()]
    for job in running:
        job.stop()
    deadline = time.monotonic() + GRACE
    for job in running:
        job.join(max(0.0, deadline - time.monotonic()))
        job.kill()
        job.join(1)
    return started


def closing_line(counts: Counter[str], seconds: float) -> str:
    """Tell all counts as pytest would."""
    plural = {word: word + "s" for word in ("warning", "error")}
    told = [
        f"{counts[word]} {plural.get(word, word) if counts[word] > 1 else word}"
        for word in COUNTED
        if counts[word]
    ]
    whole = round(seconds)
    clock = f" ({whole // 3600}:{whole // 60 % 60:02d}:{whole % 60:02d})" if whole >= 60 else ""
    return f"{', '.join(told) or 'no tests ran'} in {seconds:.2f}s{clock}"


def main(jobs: Mapping[str, Sequence[str]]) -> int:
    stopped = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stopped.set())
    begin = time.monotonic()
    done = run_all(jobs, os.cpu_count() or 1, stopped)
    for job in done:
        for failure in job.failures:
            print(f"{job.name}: {failure}")
    if stopped.is_set():
        print(f"interrupted; {len(jobs) - len(done)} of {len(jobs)} jobs were never started")
    print(closing_line(sum((job.counts for job in done), Counter()), time.monotonic() - begin))
    if stopped.is_set():
        return 130
    return int(any(job.counts["failed"] + job.counts["error"] for job in done))


if __name__ == "__main__":
    sys.exit(main(all_jobs()))
