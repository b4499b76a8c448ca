"""Execute lessons in place so that a second run changes no byte; ``--check`` only looks.

What differs from run to run is left out: time stamps, widget ids, the Python and matplotlib
versions. The hash of the source goes into the notebook, so that a later look can tell whether its
outputs belong to its source.
"""

import argparse
import base64
import hashlib
import os
import re
import struct
import sys
import tempfile
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError

from kdlab.files import atomic_write

TIMEOUT = 600
WIDGET_VIEW = "application/vnd.jupyter.widget-view+json"
KERNEL = {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"}
ANSI = re.compile(r"\x1b\[[0-9;]*m")
PNG_START, PNG_TEXTS = b"\x89PNG\r\n\x1a\n", (b"tEXt", b"iTXt", b"zTXt", b"tIME")


class Failed(Exception):
    """A cell raised, took too long, or the kernel died."""


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("notebooks", nargs="+", type=Path)
    parser.add_argument("--check", action="store_true", help="say what is stale, execute nothing")
    parser.add_argument("--timeout", type=int, default=TIMEOUT, help="seconds for one cell")
    options = parser.parse_args(arguments)
    failed = 0
    for path in options.notebooks:
        start = time.perf_counter()
        try:
            problems = stale(path) if options.check else []
            told = "fresh" if options.check else rerun(path, options.timeout)
        except Failed as error:
            problems, told = [str(error)], ""
        failed += bool(problems)
        print(*(f"{path}: {problem}" for problem in problems), sep="\n", end="\n" * bool(problems))
        if not problems:
            print(f"{path}: {told}, {time.perf_counter() - start:.1f} s", flush=True)
    return 1 if failed else 0


def rerun(path: Path, timeout: int = TIMEOUT) -> str:
    """Execute one notebook in place; the file is replaced only by a complete, different one."""
    before = path.read_bytes()
    notebook = nbformat.reads(before.decode(), as_version=4)
    for number, cell in enumerate(notebook.cells):
        cell.setdefault("id", f"cell-{number:02d}")
        cell.metadata.pop("execution", None)
    execute(notebook, path, timeout)
    normalise(notebook)
    notebook.metadata["kdlab"] = {"source": source_hash(notebook)}
    after = (nbformat.writes(notebook).rstrip("\n") + "\n").encode()
    if after == before:
        return "unchanged"
    with atomic_write(path) as temporary:
        temporary.write_bytes(after)
    return "written"


def execute(notebook: nbformat.NotebookNode, path: Path, timeout: int) -> None:
    """Run all cells in a kernel of this environment; records go to a folder that is thrown away."""
    client = NotebookClient(
        notebook,
        timeout=timeout,
        kernel_name="python3",
        record_timing=False,
        store_widget_state=False,
        coalesce_streams=True,
        extra_arguments=["--log-level=ERROR"],  # it warns of TCP on every start
        resources={"metadata": {"path": str(path.parent)}},
    )
    with tempfile.TemporaryDirectory() as records:
        try:
            client.execute(env={**os.environ, "KDLAB_RECORDS": records})
        except CellExecutionError as error:
            number = next(n for n, c in enumerate(notebook.cells) if raised(c))
            said = ANSI.sub("", f"{error.ename}: {error.evalue}")
            source = notebook.cells[number].source
            raise Failed(f"cell {number} raised {said}\n{source}\nthe old file stays") from None
        except CellTimeoutError:
            raise Failed(f"a cell ran longer than {timeout} s; the old file stays") from None
        except DeadKernelError:
            raise Failed("the kernel died; the old file stays") from None


def normalise(notebook: nbformat.NotebookNode) -> None:
    """Remove what differs between two equal runs."""
    notebook.metadata = nbformat.from_dict(
        {"kernelspec": KERNEL, "language_info": {"name": "python"}}
    )
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            output.get("metadata", {}).pop(WIDGET_VIEW, None)
            data = output.get("data", {})
            if len(data) > 1:
                data.pop(WIDGET_VIEW, None)
            if "image/png" in data:
                data["image/png"] = without_texts(data["image/png"])


def without_texts(encoded: str) -> str:
    """Drop the text chunks of a PNG (they name the matplotlib version); the pixels stay."""
    png = base64.b64decode(encoded)
    if not png.startswith(PNG_START):
        return encoded
    kept, position = [PNG_START], len(PNG_START)
    while position < len(png):
        (length,) = struct.unpack(">I", png[position : position + 4])
        chunk = png[position : position + 12 + length]
        if chunk[4:8] not in PNG_TEXTS:
            kept.append(chunk)
        position += len(chunk)
    return base64.b64encode(b"".join(kept)).decode()


def source_hash(notebook: nbformat.NotebookNode) -> str:
    """Return a hash of the cells' types, sources and tags, in order."""
    digest = hashlib.sha256()
    for cell in notebook.cells:
        digest.update(repr((cell.cell_type, cell.source, cell.metadata.get("tags", []))).encode())
    return digest.hexdigest()


def stale(path: Path) -> list[str]:
    """Return why the stored outputs cannot be those of the stored source; empty if they can."""
    notebook = nbformat.read(path, as_version=4)
    code = [c for c in notebook.cells if c.cell_type == "code" and c.source.strip()]
    counts = [cell.execution_count for cell in code]
    recorded = notebook.metadata.get("kdlab", {}).get("source")
    again = "run `make notebooks`"
    problems = []
    if recorded != source_hash(notebook):
        problems.append(f"the source was changed after the last run, or it never ran; {again}")
    if counts != list(range(1, len(code) + 1)):
        problems.append(f"cells did not run once each, in order (counts {counts}); {again}")
    if any(map(raised, code)):
        problems.append("a stored output is an error")
    if "widgets" in notebook.metadata or any(
        WIDGET_VIEW in o.get("data", {}) for o in outputs(code)
    ):
        problems.append(f"widget state is stored, which no static page can show; {again}")
    return problems


def outputs(cells: list[nbformat.NotebookNode]) -> list[nbformat.NotebookNode]:
    return [output for cell in cells for output in cell.get("outputs", [])]


def raised(cell: nbformat.NotebookNode) -> bool:
    return any(o.output_type == "error" for o in cell.get("outputs", []))


if __name__ == "__main__":
    sys.exit(main())
