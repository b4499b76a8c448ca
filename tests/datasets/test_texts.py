"""Texts as token numbers, and texts of your own from a CSV file."""

import csv
import gzip
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from kdlab.datasets import load
from kdlab.datasets.tokens import Tokenizer

WORDS = "the red fox runs over a green hill and the blue bird sings under an old tree"


def write(path: Path, rows, header=("text", "label")) -> Path:
    opened = gzip.open if path.suffix == ".gz" else open
    with opened(path, "wt", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([header, *rows])
    return path


def words(data, row) -> str:
    """A row of tokens as the text that it was."""
    return " ".join(data.tokenizer.decode(row)[1:]).replace(" ##", "")


def sentences(n, seed=0):
    """n different texts, every second one with the label red."""
    rng = np.random.default_rng(seed)
    rows = []
    for number in range(n):
        text = " ".join([*rng.choice(WORDS.split(), 8), str(number)])
        rows.append((text, "red" if number % 2 else "blue"))
    return rows


# ---- tokens ---------------------------------------------------------------------------------


def test_a_text_becomes_numbers_and_tokens_again():
    texts = ["The fox runs.", "Foxes run over hills", "a tree"]
    tokenizer = Tokenizer(texts * 20, vocabulary=400, length=10)
    rows = tokenizer.encode(["the FOX runs.", "a [PAD] [CLS] é fox", "", "fox " * 30])
    assert rows.shape == (4, 10) and rows.dtype == torch.int64
    assert tokenizer.decode(rows[0]) == ["[CLS]", "the", "fox", "runs", "."]
    assert rows[0, 5:].tolist() == [0] * 5
    # What a text says cannot be mistaken for padding or for [CLS].
    assert rows[1, 0] == 2 and not {0, 2} & set(rows[1, 1 : (rows[1] != 0).sum()].tolist())
    assert rows[2].tolist() == [2] + [0] * 9
    assert tokenizer.decode(rows[3]) == ["[CLS]"] + ["fox"] * 9
    assert tokenizer.encode(["zebra 日本"])[0, 2] == 1
    copy = pickle.loads(pickle.dumps(tokenizer))
    assert torch.equal(copy.encode(texts), tokenizer.encode(texts))
    assert repr(copy) == repr(tokenizer)
    joined = "".join(t.removeprefix("##") for t in tokenizer.decode(tokenizer.encode(["trees"])[0]))
    assert joined in ("[CLS]trees", "[CLS][UNK]")


def test_a_tokenizer_is_made_again_from_its_tokens():
    texts = ["the cat sat on the mat", "cats and mats"]
    first = Tokenizer(texts * 3, vocabulary=400, length=8)
    again = Tokenizer.of_tokens(first.tokens, length=8)
    told = [*texts, "Sat, unbelievably!"]
    assert torch.equal(again.encode(told), first.encode(told))
    assert again.decode(first.encode(told)[2]) == first.decode(first.encode(told)[2])
    with pytest.raises(ValueError, match=r"tokens: they begin \['a', 'b'\]"):
        Tokenizer.of_tokens(["a", "b"])
    with pytest.raises(ValueError, match="no token twice"):
        Tokenizer.of_tokens([*first.tokens, "a"])


def test_only_training_texts_teach_the_tokenizer(tmp_path):
    rows = [(text, label, "train") for text, label in sentences(40)]
    rows += [(f"{text} quetzalcoatl", label, part) for part in ("val", "test") for text, label in
             sentences(10, seed=1)]  # fmt: skip
    data = load(write(tmp_path / "t.csv", rows, ("text", "label", "split")))
    tokens = {token for row in data.test.x for token in data.tokenizer.decode(row)}
    assert "fox" in tokens and "quetzalcoatl" not in tokens


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: load("docstrings", length=2), "length must be .* 4 to 512, got 2"),
        (lambda: load("docstrings", length=48.0), "length must be .*got 48.0"),
        (lambda: load("docstrings", vocabulary=10), "vocabulary must be .*got 10"),
        (lambda: load("docstrings", n_train=0), "n_train must be at least 1, got 0"),
        (lambda: load("docstrings", vocabulry=10), "did you mean 'vocabulary'"),
        (lambda: load("docstring"), "did you mean 'docstrings'"),
        (lambda: Tokenizer(["a"]).encode("a text"), "texts: expected a list of strings, got 'a te"),
        (lambda: Tokenizer(["a"]).encode([1]), "texts: expected a list of strings"),
        (lambda: Tokenizer(["a"]).decode(torch.zeros(2, 3)), r"row: .*got \[2, 3\]"),
    ],
)
def test_wrong_arguments(call, message):
    with pytest.raises(ValueError, match=message):
        call()


# ---- your own CSV ---------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["mine.csv", "mine.csv.gz", "mine.CSV"])
def test_a_file_of_your_own(tmp_path, name):
    rows = sentences(100)
    path = write(tmp_path / name, [row[::-1] for row in rows], ("label", "text"))
    data, other = load(path), load(str(path), seed=1, val_fraction=0.25, test_fraction=0.5)
    assert data.name.lower() == "mine" and data.classes == ("blue", "red")
    assert [len(s) for s in (data.train, data.val, data.test)] == [72, 8, 20]
    assert [len(s) for s in (other.train, other.val, other.test)] == [38, 12, 50]
    assert data.test.y.bincount().tolist() == [10, 10]
    labels = dict(rows)
    seen = set()
    for split in (data.train, data.val, data.test):
        for row, y in zip(split.x, split.y, strict=True):
            assert labels[words(data, row)] == data.classes[y]
            seen.add(words(data, row))
    assert len(seen) == 100


def test_the_test_split_is_the_same_for_every_seed(tmp_path):
    path = write(tmp_path / "t.csv", sentences(60))
    parts = [load(path, seed=seed) for seed in (0, 1)]
    tests, trains = (
        [
            {" ".join(d.tokenizer.decode(r)).replace(" ##", "") for r in getattr(d, part).x}
            for d in parts
        ]
        for part in ("test", "train")
    )
    assert tests[0] == tests[1] and trains[0] != trains[1]
    assert load(path).fingerprint == parts[0].fingerprint


def test_a_column_says_the_split_and_copies_are_kept_where_they_must_not_leak(tmp_path):
    rows = [(t, label, ("train", "train", "val", "test")[i // 2 % 4]) for i, (t, label) in
            enumerate(sentences(40))]  # fmt: skip
    test = [row for row in rows if row[2] == "test"]
    copies = [(f"  {text} ", label, "train") for text, label, _ in test[:3]]
    data = load(write(tmp_path / "t.csv", [*copies, *rows], ("text", "label", "split")))
    assert [len(s) for s in (data.train, data.val, data.test)] == [20, 10, 10]
    everything = torch.cat([s.x for s in (data.train, data.val, data.test)])
    assert len(everything.unique(dim=0)) == 40


def test_quotes_lines_and_a_byte_order_mark(tmp_path):
    rows = [(f'a "quoted", text\nof two lines {i}', i % 3) for i in range(30)]
    path = write(tmp_path / "t.csv", rows)
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    data = load(path)
    assert data.classes == ("0", "1", "2")
    tokens = data.tokenizer.decode(data.train.x[0])
    assert tokens[:6] == ["[CLS]", "a", '"', "quoted", '"', ","]


@pytest.mark.parametrize("missing", [None, "", "NaN", float("nan"), "None"])
def test_texts_without_a_label_are_unlabelled_in_training_alone(tmp_path, missing):
    rows = [(t, label if i % 3 else missing) for i, (t, label) in enumerate(sentences(60))]
    copies = [(rows[0][0], missing), (rows[1][0], missing)]  # what has a label keeps it
    data = load(write(tmp_path / "t.csv", [*copies, *rows]))
    labelled = 40
    assert (data.val.y >= 0).all() and (data.test.y >= 0).all()
    assert int((data.train.y >= 0).sum()) + len(data.val) + len(data.test) == labelled
    assert data.card["unlabelled"] == int((data.train.y == -1).sum()) == 60 - labelled
    assert "None" not in data.classes and data.num_classes == len({y for _, y in sentences(60)})


def broken(folder: Path, content: bytes, name="t.csv") -> Path:
    (folder / name).write_bytes(content)
    return folder / name


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "lacks the column .*names nothing"),
        (b"text,lable\na,b\n", "lacks the column 'label'; its first line names text, lable"),
        (b"text,label\na text,x\nanother\n", "line 3 has another number of columns"),
        (b"text,label\na,b,c\n", "line 2 has another number of columns"),
        (b"text,label\n,x\n", "line 2 has an empty text"),
        (b"text,label\na, \n", "must tell at least 2 labels apart, got $"),
        (b"text,label,split\na,,val\n", "line 2 has the label '', which is none, in the split val"),
        (
            b"text,label,split\na,NaN,test\n",
            "line 2 has the label 'NaN', which is none, in .* test",
        ),
        (b"text,label\na,x\nb,y\nc,\nd,\n", "val_fraction: 1 texts are too few"),
        (b"text,label,split\na,x,tset\n", "line 2 has the split 'tset', expected train, val, test"),
        (b"text,label\na,x\nb,x\n", "must tell at least 2 labels apart, got x"),
        (b"text,label\n", "must tell at least 2 labels apart"),
        (b"text,label\na,x\nb,y\n", "val_fraction: 1 texts are too few"),
        (b"text,label\n\xff\xfe,x\n", "no whole CSV file in UTF-8"),
        (b'text,label\n"a" b,x\n', "no whole CSV file in UTF-8"),
        (b"text,label,split\na,x,train\nb,y,test\nc,x,val\n", "label 'y', but no training text"),
    ],
)
def test_a_wrong_file(tmp_path, content, message):
    with pytest.raises(ValueError, match=message):
        load(broken(tmp_path, content))


def test_a_wrong_archive_or_fraction(tmp_path):
    whole = write(tmp_path / "w.csv.gz", sentences(50)).read_bytes()
    for content in (b"text,label\na,b\n", whole[:-20], whole[:30] + b"\0\0\0" + whole[33:]):
        with pytest.raises(ValueError, match="no whole CSV file"):
            load(broken(tmp_path, content, "t.csv.gz"))
    path = write(tmp_path / "t.csv", sentences(50))
    for option in ("val_fraction", "test_fraction"):
        for wrong in (0, 1, -0.5):
            with pytest.raises(ValueError, match=f"{option} must be between 0 and 1"):
                load(path, **{option: wrong})
    with pytest.raises(ValueError, match=r"must be a folder of pictures, or a file .*\.npz, \.csv"):
        load(write(tmp_path / "t.tsv", sentences(5)))
    with pytest.raises(ValueError, match="did you mean 'test_fraction'"):
        load(path, tst_fraction=0.2)


def test_the_same_file_gives_the_same_data(tmp_path):
    path = write(tmp_path / "t.csv", sentences(50))
    assert len({load(path).fingerprint for _ in range(4)}) == 1
