"""Docstrings as data: nothing leaks between the splits, names are masked, all is repeatable."""

import ast
import importlib.util
import json
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from kdlab.datasets import docstrings, load
from kdlab.datasets.text import split_by_module


@pytest.fixture(scope="module")
def corpus():
    return docstrings.read()


@pytest.fixture(scope="module")
def data(corpus):
    return load("docstrings")


def test_no_module_and_no_text_is_in_two_splits(corpus):
    for seed in (0, 1):
        where = split_by_module(corpus.labels, corpus.modules, seed)
        assert sorted(i for index in where.values() for i in index) == list(
            range(len(corpus.texts))
        )
        modules = [{corpus.modules[i] for i in index} for index in where.values()]
        texts = [{_letters(corpus.texts[i]) for i in index} for index in where.values()]
        for sets in (modules, texts):
            assert sum(map(len, sets)) == len(set.union(*sets)) and all(sets)


def test_hardly_a_test_text_resembles_a_training_text(corpus):
    """Half of its runs of seven words, counted here in another way than the corpus does."""
    where = split_by_module(corpus.labels, corpus.modules, 0)
    seen = {run for i in (*where["train"], *where["val"]) for run in _runs(corpus.texts[i])}
    shares = [np.mean([run in seen for run in _runs(corpus.texts[i])]) for i in where["test"]]
    assert np.mean(np.array(shares) > 0.5) < 0.01


def _letters(text: str) -> str:
    return re.sub("[^a-z]", "", text.lower())


def _runs(text: str) -> list[str]:
    words = text.lower().split()
    return [" ".join(words[i : i + 7]) for i in range(len(words) - 6)] or [text.lower()]


def test_names_are_masked(corpus, data):
    forbidden = ("numpy", "scipy", "pandas", "sklearn", "scikit", "matplotlib", "pyplot", "torch")
    forbidden += ("sympy", "networkx")
    for text in corpus.texts:
        assert not any(name in text.lower() for name in forbidden), text
        assert not {"np", "pd", "plt", "nx", "mpl"} & set(re.findall(r"\w+", text)), text
    tokens = {token for row in data.train.x[:500] for token in data.tokenizer.decode(row)}
    assert docstrings.MASK in tokens and "##" + docstrings.MASK not in tokens


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Like np.dot, or PyTorch's torch.nn.Linear.", "Like █ , or █ 's █ ."),
        ("A scikit-learn estimator for pd.DataFrame", "A █ estimator for █"),
        ("numpydoc and (matplotlib) in NumPy-like", "█ and ( █ ) in █"),
        ("NP-hard; an index pdx, a plot and snp", "NP-hard; an index pdx, a plot and snp"),
    ],
)
def test_what_is_masked(text, expected):
    assert docstrings.masked(text) == expected


def test_sizes_are_balanced_and_the_card_tells_all(corpus, data):
    assert data.classes == tuple(docstrings.LIBRARIES) and data.num_classes == 8
    for split in (data.train, data.val, data.test):
        counts = split.y.bincount(minlength=8)
        assert counts.min() > 0.85 * counts.max()
    sizes = data.card["sizes"]
    assert sum(sizes.values()) == len(corpus.texts)
    assert 0.19 < sizes["test"] / len(corpus.texts) <= 0.2 and sizes["val"] >= 600
    assert max(np.unique(corpus.modules, return_counts=True)[1]) <= 60
    import numpy
    import pandas

    assert data.card["packages"]["numpy"] == numpy.__version__
    assert data.card["packages"]["pandas"] == pandas.__version__
    assert data.card["options"]["length"] == 48
    assert len(set(data.card["packages"])) == 8


def test_the_splits_follow_the_seed_but_the_test_does_not(corpus):
    first, again, other = (
        split_by_module(corpus.labels, corpus.modules, seed) for seed in (0, 0, 1)
    )
    assert all(np.array_equal(first[part], again[part]) for part in first)
    assert np.array_equal(first["test"], other["test"])
    assert not np.array_equal(first["val"], other["val"])


def test_limits_and_lengths(corpus):
    data = load("docstrings", n_train=200, n_val=30, n_test=40, length=12, vocabulary=600)
    assert [len(s) for s in (data.train, data.val, data.test)] == [200, 30, 40]
    assert data.train.y.bincount().max() - data.train.y.bincount().min() <= 4
    assert data.shape == (12,) and data.train.x.dtype == torch.int64
    assert data.tokenizer.vocabulary <= 600 and data.mean == data.std == ()
    assert data.with_labels(50).tokenizer is data.tokenizer is data.subset(20).tokenizer
    for split in (data.train, data.val, data.test):
        assert (split.x[:, 0] == 2).all() and int(split.x.max()) < 600
        padded = split.x == 0
        assert torch.equal(padded, padded.cummax(1).values)  # padding ends a text


# What a fresh process makes of two libraries; its strings hash differently.
ELSEWHERE = """
import hashlib, json, sys
from kdlab.datasets import docstrings, load
docstrings.LIBRARIES = {"networkx": "networkx", "matplotlib": "matplotlib"}
corpus = docstrings.collect()
docstrings.read = lambda: corpus
assert "huggingface_hub" not in sys.modules
data = load("docstrings", seed=3)
print(hashlib.sha256("".join(corpus.texts).encode()).hexdigest(), data.fingerprint)
"""


def test_another_process_makes_the_same_to_the_last_bit(monkeypatch, tmp_path):
    answers = set()
    for salt in ("1", "2"):
        environment = os.environ | {
            "PYTHONHASHSEED": salt,
            "TOKENIZERS_PARALLELISM": "true",
        }
        done = subprocess.run(
            [sys.executable, "-c", ELSEWHERE],
            env=environment | {"KDLAB_DATA_DIR": str(tmp_path)},
            capture_output=True,
            text=True,
            check=True,
        )
        answers.add(done.stdout)
    assert len(answers) == 1


def test_nothing_is_fetched(monkeypatch, corpus):
    def refuse(*_):
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket, "socket", refuse)
    load("docstrings", n_train=64)


# ---- docstrings -----------------------------------------------------------------------------

SOURCE = '''
"""Of the module."""
x = "a # no comment"  # it's a """comment"""
TEMPLATE = """
    not a docstring
"""
def f(a='"', b="\\"'"):
    r\'\'\'Of "f", with \\alpha.

        Indented.
    \'\'\'
    return """no""" + \'\'\'no\'\'\'
class C:
    """Of C."""
    async def g(self): return 'it\\'s'
    def h(self):  # """
        """Of h: don't stop."""
'''


def test_docstrings_are_found_as_the_parser_finds_them():
    assert docstrings.docstrings(SOURCE) == _parsed(SOURCE)
    found = wrong = 0
    for name in ("networkx", "matplotlib"):
        root = Path(importlib.util.find_spec(name).origin).parent
        for path in sorted(root.glob("*.py")):
            source = path.read_text(encoding="utf-8")
            expected, got = _parsed(source), docstrings.docstrings(source)
            strip = str.maketrans("", "", "\\ \n")
            expected, got = ({text.translate(strip) for text in group} for group in (expected, got))
            found += len(expected & got)
            wrong += len(expected - got)
    assert found > 1000 and wrong < 0.02 * found


def _parsed(source):
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    nodes = [node for node in ast.walk(ast.parse(source)) if isinstance(node, kinds)]
    texts = [(getattr(n, "lineno", 0), ast.get_docstring(n)) for n in nodes if ast.get_docstring(n)]
    return [text for _, text in sorted(texts)]


LONG = "Return the sum of all the values that come after the first one in the given row"


@pytest.mark.parametrize(
    ("docstring", "expected"),
    [
        (f"{LONG}.\n\nParameters\n----------\nx : int", f"{LONG}."),
        (f"{LONG}.\n\nArgs:\n    x: a number", f"{LONG}."),
        (f"{LONG}.\n\n>>> f(1)\n2", f"{LONG}."),
        (f"{LONG}.\n\n.. versionadded:: 1.0", f"{LONG}."),
        (f"{LONG},\nas `~numpy.sum` or :func:`~scipy.f` [1]_.", f"{LONG}, as █ or █ ."),
        (f"{LONG}\n\n:param x: a number", LONG),
        ("Too short.", ""),
        ("= + - * / " * 9, ""),
        ("", ""),
    ],
)
def test_the_prose_of_a_docstring(docstring, expected):
    text = docstrings.prose(docstring)
    assert text == expected


def test_copies_are_left_out():
    seen: set[int] = set()
    assert docstrings._is_new(LONG, seen)
    assert not docstrings._is_new(LONG.upper() + "!", seen)
    assert not docstrings._is_new(LONG.replace("row", "column"), seen)
    assert docstrings._is_new("Another text that says something of its own about quite a lot", seen)


def test_the_corpus_is_kept_and_a_damaged_copy_is_made_anew(monkeypatch, tmp_path):
    made = []

    def collect():
        made.append(1)
        return docstrings.Corpus(["a"], [0], ["m"])

    monkeypatch.setenv("KDLAB_DATA_DIR", str(tmp_path))
    monkeypatch.setattr(docstrings, "collect", collect)
    for _ in range(2):
        assert docstrings.read().texts == ["a"]
    assert len(made) == 1
    (path,) = tmp_path.iterdir()
    for damage in ('{"texts": ["a"', "[1]", "{}"):
        path.write_text(damage)
        assert docstrings.read().labels == [0]
    assert len(made) == 4 and json.loads(path.read_text())["modules"] == ["m"]
    versions = docstrings.versions()
    monkeypatch.setattr(docstrings, "versions", lambda: versions | {"numpy": "99"})
    docstrings.read()
    assert len(made) == 5 and len(list(tmp_path.iterdir())) == 2
    monkeypatch.setenv("KDLAB_DATA_DIR", str(path / "no folder"))
    assert docstrings.read().texts == ["a"]
