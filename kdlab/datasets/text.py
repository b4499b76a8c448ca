"""Texts with a label: docstrings of installed packages, or your own CSV file."""

import csv
import gzip
import warnings
import zlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from kdlab.datasets import docstrings
from kdlab.datasets.account import PARTS, accounted, natural
from kdlab.datasets.data import UNLABELLED, Data, Split, in_stratified_order, within_limit
from kdlab.datasets.tokens import Tokenizer, normal, unknown_share

NO_LABEL = ("", "None", "NaN", "nan")  # as csv, str and pandas write a missing one
_TEST, _VAL = 0.2, 0.1  # shares of each library's texts
_WARNED, _REFUSED = 0.05, 0.5  # shares of unknown tokens
_LONGEST, _LARGEST = 10**7, 5 * 10**8  # characters of a cell, and of a file: no unpacked bombs

Row = tuple[str, str, str, int]
"""Text, label, split and line."""


def load(
    *,
    seed: int = 0,
    n_train: int | None = None,
    n_val: int | None = None,
    n_test: int | None = None,
    length: int = 48,
    vocabulary: int = 2000,
) -> Data:
    """Docstrings of eight scientific packages: which library says this? Its names are masked.

    The splits have no module in common, so none has a text of another. The test split is the same
    for every seed; ``seed`` draws training and validation. ``n_train``, ``n_val`` and ``n_test``
    are upper limits, drawn in the classes' proportions. Subwords are learnt from the training
    split alone.

    Other versions of the packages say other things: ``card`` lists those that are installed.

    Args:
        seed: of what is drawn.
        n_train: at most so many training texts.
        n_val: at most so many for validation.
        n_test: at most so many for the test.
        length: L, tokens of each text.
        vocabulary: the most subwords there may be.
    """
    corpus = docstrings.read()
    where = split_by_module(corpus.labels, corpus.modules, seed)
    texts = {part: [corpus.texts[i] for i in index] for part, index in where.items()}
    labels = {part: np.array(corpus.labels)[index] for part, index in where.items()}
    return _encoded(
        "docstrings",
        texts,
        labels,
        tuple(docstrings.LIBRARIES),
        seed=seed,
        limits={"n_train": n_train, "n_val": n_val, "n_test": n_test},
        options={"length": length, "vocabulary": vocabulary},
        card={
            "source": "docstrings of the packages that are installed with kdlab",
            "licence": "as the packages; nothing of them comes with kdlab",
            "how": "prose before the first section, without markup, names masked, no copies, "
            "split by module",
            "packages": docstrings.versions(),
            "corpus": docstrings.fingerprint(corpus),
        },
    )


def load_csv(
    path: Path,
    *,
    seed: int = 0,
    val_fraction: float = 0.1,
    test_fraction: float = 0.2,
    n_train: int | None = None,
    n_val: int | None = None,
    n_test: int | None = None,
    length: int = 48,
    vocabulary: int = 2000,
) -> Data:
    """Read a ``.csv`` or ``.csv.gz`` (UTF-8) with the columns ``text`` and ``label``.

    A column ``split`` may say train, val or test. Without test texts, ``test_fraction`` of all
    becomes the test split, the same for every seed; without val texts, ``val_fraction`` of the
    training texts, drawn by ``seed``; both of texts with a label, in the classes' proportions. A
    training text whose label is empty, None or NaN is kept without one (-1), for a teacher to say
    something about. Classes are in natural order, 2 before 10.

    A text that comes several times is kept once: in the test split if it is there, else in val.
    Texts are compared as they are encoded, without case and accents; training and validation texts
    that become the same tokens as one of a later split are left out. ``card`` says how many, and
    which share of the tokens is unknown: above 5 % there is a warning.

    Raises ValueError that names the line, the column or the argument that is wrong; for a text with
    two labels, or one in two splits, written differently; for more than 50 % unknown tokens.
    """
    given = _read(path)
    rows = _without_copies(path, given)
    left_out = Counter({"copies of a text": len(given) - len(rows)})
    classes = tuple(sorted({label for _, label, _, _ in rows if label}, key=natural))
    if len(classes) < 2:
        raise ValueError(f"{path} must tell at least 2 labels apart, got {', '.join(classes)}")
    y = np.array([classes.index(label) if label else UNLABELLED for _, label, _, _ in rows])
    parts = np.array([part for _, _, part, _ in rows])
    for part, name, fraction, fixed in (
        ("test", "test_fraction", test_fraction, 0),
        ("val", "val_fraction", val_fraction, seed),
    ):
        if part not in parts:
            rest = np.flatnonzero((parts == "train") & (y != UNLABELLED))
            parts[rest[_drawn(y[rest], name, fraction, fixed)]] = part
    absent = set(range(len(classes))) - set(y[parts == "train"].tolist())
    if absent:
        raise ValueError(
            f"{path} has the label {classes[min(absent)]!r}, but no training text with it; "
            "give more texts, or set a smaller fraction aside"
        )
    where = {part: np.flatnonzero(parts == part) for part in PARTS}
    data = _encoded(
        path.name[: path.name.lower().rindex(".csv")],
        {part: [rows[i][0] for i in index] for part, index in where.items()},
        {part: y[index] for part, index in where.items()},
        classes,
        seed=seed,
        limits={"n_train": n_train, "n_val": n_val, "n_test": n_test},
        options={
            "length": length,
            "vocabulary": vocabulary,
            "val_fraction": val_fraction,
            "test_fraction": test_fraction,
        },
        card={
            "source": path.name,
            "licence": "as the reader's own",
            "how": "texts and labels of a CSV file, copies left out",
        },
    )
    sizes = data.card["sizes"]
    left_out |= {f"beyond n_{part}": len(where[part]) - sizes[part] for part in PARTS}
    _check_unknown(path, data, vocabulary)
    data, alike = _without_leaks(path, data, length)
    left_out |= alike
    full = sum(int((getattr(data, part).x[:, -1] != 0).sum()) for part in PARTS)
    return accounted(data, left_out, *([f"{full} texts fill all {length} tokens"] if full else []))


def _check_unknown(path: Path, data: Data, vocabulary: int) -> None:
    """Raise, or warn, where a split is mostly, or partly, made of unknown tokens."""
    shares = {part: unknown_share(getattr(data, part).x) for part in PARTS}
    part = max(shares, key=lambda p: shares[p])
    message = (
        f"{path}: got {shares[part]:.0%} unknown tokens in {part}, expected at most {{:.0%}}; "
        f"give a larger vocabulary than {vocabulary}, or training texts in the same script"
    )
    if shares[part] > _REFUSED:
        raise ValueError(message.format(_REFUSED))
    if shares[part] > _WARNED:
        warnings.warn(message.format(_WARNED), stacklevel=4)


def _without_leaks(path: Path, data: Data, length: int) -> tuple[Data, dict[str, int]]:
    """Leave out what training or validation has in common with a later split, once encoded."""
    later = {row.tobytes() for row in data.test.x.numpy()}
    kept, left_out = {"test": data.test}, {}
    for part, after in (("val", "test"), ("train", "val or test")):
        split = getattr(data, part)
        keys = [row.tobytes() for row in split.x.numpy()]
        new = torch.tensor([key not in later for key in keys])
        gone = set(split.y[~new].tolist()) - set(split.y[new].tolist())
        if not new.any() or (part == "train" and gone - {UNLABELLED}):
            names = ", ".join(data.classes[label] for label in gone - {UNLABELLED})
            raise ValueError(
                f"{path}: every {part} text of {names or 'any class'} becomes the same {length} "
                f"tokens as one of {after}; give a larger length, or other texts"
            )
        left_out[f"{part} texts that are encoded as one of {after}"] = int((~new).sum())
        kept[part] = split.select(new)
        later |= set(keys)
    sizes = {part: len(kept[part]) for part in PARTS}
    card = {**data.card, "sizes": sizes}
    return replace(data, train=kept["train"], val=kept["val"], card=card), left_out


def split_by_module(
    labels: Sequence[int], modules: Sequence[str], seed: int
) -> dict[str, np.ndarray]:
    """Positions of train, val and test, such that no module is in two of them.

    Of each label, modules go to the test as long as that has at most a fifth of the texts, always
    the same ones, then to val up to a tenth, in an order that ``seed`` decides, the rest to train.
    """
    y, names = np.array(labels), np.array(modules)
    part_of: dict[str, str] = {}
    for label in np.unique(y):
        sizes = dict(zip(*np.unique(names[y == label], return_counts=True), strict=True))
        for part, share, order in (("test", _TEST, 0), ("val", _VAL, seed)):
            free = [name for name in sizes if name not in part_of]
            count = 0
            for name in np.random.default_rng(order).permutation(free):
                if count + sizes[name] <= share * (y == label).sum():
                    part_of[name] = part
                    count += sizes[name]
    parts = np.array([part_of.get(name, "train") for name in modules])
    return {part: np.flatnonzero(parts == part) for part in PARTS}


def _encoded(
    name: str,
    texts: dict[str, list[str]],
    labels: dict[str, np.ndarray],
    classes: tuple[str, ...],
    *,
    seed: int,
    limits: dict[str, int | None],
    options: dict[str, Any],
    card: dict[str, Any],
) -> Data:
    """Keep what the limits allow, learn the subwords from the training texts, make tensors."""
    for part in PARTS:
        keep = within_limit(part, labels[part], limits[f"n_{part}"], seed)
        texts[part] = [texts[part][i] for i in keep]
        labels[part] = labels[part][keep]
    tokenizer = Tokenizer(texts["train"], options["vocabulary"], options["length"])
    train, val, test = (
        Split(tokenizer.encode(texts[part]), torch.from_numpy(labels[part])) for part in PARTS
    )
    facts = {
        "name": name,
        **card,
        "sizes": {part: len(texts[part]) for part in PARTS},
        "seed": seed,
        "options": limits | options,
    }
    if unlabelled := int((train.y == UNLABELLED).sum()):
        facts["unlabelled"] = unlabelled
    return Data(name, train, val, test, classes, (), (), facts, tokenizer)


def _drawn(y: np.ndarray, name: str, fraction: float, seed: int) -> np.ndarray:
    if not 0 < fraction < 1:
        raise ValueError(f"{name} must be between 0 and 1, got {fraction}")
    n = max(1, round(len(y) * fraction))
    if n >= len(y):
        raise ValueError(
            f"{name}: {len(y)} texts are too few to set {n} aside; give more, or a column split"
        )
    return in_stratified_order(y, seed)[:n]


def _without_copies(path: Path, rows: list[Row]) -> list[Row]:
    """Each text once, of several copies the one in the split that must not be seen in training.

    Raises ValueError for a text with two labels, and for one that two splits write differently.
    """
    found: dict[str, Row] = {}
    for row in rows:
        text, label, part, line = row
        known = found.setdefault(normal(text), row)
        both = f"{path}, lines {known[3]} and {line}"
        if label and known[1] and label != known[1]:
            raise ValueError(
                f"{both} have one text, once encoded, with the labels {known[1]!r} and {label!r}: "
                f"{text!r:.60}; leave one out, or correct its label"
            )
        if part != known[2] and text != known[0]:
            raise ValueError(
                f"{both} have one text, once encoded (case and accents do not count), in the "
                f"splits {known[2]} and {part}: {text!r:.60}; leave one out"
            )
        if (PARTS.index(part), bool(label)) > (PARTS.index(known[2]), bool(known[1])):
            found[normal(text)] = (text, label or known[1], part, line)
    return list(found.values())


def _read(path: Path) -> list[Row]:
    """Text, label, split and last line of each row."""
    opened = gzip.open if path.suffix.lower() == ".gz" else open
    rows: list[Row] = []
    usual, size = csv.field_size_limit(_LONGEST), 0
    try:
        with opened(path, "rt", encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, strict=True)
            columns = reader.fieldnames or []
            for column in {"text", "label"} - set(columns):
                raise ValueError(
                    f"{path} lacks the column {column!r}; its first line names "
                    f"{', '.join(columns) or 'nothing'}, expected text, label and perhaps split"
                )
            if len(set(columns)) < len(columns):
                raise ValueError(
                    f"{path} names a column twice: {', '.join(columns)}; expected each once"
                )
            for row in reader:
                rows.append((*_checked(row, f"{path}, line {reader.line_num}"), reader.line_num))
                size += len(rows[-1][0])
                if size > _LARGEST:
                    raise ValueError(f"{path} has over {_LARGEST:,} characters; give fewer texts")
    except (OSError, EOFError, zlib.error, UnicodeDecodeError, csv.Error) as error:
        if "field limit" in str(error):
            raise ValueError(
                f"{path}, line {len(rows) + 2} or after: got a cell of over {_LONGEST:,} "
                "characters, expected a text; is a quote missing?"
            ) from error
        raise ValueError(
            f"{path} is no whole CSV file in UTF-8 ({error}); write it again, as "
            "pandas.DataFrame.to_csv does"
        ) from error
    finally:
        csv.field_size_limit(usual)
    return rows


def _checked(row: dict[str | None, Any], where: str) -> tuple[str, str, str]:
    if None in row or None in row.values():
        raise ValueError(f"{where} has another number of columns than the first line")
    text, label = (" ".join(row[column].split()) for column in ("text", "label"))
    if not normal(text):
        raise ValueError(f"{where} has an empty text, or one of invisible characters alone")
    part = row.get("split", "train").strip()
    if part not in PARTS:
        raise ValueError(f"{where} has the split {part!r}, expected {', '.join(PARTS)}")
    if label in NO_LABEL and part != "train":
        raise ValueError(
            f"{where} has the label {label!r}, which is none, in the split {part}; expected one, "
            "as it is measured: leave the text out, or give it a label"
        )
    return text, "" if label in NO_LABEL else label, part
