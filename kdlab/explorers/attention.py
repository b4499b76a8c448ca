"""Who looks at whom: teacher, student before and student after, side by side. Lesson 04."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import ipywidgets as widgets
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

from kdlab import plots
from kdlab.explorers.base import Explorer
from kdlab.plots.attention import (
    BAR,
    BELOW,
    LEFT,
    TOKENS,
    check_weights,
    draw_attention,
    place,
    weight_scale,
)

TOP = 0.3  # inches above a panel, for its title
MOST = 4  # models: more panels would be too small for their tokens
TINY = 1e-12  # a probability that is 0 has no logarithm


@dataclass(frozen=True)
class Looking:
    """Who looks at whom in one text, for each model.

    Attributes:
        tokens: of the text, all of them.
        start: place of the first token in the picture, from 0.
        weights: model → [n, n], rows sum to 1; None where a model has no such head.
        divergences: student → KL(teacher ‖ student) in nats, the mean over the rows; None where one
            of them has no such head.
        mean_divergences: student → the same, averaged over all texts and heads; None where the
            numbers of heads differ.
    """

    tokens: list[str]
    start: int
    weights: dict[str, np.ndarray | None]
    divergences: dict[str, float | None]
    mean_divergences: dict[str, float | None]


class AttentionExplorer(Explorer):
    """Pick a text, a layer and a head; see who looks at whom, in the teacher and in the students.

    Besides attention the maps can be any other relation between tokens, such as that of queries
    with queries. Where a model has fewer heads than asked for, its panel says so: attention maps
    have no partner then, relations do.

    Long texts are shown in windows of ``plots.attention.TOKENS`` tokens; the numbers below the
    picture are always those of the whole text.

    Source of the relations: Wang and others, "MiniLMv2: Multi-Head Self-Attention Relation
    Distillation for Compressing Pretrained Transformers", 2020, arXiv:2012.15828.

    Args:
        texts: S lists of tokens, without padding.
        maps: kind → model → [S, L, h, N, N]: probabilities, 0 at padding; N is at least the length
            of the longest text. The first model is the teacher. All have the same L layers (name
            pairs of layers alike); the number of heads h may differ.
        layers: L names.
        goal: what to find out, shown above the controls.

    Raises:
        ValueError: no texts, no maps, other models in one kind than in another, fewer than two
            models or more than four, or shapes and values that are not as said.
    """

    def __init__(
        self,
        texts: Sequence[Sequence[str]],
        maps: Mapping[str, Mapping[str, ArrayLike]],
        layers: Sequence[str],
        *,
        goal: str = "",
    ) -> None:
        self.texts = [list(text) for text in texts]
        self.layers = [str(layer) for layer in layers]
        self.maps = {
            kind: {
                model: check_weights(f"maps[{kind!r}][{model!r}]", given, 5)
                for model, given in each.items()
            }
            for kind, each in maps.items()
        }
        self._check()
        self.models = list(next(iter(self.maps.values())))
        self._means = {kind: self._mean_divergences(kind) for kind in self.maps}
        self._side = (plots.WIDTH - LEFT - BAR) / max(3, len(self.models))
        self._panels: list[Axes] = []
        heads = max(given.shape[2] for each in self.maps.values() for given in each.values())
        controls = {
            "sentence": widgets.IntSlider(1, 1, len(self.texts), description="sentence"),
            "layer": widgets.SelectionSlider(options=self.layers, description="layer"),
            "kind": widgets.Dropdown(options=list(self.maps), description="show"),
            "head": widgets.IntSlider(1, 1, heads, description="head"),
        }
        if (longest := max(map(len, self.texts))) > TOKENS:
            last = longest - TOKENS + 1
            controls["token"] = widgets.IntSlider(1, 1, last, description="first token")
        super().__init__(controls, goal=goal, size=(plots.WIDTH, self._side + BELOW + TOP))

    def compute(self, state: dict[str, Any]) -> Looking:
        """Look up all models' maps of one text, layer and head, and compare them."""
        text, head = int(state["sentence"]) - 1, int(state["head"]) - 1
        layer, tokens = self.layers.index(state["layer"]), self.texts[text]
        n = len(tokens)
        weights = {
            model: given[text, layer, head, :n, :n] if head < given.shape[2] else None
            for model, given in self.maps[state["kind"]].items()
        }
        teacher = weights[self.models[0]]
        divergences = {
            student: _divergence(teacher, weights[student]) for student in self.models[1:]
        }
        last = max(0, n - TOKENS)
        start = min(int(state.get("token", 1)) - 1, last)
        means = {student: each[layer] for student, each in self._means[state["kind"]].items()}
        return Looking(tokens, start, weights, divergences, means)

    def draw(self, figure: Figure, result: Looking) -> None:
        """Draw one panel for each model, all on one scale."""
        if not self._panels:
            figure.set_layout_engine("none")  # fixed places: nothing jumps
            self._panels = [
                place(figure, LEFT + number * self._side, BELOW, self._side - 0.08)
                for number in range(len(self.models))
            ]
            edge = LEFT + len(self.models) * self._side
            self._bar = weight_scale(figure, (edge, BELOW, 0.11, self._side - 0.08), 1)
        window = slice(result.start, result.start + TOKENS)
        tokens = result.tokens[window]
        shown = {
            model: None if weights is None else weights[window, window]
            for model, weights in result.weights.items()
        }
        top = max((float(w.max()) for w in shown.values() if w is not None), default=1.0)
        self._bar.mappable.set_clim(0, top)
        for number, (panel, (model, weights)) in enumerate(
            zip(self._panels, shown.items(), strict=True)
        ):
            panel.clear()
            panel.set_title(model, loc="center", fontsize=10.5)
            if weights is None:
                panel.text(0.5, 0.5, "no such head", ha="center", transform=panel.transAxes)
                panel.set(xticks=[], yticks=[])
                continue
            draw_attention(panel, weights, tokens, top)
            panel.tick_params(labelleft=number == 0)

    def describe(self, result: Looking) -> str:
        """Return what is shown, and how far each student is from the teacher."""
        state = self.state
        n, first = len(result.tokens), result.start + 1
        last = min(n, result.start + TOKENS)
        part = f"{n} tokens" if last - first + 1 == n else f"tokens {first} to {last} of {n}"
        distances = ", ".join(
            f"{student} {_number(result.divergences[student])} "
            f"(all texts and heads {_number(result.mean_divergences[student])})"
            for student in self.models[1:]
        )
        return (
            f"sentence {state['sentence']}, {part} | {state['kind']} | layer {state['layer']}, "
            f"head {state['head']} | KL from the {self.models[0]}: {distances}"
        )

    def _mean_divergences(self, kind: str) -> dict[str, list[float | None]]:
        """Return student → the mean divergence at each layer."""
        teacher, *students = self.maps[kind].values()
        return {
            name: [
                self._mean(teacher[:, layer], mine[:, layer]) for layer in range(len(self.layers))
            ]
            for name, mine in zip(self.models[1:], students, strict=True)
        }

    def _mean(self, teacher: np.ndarray, student: np.ndarray) -> float | None:
        if teacher.shape[1] != student.shape[1]:
            return None
        each = [
            _divergence(t[:, :n, :n], s[:, :n, :n])
            for t, s, n in zip(teacher, student, map(len, self.texts), strict=True)
        ]
        return float(np.mean(np.array(each, dtype=float)))

    def _check(self) -> None:
        if not self.texts or not all(self.texts):
            raise ValueError("texts: expected at least one list of tokens, and none of them empty")
        if not self.maps:
            raise ValueError("maps is empty: give at least one kind → model → [S, L, h, N, N]")
        first, expected = next(iter(self.maps.items()))
        if not 2 <= len(expected) <= MOST:
            raise ValueError(
                f"maps[{first!r}] has {len(expected)} models; expected the teacher first and one "
                f"to {MOST - 1} students"
            )
        longest = max(map(len, self.texts))
        for kind, each in self.maps.items():
            if list(each) != list(expected):
                raise ValueError(
                    f"maps[{kind!r}] has the models {', '.join(each)}; expected those of "
                    f"{first!r}: {', '.join(expected)}"
                )
            for model, given in each.items():
                wanted = (len(self.texts), len(self.layers))
                if given.shape[:2] != wanted or given.shape[-1] < longest:
                    raise ValueError(
                        f"maps[{kind!r}][{model!r}] has shape {given.shape}; expected "
                        f"[{wanted[0]}, {wanted[1]}, heads, N, N] with N at least {longest}"
                    )


def _divergence(teacher: np.ndarray | None, student: np.ndarray | None) -> float | None:
    """Return KL(teacher ‖ student) of weights [..., n, n], the mean over all rows."""
    if teacher is None or student is None:
        return None
    ratio = np.log(teacher.clip(TINY)) - np.log(student.clip(TINY))
    return float((teacher * ratio).sum(-1).mean())


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:z.3f}"
