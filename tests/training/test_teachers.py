"""Shipped teachers: used where they are whole, trained anew where not, never trusted blindly."""

import json
import pickle
import shutil
import warnings
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny import make_data

from kdlab.datasets import load
from kdlab.datasets.views import Augmentation
from kdlab.metrics import accuracy
from kdlab.training import fit, predict, teachers
from kdlab.training.teachers import Recipe, load_teacher


@pytest.fixture
def shop(tmp_path, monkeypatch):
    """A checkout with a shipped teacher for digits, quickly made; its cache folder; a log."""
    recipe = Recipe("mlp", {"hidden": [16]}, {"epochs": 4, "batch_size": 32, "lr": 0.05})
    monkeypatch.setattr(teachers, "RECIPES", {"digits": recipe})
    monkeypatch.setattr(teachers, "OTHERS", Recipe("mlp", {}, {"epochs": 1}))
    monkeypatch.setattr(teachers, "shipped_folder", lambda: tmp_path / "shipped")
    monkeypatch.setenv("KDLAB_DATA_DIR", str(tmp_path / "cache"))
    trained: list[int] = []
    fit = teachers.fit

    def watched(model, data, **options):
        trained.append(len(data.train))
        return fit(model, data, **options)

    monkeypatch.setattr(teachers, "fit", watched)
    teachers.rebuild(progress=False)
    trained.clear()
    return tmp_path, trained


def weights(shop) -> Path:
    return shop[0] / "shipped" / "digits.safetensors"


def test_the_shipped_teacher_is_used(shop):
    data = load("digits")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        teacher, card = load_teacher(data, progress=False)
    assert shop[1] == [] and not teacher.training
    assert not (shop[0] / "cache").exists()
    for name, split in (("val", data.val), ("test", data.test)):
        measured = accuracy(predict(teacher, split.x), split.y)
        assert measured > 0.8
        assert card["scores"][name]["accuracy"] == pytest.approx(measured, abs=1e-4)
    assert card["data"]["sha256"] == data.fingerprint and card["versions"]["torch"]
    assert card["bytes"] == weights(shop).stat().st_size < 1_000_000
    assert card["recipe"]["fit_options"]["epochs"] == 4
    assert teachers.status() == [{"name": "digits", "whole": True, "card": card}]


def test_fewer_images_or_classes_meet_the_same_teacher(shop):
    load_teacher(load("digits").subset(100), progress=False)
    assert shop[1] == []


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-3] ^= 0x10
    path.write_bytes(data)


def recard(path: Path, **changes) -> None:
    card = json.loads(path.with_suffix(".json").read_text())
    path.with_suffix(".json").write_text(json.dumps(card | changes))


DAMAGE = {
    "truncated": lambda p: p.write_bytes(p.read_bytes()[:500]),
    "empty": lambda p: p.write_bytes(b""),
    "one bit": flip,
    "no card": lambda p: p.with_suffix(".json").unlink(),
    "card of another": lambda p: recard(p, sha256="0" * 64),
    "card is cut": lambda p: p.with_suffix(".json").write_text('{"sha256": "0'),
    "card is a list": lambda p: p.with_suffix(".json").write_text("[1]"),
    "card is null": lambda p: p.with_suffix(".json").write_text("null"),
    "card is not text": lambda p: p.with_suffix(".json").write_bytes(b"\xff\xfe\x00"),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_file_is_told_and_trained_anew(shop, damage):
    right = weights(shop).read_bytes()
    damage(weights(shop))
    assert teachers.status()[0]["whole"] is False
    with pytest.warns(UserWarning, match="teacher: digits.safetensors is damaged; training it"):
        teacher, _ = load_teacher(load("digits"), progress=False)
    assert shop[1] == [1197] and weights(shop).read_bytes() == right
    assert teachers.status()[0]["whole"] is True and not teacher.training


def test_weights_of_another_model_are_told_and_trained_anew(shop, monkeypatch):
    bigger = Recipe("mlp", {"hidden": [20]}, {"epochs": 1})
    monkeypatch.setattr(teachers, "RECIPES", {"digits": bigger})
    with pytest.warns(UserWarning, match="does not fit its model .*training it anew"):
        load_teacher(load("digits"), progress=False)
    assert shop[1] == [1197]


def test_a_missing_file_is_trained_on_the_usual_data_whatever_was_asked(shop):
    """A small subset in the reader's hands must not become everybody's teacher."""
    right = weights(shop).read_bytes()
    for data in (load("digits").subset(64), load("digits", n_train=64), load("digits", seed=1)):
        shop[1].clear()
        shutil.rmtree(shop[0] / "shipped")
        load_teacher(data, progress=False)
        usual = data.card["options"]["n_train"] is None and data.card["seed"] == 0
        assert shop[1] == [1197 if usual else len(data.train)]
        assert weights(shop).exists() == usual
        if usual:
            assert weights(shop).read_bytes() == right
        teachers.rebuild(progress=False)


@pytest.mark.parametrize(
    "make",
    [
        lambda: load("digits", seed=1),
        lambda: load("digits", n_train=200),
        lambda: load("digits").with_labels(200),
        lambda: replace(load("digits"), card=load("digits").card | {"corpus": "newer"}),
        make_data,
    ],
    ids=["another seed", "other options", "few labels", "other packages", "own arrays"],
)
def test_other_data_get_a_teacher_of_their_own_once(shop, make):
    before = weights(shop).read_bytes()
    teacher, card = load_teacher(make(), progress=False)
    again, same_card = load_teacher(make(), progress=False)
    assert len(shop[1]) == 1 and card == same_card
    assert weights(shop).read_bytes() == before
    kept = list((shop[0] / "cache" / "teachers").glob("*.safetensors"))
    assert len(kept) == 1 and make().fingerprint[:12] in kept[0].name
    for mine, theirs in zip(teacher.parameters(), again.parameters(), strict=True):
        assert torch.equal(mine, theirs)


def test_a_generated_set_of_another_seed_is_the_same_kind(shop, monkeypatch):
    """Where a seed draws new images, the shipped teacher has seen none of them."""
    recipe = teachers.RECIPES["digits"]
    seeded = Recipe(recipe.model, recipe.model_options, recipe.fit_options, any_seed=True)
    monkeypatch.setattr(teachers, "RECIPES", {"digits": seeded})
    load_teacher(load("digits", seed=1), progress=False)
    assert shop[1] == []


def test_a_folder_that_cannot_be_written_costs_only_the_file(shop, monkeypatch):
    shutil.rmtree(shop[0] / "shipped")
    (shop[0] / "shipped").touch()
    with pytest.warns(UserWarning, match="cannot be written .*used but not kept"):
        teacher, _ = load_teacher(load("digits"), progress=False)
    assert shop[1] == [1197] and not teacher.training


def test_outside_a_checkout_the_cache_serves(shop, monkeypatch):
    monkeypatch.setattr(teachers, "shipped_folder", lambda: None)
    for _ in range(2):
        load_teacher(load("digits"), progress=False)
    assert shop[1] == [1197]
    with pytest.raises(FileNotFoundError, match="in a checkout"):
        teachers.rebuild()
    assert teachers.status()[0]["whole"] is False


def test_an_unknown_recipe_is_refused(shop):
    with pytest.raises(ValueError, match=r"^names: no recipe for 'digit'; there are digits"):
        teachers.rebuild(["digit"])


def test_a_stopped_training_keeps_nothing(shop, monkeypatch):
    weights(shop).unlink()
    fit = teachers.fit

    def stopped(*args, **options):
        run = fit(*args, **options)
        run.interrupted = True
        return run

    monkeypatch.setattr(teachers, "fit", stopped)
    with pytest.raises(KeyboardInterrupt):
        load_teacher(load("digits"), progress=False)
    assert not weights(shop).exists()


class Trap:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize("write", [torch.save, lambda x, p: p.write_bytes(pickle.dumps(x))])
def test_nothing_is_ever_unpickled(shop, write):
    """Not even if the card vouches for it."""
    write(Trap(shop[0] / "sprung"), weights(shop))
    recard(weights(shop), sha256=teachers.hashlib.sha256(weights(shop).read_bytes()).hexdigest())
    with pytest.warns(UserWarning, match=r"does not fit its model \(SafetensorError\)"):
        load_teacher(load("digits"), progress=False)
    assert shop[1] == [1197] and not (shop[0] / "sprung").exists()


def test_the_recipes_shift_reaches_the_training(monkeypatch, tmp_path):
    asked = []

    def spy(model, data, **options):
        asked.append(options["augment"])
        return fit(model, data, **options | {"epochs": 1})

    monkeypatch.setattr(teachers, "fit", spy)
    monkeypatch.setenv("KDLAB_DATA_DIR", str(tmp_path))
    monkeypatch.setattr(teachers, "OTHERS", teachers.Recipe("mlp", {"hidden": [4]}, {}, shift=1))
    load_teacher(make_data(), progress=False)
    assert asked == [Augmentation(1)]
