"""Write the README's tables from stored results; ``--check`` only says whether they are stale.

python tools/readme.py            # tables from data/results/
python tools/readme.py --time     # run each lesson first, and store how long it took
"""

import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import marks
import nbformat
import pandas as pd

from kdlab.cli.pages import title_of
from kdlab.cli.running import run_lesson
from kdlab.metrics import mean_interval, paired_difference
from kdlab.training.device import describe

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "data" / "results"
README = ROOT / "README.md"
LESSONS = sorted((ROOT / "notebooks").glob("*.ipynb"))


def read(name: str) -> Any:
    """Return one stored result."""
    return json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))


def table(header: list[str], rows: list[list[str]]) -> str:
    """Return a Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def promise(notebook: Any) -> str:
    """Return the sentence below a lesson's title."""
    return notebook.cells[0].source.split("\n\n")[1]


def lessons(paths: Sequence[Path] = LESSONS, folder: str = "notebooks/") -> str:
    """The lessons, what they promise, and how long they run."""
    times = read("times")
    rows = []
    for path in paths:
        notebook = nbformat.read(path, 4)
        link = f"[{title_of(notebook)}]({folder}{path.name})"
        seconds = times["seconds"].get(path.stem)
        rows.append([link, promise(notebook), f"{seconds:.0f} s" if seconds else "not timed yet"])
    shown = table(["lesson", "what you will see", "runs in (fast)"], rows)
    return f"{shown}\n\nMeasured from start to end of the kernel on {machine(times['made_on'])}."


def results() -> str:
    """The comparison of lesson 01, in full."""
    record = read("01_soft_targets")
    (runs,) = (r["value"] for r in record["records"] if r["name"] == "methods")
    by_setting: dict[str, dict[int, float]] = {}
    for run in runs:
        by_setting.setdefault(run["setting"], {})[run["seed"]] = run["accuracy"]
    labels = by_setting["labels"]
    rows = [
        [name, accuracy(scores), "" if name == "labels" else gain(scores, labels)]
        for name, scores in by_setting.items()
    ]
    header = ["a 6 k-parameter student on 2,000 glyphs", "test accuracy, %", "gain over labels"]
    shown = table(header, rows)
    seeds = len(labels)
    return (
        f"{shown}\n\nLesson 01 in the `full` profile: last epoch, {seeds} seeds, 95 % intervals "
        f"(Student's t; gains are paired by seed), each method at the learning rate that was best "
        f"for it on validation images. {machine(record['machine'])}."
    )


def tournament() -> str:
    """The methods of lessons 02 and 03, added to labels and to soft targets."""
    runs = pd.read_csv(RESULTS / "tournament.csv")
    card = read("tournament")
    scores = {
        place: dict(zip(group["seed"], group["accuracy"], strict=True))
        for place, group in runs.groupby(["base", "method"])
    }
    methods = runs[runs["base"] == "labels"].groupby("method")["accuracy"].mean().drop("labels")
    bases = ("labels", "soft targets")
    rows = [["nothing", *(cell for base in bases for cell in (accuracy(scores[base, base]), ""))]]
    for method in methods.sort_values(ascending=False).index:
        row = [method]
        for base in bases:
            mine = scores[base, method]
            row += [accuracy(mine), gain(mine, scores[base, base])]
        rows.append(row)
    header = ["added", "to labels, %", "gain", "to soft targets, %", "gain"]
    return (
        f"{table(header, rows)}\n\nTest accuracy of a 6 k-parameter student on {card['images']:,} "
        f"glyphs, last epoch, {card['seeds']} seeds, 95 % intervals, gains paired by seed. Weight "
        "and learning rate of each method were chosen on validation images; beside the soft "
        f"targets only the rate. {machine(card['made_on'])}."
    )


def accuracy(scores: dict[int, float]) -> str:
    """Return the mean in percent and half its 95 % interval."""
    mean = mean_interval(scores.values())
    return f"{100 * mean.mean:.1f} ± {100 * (mean.high - mean.mean):.1f}"


def gain(scores: dict[int, float], baseline: dict[int, float]) -> str:
    """Return the mean paired difference in points with its 95 % interval."""
    found = paired_difference(scores.values(), [baseline[seed] for seed in scores])
    return f"{100 * found.mean:+.1f} [{100 * found.low:+.1f}, {100 * found.high:+.1f}]"


def speed() -> str:
    """The training loop against the plain tutorial loop."""
    bench = read("training_loop")
    rows = [
        [r["loop"], f"{r['samples_per_second']:,.0f}", f"{r['ratio']:.1f} ×"]
        for r in bench["speed"]
    ]
    header = [
        "resnet20 under a 10 times larger teacher, 32×32",
        "samples/s",
        "against the tutorial",
    ]
    shown = table(header, rows)
    last, fair = bench["speed"][-1], bench["accuracy"][1]
    difference, low, high = (100 * fair[k] for k in ("fit_minus_this", "gain_low", "gain_high"))
    return f"""{shown}

Batch 128, medians of interleaved windows on {machine(bench["made_on"])}. The cached loop reaches
{last["share_of_peak"]:.0%} of the matrix-product rate measured beside it. A small student's
accuracy differs from that of the plain loop with the same optimizer by {difference:+.1f} points
[{low:+.1f}, {high:+.1f}] ({bench["seeds"]} seeds). `make bench` repeats it."""


def machine(facts: dict[str, Any]) -> str:
    """Return hardware and version in a few words."""
    plural = "s" if facts["threads"] > 1 else ""
    return f"{facts['name']}, {facts['threads']} thread{plural}, torch {facts['torch']}"


def time_lessons(names: list[str]) -> None:
    """Run the named lessons (or all) once in the fast profile and store the seconds."""
    seconds = read("times")["seconds"] if names else {}
    for path in LESSONS:
        if names and path.stem not in names:
            continue
        started = time.perf_counter()
        run_lesson(path, ROOT / "build" / "timed" / path.name, {}, progress=False)
        seconds[path.stem] = round(time.perf_counter() - started, 1)
        print(f"{path.stem}: {seconds[path.stem]} s", flush=True)
    card = {"seconds": seconds, "made_on": describe()}
    (RESULTS / "times.json").write_text(json.dumps(card, indent=2) + "\n", encoding="utf-8")


def render(text: str) -> str:
    """Return the README with its tables made anew."""
    return marks.fill(text, (lessons, results, tournament, speed), README.name)


def main(arguments: list[str] | None = None) -> int:
    parser = marks.parser(__doc__)
    parser.add_argument("--time", nargs="*", help="time these lessons (or all) first")
    options = parser.parse_args(arguments)
    if options.time is not None:
        time_lessons(options.time)
    return marks.write(README, render, options.check)


if __name__ == "__main__":
    sys.exit(main())
