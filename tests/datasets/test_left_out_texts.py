"""Texts of any script are read, what is unknown is measured, and what is left out is counted."""

import csv
import gzip
import random
import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kdlab.datasets import load
from kdlab.datasets.account import natural
from kdlab.datasets.tokens import Tokenizer, unknown_share

SCRIPTS = {
    "Chinese": [chr(0x4E00 + i) for i in range(300)],
    "hiragana": [chr(0x3042 + i) for i in range(40)],
    "katakana": [chr(0x30A2 + i) for i in range(40)] + ["ー"],
    "Thai": [chr(0x0E01 + i) for i in range(40)],
    "Korean": [chr(0xAC00 + 31 * i) for i in range(60)],
    "DNA": [*"ACGT"],
    "emoji": [chr(0x1F600 + i) for i in range(60)],
    "Arabic": [chr(0x0627 + i) for i in range(26)],
    "digits": [*"0123456789"],
}


def table(path, rows, header=("text", "label")):
    opened = gzip.open if path.suffix == ".gz" else open
    with opened(path, "wt", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([header, *rows])
    return path


def written(script: str, n: int = 60, length: int = 150):
    """n texts of one word each; the first half of the letters is common with label a."""
    letters, draw = SCRIPTS[script], random.Random(script)
    half = letters[: len(letters) // 2 + 1], letters[len(letters) // 2 :]
    return [("".join(draw.choices(half[i % 2], k=length)), "ab"[i % 2]) for i in range(n)]


@pytest.mark.parametrize("script", SCRIPTS)
def test_texts_without_spaces_are_known_and_differ(tmp_path, script):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        data = load(table(tmp_path / "t.csv", written(script)))
    assert max(data.card["unknown"].values()) < 0.02
    everything = torch.cat([s.x for s in (data.train, data.val, data.test)])
    assert len(everything.unique(dim=0)) == 60 and (everything != 0).sum(1).min() > 4


def test_the_alphabet_is_that_of_the_data(tmp_path):
    draw, letters = random.Random(0), [chr(0x4E00 + i) for i in range(600)]
    rows = [("".join(draw.sample(letters, 30)), "ab"[i % 2]) for i in range(200)]
    data = load(table(tmp_path / "t.csv", rows))
    assert unknown_share(data.train.x) < 0.002 and data.tokenizer.vocabulary <= 2000
    # Where there is no room for all, the most frequent are known, and the rest is measured.
    with pytest.warns(UserWarning, match=r"unknown tokens in .*larger vocabulary than 600"):
        small = load(table(tmp_path / "t.csv", rows), vocabulary=600)
    assert small.tokenizer.vocabulary <= 600 and 0.05 < unknown_share(small.train.x) < 0.5


def test_a_tokenizer_of_another_script_is_refused(tmp_path):
    train = [(f"{text} {i}", label, "train") for i, (text, label) in enumerate(written("Arabic"))]
    test = [(text, label, "test") for text, label in written("katakana", 10)]
    path = table(tmp_path / "t.csv", train + test, ("text", "label", "split"))
    with pytest.raises(ValueError, match="got 100% unknown tokens in test, expected at most 50%"):
        load(path)


def test_a_word_without_end_keeps_its_pieces_after_export(tmp_path):
    texts = [text for text, _ in written("DNA")]
    first = Tokenizer(texts, length=64)
    assert torch.equal(Tokenizer.of_tokens(first.tokens, 64).encode(texts), first.encode(texts))
    assert unknown_share(first.encode(["ACGT" * 40_000])) == 0


def test_a_very_long_cell_is_read_or_refused_in_one_sentence(tmp_path, monkeypatch):
    rows = [(f"word {i} " + "x" * 150_000 * (i == 3), "ab"[i % 2]) for i in range(30)]
    before = csv.field_size_limit()
    path = table(tmp_path / "t.csv", rows)
    assert sum(load(path).card["sizes"].values()) == 30 and csv.field_size_limit() == before
    monkeypatch.setattr("kdlab.datasets.text._LONGEST", 100_000)
    with pytest.raises(ValueError, match=r"line 5 or after: got a cell of over 100,000 char"):
        load(path)
    monkeypatch.setattr("kdlab.datasets.text._LONGEST", 10**7)
    monkeypatch.setattr("kdlab.datasets.text._LARGEST", 100_000)
    with pytest.raises(ValueError, match="over 100,000 characters"):
        load(table(tmp_path / "t.csv.gz", rows))
    assert csv.field_size_limit() == before


SPLIT = ("text", "label", "split")


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (["same text,a", "other,b", "same text,b"], "lines 2 and 4 have one text.*'a' and 'b'"),
        (["Same Text,a", "other,b", "same  text,b"], "lines 2 and 4 have one text.*'a' and 'b'"),
        (["résumé,a", "other,b", "RESUME,b"], "lines 2 and 4 have one text.*'a' and 'b'"),
        (["hello,a,train", "x,b,train", "HELLO,a,test"], "lines 2 and 4 .*splits train and test"),
        (["hello,a,val", "x,b,train", "Hello,a,test"], "lines 2 and 4 .*splits val and test"),
        (["hello,a,train", "x,b,train", "hello,b,test"], "lines 2 and 4 have one .*'a' and 'b'"),
        (["\u200b,a", "x,b"], "line 2 has an empty text"),
    ],
)
def test_contradictions_are_refused_with_their_lines(tmp_path, rows, message):
    filler = [f"text {i},{'ab'[i % 2]},train" for i in range(20)]
    filler = filler if rows[0].count(",") == 2 else [row[:-6] for row in filler]
    header = ",".join(SPLIT[: rows[0].count(",") + 1])
    (tmp_path / "t.csv").write_text("\n".join([header, *rows, *filler]), encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        load(tmp_path / "t.csv")


def test_copies_of_any_case_are_counted(tmp_path):
    rows = [(f"text number {i}", "ab"[i % 2]) for i in range(40)]
    more = [(f"TEXT  number {i}", "ab"[i % 2]) for i in range(5)]
    data = load(table(tmp_path / "t.csv", rows + more))
    assert data.card["left_out"] == {"copies of a text": 5}
    assert sum(data.card["sizes"].values()) == 40


def test_no_test_row_occurs_in_training_once_encoded(tmp_path):
    start = " ".join(f"w{i}" for i in range(60))
    rows = [(f"{start} {i}", "ab"[i % 2], "train") for i in range(20)]
    rows += [(f"short {i}", "ab"[i % 2], "train") for i in range(20)]
    rows += [(f"{start} other {i}", "ab"[i % 2], "test") for i in range(10)]
    data = load(table(tmp_path / "t.csv", rows, SPLIT))
    seen = {tuple(row) for row in data.train.x.tolist()}
    assert not seen & {tuple(row) for s in (data.val, data.test) for row in s.x.tolist()}
    assert sum(data.card["sizes"].values()) + sum(data.card["left_out"].values()) == 50
    with pytest.raises(ValueError, match=r"becomes the same 48 tokens as one of .*larger length"):
        load(table(tmp_path / "t.csv", rows[:20] + rows[40:], SPLIT))


def test_classes_are_in_natural_order(tmp_path):
    rows = [(f"text {i}", str(i % 12)) for i in range(120)]
    assert load(table(tmp_path / "t.csv", rows)).classes == tuple(map(str, range(12)))
    assert sorted(["b", "a10", "a2", "10", "2", "", "1a", "01", "1"], key=natural) == [
        *["", "01", "1", "1a", "2", "10", "a2", "a10", "b"]
    ]


def test_one_line_says_what_was_read(tmp_path, capsys):
    rows = [(f"text number {i:06b}", "ab"[i % 2]) for i in range(40)]
    data = load(table(tmp_path / "t.csv", [*rows, rows[0]]), n_train=24)
    assert capsys.readouterr().out == data.card["line"] + "\n"
    assert data.card["line"] == (
        "t: 24/3/8 for train/val/test · 2 classes (a 12/1/4, b 12/2/4) · unknown tokens 0.0% · "
        "left out: 1 copies of a text, 5 beyond n_train · duplicates: none"
    )
    load("glyphs", n_train=20, n_val=20, n_test=20)
    assert capsys.readouterr().out == ""


def test_a_column_that_comes_twice(tmp_path):
    (tmp_path / "t.csv").write_text("text,label,text\na,x,b\nc,y,d\n")
    with pytest.raises(ValueError, match="names a column twice"):
        load(tmp_path / "t.csv")


ROWS = st.lists(
    st.tuples(
        st.sampled_from(
            ["red fox", "Red FOX", "日本語", "日本", "acgt" * 40, "é", "e", "x 1", "x 2"]
        ),
        st.sampled_from(["1", "10", "2", "", "nan"]),
    ),
    max_size=12,
)


@settings(max_examples=30, deadline=None, derandomize=True, database=None)
@given(ROWS, st.sampled_from([None, 5]))
def test_every_row_is_used_or_counted(tmp_path_factory, rows, limit):
    rows = [*rows, *((f"word {i:05b}", str(i % 2 + 1)) for i in range(24))]
    path = table(tmp_path_factory.mktemp("t") / "t.csv", rows)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        try:
            card = load(path, n_train=limit).card
        except ValueError as error:
            assert str(path) in str(error)
            return
    assert sum(card["sizes"].values()) + sum(card["left_out"].values()) == len(rows)
    told = sum(sum(of.values()) for of in card["counts"].values()) + card.get("unlabelled", 0)
    assert told == sum(card["sizes"].values())
