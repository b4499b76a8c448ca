"""The lessons' teachers: shipped where they are the usual ones, trained and kept where not."""

from __future__ import annotations

import hashlib
import json
import platform
import time
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import nn

from kdlab.datasets import Data
from kdlab.datasets import load as load_data
from kdlab.datasets.views import Augmentation
from kdlab.files import atomic_write, cache_folder, project_folder
from kdlab.metrics import evaluate
from kdlab.models import build_for, count_parameters
from kdlab.training.device import describe
from kdlab.training.loop import fit
from kdlab.training.predict import predict


@dataclass(frozen=True)
class Recipe:
    """How a teacher is made.

    ``shift`` moves the training images by up to so many pixels, anew in each epoch. ``any_seed``
    says that another seed draws other images of the same kind, none of which this teacher has
    seen; false where a seed only deals the same images out anew.
    """

    model: str
    model_options: dict[str, Any] = field(default_factory=dict)
    fit_options: dict[str, Any] = field(default_factory=dict)
    shift: int = 0
    any_seed: bool = False


TEXTS = Recipe(
    "transformer",
    {"width": 64, "depth": 4, "dropout": 0.2},
    {"epochs": 8, "batch_size": 64, "lr": 2e-3, "optimizer": "adamw", "weight_decay": 0.05},
)
RECIPES = {
    "glyphs": Recipe("cnn_large", fit_options={"epochs": 20}, shift=2, any_seed=True),
    "digits": Recipe("mlp", {"hidden": [256, 256]}, {"epochs": 40, "batch_size": 64, "lr": 0.05}),
    "docstrings": TEXTS,
}
OTHERS = Recipe("cnn_large", fit_options={"epochs": 12}, shift=2)


def load_teacher(data: Data, *, progress: bool = True) -> tuple[nn.Module, dict[str, Any]]:
    """Return the teacher for a data set, in eval mode, and its card.

    The usual data sets have one that ships with the course. For any other (another difficulty, your
    own photographs or texts, docstrings of other versions) one is trained once, with a progress
    bar, and kept in the cache. A missing or damaged file is trained anew.

    Args:
        data: what the teacher must know; the recipe follows its name, or for texts their kind.
        progress: show a bar while training.
    """
    recipe = TEXTS if len(data.shape) == 1 else RECIPES.get(data.name, OTHERS)
    shipped = shipped_folder()
    if shipped and _is_usual(data, recipe):
        path = shipped / f"{data.name}.safetensors"
        found = _read(path, data, recipe)
        return found or _train_and_keep(load_data(data.name), recipe, path, progress)
    path = cache_folder() / "teachers" / f"{_slug(data)}.safetensors"
    found = _read(path, data, recipe)
    return found or _train_and_keep(data, recipe, path, progress)


def rebuild(names: Sequence[str] | None = None, progress: bool = True) -> list[dict[str, Any]]:
    """Train the shipped teachers anew and return their cards.

    Raises:
        ValueError: a name that has no recipe.
        FileNotFoundError: the package is not in a checkout, so there is nowhere to ship from.
    """
    folder = shipped_folder()
    if folder is None:
        raise FileNotFoundError("teachers are rebuilt in a checkout of kdlab; this is none")
    cards = []
    for name in names or RECIPES:
        if name not in RECIPES:
            raise ValueError(f"names: no recipe for {name!r}; there are {', '.join(RECIPES)}")
        data = load_data(name)
        path = folder / f"{name}.safetensors"
        cards.append(_train_and_keep(data, RECIPES[name], path, progress)[1])
    return cards


def status() -> list[dict[str, Any]]:
    """Return for each shipped teacher its name, whether its file is whole, and its card."""
    folder = shipped_folder()
    rows = []
    for name in RECIPES:
        card = _whole_card(folder / f"{name}.safetensors") if folder else None
        rows.append({"name": name, "whole": card is not None, "card": card or {}})
    return rows


def shipped_folder() -> Path | None:
    """Return the folder of the shipped teachers, or None outside a checkout."""
    root = project_folder()
    return root / "data" / "teachers" if root else None


def _is_usual(data: Data, recipe: Recipe) -> bool:
    if data.name not in RECIPES or "labels" in data.card:
        return False
    card = _whole_card((shipped_folder() or Path()) / f"{data.name}.safetensors")
    made_from = card["data"] if card else load_data(data.name).card
    same = made_from["options"] == data.card.get("options")
    same = same and made_from.get("corpus") == data.card.get("corpus")
    return same and (recipe.any_seed or made_from["seed"] == data.card.get("seed"))


def _slug(data: Data) -> str:
    return f"{''.join(c if c.isalnum() else '-' for c in data.name)}-{data.fingerprint[:12]}"


def _build(data: Data, recipe: Recipe) -> nn.Module:
    options = dict(recipe.model_options)
    if data.tokenizer is not None:
        options["vocabulary"] = data.tokenizer.vocabulary
    return build_for(recipe.model, data.shape, data.num_classes, seed=0, **options)


def _whole_card(path: Path) -> dict[str, Any] | None:
    """Return the card beside ``path`` if the weights are the ones that it was written for."""
    try:
        card = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        return card if card["sha256"] == digest else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _read(path: Path, data: Data, recipe: Recipe) -> tuple[nn.Module, dict[str, Any]] | None:
    card = _whole_card(path)
    if card is None:
        if path.exists():
            warnings.warn(f"teacher: {path.name} is damaged; training it anew", stacklevel=3)
        return None
    model = _build(data, recipe)
    try:
        model.load_state_dict(load(path.read_bytes()))
    except (OSError, SafetensorError, RuntimeError) as error:
        warnings.warn(
            f"teacher: {path.name} does not fit its model ({type(error).__name__}); "
            "training it anew",
            stacklevel=3,
        )
        return None
    return model.eval(), card


def _train_and_keep(
    data: Data, recipe: Recipe, path: Path, progress: bool
) -> tuple[nn.Module, dict[str, Any]]:
    model = _build(data, recipe)
    started = time.perf_counter()
    augment = Augmentation(recipe.shift) if recipe.shift else None
    run = fit(model, data, augment=augment, **recipe.fit_options, validate=False, progress=progress)
    if run.interrupted:
        raise KeyboardInterrupt("the teacher's training was stopped; nothing was kept")
    card = _card(model, data, recipe, time.perf_counter() - started)
    try:
        _keep(model, card, path)
    except OSError as error:
        warnings.warn(
            f"teacher: {path.parent.name}/ cannot be written ({error.strerror}); this teacher is "
            "used but not kept, so the next lesson trains it again",
            stacklevel=3,
        )
    return model, card


def _keep(model: nn.Module, card: dict[str, Any], path: Path) -> None:
    state = model.state_dict()  # copies, as tied weights share memory, which no file may
    weights = save(
        {key: item.clone(memory_format=torch.contiguous_format) for key, item in state.items()}
    )
    card |= {"sha256": hashlib.sha256(weights).hexdigest(), "bytes": len(weights)}
    with atomic_write(path) as temporary:
        temporary.write_bytes(weights)
    with atomic_write(path.with_suffix(".json")) as temporary:
        temporary.write_text(json.dumps(card, indent=2) + "\n", encoding="utf-8")


def _card(model: nn.Module, data: Data, recipe: Recipe, seconds: float) -> dict[str, Any]:
    machine = describe()
    scores = {
        name: {
            metric: round(value, 4)
            for metric, value in evaluate(predict(model, split.x), split.y).items()
        }
        for name, split in (("val", data.val), ("test", data.test))
    }
    return {
        "recipe": asdict(recipe),
        "parameters": count_parameters(model),
        "data": {
            "name": data.name,
            "options": data.card.get("options"),
            "seed": data.card.get("seed"),
            "sizes": data.card.get("sizes"),
            "sha256": data.fingerprint,
            "corpus": data.card.get("corpus"),
        },
        "scores": scores,
        "seconds": round(seconds, 1),
        "made_on": {"processor": machine["name"], "threads": machine["threads"]},
        "versions": {"torch": torch.__version__, "python": platform.python_version()},
    }
