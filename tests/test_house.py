"""The house rules: floors, and nothing of one machine in any file."""

import ast
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FLOORS = (
    ("files", "words"),
    ("losses", "models", "datasets"),
    ("distillers", "metrics"),
    ("training",),
    ("compression",),
    ("plots",),
    ("explorers",),
    ("exercises",),
    ("lab",),
    ("cli",),
    ("__main__",),
)
FLOOR_OF = {family: floor for floor, families in enumerate(FLOORS) for family in families}

# put together, so that this file does not contain what it forbids
HOMES = ("work", "root", r"home/\w+", r"Users/\w+", r"opt/\w+", "tmp", r"mnt/\w+")
MACHINE_PATH = re.compile(r"(?<![\w.~}:/-])/(?:" + "|".join(HOMES) + r")\b[\w./-]*")
REGISTRY = re.compile(
    "(?i)"
    + "|".join(
        ("--(?:extra-)?" + "index-url", "find" + "-links", r"https?://[^\s'\"]*/simple" + r"\b")
    )
)
# PyTorch's own public address of its CPU build, which the docs may name
PUBLIC = "--index" + "-url https://download.pytorch.org/whl/cpu"
BINARY = {".png", ".npz", ".safetensors", ".pt", ".gz", ".woff", ".ico"}


def family_of(path: Path, package: Path) -> str:
    """The part of the package that a file belongs to; empty for the package's own __init__."""
    first = path.relative_to(package).parts[0].removesuffix(".py")
    return "" if first == "__init__" else first


def imported_families(path: Path, package: Path) -> set[str]:
    """The families that a file imports from anywhere in it, inside functions too."""
    here = [package.name, *path.relative_to(package).with_suffix("").parts]
    modules: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(here[: -node.level]) if node.level else ""
            origin = ".".join(filter(None, (base, node.module)))
            modules |= {f"{origin}.{alias.name}" for alias in node.names}
    parts = [module.split(".") for module in modules]
    families = {p.name.removesuffix(".py") for p in package.iterdir()}
    return {p[1] for p in parts if p[0] == package.name and len(p) > 1 and p[1] in families}


def broken_floors(package: Path) -> list[str]:
    """Every import that goes up, or sideways into another family."""
    wrong = []
    for path in sorted(package.rglob("*.py")):
        here, name = family_of(path, package), path.relative_to(package.parent).as_posix()
        if here and here not in FLOOR_OF:
            wrong.append(f"{name}: {here} stands on no floor; give it one in FLOORS")
            continue
        for there in sorted(imported_families(path, package) - {here}):
            if not here:
                wrong.append(f"{name}: the package itself imports {there}; importing kdlab is free")
            elif FLOOR_OF.get(there, -1) >= FLOOR_OF[here]:
                wrong.append(f"{name}: {here} imports {there}, which is not below it")
    return wrong


def machine_traces(paths: list[Path], root: Path) -> list[str]:
    """Paths of one machine and addresses of package registries."""
    found = []
    for path in paths:
        if path.suffix in BINARY or not path.is_file():
            continue
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            if '"image/png"' in line:
                continue  # base64 may spell anything
            for match in (MACHINE_PATH.search(line), REGISTRY.search(line.replace(PUBLIC, ""))):
                if match:
                    found.append(f"{path.relative_to(root)}:{number}: {match[0]}")
            if str(root) in line:
                found.append(f"{path.relative_to(root)}:{number}: {root}")
    return found


def project_files() -> list[Path]:
    """Everything that git tracks or would track."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("not a git checkout, so nothing says which files belong to the project")
    return [ROOT / name for name in sorted(set(filter(None, listed.stdout.split("\0"))))]


def test_floors():
    assert broken_floors(ROOT / "kdlab") == []


def test_no_file_knows_this_machine():
    assert machine_traces(project_files(), ROOT) == []


@pytest.fixture
def planted(tmp_path):
    """A package tree with the given files."""

    def plant(**sources: str) -> Path:
        package = tmp_path / "kdlab"
        for name, source in {"__init__": "", **sources}.items():
            path = package / (name.replace("__init__", "INIT").replace("__", "/") + ".py")
            path = path.with_name(path.name.replace("INIT", "__init__"))
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(source)
        return package

    return plant


@pytest.mark.parametrize(
    ("importer", "statement", "target"),
    [
        ("losses__soft", "from kdlab.training import loop", "training__loop"),
        ("losses__soft", "import kdlab.models.mlp", "models__mlp"),
        ("losses__soft", "from kdlab import datasets", "datasets__data"),
        ("models__mlp", "def f():\n    from kdlab.losses.soft import f", "losses__soft"),
        ("distillers__base", "from ..metrics import quality", "metrics__quality"),
        ("plots", "from . import lab", "lab"),
        ("explorers__base", "import kdlab.cli", "cli"),
    ],
    ids=["up", "sideways", "from-package", "inside-function", "relative", "dot", "plain"],
)
def test_an_import_up_or_sideways_is_found(planted, importer, statement, target):
    package = planted(**{importer: statement, target: ""})
    (found,) = broken_floors(package)
    assert importer.split("__")[0] in found and target.split("__")[0] in found


def test_imports_below_and_inside_the_family_are_fine(planted):
    package = planted(
        losses__soft="from kdlab.losses import checks\nfrom . import checks\nimport kdlab",
        losses__checks="from kdlab import __version__",
        training__loop="import kdlab.losses.soft\nfrom ..losses.soft import x\nimport torch.nn",
    )
    assert broken_floors(package) == []


def test_a_family_without_a_floor_is_found(planted):
    assert "stands on no floor" in broken_floors(planted(attic=""))[0]


def test_a_package_that_imports_on_import_is_found(planted):
    package = planted(losses__soft="")
    (package / "__init__.py").write_text("from kdlab.losses import soft")
    assert "the package itself" in broken_floors(package)[0]


@pytest.mark.parametrize(
    "line",
    [
        "cd /" + "work/main",
        'open("/' + 'home/ada/data.npz")',
        "see /" + "Users/ada/course",
        "pip install --extra-" + "index-url x",
        "find" + "-links = y",
        "https://example.org/" + "simple/torch",
        PUBLIC.replace("pytorch", "example"),
    ],
)
def test_a_trace_of_a_machine_is_found(tmp_path, line):
    path = tmp_path / "notes.md"
    path.write_text(f"fine\n{line}\n")
    assert machine_traces([path], tmp_path)[0].startswith("notes.md:2: ")


def test_ordinary_text_is_no_trace(tmp_path):
    path = tmp_path / "notes.md"
    folders = "~/" + "work/x", "https://example.org/" + "home/x", "tests/" + "tmp"
    path.write_text(f"a work/day, {', '.join(folders)}, /usr/bin/env\n")
    assert machine_traces([path], tmp_path) == []
    path.write_text(f"pip install torch {PUBLIC}\n")
    assert machine_traces([path], tmp_path) == []
