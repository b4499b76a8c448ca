"""What became of a reader's own data: counted, told in one line, nothing dropped in silence."""

import os
import sys
import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from kdlab.datasets.data import UNLABELLED, Data
from kdlab.datasets.tokens import unknown_share

PARTS = ("train", "val", "test")
_SHOWN = 12  # classes with their counts in the line; the card has all


def accounted(data: Data, left_out: Mapping[str, int] | None = None, *notes: str) -> Data:
    """Add to the card what the data hold and what was left out.

    The card gets ``counts`` (of each class in each split), ``left_out`` (how many, by reason),
    ``duplicates``, ``unknown`` (share of unknown tokens in each split, of texts), ``values`` (the
    smallest and largest number of images), ``notes``, and all that in one ``line``.

    Args:
        data: as loaded.
        left_out: reason → how many.
        notes: what else a reader should know.
    """
    facts: dict[str, Any] = {
        "counts": _counts(data),
        "left_out": {
            reason: count
            for reason, count in {**data.card.get("left_out", {}), **(left_out or {})}.items()
            if count
        },
        "duplicates": _duplicates(data),
        "notes": [*notes],
    }
    splits = {part: getattr(data, part) for part in PARTS}
    if data.tokenizer is not None:
        facts["unknown"] = {part: unknown_share(split.x) for part, split in splits.items()}
    elif all(split.x.is_floating_point() and len(split) for split in splits.values()):
        facts["values"] = _values(data)
    card = {**data.card, **facts}
    return replace(data, card={**card, "line": _line(data, card)})


def tell(data: Data) -> None:
    """Print the line, if the card has one, also where the terminal lacks some letters."""
    if line := data.card.get("line"):
        coding = getattr(sys.stdout, "encoding", None) or "utf-8"
        print(line.encode(coding, "replace").decode(coding))


def examples(data: Data, each: int = 5, classes: int = 10) -> list[int]:
    """Positions of the first training samples of the first classes, class by class."""
    y = data.train.y
    found = [(y == c).nonzero().flatten()[:each].tolist() for c in range(data.num_classes)]
    return [index for indices in found[:classes] for index in indices]


def natural(name: str) -> list[Any]:
    """Sort key by which 2 comes before 10."""
    parts: list[list[str]] = [[""]]
    for letter in name:
        is_digit = letter.isascii() and letter.isdigit()
        if is_digit == (len(parts) % 2 == 0):
            parts[-1].append(letter)
        else:
            parts.append([letter])
    texts = ["".join(part) for part in parts]
    return [(int(t), t) if n % 2 else t for n, t in enumerate(texts)]


def readable_name(name: str) -> str:
    """A file's name as letters: what is no UTF-8 is read as Latin-1, and accents are composed."""
    raw = os.fsencode(name)
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError:
        text = raw.decode("latin-1")
    text = unicodedata.normalize("NFC", text)
    return "".join(letter if letter.isprintable() else "?" for letter in text)


def _counts(data: Data) -> dict[str, dict[str, int]]:
    if data.task != "classes":
        return {part: {"samples": len(getattr(data, part))} for part in PARTS}
    counts = {}
    for part in PARTS:
        y = getattr(data, part).y
        found = np.bincount(y[y != UNLABELLED].numpy(), minlength=data.num_classes).tolist()
        counts[part] = dict(zip(data.classes, found, strict=True))
    return counts


def _values(data: Data) -> list[float]:
    """The smallest and largest number, before the normalisation."""
    low, high = [], []
    for part in PARTS:
        x = getattr(data, part).x
        if x.ndim == 4 and len(data.mean) == x.shape[1]:
            for channel, (mean, std) in enumerate(zip(data.mean, data.std, strict=True)):
                low.append(float(x[:, channel].min()) * std + mean)
                high.append(float(x[:, channel].max()) * std + mean)
        else:
            low.append(float(x.min()))
            high.append(float(x.max()))
    return [round(min(low), 5) + 0.0, round(max(high), 5) + 0.0]  # no -0


def _duplicates(data: Data) -> dict[str, int]:
    """Samples that are the same once encoded: within training, and across the splits."""
    keys = {part: [*_keys(getattr(data, part).x)] for part in PARTS}
    seen = {part: set(found) for part, found in keys.items()}
    labels: dict[int, set[int]] = {}
    if data.task == "classes":
        for key, label in zip(keys["train"], data.train.y.tolist(), strict=True):
            if label != UNLABELLED:
                labels.setdefault(key, set()).add(label)
    counts = {
        "train": len(keys["train"]) - len(seen["train"]),
        "val in train": sum(key in seen["train"] for key in keys["val"]),
        "test in train": sum(key in seen["train"] for key in keys["test"]),
        "test in val": sum(key in seen["val"] for key in keys["test"]),
        "with two labels": sum(len(found) > 1 for found in labels.values()),
    }
    return {where: count for where, count in counts.items() if count}


def _keys(x: Any) -> Iterable[int]:
    rows = x.detach().cpu().contiguous().flatten(1)
    if rows.dtype.itemsize == 2:
        rows = rows.float()
    return (hash(row.tobytes()) for row in rows.numpy())


def _line(data: Data, card: Mapping[str, Any]) -> str:
    sizes = "/".join(str(len(getattr(data, part))) for part in PARTS)
    words = [f"{data.name}: {sizes} for train/val/test"]
    if data.task == "classes":
        counts = card["counts"]
        each = {c: "/".join(str(counts[part][c]) for part in PARTS) for c in data.classes}
        shown = [f"{c} {each[c]}" for c in data.classes[:_SHOWN]]
        shown += ["…"] if data.num_classes > _SHOWN else []
        words.append(f"{data.num_classes} classes ({', '.join(shown)})")
        if never := [c for c in data.classes if not counts["train"][c]]:
            words.append(f"no training sample of {', '.join(never[:_SHOWN])}")
        if hidden := int((data.train.y == UNLABELLED).sum()):
            words.append(f"{hidden} without a label")
    if "values" in card:
        words.append("values {:g} to {:g}".format(*card["values"]))
    if "unknown" in card:
        words.append(f"unknown tokens {max(card['unknown'].values()):.1%}")
    for title, key in (("left out", "left_out"), ("duplicates", "duplicates")):
        found = ", ".join(f"{count} {what}" for what, count in card[key].items())
        words.append(f"{title}: {found or 'none'}")
    line = " · ".join([*words, *card["notes"]])
    return "".join(letter if letter.isprintable() else "?" for letter in line)
