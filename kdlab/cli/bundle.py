"""One archive for machines without a network: package, lessons, teachers, results, wheels.

The same content gives the same bytes, wherever and whenever it is made.
"""

from __future__ import annotations

import gzip
import platform
import re
import subprocess
import sys
import tarfile
import tempfile
import tomllib
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import BinaryIO

from kdlab.files import atomic_write

ENDINGS = (".tar.gz", ".tgz", ".zip")
TOP = "kdlab-course"  # the folder that unpacking makes
SINGLE = ("pyproject.toml", "requirements.lock", "LICENSE")
FOLDERS = ("kdlab", "docs", "data/teachers", "data/results")
FOR_TEACHERS = "docs/teaching.md"
EXTRAS = "compression"  # what lessons import beyond the package's own needs
BIRTH = (1980, 1, 1, 0, 0, 0)  # of every file: the first moment that zip knows
BIRTH_SECONDS = 315_532_800
README = """\
# kdlab: learn knowledge distillation by trying it

In this folder, with {python}:

```
{venv} -m venv .venv
.venv/bin/python -m pip install {options}-c requirements.lock -e ".[{extras}]"
.venv/bin/jupyter lab notebooks/00_start_here.ipynb
```

The first two commands set everything up{network}. The third opens the
course. On Windows write `.venv\\Scripts\\` for `.venv/bin/`.

`.venv/bin/kdlab doctor` looks at the machine and says what to change. If something fails, see
`docs/troubleshooting.md`.
"""


class WheelsFailed(Exception):
    """The wheels could not be fetched; the message says why and what to do."""


def contents(
    root: Path, lessons: Mapping[str, bytes | Path], *, student: bool, cached: Sequence[Path] = ()
) -> dict[str, bytes | Path]:
    """Return the files of a bundle without its wheels: name in the archive → content or path.

    Args:
        root: the checkout.
        lessons: notebooks by file name.
        student: leave out what is for teachers.
        cached: downloaded data sets; they go where the package looks for them.
    """
    found: dict[str, bytes | Path] = {name: root / name for name in SINGLE}
    for folder in FOLDERS:
        for path in sorted((root / folder).rglob("*")):
            inner = path.relative_to(root)
            hidden = any(part.startswith((".", "__pycache__")) for part in inner.parts)
            if path.is_file() and not path.is_symlink() and not hidden and path.suffix != ".pyc":
                found[inner.as_posix()] = path
    if student:
        found.pop(FOR_TEACHERS, None)
    found |= {f"notebooks/{name}": content for name, content in lessons.items()}
    found |= {f"data/cache/{path.name}": path for path in cached}
    return found


def readme(project: Mapping[str, object], *, wheels: bool) -> bytes:
    """Return the README of three commands.

    Args:
        project: the table ``project`` of pyproject.toml.
        wheels: whether the archive has wheels, for this platform and this Python.
    """
    if wheels:
        system = f"{platform.system()} ({platform.machine()})"
        needed = f"Python {sys.version_info[0]}.{sys.version_info[1]} on {system}"
        words = {"options": "--no-index -f wheels ", "network": " without a network"}
    else:
        needed = f"Python {project['requires-python']}"
        words = {"options": "", "network": ", for which it needs a network or a package mirror"}
    venv = "python" if platform.system() == "Windows" else "python3"
    return README.format(python=needed, venv=venv, extras=EXTRAS, **words).encode()


@contextmanager
def fetched_wheels(files: Mapping[str, bytes | Path], near: Path) -> Iterator[list[Path]]:
    """Yield the wheels of all that the lessons need, as pip finds them for this machine.

    pip's own settings count: PIP_EXTRA_INDEX_URL may name PyTorch's small CPU builds.

    Args:
        files: the bundle, from which the package's needs are read.
        near: a folder on a disk with room for them; they are deleted afterwards.

    Raises:
        WheelsFailed: pip failed.
    """
    with tempfile.TemporaryDirectory(dir=near, prefix=".wheels.") as temporary:
        source, found = Path(temporary, "source"), Path(temporary, "wheels")
        for name, content in files.items():  # a copy: pip builds in place
            if name.startswith("kdlab/") or "/" not in name:
                path = source / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content if isinstance(content, bytes) else content.read_bytes())
        backend = tomllib.loads((source / "pyproject.toml").read_text("utf-8"))["build-system"]
        pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--disable-pip-version-check"]
        limits = ["--retries", "1", "-c", "requirements.lock", "-w", str(found)]
        needs = [f".[{EXTRAS}]", *backend["requires"]]
        done = subprocess.run([*pip, *limits, *needs], cwd=source, capture_output=True, text=True)
        if done.returncode:
            said = [line for line in done.stderr.splitlines() if line.strip()]
            errors = [line for line in said if line.startswith("ERROR")]
            last = (errors or said or ["nothing"])[-1]
            raise WheelsFailed(
                f"wheels: pip could not fetch them. It said: {last}\nNothing was written. Is there "
                "a network here? Without --wheels the archive has everything else, and the other "
                "machine needs a package mirror."
            )
        yield sorted(path for path in found.glob("*.whl") if not path.name.startswith("kdlab-"))


def pack(files: Mapping[str, bytes | Path], target: Path) -> None:
    """Write the archive; the same files give the same bytes.

    Args:
        files: name in the archive → content, or the path of a file.
        target: ends with .tar.gz, .tgz or .zip; is whole or absent.
    """
    check_ending(target)
    named = sorted((f"{TOP}/{name}", content) for name, content in files.items())
    with atomic_write(target) as temporary:
        if target.suffix == ".zip":
            with zipfile.ZipFile(temporary, "w") as archive:
                for name, content in named:
                    _zip(archive, name, content)
        else:
            with (
                temporary.open("wb") as raw,
                gzip.GzipFile("", "wb", fileobj=raw, mtime=0) as stream,
                tarfile.open(fileobj=stream, mode="w", format=tarfile.PAX_FORMAT) as tar,
            ):
                for name, content in named:
                    _tar(tar, name, content)


def check_ending(target: Path) -> None:
    """Raise ValueError unless the name says which kind of archive it is."""
    if not target.name.endswith(ENDINGS):
        raise ValueError(f"file: {target.name!r} came, expected a name with {', '.join(ENDINGS)}")


def _zip(archive: zipfile.ZipFile, name: str, content: bytes | Path) -> None:
    entry = zipfile.ZipInfo(name, BIRTH)
    entry.create_system, entry.external_attr = 3, 0o100644 << 16
    packed = re.search(r"\.(whl|gz|png)$", name)
    entry.compress_type = zipfile.ZIP_STORED if packed else zipfile.ZIP_DEFLATED
    size, stream = _opened(content)
    entry.file_size = size
    with stream, archive.open(entry, "w") as out:
        while block := stream.read(1 << 20):
            out.write(block)


def _tar(archive: tarfile.TarFile, name: str, content: bytes | Path) -> None:
    entry = tarfile.TarInfo(name)
    entry.mtime, entry.mode = BIRTH_SECONDS, 0o644
    entry.size, stream = _opened(content)
    with stream:
        archive.addfile(entry, stream)


def _opened(content: bytes | Path) -> tuple[int, BinaryIO]:
    if isinstance(content, bytes):
        return len(content), BytesIO(content)
    return content.stat().st_size, content.open("rb")
