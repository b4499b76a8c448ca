"""Glyphs: what is drawn is what the factors say, and a seed decides all of it."""

import numpy as np
import pytest
import torch

from kdlab.datasets import glyphs, load

SMALL = {"n_train": 720, "n_val": 72, "n_test": 144}


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def test_load_gives_balanced_splits_without_a_shared_image():
    data = load("glyphs", **SMALL)
    assert (
        data.shape == (1, 28, 28)
        and data.num_classes == 36
        and "".join(data.classes[9:12]) == ("9AB")
    )
    assert data.train.y.bincount().tolist() == [20] * 36
    assert data.test.y.bincount().tolist() == [4] * 36
    images = torch.cat([data.train.x, data.val.x, data.test.x]).flatten(1)
    assert len(torch.unique(images, dim=0)) == len(images)
    pixels = data.image(data.train.x)
    assert pixels.min() >= 0 and pixels.max() <= 1
    np.testing.assert_allclose([pixels.mean(), pixels.std()], [*data.mean, *data.std], atol=1e-5)


def test_seed_decides_whatever_the_threads(threads):
    prints = set()
    for n in (1, 2, 3):
        threads(n)
        prints.add(load("glyphs", seed=5, **SMALL).fingerprint)
    assert len(prints) == 1
    assert load("glyphs", seed=6, **SMALL).fingerprint not in prints


def test_streams_have_nothing_in_common():
    # Neighbouring seeds and all splits, of one size: a shared stream would repeat the labels.
    sizes = {"n_train": 72, "n_val": 72, "n_test": 72}
    sets = [load("glyphs", seed=seed, **sizes) for seed in (0, 1, 2)]
    starts = [split.y for data in sets for split in (data.train, data.val, data.test)]
    starts += [glyphs.sample(72, seed=seed)[1] for seed in (0, 1, 2)]
    for i, a in enumerate(starts):
        for b in starts[:i]:
            assert (a == b).float().mean() < 0.3


def test_the_size_of_one_split_changes_no_other():
    data = load("glyphs", **SMALL)
    more = load("glyphs", **{**SMALL, "n_train": 900})
    assert torch.equal(data.test.y, more.test.y)
    np.testing.assert_allclose(data.image(data.test.x), more.image(more.test.x), atol=1e-6)


def test_held_out_fonts_are_in_no_training_image():
    card = load("glyphs", held_out_fonts=True, **SMALL).card["fonts"]
    assert card["test"] and card["train"] and not set(card["test"]) & set(card["train"])
    assert set(card["test"]) | set(card["train"]) == set(glyphs.fonts())
    plain = load("glyphs", **SMALL)
    held_out = load("glyphs", held_out_fonts=True, **SMALL)
    assert not torch.equal(plain.test.x, held_out.test.x)


def test_fonts_have_the_letters_and_no_symbols():
    names = glyphs.fonts()
    assert "DejaVuSans" in names and "cmr10" in names and "STIXGeneral" in names and len(names) > 10
    for symbols in ("cmex10", "cmsy10", "LastResortHE-Regular", "STIXSizOneSymReg"):
        assert symbols not in names
    masks = glyphs._masks(28).flatten(2)
    assert bool((masks.amax(2) > 0.9).all())  # every glyph has ink
    for font in masks:
        assert len(torch.unique(font, dim=0)) == 36  # and is like no other of its font
    edge = torch.cat([glyphs._masks(28)[..., 0, :], glyphs._masks(28)[..., -1, :]])
    assert edge.max() == 0  # none is cut off


def test_a_plain_draw_is_the_glyph_itself():
    """At difficulty 0: upright, in the middle, and three fifths of the image high."""
    x, y, factors = glyphs.sample(
        36, seed=0, difficulty=0, fonts=["DejaVuSans"], classes=["I", "H"], scale=1.0, size=56
    )
    assert set(y.tolist()) == {18, 17}
    for image, contrast in zip(x[:, 0], factors["contrast"], strict=True):
        ink = image > image.min() + contrast.item() / 2
        rows, columns = (torch.nonzero(ink.any(1 - axis)).flatten() for axis in (0, 1))
        assert abs(len(rows) - 0.6 * 56) <= 2
        for span in (rows, columns):
            assert abs((span[0] + span[-1]).item() / 2 - 27.5) <= 1


def test_factors_tell_what_was_drawn():
    args = {"seed": 3, "difficulty": 0, "classes": ["M"], "fonts": ["DejaVuSans-Bold"]}
    small, large = (glyphs.sample(64, scale=s, **args)[0] for s in (0.5, 1.0))
    ink = [(x > 0.5).float().mean().item() for x in (small, large)]
    assert ink[1] / ink[0] == pytest.approx(4, rel=0.15)  # twice the scale, four times the area

    clean, noisy = (glyphs.sample(50, seed=3, noise=level) for level in (0.0, 0.1))
    far = (clean[0] - 0.5).abs() < 0.1  # so far from 0 and 1 that nothing is clipped
    assert (noisy[0] - clean[0])[far].std() == pytest.approx(0.1, rel=0.05)
    assert torch.equal(noisy[2]["noise"], torch.full((50,), 0.1))

    _, _, factors = glyphs.sample(500, seed=4, scale=(0.5, 0.7), noise=(0.0, 0.3))
    assert 0.5 <= factors["scale"].min() < 0.52 and 0.68 < factors["scale"].max() <= 0.7
    assert factors["noise"].min() < 0.01 and 0.29 < factors["noise"].max() <= 0.3
    assert {k: tuple(v.shape) for k, v in factors.items()} == dict.fromkeys(
        ("font", "scale", "noise", "contrast", "angle"), (500,)
    )


def test_contrast_has_the_sign_of_the_glyph():
    x, _, factors = glyphs.sample(
        300, seed=1, noise=0.0, scale=1.0, classes=["H"], fonts=["DejaVuSans-Bold"], difficulty=0.5
    )
    middle, rim = x[:, 0, 10:18, 8:20].mean((1, 2)), x[:, 0, [0, -1]].mean((1, 2))
    agree = ((middle - rim).sign() == factors["contrast"].sign()).float().mean()
    assert agree > 0.95 and 0.1 < (factors["contrast"] < 0).float().mean() < 0.5


def test_chunks_leave_no_seam(monkeypatch):
    whole = glyphs.sample(50, seed=9, noise=0.0)
    monkeypatch.setattr(glyphs, "_CHUNK", 7)
    parts = glyphs.sample(50, seed=9, noise=0.0)
    torch.testing.assert_close(whole[0], parts[0], atol=1e-5, rtol=0)
    assert torch.equal(whole[1], parts[1])


def test_difficulty_makes_it_harder():
    """A nearest-mean reader, no training: right on nearly all plain images, on few hard ones."""
    scores = []
    for difficulty in (0.0, 0.5, 1.0):
        x, y, _ = glyphs.sample(3600, seed=0, difficulty=difficulty)
        x = x.flatten(1) - x.flatten(1).mean(1, keepdim=True)
        means = torch.stack([x[:1800][y[:1800] == c].mean(0) for c in range(36)])
        scores.append((torch.cdist(x[1800:], means).argmin(1) == y[1800:]).float().mean().item())
    assert scores[0] > 0.7 > scores[1] > scores[2] + 0.03 > 1 / 36


@pytest.mark.parametrize(
    "options, message",
    [
        ({"size": 4}, "size must be from 8"),
        ({"difficulty": -1}, "difficulty must be from 0"),
        ({"difficulty": float("nan")}, "difficulty must be from 0"),
        ({"classes": ["a"]}, "classes must be names"),
        ({"classes": [36]}, "classes must be names"),
        ({"classes": []}, "classes must be names"),
        ({"fonts": ["Arial"]}, "fonts must be names.*DejaVuSans"),
        ({"scale": (1.0, 0.5)}, "scale must be a value or"),
        ({"scale": 0.0}, "scale must be a value or"),
        ({"noise": -0.1}, "noise must be a value or"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        glyphs.sample(4, seed=0, **options)


@pytest.mark.parametrize("name", ["n_train", "n_val", "n_test"])
def test_bad_sizes(name):
    with pytest.raises(ValueError, match=f"{name} must be at least 1"):
        load("glyphs", **{name: 0})


def test_no_fonts_is_explained(monkeypatch, tmp_path):
    monkeypatch.setattr(glyphs.matplotlib, "get_data_path", lambda: str(tmp_path))
    glyphs._font_files.cache_clear()
    try:
        with pytest.raises(RuntimeError, match="Reinstall"):
            glyphs.fonts()
    finally:
        glyphs._font_files.cache_clear()
