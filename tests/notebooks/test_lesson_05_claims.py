"""The claims of lesson 05 about its gates: a gate that ignores its input must fail them."""

import ast
from pathlib import Path
from types import SimpleNamespace

import nbformat
import pytest
import torch

from kdlab.lab.session import ClaimError, Lab

LESSON = Path(__file__).parents[2] / "notebooks" / "05_gated_distillation.ipynb"
CLASSES, N = 6, 2000


@pytest.fixture(scope="module")
def cells():
    return {cell["id"]: cell.source for cell in nbformat.read(LESSON, 4).cells}


@pytest.fixture
def world(cells, tmp_path, monkeypatch):
    """Two teachers that are sure everywhere and right on their own side, as in the lesson."""
    monkeypatch.setenv("KDLAB_RECORDS", str(tmp_path))
    generator = torch.Generator().manual_seed(0)
    size = 0.35 + 1.15 * torch.rand(N, generator=generator)
    y = torch.randint(CLASSES, (N,), generator=generator)
    own = torch.stack([size < 0.7, size >= 0.7], dim=1)
    wrong = (y + 1 + torch.randint(CLASSES - 1, (N,), generator=generator)) % CLASSES
    given = torch.where(own, y.unsqueeze(1), wrong.unsqueeze(1))
    said = torch.nn.functional.one_hot(given, CLASSES) * 0.8 + 0.2 / CLASSES
    names = {"torch": torch, "size": size, "said": said, "even": torch.full((N, 2), 0.5)}
    names |= {"mixed": SimpleNamespace(test=SimpleNamespace(y=y)), "lab": Lab("test", {})}
    functions = [n for n in ast.parse(cells["specialists"]).body if isinstance(n, ast.FunctionDef)]
    exec(compile(ast.Module(functions, []), "specialists", "exec"), names)
    return names


def gate(size, kind):
    second = ((size.log() - torch.tensor(0.7).log()) * 6).sigmoid()
    generator = torch.Generator().manual_seed(1)
    second = {
        "follows": second,
        "even": torch.full_like(size, 0.5),
        "collapsed": torch.ones_like(size) - 1e-6 * torch.rand(N, generator=generator),
        "shuffled": second[torch.randperm(N, generator=generator)],
        "noise": torch.rand(N, generator=generator),
    }[kind]
    return torch.stack([1 - second, second], dim=1)


def test_a_gate_that_follows_the_size_passes(cells, world, capsys):
    exec(cells["claim-cure"], world | {"trust": gate(world["size"], "follows")})
    assert capsys.readouterr().out.count("✓") == 3


@pytest.mark.parametrize("kind", ["even", "collapsed", "shuffled", "noise"])
def test_a_gate_that_ignores_its_input_fails(cells, world, kind):
    with pytest.raises(ClaimError):
        exec(cells["claim-cure"], world | {"trust": gate(world["size"], kind)})


@pytest.mark.parametrize("kind", ["even", "collapsed", "shuffled", "noise"])
def test_two_claims_about_the_cure_each_tell_it_apart(cells, world, kind):
    """The third may not: one teacher alone may happen to be better than the mean of both."""
    heard = {}

    def claim(sentence, value, *, at_least):
        heard[sentence] = float(value) >= at_least

    names = world | {"trust": gate(world["size"], kind), "lab": SimpleNamespace(claim=claim)}
    exec(cells["claim-cure"], names)
    follows, _, beats_random_order = heard.values()
    assert not follows and not beats_random_order


def test_a_gate_that_follows_the_size_is_not_called_collapsed(cells, world):
    def weights_of(method, x):
        return gate(world["size"], method)

    names = world | {"weights_of": weights_of}
    y, said = world["mixed"].test.y, world["said"]
    right = said.argmax(dim=2) == y.unsqueeze(1)  # less sure where wrong: so the mean is right
    names["said"] = torch.where(right.unsqueeze(2), said, said / 2 + 0.5 / CLASSES)
    names["mixed"] = SimpleNamespace(test=SimpleNamespace(x=None, y=y))
    exec(cells["claim-collapse"], names | {"collapsing": "collapsed"})
    with pytest.raises(ClaimError):
        exec(cells["claim-collapse"], names | {"collapsing": "follows"})
