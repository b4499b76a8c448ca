"""Augmentation: the same two numbers, the same picture; over many, fair dice."""

import itertools

import pytest
import torch

from kdlab.datasets.views import Augmentation, normal, uniform

N = 20_000
INDEX = torch.arange(N)


def pictures(n: int = 12, channels: int = 1, side: int = 7) -> torch.Tensor:
    return 1 + torch.arange(n * channels * side * side).float().view(n, channels, side, side)


def chi_square(counts: torch.Tensor) -> float:
    expected = counts.sum() / len(counts)
    return float(((counts - expected) ** 2 / expected).sum())


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(
    "augment",
    [Augmentation(2, flip=True), Augmentation(1, seed=5), Augmentation(1, flip=True, noise=0.5)],
)
def test_a_picture_depends_on_image_and_view_alone(augment, channels):
    x = pictures(channels=channels)
    index = torch.arange(len(x))
    for view in (0, 3):
        whole = augment(x, index, view)
        assert whole.shape == x.shape
        order = torch.randperm(len(x), generator=torch.Generator().manual_seed(view))
        assert torch.equal(augment(x[order], order, view), whole[order])
        for part in index.split(5):
            assert torch.equal(augment(x[part], part, view), whole[part])
        memory = x.contiguous(memory_format=torch.channels_last)
        assert torch.equal(augment(memory, index, view), whole)


def test_another_view_another_seed_another_image_is_another_picture():
    x, index = torch.rand(1, 1, 9, 9).expand(200, -1, -1, -1), torch.arange(200)
    one = Augmentation(3)(x, index, 0)
    for other in (
        Augmentation(3)(x, index, 1),
        Augmentation(3, seed=1)(x, index, 0),
        one.roll(1, 0),
    ):
        alike = (one == other).flatten(1).all(1).float().mean()
        assert alike < 0.1  # one in 49 by chance


def test_nothing_asked_for_is_nothing_done():
    x = pictures()
    assert Augmentation(0)(x, torch.arange(len(x)), 4) is x


def test_each_move_is_a_crop_of_the_image_with_zeros_around():
    shift, side = 2, 7
    x = pictures(60, 3)
    moved, seen = Augmentation(shift)(x, torch.arange(60), 0), set()
    for before, after in zip(x, moved, strict=True):
        padded = torch.zeros(3, side + 2 * shift, side + 2 * shift)
        padded[:, shift:-shift, shift:-shift] = before
        places = [
            (down, right)
            for down, right in itertools.product(range(2 * shift + 1), repeat=2)
            if torch.equal(padded[:, down : down + side, right : right + side], after)
        ]
        assert len(places) == 1
        seen.add(places[0])
    assert len(seen) > 15


def test_a_mirrored_image_is_mirrored_whole():
    x, index = pictures(40, 3), torch.arange(40)
    flipped = Augmentation(0, flip=True)(x, index, 0)
    mirrored = (flipped == x.flip(-1)).flatten(1).all(1)
    assert (mirrored ^ (flipped == x).flatten(1).all(1)).all()
    assert 10 < mirrored.sum() < 30


@pytest.mark.parametrize("view", [0, 1, 17])
def test_moves_and_mirrors_are_fair(view):
    """χ² of 25 places has a mean of 24 and a deviation of 7."""
    x = torch.zeros(N, 1, 5, 5)
    x[:, 0, 2, 2] = 1
    moved = Augmentation(2, seed=3)(x, INDEX, view).flatten(1)
    assert moved.sum() == N  # the point never leaves the image
    assert chi_square(moved.sum(0)) < 24 + 5 * 7
    half = torch.arange(2.0).expand(N, 1, 1, 2)
    mirrored = Augmentation(0, flip=True)(half, INDEX, view)[:, 0, 0, 0].mean()
    assert mirrored == pytest.approx(0.5, abs=5 * 0.5 / N**0.5)


def test_a_move_does_not_tell_whether_it_is_mirrored():
    x = torch.zeros(N, 1, 9, 9)
    x[:, 0, 4, 4], x[:, 0, 4, 3] = 2, 1
    moved = Augmentation(2, flip=True)(x, INDEX, 0)[:, 0]
    place = (moved == 2).flatten(1).int().argmax(1)
    mirrored = (moved == 1).flatten(1).int().argmax(1) - place > 0
    down, right = place // 9 - 2, place % 9 - 2
    for move in (down, right):
        table = torch.bincount(move * 2 + mirrored, minlength=10).float()
        assert chi_square(table) < 9 + 5 * 18**0.5


def test_noise_comes_on_top_of_the_move_and_has_the_asked_size():
    x, index = pictures(50, 3) / 1e4, torch.arange(50)
    added = Augmentation(2, noise=0.3)(x, index, 4) - Augmentation(2)(x, index, 4)
    assert added.std() == pytest.approx(0.3, rel=0.03)
    assert (added == 0).float().mean() < 0.01  # also where the move has brought zeros in
    assert torch.allclose(added, 0.3 * normal(index, 4, 0, x.shape[1:]), atol=1e-4)


@pytest.mark.parametrize(("seed", "view"), [(0, 0), (0, 1), (1, 0), (12345, 999), (-1, 3)])
def test_normal_numbers(seed, view):
    z = normal(torch.arange(400), view, seed, (7, 7))  # an odd count: half of a pair is left over
    assert z.shape == (400, 7, 7) and z.dtype == torch.float32
    steps = torch.special.ndtr(z.double()).mul(64).long().clamp(0, 63)
    spread = (2 * 63) ** 0.5
    assert chi_square(torch.bincount(steps.flatten(), minlength=64).float()) < 63 + 5 * spread
    covariance = z.flatten(1).T @ z.flatten(1) / len(z)
    assert (covariance - torch.eye(49)).abs().max() < 6 * (2 / len(z)) ** 0.5  # pixels
    covariance = z.flatten(1) @ z.flatten(1).T / 49
    assert (covariance - torch.eye(400)).abs().max() < 6 * (2 / 49) ** 0.5  # images


def test_another_view_and_another_seed_bring_other_noise():
    index = torch.arange(1000)
    one = normal(index, 0, 0, (49,)).flatten()
    for view, seed in ((1, 0), (0, 1)):
        other = normal(index, view, seed, (49,)).flatten()
        assert abs(torch.corrcoef(torch.stack([one, other]))[0, 1]) < 5 / len(one) ** 0.5


@pytest.mark.parametrize("noise", [-0.1, float("nan"), float("inf"), "1", None, True])
def test_impossible_noise_is_refused(noise):
    with pytest.raises(ValueError, match=r"^noise: .* came, expected a finite number"):
        Augmentation(noise=noise)


@pytest.mark.parametrize(("seed", "view"), [(0, 0), (0, 1), (1, 0), (12345, 999), (-1, 3)])
@pytest.mark.parametrize("stream", [0, 1, 2])
def test_uniform_numbers(seed, view, stream):
    u = uniform(INDEX, view, seed, stream)
    assert u.dtype == torch.float32 and u.min() >= 0 and u.max() < 1
    for bins in (10, 64):
        spread = (2 * (bins - 1)) ** 0.5
        assert chi_square(torch.bincount((u * bins).long(), minlength=bins).float()) < (
            bins - 1 + 5 * spread
        )
    pairs = (u[:-1] * 8).long() * 8 + (u[1:] * 8).long()  # neighbours know nothing of each other
    assert chi_square(torch.bincount(pairs, minlength=64).float()) < 63 + 5 * 126**0.5


KEYS = [(0, 0, 0), (0, 0, 1), (0, 0, 2), (0, 1, 0), (1, 0, 0), (0, 2, 1), (7, 3, 2), (0, 1, 1)]


@pytest.mark.parametrize(("one", "other"), list(itertools.combinations(KEYS, 2)))
def test_streams_views_and_seeds_are_independent(one, other):
    u, v = (uniform(INDEX, view, seed, stream) for seed, view, stream in (one, other))
    table = torch.bincount((u * 8).long() * 8 + (v * 8).long(), minlength=64).float()
    assert chi_square(table) < 63 + 5 * 126**0.5


def test_known_numbers():
    """The same on every machine and in every version, or stored answers would be wrong."""
    u = uniform(torch.tensor([0, 1, 59_999]), 2, 7, 1)
    assert [int(x * 2**24) for x in u] == [uniform_by_hand(i, 2, 7, 1) for i in (0, 1, 59_999)]


def uniform_by_hand(index: int, view: int, seed: int, stream: int) -> int:
    """The same mixing in Python's own integers, which never overflow."""
    word = 2**32
    key = (seed * 0x9E3779B1 + view * 0x85EBCA77 + stream * 0xC2B2AE3D + 0x27D4EB2F) % word
    bits = (index + key) % word
    bits = (bits ^ bits >> 16) * 0x21F0AAAD % word
    bits ^= bits >> 15
    bits = (bits ^ bits >> 15) * 0x735A2D97 % word
    bits ^= bits >> 15
    bits = (bits + key) * 0x2C1B3C6D % word
    bits ^= bits >> 16
    return bits >> 8


@pytest.mark.parametrize("index", [0, 2**31, 2**32 - 1, 2**40])
def test_large_numbers_do_not_overflow(index):
    for seed, view in ((2**40, 2**33), (-5, 0)):
        got = uniform(torch.tensor([index]), view, seed, 0)
        assert int(got * 2**24) == uniform_by_hand(index, view, seed, 0)


@pytest.mark.parametrize("shift", [-1, 1.5, "2", None, True])
def test_an_impossible_shift_is_refused(shift):
    with pytest.raises(ValueError, match=r"^shift: .* came, expected"):
        Augmentation(shift)


@pytest.mark.parametrize("seed", [0.5, "0", None])
def test_an_impossible_seed_is_refused(seed):
    with pytest.raises(ValueError, match=r"^seed: .* came, expected a whole number"):
        Augmentation(1, seed=seed)
