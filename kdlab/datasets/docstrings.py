"""A corpus that everybody has: what the installed scientific packages say about themselves.

Sources are read, never imported. A text is the prose of one docstring before its first section
(parameters, examples), without markup, and with every name masked that gives the library away.
"""

import hashlib
import importlib.metadata
import importlib.util
import inspect
import itertools
import json
import re
from dataclasses import asdict, dataclass
from pathlib import Path

from kdlab.files import atomic_write, cache_folder

# Distribution: the package that it installs. kdlab needs each of them, itself or through torch.
LIBRARIES = {
    "numpy": "numpy",
    "scipy": "scipy",
    "pandas": "pandas",
    "scikit-learn": "sklearn",
    "matplotlib": "matplotlib",
    "torch": "torch",
    "sympy": "sympy",
    "networkx": "networkx",
}
MASK = "█"
_LONGEST_MODULE = 60  # texts from one file, so that no file makes up a library
_ENOUGH = 800  # texts from one library
_SHORTEST = 14  # words
_SHINGLE = 5  # words in a row that tell copies

# Folders of tests, and of code that was taken over from other projects.
_SKIPPED = {
    "tests", "test", "testing", "_testing", "externals", "extern", "_vendor", "vendored",
    "_vendored", "vendor", "third_party", "array_api_compat", "array_api_extra",
}  # fmt: skip

# Comments and strings in the order in which they stand, which is all it takes to find docstrings,
# in a twentieth of the time of Python's own parser: those in triple quotes, alone on their lines.
_LITERALS = re.compile(
    r"""#[^\n]*|(?P<before>^[ \t]*[rRuU]?)?(?P<quote>\"{3}|'{3})(?P<text>.*?(?<!\\))(?P=quote)"""
    r"""(?P<after>[ \t]*$)?|"(?:\\.|[^"\\\n])*"|'(?:\\.|[^'\\\n])*'""",
    re.DOTALL | re.MULTILINE,
)
# A name of a library and the modules after it; then the short names that programs give them.
_NAMES = re.compile(
    r"(?i:[\w-]*(?:numpy|scipy|pandas|scikit|sklearn|matplotlib|pyplot|pylab|torch|sympy|networkx)"
    r"[\w-]*)(?:\.\w+)*|\b(?:np|pd|plt|mpl|nx|nn|sp|ATen)\b(?:\.\w+)*"
)
_SECTION = re.compile(
    r"^\s*(?:[-=~^]{3,}\s*$|\w[\w ]{0,24}::?\s*$|>>>|\.\. |:\w+[^:`]*:(?!`))", re.M
)
_ROLE = re.compile(r":[\w:.+-]+:`~?([^`<]*)(?:<[^`]*>)?`")
_MARKUP = re.compile(r"\[\w+\]_|`_+|[`*|\\]+~?")


@dataclass(frozen=True)
class Corpus:
    """Texts with the number of their library in ``LIBRARIES`` and the module that holds them."""

    texts: list[str]
    labels: list[int]
    modules: list[str]


def versions() -> dict[str, str]:
    """The version of each library that is installed."""
    return {name: importlib.metadata.version(name) for name in LIBRARIES}


def read() -> Corpus:
    """The corpus of the versions that are installed; made in seconds, then kept in the cache."""
    rules = Path(__file__).read_text(encoding="utf-8")
    key = hashlib.sha256(json.dumps([rules, versions()]).encode()).hexdigest()[:12]
    path = cache_folder() / f"docstrings-{key}.json"
    try:
        return Corpus(**json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        corpus = collect()
    try:
        with atomic_write(path) as temporary:
            temporary.write_text(json.dumps(asdict(corpus)), encoding="utf-8")
    except OSError:
        pass  # a folder that cannot be written costs only time
    return corpus


def collect() -> Corpus:
    """Read the libraries' sources until there is enough of each; always the same texts."""
    corpus = Corpus([], [], [])
    seen: set[int] = set()
    for label, package in enumerate(LIBRARIES.values()):
        before = len(corpus.texts)
        for module, path in _modules(package):
            found = map(prose, docstrings(path.read_text(encoding="utf-8")))
            texts = [text for text in found if text and _is_new(text, seen)][:_LONGEST_MODULE]
            corpus.texts.extend(texts)
            corpus.labels.extend([label] * len(texts))
            corpus.modules.extend([module] * len(texts))
            if len(corpus.texts) - before >= _ENOUGH:
                break
    return corpus


def fingerprint(corpus: Corpus) -> str:
    """A hash of all that is in it: the same packages built elsewhere may say other things."""
    return hashlib.sha256(json.dumps(asdict(corpus)).encode()).hexdigest()


def masked(text: str) -> str:
    """The text with ``MASK`` for every name that gives a library away."""
    return " ".join(_NAMES.sub(f" {MASK} ", text).split())


def _modules(package: str) -> list[tuple[str, Path]]:
    """Dotted names and files of a package, in an order that only the names decide."""
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError(f"{package} is not installed; run `make lab` again")
    root = Path(spec.origin).parent
    found = []
    for path in root.rglob("*.py"):
        parts = path.relative_to(root).with_suffix("").parts
        if not _SKIPPED.intersection(parts):
            found.append((".".join((package, *parts)), path))
    return sorted(found, key=lambda entry: hashlib.sha256(entry[0].encode()).digest())


def docstrings(source: str) -> list[str]:
    """All docstrings of a module's source, without their indentation."""
    return [
        inspect.cleandoc(literal["text"])
        for literal in _LITERALS.finditer(source)
        if literal["before"] is not None and literal["after"] is not None
    ]


def prose(docstring: str) -> str:
    """What stands before the first section of a docstring, without markup, masked."""
    blocks = itertools.takewhile(
        lambda block: not _SECTION.search(block), re.split(r"\n\s*\n", docstring)
    )
    text = masked(_MARKUP.sub("", _ROLE.sub(r"\1", " ".join(blocks))))
    letters = sum(map(len, re.findall(r"[^\W\d_]{2,}", text)))
    return text if len(text.split()) >= _SHORTEST and letters > 0.6 * len(text) else ""


def _is_new(text: str, seen: set[int]) -> bool:
    """Say whether most of a text was not read before, and remember it.

    Copies of a text with a few other words share most runs of five words.
    """
    words = re.findall(r"[^\W\d_]+", text.lower())
    runs = {tuple(words[i : i + _SHINGLE]) for i in range(max(1, len(words) - _SHINGLE + 1))}
    marks = {hash(run) for run in runs}
    known = len(marks & seen)
    seen |= marks
    return known <= len(marks) / 2
