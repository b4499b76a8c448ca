"""The attention explorer: divergences against SciPy, panels against the maps, long texts."""

from itertools import pairwise

import numpy as np
import pytest
import scipy.stats

from kdlab.explorers import AttentionExplorer
from kdlab.plots.attention import TOKENS

RNG = np.random.default_rng(4)
TEXTS = [
    ["[CLS]", "return", "the", "matrix"],
    ["[CLS]", *(f"word{i}" for i in range(19))],
    ["[CLS]", "$a$", "$b$"],
]
LAYERS = ["1 of 2", "2 of 4"]
LONGEST = 22  # padded a little beyond the longest text


def weights(heads):
    made = np.zeros((len(TEXTS), len(LAYERS), heads, LONGEST, LONGEST))
    for text, tokens in enumerate(TEXTS):
        n = len(tokens)
        each = RNG.random((len(LAYERS), heads, n, n)) ** 3 + 0.01
        made[text, :, :, :n, :n] = each / each.sum(-1, keepdims=True)
    return made


MAPS = {
    "attention": {"teacher": weights(4), "before": weights(2), "after": weights(2)},
    "queries": {model: weights(6) for model in ("teacher", "before", "after")},
}


@pytest.fixture
def explorer():
    return AttentionExplorer(TEXTS, MAPS, LAYERS, goal="Find it.")


def divergence(teacher, student):
    """KL(teacher ‖ student) by SciPy, the mean over the rows."""
    return np.mean([scipy.stats.entropy(t, s) for t, s in zip(teacher, student, strict=True)])


@pytest.mark.parametrize(("text", "layer", "head"), [(1, 0, 5), (2, 1, 0), (3, 0, 3)])
def test_divergences_equal_scipy(explorer, text, layer, head):
    result = explorer.set(kind="queries", sentence=text, layer=LAYERS[layer], head=head + 1)
    n = len(TEXTS[text - 1])
    maps = {model: given[:, layer] for model, given in MAPS["queries"].items()}
    teacher, student = (maps[m][text - 1, head, :n, :n] for m in ("teacher", "after"))
    assert result.divergences["after"] == pytest.approx(divergence(teacher, student))
    each = [
        divergence(*(maps[m][t, h, : len(row), : len(row)] for m in ("teacher", "before")))
        for t, row in enumerate(TEXTS)
        for h in range(6)
    ]
    by_text = np.reshape(each, (len(TEXTS), 6)).mean(1)
    assert result.mean_divergences["before"] == pytest.approx(by_text.mean())


def test_a_student_like_its_teacher_has_no_divergence():
    same = MAPS["queries"]["teacher"]
    explorer = AttentionExplorer(TEXTS, {"queries": {"teacher": same, "twin": same}}, LAYERS)
    assert explorer.result.divergences["twin"] == pytest.approx(0, abs=1e-9)
    assert explorer.result.mean_divergences["twin"] == pytest.approx(0, abs=1e-9)


def test_panels_show_each_model_on_one_scale(explorer):
    explorer.set(sentence=1, head=2, layer=LAYERS[1])
    bar, *panels = sorted(explorer.figure.axes, key=lambda axis: -axis.get_position().x0)
    panels.reverse()
    assert [panel.get_title() for panel in panels] == ["teacher", "before", "after"]
    shown = [given[0, 1, 1, :4, :4] for given in MAPS["attention"].values()]
    top = max(map(np.max, shown))
    for panel, given in zip(panels, shown, strict=True):
        np.testing.assert_allclose(panel.images[0].get_array(), given)
        assert panel.images[0].get_clim() == pytest.approx((0, top))
        assert [label.get_text() for label in panel.get_xticklabels()] == TEXTS[0]
    assert bar.get_ylim() == pytest.approx((0, top))


def test_a_model_without_that_head_says_so_and_has_no_number(explorer):
    result = explorer.set(head=3)
    panels = {axis.get_title(): axis for axis in explorer.figure.axes}
    assert [text.get_text() for text in panels["after"].texts] == ["no such head"]
    assert not panels["teacher"].texts and len(panels["teacher"].images) == 1
    assert result.divergences == {"before": None, "after": None}
    assert result.mean_divergences == {"before": None, "after": None}
    assert "before – (all texts and heads –)" in repr(explorer)
    explorer.set(head=6)  # nobody has it
    assert all(panel.texts for title, panel in panels.items() if title)
    explorer.set(kind="queries")
    assert not any(panel.texts for panel in panels.values())


def test_long_texts_are_shown_in_windows_and_measured_whole(explorer):
    first = explorer.set(kind="queries", sentence=2)
    labels = [text.get_text() for text in explorer.figure.axes[0].get_yticklabels()]
    assert labels == TEXTS[1][:TOKENS]
    assert f"tokens 1 to {TOKENS} of 20" in repr(explorer)
    moved = explorer.set(token=4)
    labels = [text.get_text() for text in explorer.figure.axes[0].get_yticklabels()]
    assert labels == TEXTS[1][3 : 3 + TOKENS]
    window = slice(3, 3 + TOKENS)
    np.testing.assert_allclose(
        explorer.figure.axes[0].images[0].get_array(),
        MAPS["queries"]["teacher"][1, 0, 0, window, window],
    )
    assert moved.divergences == first.divergences
    short = explorer.set(sentence=1)  # the window goes back to where there are tokens
    assert short.start == 0 and "4 tokens" in repr(explorer)


def test_short_texts_need_no_window():
    few = [TEXTS[0], TEXTS[2]]
    maps = {
        kind: {model: given[[0, 2]] for model, given in each.items()} for kind, each in MAPS.items()
    }
    assert "token" not in AttentionExplorer(few, maps, LAYERS).controls


def test_labels_of_tokens_neither_overlap_nor_leave_the_picture():
    long = [["Donaudampfschiff" * 3, *("Wwwwwwwwwwwwww" for _ in range(17))]]
    maps = {model: np.full((1, 1, 1, 18, 18), 1 / 18) for model in ("teacher", "student")}
    explorer = AttentionExplorer(long, {"attention": maps}, ["1"])
    figure = explorer.figure
    figure.draw_without_rendering()
    first, second = figure.axes[:2]
    whole = figure.bbox
    for axis in (first, second):
        rows = [t.get_window_extent() for t in axis.get_yticklabels() if t.get_visible()]
        columns = [t.get_window_extent() for t in axis.get_xticklabels() if t.get_visible()]
        for boxes in (rows, columns):
            assert all(box.x0 >= whole.x0 and box.y0 >= whole.y0 for box in boxes)
        assert all(a.x1 <= b.x0 + 0.5 for a, b in pairwise(columns))
    rows = [t.get_window_extent() for t in first.get_yticklabels()]
    assert all(a.y0 >= b.y1 - 0.5 for a, b in pairwise(rows))


def test_dollars_are_dollars_and_unknown_characters_are_boxes(explorer, recwarn):
    explorer.set(sentence=3)
    explorer.figure.draw_without_rendering()
    texts = [["$x$ is $y", "日本", "a\nb"]]
    maps = {model: np.full((1, 1, 1, 3, 3), 1 / 3) for model in ("teacher", "student")}
    other = AttentionExplorer(texts, {"attention": maps}, ["1"])
    labels = [text.get_text() for text in other.figure.axes[0].get_yticklabels()]
    assert labels == ["$x$ is $y", "□□", "a□b"]
    axis = other.figure.axes[0]
    assert not any(t.get_parse_math() for t in (*axis.get_yticklabels(), *axis.get_xticklabels()))
    assert not any("Glyph" in str(warning.message) for warning in recwarn)


def test_compute_is_pure_and_a_frame_does_not_depend_on_the_way_to_it(explorer):
    picture = explorer.picture.value
    state = {"sentence": 2, "layer": LAYERS[1], "kind": "queries", "head": 4, "token": 3}
    assert explorer.compute(state).divergences == explorer.compute(state).divergences
    assert explorer.picture.value == picture
    straight = AttentionExplorer(TEXTS, MAPS, LAYERS)
    straight.set(**state)
    for change in ({"head": 3}, {"sentence": 2, "token": 7}, {"head": 6}, state):
        explorer.set(**change)
    assert explorer.picture.value == straight.picture.value


def test_the_readout_says_what_is_shown(explorer):
    result = explorer.set(kind="queries", head=5)
    here, mean = result.divergences, result.mean_divergences
    assert repr(explorer) == (
        "<AttentionExplorer sentence 1, 4 tokens | queries | layer 1 of 2, head 5 | KL from the "
        f"teacher: before {here['before']:.3f} (all texts and heads {mean['before']:.3f}), "
        f"after {here['after']:.3f} (all texts and heads {mean['after']:.3f})>"
    )
    assert "Find it." in explorer.children[0].value


def changed(kind, model, given):
    return {**MAPS, kind: {**MAPS[kind], model: given}}


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"texts": []}, "texts: expected at least one"),
        ({"texts": [["a"], []]}, "none of them empty"),
        ({"maps": {}}, "maps is empty"),
        ({"maps": {"attention": {"teacher": weights(2)}}}, "has 1 models; expected the teacher"),
        (
            {"maps": {"attention": {str(i): weights(1) for i in range(5)}}},
            "has 5 models; expected the teacher first and one to 3 students",
        ),
        (
            {"maps": {**MAPS, "queries": {"teacher": weights(1), "other": weights(1)}}},
            r"maps\['queries'\] has the models teacher, other; expected those of 'attention'",
        ),
        (
            {"maps": changed("queries", "after", weights(2)[:2])},
            r"maps\['queries'\]\['after'\] has shape \(2, 2, 2, 22, 22\); expected \[3, 2, heads",
        ),
        ({"maps": changed("queries", "after", weights(2)[..., :9, :9])}, "N at least 20"),
        ({"maps": changed("queries", "after", weights(2)[0])}, r"expected \[·, ·, ·, n, n\]"),
        ({"maps": changed("queries", "after", -weights(2))}, "expected probabilities"),
        ({"maps": changed("queries", "after", weights(2) * np.nan)}, "no NaN"),
        ({"maps": changed("queries", "after", 3 * weights(2))}, "expected probabilities"),
        ({"layers": ["one"]}, r"expected \[3, 1, heads"),
    ],
)
def test_refuses(change, match):
    with pytest.raises(ValueError, match=match):
        AttentionExplorer(**{"texts": TEXTS, "maps": MAPS, "layers": LAYERS, **change})
