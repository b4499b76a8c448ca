"""Look at this machine as a lesson will find it, and say what to change."""

from __future__ import annotations

import importlib.metadata
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd

OK, CHANGE, MISSING = "ok", "change", "missing"
SHOWN = ("torch", "numpy", "jupyterlab", "ipywidgets", "matplotlib", "papermill")
HARDWARE = ("device", "precision", "threads")
GIB = 2**30


@dataclass(frozen=True)
class Finding:
    """One line of the report: what was looked at, what was found, and what to do about it."""

    name: str
    state: str
    found: str
    advice: str = ""


def examine() -> list[Finding]:
    """Run every check and return the findings in reading order; none of them raises."""
    return [finding for check in CHECKS for finding in _safely(check)]


def is_fit(findings: list[Finding]) -> bool:
    """Return whether everything that the lessons need is there."""
    return all(finding.state != MISSING for finding in findings)


def table() -> pd.DataFrame:
    """Return what a lesson shows of the report: the hardware, and whatever should be changed."""
    import pandas as pd

    shown = [f for f in examine() if f.state != OK or f.name in HARDWARE]
    rows = [(f.name, f.state, f.found, f.advice or "–") for f in shown]
    columns = ["what", "state", "found", "what to do"]
    return pd.DataFrame(rows, columns=columns).set_index("what")


def check_packages() -> Iterator[Finding]:
    """Python, and every direct dependency within the range that kdlab declares."""
    from packaging.requirements import Requirement

    yield Finding("python", OK, f"{sys.version.split()[0]} in {sys.prefix}")
    advice = "run `make lab` again, or `pip install -c requirements.lock -e .`"
    needed = [Requirement(text) for text in importlib.metadata.requires("kdlab") or []]
    for need in needed:
        if need.marker and not need.marker.evaluate({"extra": ""}):
            continue
        if not _is_installed(need.name):
            yield Finding(need.name, MISSING, f"not installed, needs {need.specifier}", advice)
            continue
        version = importlib.metadata.version(need.name)
        if not need.specifier.contains(version, prereleases=True):
            yield Finding(need.name, MISSING, f"{version}, needs {need.specifier}", advice)
        elif need.name in SHOWN:
            yield Finding(need.name, OK, version)


def check_device() -> Iterator[Finding]:
    """The device that `auto` picks, its number format, and the threads of the processor."""
    from kdlab.training import device

    facts = device.describe()
    memory = f", {facts['device_memory_gb']} GiB" if "device_memory_gb" in facts else ""
    yield Finding("device", OK, f"{facts['device']} ({facts['name']}{memory})")
    native = "with" if facts["native_bf16"] else "without"
    yield Finding(
        "precision", OK, f"{facts['precision']} (a {facts['device']} {native} native bf16)"
    )
    threads, cores = int(facts["threads"]), usable_cores()
    found = f"{threads} threads on {cores} usable cores"
    if threads > cores:
        advice = f"export OMP_NUM_THREADS={cores}; more threads than cores slow each other down"
        yield Finding("threads", CHANGE, found, advice)
    elif cores >= 2 > threads:
        yield Finding("threads", CHANGE, found, "unset OMP_NUM_THREADS so that torch uses them")
    else:
        yield Finding("threads", OK, found)


def check_memory() -> Iterator[Finding]:
    """Free memory; the lessons need about 1 GiB each, `full` runs 2."""
    import psutil  # type: ignore[import-untyped]  # comes with ipykernel

    memory = psutil.virtual_memory()
    found = f"{memory.available / GIB:.1f} of {memory.total / GIB:.1f} GiB free"
    enough = memory.available >= 2 * GIB
    yield Finding(
        "memory", OK if enough else CHANGE, found, "" if enough else "close other kernels"
    )


def check_cache() -> Iterator[Finding]:
    """The folder for downloads: can be written, has room."""
    from kdlab.files import cache_folder

    folder = cache_folder()
    existing = _existing(folder.absolute())
    free = shutil.disk_usage(existing).free
    found = f"{folder}, {free / GIB:.1f} GiB free"
    elsewhere = "set KDLAB_DATA_DIR to a folder"
    if not os.access(existing, os.W_OK):
        yield Finding("cache", CHANGE, f"{folder} cannot be written", f"{elsewhere} of your own")
    elif free < GIB:
        yield Finding("cache", CHANGE, found, f"{elsewhere} with 1 GiB of room")
    else:
        yield Finding("cache", OK, found)


def check_kernel() -> Iterator[Finding]:
    """The kernel named in the notebooks runs the Python of this environment."""
    from jupyter_client.kernelspec import KernelSpecManager, NoSuchKernel

    advice = "python -m ipykernel install --sys-prefix --name python3"
    try:
        command = KernelSpecManager().get_kernel_spec("python3").argv[0]
    except PermissionError as error:  # a home that cannot be read
        advice = "set JUPYTER_DATA_DIR, JUPYTER_CONFIG_DIR and IPYTHONDIR to folders of your own"
        yield Finding("kernel", CHANGE, f"{error.filename} cannot be read", advice)
        return
    except NoSuchKernel:
        yield Finding("kernel", MISSING, "no kernel named python3", advice)
        return
    plain = {"python", "python3", f"python{sys.version_info[0]}.{sys.version_info[1]}"}
    ours = command in plain or Path(command).parent == Path(sys.executable).parent
    found = f"python3 runs {sys.executable if command in plain else command}"
    yield Finding("kernel", OK if ours else MISSING, found, "" if ours else advice)


def check_teachers() -> Iterator[Finding]:
    """The trained teachers that ship with the course."""
    from kdlab.training import teachers

    for row in teachers.status():
        name = row["name"]
        if row["whole"]:
            yield Finding(f"teacher {name}", OK, "whole")
        else:
            advice = f"`kdlab teachers {name} --rebuild`, or let the first lesson train it"
            yield Finding(f"teacher {name}", CHANGE, "missing or damaged", advice)


def check_results() -> Iterator[Finding]:
    """The stored results of comparisons that take too long for a lesson."""
    from kdlab.files import project_folder

    root = project_folder()
    found = sorted((root / "data" / "results").glob("*.csv")) if root else []
    if found:
        yield Finding("results", OK, f"{len(found)} stored comparisons")
    else:
        advice = "unpack the course anew; lessons from 01 on show them"
        yield Finding("results", MISSING, "no stored comparisons", advice)


def check_reading() -> Iterator[Finding]:
    """A shipped teacher reads images, as the lessons let it; its accuracy is known."""
    from kdlab import datasets
    from kdlab.metrics import accuracy
    from kdlab.training import predict, teachers

    if not all(row["whole"] for row in teachers.status() if row["name"] == "digits"):
        return
    data = datasets.load("digits")
    teacher, _ = teachers.load_teacher(data)
    right = accuracy(predict(teacher, data.test.x), data.test.y)
    found = f"the teacher reads {right:.0%} of {len(data.test)} digits"
    if right >= 0.9:
        yield Finding("reading", OK, found)
    else:
        yield Finding("reading", MISSING, found, "torch computes wrongly here: install it anew")


def check_extras() -> Iterator[Finding]:
    """What single lessons import beyond the package's own needs."""
    from packaging.requirements import Requirement

    needed = [Requirement(text) for text in importlib.metadata.requires("kdlab") or []]
    extra = {"extra": "compression"}
    names = [n.name for n in needed if n.marker and n.marker.evaluate(extra)]
    lacking = [name for name in names if not _is_installed(name)]
    if lacking:
        advice = "`pip install -c requirements.lock -e '.[compression]'`; the lessons on it need it"
        yield Finding("compression", CHANGE, f"not installed: {', '.join(lacking)}", advice)
    else:
        yield Finding("compression", OK, f"{len(names)} packages installed")


def check_progress() -> Iterator[Finding]:
    """The file that keeps what a learner has solved."""
    from kdlab.lab import progress

    file = progress.path()
    if file is None:
        yield Finding("progress", OK, f"not kept ({progress.SWITCH})")
        return
    existing = _existing(file.parent)
    if existing.is_dir() and os.access(existing, os.W_OK):
        yield Finding("progress", OK, str(file))
    else:
        advice = f"set {progress.SWITCH} to a file of your own, or to off"
        yield Finding("progress", CHANGE, f"{file} cannot be written", advice)


def _existing(folder: Path) -> Path:
    """Return a folder, or the nearest above it that is there and can be looked at."""
    return next(path for path in (folder, *folder.parents) if os.path.lexists(path))


def usable_cores() -> int:
    """Return the number of processor cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _is_installed(name: str) -> bool:
    try:
        importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def _safely(check: Callable[[], Iterator[Finding]]) -> list[Finding]:
    name = check.__name__.removeprefix("check_")
    try:
        return list(check())
    except Exception as error:  # a sick machine is what the doctor is for
        what = f"{type(error).__name__}: {error}"
        return [Finding(name, MISSING, what, "run `make lab` again; if it stays, report this line")]


CHECKS = (
    check_packages,
    check_device,
    check_memory,
    check_cache,
    check_kernel,
    check_teachers,
    check_reading,
    check_results,
    check_extras,
    check_progress,
)
