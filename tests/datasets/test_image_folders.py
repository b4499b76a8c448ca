"""Image folders: layouts, sizes, colours, and pictures that are none."""

import numpy as np
import pytest
from PIL import Image

from kdlab.datasets import load

RNG = np.random.default_rng(0)


def fill(folder, count: int, size=(12, 10), mode: str = "RGB", suffix: str = ".png") -> None:
    folder.mkdir(parents=True)
    for i in range(count):
        shape = (*size, 3) if mode == "RGB" else size
        Image.fromarray(RNG.integers(0, 256, shape, np.uint8), mode).save(folder / f"{i}{suffix}")


@pytest.fixture
def root(tmp_path):
    for name in ("cat", "dog"):
        fill(tmp_path / "train" / name, 10)
        fill(tmp_path / "test" / name, 3)
    return tmp_path


def test_train_and_test(root):
    (root / "train" / "cat" / "notes.txt").write_text("no picture")
    (root / "train" / "cat" / ".hidden.png").write_text("no picture")
    (root / "train" / ".cache").mkdir()
    data = load(root, val_fraction=0.2)
    assert data.classes == ("cat", "dog") and data.shape == (3, 12, 10)
    assert [len(s) for s in (data.train, data.val, data.test)] == [16, 4, 6]
    assert data.test.y.tolist() == [0, 0, 0, 1, 1, 1]
    pixels = np.asarray(Image.open(root / "test" / "dog" / "1.png")) / 255
    np.testing.assert_allclose(data.image(data.test.x[4]), pixels, atol=1e-6)


def test_own_validation_folder_and_grey(tmp_path):
    for part, n in (("train", 4), ("val", 2), ("test", 3)):
        for name in "ab":
            fill(tmp_path / part / name, n, mode="L", suffix=".jpg")
    data = load(tmp_path)
    assert data.shape == (1, 12, 10)
    assert [len(s) for s in (data.train, data.val, data.test)] == [8, 4, 6]


def test_a_flat_folder_is_split_and_keeps_its_test_images(tmp_path):
    fill(tmp_path / "a", 40, suffix=".bmp")
    fill(tmp_path / "b", 20)
    data, other = load(tmp_path), load(tmp_path, seed=1)
    assert data.test.y.bincount().tolist() == [8, 4]
    images = [data.image(s.x) for s in (data.train, data.val, data.test)]
    assert len(np.unique(np.concatenate(images).round(4), axis=0)) == 60
    np.testing.assert_allclose(images[2], other.image(other.test.x), atol=1e-5)
    assert not np.array_equal(images[1], other.image(other.val.x))


def test_size_cuts_the_middle_and_resizes(tmp_path):
    for name, value in (("dark", 0), ("light", 255)):
        fill(tmp_path / "train" / name, 3, size=(20, 40))
        fill(tmp_path / "test" / name, 1)
        wide = np.full((30, 90, 3), 255 - value, np.uint8)
        wide[:, 30:60] = value  # the middle square is all of one value
        Image.fromarray(wide).save(tmp_path / "test" / name / "0.png")
    data = load(tmp_path, size=8)
    assert data.shape == (3, 8, 8)
    pictures = data.image(data.test.x)
    assert pictures[0, :, 1:-1].max() < 1e-5 and pictures[1, :, 1:-1].min() > 1 - 1e-5
    assert load(tmp_path, size=(6, 9)).shape == (3, 6, 9)


def test_transparency_turns_white_and_palettes_work(root):
    clear = Image.new("RGBA", (10, 12), (0, 0, 0, 0))
    clear.save(root / "test" / "cat" / "0.png")
    Image.new("P", (10, 12)).save(root / "test" / "cat" / "1.png")
    data = load(root)
    pictures = data.image(data.test.x)
    assert pictures[0].min() > 1 - 1e-5 and pictures[1].max() < 1e-5


def test_bad_folders(root):
    with pytest.raises(ValueError, match="size must be a side"):
        load(root, size=0)
    fill(root / "test" / "owl", 1)
    with pytest.raises(ValueError, match="class 'owl', which training has not"):
        load(root)


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda r: (r / "test" / "cat" / "9.png").write_bytes(b"x"), r"9\.png is no whole picture"),
        (
            lambda r: Image.fromarray(np.zeros((12, 10), np.uint16)).save(r / "test/cat/8.png"),
            "more than 8 bits",
        ),
    ],
)
def test_bad_pictures(root, make, message):
    make(root)
    with pytest.raises(ValueError, match=message):
        load(root)


def test_a_cut_picture(root):
    file = root / "train" / "dog" / "5.png"
    file.write_bytes(file.read_bytes()[:200])
    with pytest.raises(ValueError, match=r"5\.png is no whole picture"):
        load(root)


def test_empty_folders(tmp_path):
    with pytest.raises(ValueError, match="must hold folders"):
        load(tmp_path)
    (tmp_path / "train" / "a").mkdir(parents=True)
    with pytest.raises(ValueError, match="holds no pictures"):
        load(tmp_path)
