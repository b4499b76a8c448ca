"""Build the static site: the lessons as they ran, the guides and the API, with Sphinx, offline.

python tools/build_site.py            # into build/site
python tools/build_site.py -o DIR     # into another folder
"""

import argparse
import base64
import importlib
import inspect
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import nbformat
from readme import LESSONS, ROOT, lessons

from kdlab.distillers import available
from kdlab.lab import MIME

SITE = ROOT / "docs" / "site"
FAMILIES = (
    "losses", "models", "datasets", "distillers", "metrics", "training",
    "compression", "plots", "explorers", "lab",
)  # fmt: skip
MARKS = re.compile(r"([\\`*_{}\[\]()<>#+.!|~$-])")
# a person without a kernel cannot solve it here, but should think before looking
FOLDED = {"solution": "hide-input"}


def gather(source: Path) -> None:
    """Write all that Sphinx reads to the folder ``source``: nothing else is needed to build."""
    shutil.copytree(SITE, source)
    index = source / "index.md"
    index.write_text(index.read_text("utf-8").replace("LESSONS", lessons()), "utf-8")
    for path in LESSONS:
        write_lesson(path, source / "notebooks")
    (source / "docs").mkdir()
    for path in sorted((ROOT / "docs").glob("*.md")):
        shutil.copy(path, source / "docs")
    write_api(source / "api")
    (source / "commands.md").write_text(commands(), "utf-8")


def write_lesson(path: Path, folder: Path) -> None:
    """Copy a lesson: pictures become files with their alt texts, solutions are folded."""
    notebook = nbformat.read(path, as_version=4)
    (folder / "pictures").mkdir(parents=True, exist_ok=True)
    for number, cell in enumerate(notebook.cells):
        tags = cell.metadata.get("tags", [])
        cell.metadata["tags"] = [*tags, *(FOLDED[tag] for tag in tags if tag in FOLDED)]
        for place, output in enumerate(cell.get("outputs", [])):
            data = output.get("data", {})
            data.pop(MIME, None)  # what `lab.record` keeps has its text beside it
            if "image/png" in data:
                file = folder / "pictures" / f"{path.stem}-{number:02d}-{place}.png"
                output.data = {"text/markdown": picture(output, file)}
    nbformat.write(notebook, folder / path.name)


def picture(output: Any, file: Path) -> str:
    """Write the picture of an output to ``file``, and return the Markdown that shows it.

    Raises:
        ValueError: nothing says in words what the picture shows.
    """
    words = output.metadata.get("image/png", {}).get("alt") or output.data.get("text/plain", "")
    if not words:
        raise ValueError(f"{file.stem}: a picture without an alt text; show it with plots.show")
    file.write_bytes(base64.b64decode(output.data["image/png"]))
    told = MARKS.sub(r"\\\1", " ".join(words.split()))
    return f"![{told}](pictures/{file.name})"


def write_api(folder: Path) -> None:
    """Write one page for each family of the package, made of its docstrings."""
    folder.mkdir()
    lines = [*heading("The package", "="), ".. automodule:: kdlab", "", ".. toctree::", ""]
    (folder / "index.rst").write_text("\n".join([*lines, *(f"   {f}" for f in FAMILIES), ""]))
    for family in FAMILIES:
        package = importlib.import_module(f"kdlab.{family}")
        lines = [*heading(f"kdlab.{family}", "="), f".. automodule:: kdlab.{family}", ""]
        for module, names in by_file(package).items():
            if module != package.__name__:
                title = module.removeprefix(f"{package.__name__}.")
                lines += [*heading(title, "-"), f".. automodule:: {module}", "   :no-index:", ""]
            for name in names:
                kind = "class" if inspect.isclass(getattr(package, name)) else "function"
                lines += [f".. auto{kind}:: kdlab.{family}.{name}"]
                lines += ["   :members:", "   :show-inheritance:", ""] if kind == "class" else [""]
        (folder / f"{family}.rst").write_text("\n".join(lines), "utf-8")


def by_file(package: Any) -> dict[str, list[str]]:
    """Return the public functions and classes of a package, by the module that holds them."""
    names = [*package.__all__]
    if package.__name__ == "kdlab.distillers":
        names += [method.__name__ for method in available().values()]
    found: dict[str, list[str]] = {package.__name__: []}
    for name in names:
        thing = getattr(package, name)
        if inspect.isclass(thing) or inspect.isfunction(thing):
            found.setdefault(thing.__module__, []).append(name)
    return {module: found[module] for module in sorted(found)}


def heading(text: str, line: str) -> list[str]:
    return [text, line * len(text), ""]


def commands() -> str:
    """Return the page of the command line, in its own words."""
    call = [sys.executable, "-m", "typer", "kdlab.cli", "utils", "docs", "--name", "kdlab"]
    told = subprocess.run(call, capture_output=True, text=True, check=True, cwd=ROOT).stdout
    return told.replace("# `kdlab`", "# The command `kdlab`", 1)


def build(target: Path) -> int:
    """Build the site in ``target`` by way of a folder beside it; return Sphinx's status.

    A warning is an error: a link that leads nowhere, a docstring that cannot be read. After an
    error ``target`` is as it was.
    """
    from sphinx.cmd.build import build_main

    work = target.with_name(f"{target.name}-work")
    shutil.rmtree(work, ignore_errors=True)
    gather(work / "source")
    options = ["-q", "-W", "--keep-going", "-b", "html", "-d", str(work / "doctrees")]
    status = build_main([*options, str(work / "source"), str(work / "html")])
    if not status:
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(work / "html", target)
    return status


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-o", "--output", type=Path, default=ROOT / "build" / "site")
    options = parser.parse_args(arguments)
    status = build(options.output)
    if not status:
        print(f"open {options.output / 'index.html'}")
    return status


if __name__ == "__main__":
    sys.exit(main())
