"""Data and Split: the promises that hold for every set, whatever it came from."""

import pickle
from dataclasses import FrozenInstanceError

import numpy as np
import pytest
import torch

from kdlab.datasets import UNLABELLED, Data, Split, available, from_arrays, load


@pytest.fixture(scope="module")
def colour() -> tuple[Data, np.ndarray]:
    rng = np.random.default_rng(0)
    x = rng.integers(0, 256, (200, 6, 5, 3), np.uint8)
    # Classes of very different sizes: 100, 60, 30, 10.
    y = np.repeat([0, 1, 2, 3], [100, 60, 30, 10])
    return from_arrays(x, y, x[:40], y[::5], list("abcd")), x


def test_shapes_and_types(colour):
    data, _ = colour
    assert (data.num_classes, data.shape, data.classes) == (4, (3, 6, 5), ("a", "b", "c", "d"))
    for split, n in ((data.train, 180), (data.val, 20), (data.test, 40)):
        assert split.x.shape == (n, 3, 6, 5) and split.x.dtype == torch.float32
        assert split.y.shape == (n,) and split.y.dtype == torch.int64
        assert len(split) == n and split.x.is_contiguous()


def test_normalised_by_the_training_split_alone(colour):
    data, _ = colour
    pixels = data.image(data.train.x).astype(np.float64)
    np.testing.assert_allclose(data.mean, pixels.mean((0, 1, 2)), atol=1e-6)
    np.testing.assert_allclose(data.std, pixels.std((0, 1, 2)), atol=1e-6)
    np.testing.assert_allclose(data.train.x.mean((0, 2, 3)), 0, atol=1e-5)
    whole = torch.cat([data.train.x, data.val.x, data.test.x]).mean((0, 2, 3))
    assert whole.abs().max() > 1e-4  # else this test could not tell one from the other


def test_image_undoes_the_normalisation(colour):
    data, x = colour
    np.testing.assert_allclose(data.image(data.test.x), x[:40] / 255, atol=1e-6)
    np.testing.assert_allclose(data.image(data.test.x[3]), x[3] / 255, atol=1e-6)
    grey = from_arrays(x[..., 0], np.arange(200) % 4, x[:9, ..., 0], [0, 1, 2, 3, 0, 1, 2, 3, 0])
    assert grey.image(grey.test.x).shape == (9, 6, 5)
    assert grey.image(grey.test.x[0] + 99).max() == 1  # clipped
    with pytest.raises(ValueError, match=r"x must be \[N, 1, h, w\]"):
        grey.image(data.test.x)


def test_select_and_first(colour):
    split = colour[0].test
    assert split.select([3, 1]).y.tolist() == [split.y[3], split.y[1]]
    assert torch.equal(split.select(split.y == 1).y, split.y[split.y == 1])
    assert torch.equal(split.select(np.array([2])).x, split.x[2:3])
    assert len(split.select([])) == 0
    assert torch.equal(split.first(2).x, split.x[:2]) and len(split.first(99)) == 40
    with pytest.raises(ValueError, match="at least 1"):
        split.first(0)


def test_with_labels_hides_all_but_n_and_is_balanced(colour):
    data, _ = colour
    before = data.train.y.clone()
    few = data.with_labels(40, seed=1)
    kept = few.train.y != UNLABELLED
    assert torch.equal(few.train.y[kept], data.train.y[kept]) and torch.equal(data.train.y, before)
    counts = few.train.y[kept].bincount().tolist()
    # The smallest class has 9 images left for training: they allow no more.
    assert counts[3] == 9 and sum(counts) == 40 and max(counts[:3]) - min(counts[:3]) <= 1
    assert few.train.x is data.train.x and few.card["labels"] == 40
    assert torch.equal(few.val.y, data.val.y) and torch.equal(few.test.y, data.test.y)


def test_with_labels_is_nested_and_follows_its_seed(colour):
    data, _ = colour
    small, large = (data.with_labels(n, seed=3).train.y != UNLABELLED for n in (8, 24))
    assert bool((large | ~small).all()) and int(small.sum()) == 8
    other = data.with_labels(8, seed=4).train.y != UNLABELLED
    assert not torch.equal(small, other)
    assert int((data.with_labels(0).train.y != UNLABELLED).sum()) == 0


def test_with_labels_never_shows_a_hidden_label_again(colour):
    few = colour[0].with_labels(20)
    fewer = few.with_labels(8)
    assert bool(((few.train.y != UNLABELLED) | (fewer.train.y == UNLABELLED)).all())
    with pytest.raises(ValueError, match="from 0 to 20"):
        few.with_labels(21)


def test_subset(colour):
    data, _ = colour
    part = data.subset(16, seed=2)
    assert part.train.y.bincount().tolist() == [4, 4, 4, 4] and len(part.val) == len(data.val)
    assert part.mean == data.mean and part.card["sizes"]["train"] == 16
    assert data.card["sizes"]["train"] == 180
    with pytest.raises(ValueError, match="n must be from 1 to 180"):
        data.subset(181)


def test_fingerprint(colour):
    data, _ = colour
    same = load("digits", seed=1), load("digits", seed=1)
    assert same[0].fingerprint == same[1].fingerprint and len(same[0].fingerprint) == 64
    changed = [
        data,
        data.with_labels(10),
        data.subset(179),
        Data("n", data.val, data.train, data.test, data.classes, data.mean, data.std, {}),
        Data("n", data.train, data.val, data.test, tuple("wxyz"), data.mean, data.std, {}),
    ]
    x = data.test.x.clone()
    x[-1, -1, -1, -1] += 1e-3
    test = Split(x, data.test.y)
    changed.append(Data("n", data.train, data.val, test, data.classes, data.mean, data.std, {}))
    assert len({d.fingerprint for d in changed}) == len(changed)


def test_fingerprint_of_any_type(colour):
    data, _ = colour
    prints = set()
    for kind in (torch.float64, torch.bfloat16, torch.float16):
        splits = [Split(s.x.to(kind), s.y) for s in (data.train, data.val, data.test)]
        prints.add(Data("n", *splits, data.classes, data.mean, data.std, {}).fingerprint)
    assert len(prints | {data.fingerprint}) == 4


def test_frozen_and_pickles(colour):
    data, _ = colour
    data.fingerprint  # noqa: B018
    copy = pickle.loads(pickle.dumps(data))
    assert torch.equal(copy.train.x, data.train.x) and copy.card == data.card
    assert copy.fingerprint == data.fingerprint and copy.with_labels(4).fingerprint != (
        data.fingerprint
    )
    with pytest.raises(FrozenInstanceError):
        data.name = "other"


def test_digits():
    data, other = load("digits"), load("digits", seed=1)
    assert [len(s) for s in (data.train, data.val, data.test)] == [1197, 200, 400]
    for split in (data.train, data.val, data.test):
        counts = split.y.bincount(minlength=10)
        assert counts.max() - counts.min() <= 0.15 * counts.max()
    # Other seeds draw another validation split, never another test split.
    assert torch.equal(data.test.y, other.test.y)
    np.testing.assert_allclose(data.image(data.test.x), other.image(other.test.x), atol=1e-6)
    assert not torch.equal(data.val.y, other.val.y)
    rows = torch.cat([data.train.x, data.val.x, data.test.x]).flatten(1)
    assert len(torch.unique(rows, dim=0)) == 1797  # every image once, none in two splits
    small = load("digits", n_train=100, n_test=50)
    assert len(small.train) == 100 and len(small.test) == 50 and len(small.val) == 200


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: load("glyph"), "did you mean 'glyphs'.*fashion_mnist"),
        (lambda: load("CIFAR-10"), "did you mean 'cifar10'"),
        (lambda: load("qqq"), "unknown data set 'qqq'; there are glyphs"),
        (lambda: load("digits", ntrain=5), "unknown option 'ntrain'.*did you mean 'n_train'"),
        (lambda: load("digits", seed=-1), "seed must be"),
        (lambda: load("digits", seed=1.5), "seed must be"),
        (lambda: load("digits", n_train=0), "n_train must be at least 1"),
        (lambda: load("missing/folder"), "there is no file or folder"),
        (lambda: load("missing.npz"), "there is no file or folder"),
    ],
)
def test_unknown_names_and_options(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_available():
    assert available() == ("glyphs", "digits", "docstrings", "fashion_mnist", "cifar10", "cifar100")
