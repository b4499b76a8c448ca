"""Folders as people have them: what lies in them is read, refused, or counted by reason."""

import os
import struct
import zlib

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from kdlab.datasets import folders, load

RNG = np.random.default_rng(2)


def picture(path, size=(10, 12), kind=np.uint8, exif=None, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    shape = size if kind == np.uint16 else (*size, 3)
    image = Image.fromarray(RNG.integers(0, np.iinfo(kind).max, shape, kind))
    if exif:
        tags = Image.Exif()
        tags[0x0112] = exif
        options["exif"] = tags
    form = {".jfif": "JPEG", ".heic": "PNG"}.get(path.suffix.lower())
    image.save(path, format=form, **options)


@pytest.fixture
def root(tmp_path):
    root = tmp_path / "pets"
    for i in range(10):
        picture(root / "cat" / f"{i}.png")
        picture(root / "dog" / "deep" / "er" / f"{i}.png")
    return root


def test_pictures_lie_as_deep_as_they_like(root):
    data = load(root)
    assert data.classes == ("cat", "dog") and data.card["left_out"] == {}
    assert sum(data.card["sizes"].values()) == 20


def test_what_is_no_picture_is_counted_by_reason(root, capsys):
    (root / "fox").mkdir()
    picture(root / "__MACOSX" / "cat" / "._0.png")
    picture(root / "dog" / ".ipynb_checkpoints" / "0.png")
    picture(root / "cat" / "a.heic")
    picture(root / "over.png")
    (root / "cat" / "Thumbs.db").write_text("")
    (root / "cat" / "notes.txt").write_text("")
    os.mkfifo(root / "cat" / "pipe.png")
    data = load(root)
    assert data.classes == ("cat", "dog")
    assert data.card["left_out"] == {
        "folders without pictures (fox)": 1,
        "files of the system": 3,
        "files (.heic)": 1,
        "files (.txt)": 1,
        "files (.png)": 1,
        "pictures beside the folders of the classes": 1,
    }
    assert "1 folders without pictures (fox)" in capsys.readouterr().out


@pytest.mark.parametrize("suffix", [".jfif", ".jpe", ".JPG", ".avif", ".ppm", ".webp"])
def test_formats(root, suffix):
    if suffix == ".avif" and not folders._AVIF:
        pytest.skip("this Pillow reads no AVIF")
    picture(root / "cat" / f"10{suffix}")
    assert sum(load(root).card["sizes"].values()) == 21


def test_a_class_of_which_nothing_can_be_read_is_refused(root):
    picture(root / "fox" / "a.heic")
    with pytest.raises(ValueError, match="fox has 1 pictures, none of which can be read"):
        load(root)


def tree(root, *names, n=4):
    for name in names:
        for i in range(n):
            picture(root / name / f"{i}.png")
    return root


@pytest.mark.parametrize("word", ["val", "valid", "Validation", "dev"])
def test_validation_has_many_names(tmp_path, word):
    parts = [f"{part}/{c}" for part in ("train", word, "test") for c in "ab"]
    data = load(tree(tmp_path / "x", *parts))
    assert [len(s) for s in (data.train, data.val, data.test)] == [8, 8, 8]


def test_classes_may_have_the_names_of_splits(tmp_path):
    assert load(tree(tmp_path / "a", "bus", "car", "train")).classes == ("bus", "car", "train")
    assert load(tree(tmp_path / "b", "train", "test")).classes == ("test", "train")
    names = [str(i) for i in range(12)]
    assert load(tree(tmp_path / "c", *names, n=2)).classes == tuple(names)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["bus", "train/a", "train/b"], "pictures in bus/ beside train/ with folders of classes"),
        (["train/a", "train/b", "val/a", "valid/b"], "has both val/ and valid/"),
        (["cat", "dog", "valid/cat"], "has valid/ with folders of classes, but no such train/"),
        (["cat/train", "cat/test", "dog/train"], "within the class; expected the splits outside"),
        (["train/a", "train/b", "test/c"], "class 'c', which training has not"),
        (["a"], "at least 2 classes"),
    ],
)
def test_folders_that_could_be_read_in_two_ways(tmp_path, names, message):
    with pytest.raises(ValueError, match=message):
        load(tree(tmp_path / "x", *names))


def test_names_of_other_machines(tmp_path, capsys):
    root = tree(tmp_path / "x", "tea", n=6)
    tree(root, os.fsdecode(b"caf\xe9"), n=6)
    assert load(root).classes == ("café", "tea") and "café 4/" in capsys.readouterr().out
    for part, name in (("train", "cafe\u0301"), ("test", "caf\u00e9")):
        tree(tmp_path / "y", f"{part}/tea", f"{part}/{name}")
    assert load(tmp_path / "y").classes == ("café", "tea")


@pytest.mark.parametrize("exif", [3, 6, 8])
def test_pictures_that_are_all_turned(tmp_path, exif):
    for name in "ab":
        for i in range(4):
            picture(tmp_path / name / f"{i}.jpg", exif=exif)
    assert load(tmp_path).shape == (3, 10, 12) if exif == 3 else (3, 12, 10)


def test_pictures_of_any_size(tmp_path):
    for i in range(4):
        picture(tmp_path / "a" / f"{i}.png", size=(20 + i, 30))
        picture(tmp_path / "b" / f"{i}.jpg", size=(400, 300))
    data = load(tmp_path)
    assert data.shape == (3, 32, 32) and "pictures of 5 sizes became 32 × 32" in data.card["line"]
    assert load(tmp_path, size=(8, 9)).shape == (3, 8, 9)


def test_pictures_of_16_bits(tmp_path):
    for i in range(4):
        picture(tmp_path / "a" / f"{i}.png", kind=np.uint16)
        picture(tmp_path / "b" / f"{i}.png", kind=np.uint16)
    data = load(tmp_path)
    wanted = np.asarray(Image.open(tmp_path / "a" / "0.png")) / 65535
    everything = np.concatenate([data.image(s.x) for s in (data.train, data.val, data.test)])
    assert np.abs(everything - wanted).max(axis=(1, 2)).min() < 1e-4
    assert load(tmp_path, size=5).shape == (1, 5, 5)


def chunk(name: bytes, content: bytes) -> bytes:
    body = name + content
    return struct.pack(">I", len(content)) + body + struct.pack(">I", zlib.crc32(body))


@pytest.mark.parametrize("sides", [(15_000, 15_000), (10_100, 10_000), (2**31 - 1, 2**31 - 1)])
def test_a_picture_of_very_many_pixels(root, sides):
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", *sides, 8, 0, 0, 0, 0))
    whole = b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
    (root / "cat" / "large.png").write_bytes(whole)
    with pytest.raises(ValueError, match=r"large\.png is no whole picture .*pixels"):
        load(root)


KINDS = st.sampled_from(["a.png", "b/c.png", "x.heic", "x.txt", ".h.png", "__MACOSX/y.png", "e"])


@settings(
    max_examples=25, deadline=None, derandomize=True, database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)  # fmt: skip
@given(
    st.dictionaries(st.sampled_from(["cat", "dog", "train", "1", "10", "__MACOSX"]),
                    st.lists(KINDS, max_size=4), max_size=4),
    st.lists(KINDS, max_size=2),
)  # fmt: skip
def test_every_file_is_used_or_counted(tmp_path_factory, classes, beside):
    root = tmp_path_factory.mktemp("p")
    for name in ("a", "b"):
        for i in range(3):
            picture(root / name / f"{i}.png", size=(4, 4))
    for name, kinds in classes.items():
        (root / name).mkdir()
        for i, kind in enumerate(kinds):
            head, _, tail = kind.rpartition("/")
            picture_at = (
                root / name / head / (tail.replace(".", f"{i}.", 1) if tail[0] != "." else tail)
            )
            picture_at.parent.mkdir(exist_ok=True, parents=True)
            Image.new("RGB", (4, 4)).save(picture_at, format="PNG")
    for kind in beside:
        Image.new("RGB", (4, 4)).save(root / kind.rpartition("/")[2], format="PNG")
    files = sum(not p.is_dir() for p in root.rglob("*"))
    try:
        card = load(root).card
    except ValueError as error:
        assert str(root) in str(error)
        return
    counted = sum(n for why, n in card["left_out"].items() if not why.startswith("folders"))
    assert sum(card["sizes"].values()) + counted == files
    assert sum(sum(of.values()) for of in card["counts"].values()) == sum(card["sizes"].values())
