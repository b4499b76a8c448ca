"""pyproject.toml, requirements.lock, environment.yml and the Makefile describe one environment."""

import re
import shutil
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parents[1]
FILES = ("pyproject.toml", "requirements.lock", "environment.yml", "Makefile")
TORCH = "2.13.0"


def disagreements(root: Path) -> list[str]:
    """Everything in which the files of one project contradict each other."""
    project = tomllib.loads((root / "pyproject.toml").read_text())["project"]
    pins = [
        Requirement(line)
        for line in (root / "requirements.lock").read_text().splitlines()
        if line and not line.startswith(("#", " "))
    ]
    environment = yaml.safe_load((root / "environment.yml").read_text())
    makefile = (root / "Makefile").read_text()
    extras = project["optional-dependencies"]
    named = [*project["dependencies"], *(need for needs in extras.values() for need in needs)]
    direct = [need for need in map(Requirement, named) if need.name != project["name"]]
    return [
        *unpinned(direct, pins),
        *loose(pins),
        *torch_pin(pins, makefile),
        *conda(environment, SpecifierSet(project["requires-python"]), set(extras)),
    ]


def unpinned(direct, pins):
    for need in direct:
        name = canonicalize_name(need.name)
        versions = [version_of(pin) for pin in pins if canonicalize_name(pin.name) == name]
        if not versions:
            yield f"{name} is in pyproject.toml but not in requirements.lock"
        for version in versions:
            if not need.specifier.contains(version, prereleases=True):
                yield f"the lock has {name} {version}, pyproject.toml wants {need.specifier}"


def loose(pins):
    for pin in pins:
        if [s.operator for s in pin.specifier] != ["=="]:
            yield f"requirements.lock does not pin {pin}"
        elif version_of(pin).local:
            yield f"requirements.lock has the local version {pin}: not installable elsewhere"


def torch_pin(pins, makefile):
    locked = [str(version_of(pin)) for pin in pins if pin.name == "torch"]
    made = re.findall(r"^TORCH\s*:?=\s*(\S+)", makefile, re.M)
    if locked != [TORCH] or made != [TORCH]:
        yield f"torch: lock {locked}, Makefile {made}, expected {TORCH} in both"


def conda(environment, requires_python, extras):
    named = [d for d in environment["dependencies"] if isinstance(d, str)]
    through_pip = [p for d in environment["dependencies"] if isinstance(d, dict) for p in d["pip"]]
    pythons = [d.split("=", 1)[1].strip("=") for d in named if re.match(r"python\s*=", d)]
    if not pythons or not all(requires_python.contains(f"{p}.0") for p in pythons):
        yield f"environment.yml has Python {pythons}, pyproject.toml wants {requires_python}"
    if environment["channels"][0] != "conda-forge":
        yield "environment.yml does not take conda-forge first"
    if {d.split("=")[0] for d in named} != {"python", "pip"}:
        yield f"environment.yml takes {named} from conda; only python and pip come from there"
    if "-c requirements.lock" not in through_pip:
        yield "environment.yml does not hold pip to requirements.lock"
    installed = [m for m in (re.fullmatch(r"-e \.(?:\[(\w+)\])?", p) for p in through_pip) if m]
    if len(installed) != 1 or len(through_pip) != 2:
        yield f"environment.yml's pip section is {through_pip}; expected the lock and `-e .` only"
    elif installed[0][1] and installed[0][1] not in extras:
        yield f"environment.yml names the extra {installed[0][1]}, which pyproject.toml lacks"


def version_of(pin: Requirement) -> Version:
    return Version(next(iter(pin.specifier)).version) if pin.specifier else Version("0")


def test_the_files_agree():
    assert disagreements(ROOT) == []


@pytest.mark.parametrize(
    ("file", "before", "after", "complaint"),
    [
        (
            "pyproject.toml",
            '"tqdm>=',
            '"no-such-thing>=1", "tqdm>=',
            "no-such-thing is in",
        ),
        ("pyproject.toml", '"numpy>=1.26"', '"numpy>=99"', "pyproject.toml wants >=99"),
        ("pyproject.toml", '"mypy>=1.10"', '"mypy<1"', "pyproject.toml wants <1"),
        ("pyproject.toml", ">=3.11", ">=3.14", "environment.yml has Python"),
        ("requirements.lock", "torch==2.13.0", "torch==2.13.0+cpu", "local version"),
        ("requirements.lock", "torch==2.13.0", "torch==2.14.0", "torch: lock"),
        ("requirements.lock", "rich==", "rich>=", "does not pin rich"),
        ("Makefile", "2.13.0", "2.11.0", "torch: lock"),
        ("environment.yml", "-c requirements.lock", "-c other.lock", "hold pip to"),
        ("environment.yml", "-e .[dev]", "-e .[all]", "extra all"),
        ("environment.yml", "-e .[dev]", "kdlab", "pip section is"),
        ("environment.yml", "- pip\n", "- pip\n  - pytorch\n", "only python and pip"),
        ("environment.yml", "python=3.11", "python=3.9", "environment.yml has Python"),
    ],
)
def test_a_disagreement_is_found(tmp_path, file, before, after, complaint):
    for name in FILES:
        shutil.copy(ROOT / name, tmp_path / name)
    text = (tmp_path / file).read_text()
    assert before in text
    (tmp_path / file).write_text(text.replace(before, after))
    assert any(complaint in line for line in disagreements(tmp_path))
