"""The exercises of lesson 02: right answers pass however they are written, mistakes are named."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from kdlab.exercises import features, find
from kdlab.metrics import cka
from kdlab.models import count_parameters


def verdict(name, answer):
    return find(name).judge(answer)


def by_hand(f):
    """An attention map without any function of the package."""
    places = (f**2).sum(dim=1).reshape(f.shape[0], -1)
    return places / places.pow(2).sum(1, keepdim=True).sqrt()


def by_loop(f):
    rows = [x.reshape(-1) for x in f]
    g = torch.stack([torch.stack([a @ b for b in rows]) for a in rows])
    return g / g.norm(dim=1, keepdim=True)


@pytest.mark.parametrize(
    ("name", "answer"),
    [
        ("attention map", by_hand),
        ("similarity matrix", by_loop),
        ("hint regressor parameters", 1088),
        ("hint regressor parameters", count_parameters(torch.nn.Conv2d(16, 64, 1))),
    ],
)  # fmt: skip
def test_right(name, answer):
    assert verdict(name, answer).status == "right"


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (lambda f: F.normalize(f.mean(1).flatten(1)), "the square is missing"),
        (lambda f: F.normalize(f.sum(1).flatten(1)), "the square is missing"),
        (lambda f: F.normalize(f.abs().sum(1).flatten(1)), "absolute value"),
        (lambda f: F.normalize(f.sum(1).square().flatten(1)), "square first"),
        (lambda f: F.normalize(f.square().sum((2, 3))), "over the channels, not over space"),
        (lambda f: F.normalize(f.square().mean(1).flatten(1), dim=0), "each place over the batch"),
        (lambda f: f.square().mean(1).flatten(1) / f.square().mean(1).norm(), "not the batch as a"),
        (lambda f: f.square().mean(1).flatten(1), "still has the layer's scale"),
        (lambda f: f.square().sum(1).flatten(1), "still has the layer's scale"),
        (lambda f: F.normalize(f.square().sum(1).flatten(1), p=1), "the sum is 1"),
        (lambda f: f.square().mean(1).flatten(1).softmax(-1), "no softmax"),
        (lambda f: by_hand(f).view(len(f), *f.shape[2:]), "shape (3, 2, 4); expected (3, 8)"),
        (lambda f: f[:, :, 0], "shape (3, 5, 4); expected (3, 8)"),
    ],
)  # fmt: skip
def test_mistakes_of_an_attention_map(answer, message):
    found = verdict("attention map", answer)
    assert found.status == "wrong" and message in found.message


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (lambda f: f.flatten(1) @ f.flatten(1).T, "now give each row a length of 1"),
        (lambda f: by_loop(f).T, "the columns have a length of 1"),
        (lambda f: F.normalize((f.flatten(1) @ f.flatten(1).T).view(1, -1)).view(len(f), -1),
         "not the matrix as a whole"),
        (lambda f: F.cosine_similarity(f.flatten(1)[None], f.flatten(1)[:, None], dim=-1),
         "those are cosines"),
        (lambda f: torch.softmax(f.flatten(1) @ f.flatten(1).T, 1), "no softmax"),
        (lambda f: by_loop(f.mean((2, 3))), "do not pool"),
        (lambda f: by_loop(f.transpose(0, 1)), "shape (5, 5); expected (3, 3)"),
    ],
)  # fmt: skip
def test_mistakes_of_a_similarity_matrix(answer, message):
    found = verdict("similarity matrix", answer)
    assert found.status == "wrong" and message in found.message


@pytest.mark.parametrize("name", ["attention map", "similarity matrix"])
def test_a_detached_answer_is_close(name):
    right = {"attention map": by_hand, "similarity matrix": by_loop}[name]
    assert verdict(name, lambda f: right(f.detach())).status == "close"
    assert verdict(name, lambda f: ...).status == "not yet"


@pytest.mark.parametrize(
    ("answer", "status", "message"),
    [
        (1024, "close", "those are the weights"),
        (1040, "close", "each channel that comes out"),
        (torch.tensor(1024), "close", "those are the weights"),
        (80, "wrong", "every input channel meets"),
        (9280, "wrong", "3 × 3"),
        (9216, "wrong", "3 × 3"),
        (1000, "wrong", "too small"),
        ("1088", "wrong", "expected one number"),
        (..., "not yet", ""),
    ],
)
def test_counting_the_regressor(answer, status, message):
    found = verdict("hint regressor parameters", answer)
    assert found.status == status and message in found.message


@pytest.mark.parametrize(
    ("more", "less", "message"),
    [
        (1, 0, "1 does not belong"),
        (2, 0, "2 do not belong"),
        (1, 1, "1 does not belong, 1 is missing"),
        (2, 1, "2 do not belong, 1 is missing"),
        (1, 2, "1 does not belong, 2 are missing"),
        (2, 4, "2 do not belong, 4 are missing"),
    ],
)
def test_a_wrong_set_is_told_how_much_of_it_is_wrong_and_how_much_is_missing(more, less, message):
    right = ["rotation", "one factor for all channels", "a shift", "another order of the channels"]
    wrong = ["one factor for each channel", "another order of one model's samples"]
    assert {*right, *wrong} == set(features._CHANGES)
    found = verdict("what CKA ignores", {*right[less:], *wrong[:more]})
    assert found.status == "wrong" and found.message == message


def test_what_cka_ignores_is_what_the_metric_ignores():
    """The answer is not typed twice: each change is made, and CKA measured."""
    random = np.random.default_rng(0)
    a, b = random.normal(size=(2, 30, 6))
    b += a
    changed = {
        "rotation": b @ np.linalg.qr(random.normal(size=(6, 6)))[0],
        "one factor for all channels": 3 * b,
        "one factor for each channel": b * np.arange(1, 7),
        "a shift": b + np.arange(6),
        "another order of the channels": b[:, ::-1].copy(),
        "another order of one model's samples": b[::-1].copy(),
    }
    assert tuple(changed) == features._CHANGES
    plain = cka(a, b)
    ignored = {name for name, values in changed.items() if abs(cka(a, values) - plain) < 1e-9}
    assert verdict("what CKA ignores", ignored).status == "right"
    assert verdict("what CKA ignores", ["rotation", "a shift"]).status == "close"
    assert verdict("what CKA ignores", changed).status == "wrong"
    assert verdict("what CKA ignores", ["a mirror"]).message.startswith("choose from: rotation, ")
