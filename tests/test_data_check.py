"""`kdlab data check PATH` says and shows what is in one's own data, before a lesson starts."""

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from kdlab.cli import app

X = np.random.default_rng(0).integers(0, 256, (30, 8, 8, 3), np.uint8)


def called(*words):
    return CliRunner().invoke(app, ["data", "check", *map(str, words)])


@pytest.fixture
def pets(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for number, pixels in enumerate(X):
        folder = tmp_path / "pets" / ("c$t", "犬 🐶")[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    (tmp_path / "pets" / "notes.txt").write_text("")
    return tmp_path / "pets"


def test_pictures_are_counted_and_shown(pets):
    result = called("pets")
    assert result.exit_code == 0, result.output
    assert "c$t 11/1/3" in result.output and "left out: 1 files (.txt)" in result.output
    with Image.open(pets.parent / "pets-check.png") as shown:
        assert min(shown.size) > 100
    again = called("pets")
    assert again.exit_code == 1 and "--force overwrites it" in again.output
    assert called("pets", "--force").exit_code == 0
    assert called("pets", "-o", pets.parent / "b.png", "--size", 4).exit_code == 0
    assert called("pets", "-o", "b.pdf").exit_code == 1


def test_texts_are_shown_as_tokens(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rows = [f"the text [bold] {i:06b},{'ab'[i % 2]}" for i in range(30)]
    (tmp_path / "t.csv").write_text("\n".join(["text,label", *rows]))
    result = called("t.csv")
    assert result.exit_code == 0 and "a: the text [ bold ]" in result.output
    assert [*tmp_path.iterdir()] == [tmp_path / "t.csv"]


def test_names_and_what_is_not_there(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert "nothing of it is left out" in called("digits").output
    result = called("nowhere.npz")
    assert result.exit_code == 1 and "there is no file or folder nowhere.npz" in result.output
