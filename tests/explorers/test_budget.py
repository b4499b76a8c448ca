"""The explorer of budgets: who answers, what is drawn, and what is told."""

import time

import numpy as np
import pandas as pd
import pytest
import torch

from kdlab.compression import Nested
from kdlab.datasets import Data, Split
from kdlab.explorers import BudgetExplorer
from kdlab.models import build_for

CLASSES = ("8", "B", "E", "no image")
X = torch.rand(9, 1, 12, 12, generator=torch.Generator().manual_seed(0))
PART = Split((X - 0.5) / 0.25, torch.tensor([0, 1, 2, 0, 1, 2, 0, 1, 2]))
DATA = Data("own", PART, PART, PART, CLASSES, (0.5,), (0.25,), {"name": "own"})
WIDTHS = (0.25, 0.5, 1.0)
TABLE = pd.DataFrame(
    {
        "width": WIDTHS,
        "val_accuracy": [0.5, 0.8, 0.7],
        "test_accuracy": [0.46, 0.68, 0.81],
        "bytes": [1000, 4000, 10_000],
        "latency_ms": [2.34, 3.0, 4.0],
        "memory_bytes": [None, None, None],
        "energy_joules": [0.02, 0.03, 0.04],
        "energy_from": 3 * ["estimate: 10 W while it computes"],
        "batch": 3 * [64],
    }
)


def network(seed=0, widths=WIDTHS):
    torch.manual_seed(seed)
    return Nested(build_for("cnn_tiny", DATA.shape, len(CLASSES), seed=seed), PART.x[:2], widths)


@pytest.fixture
def shown():
    other = TABLE.assign(test_accuracy=[0.1, 0.2, 0.9], val_accuracy=[0.1, 0.2, 0.9])
    networks = {"one": (network(), TABLE), "two": (network(1), other)}
    return BudgetExplorer(networks, DATA, goal="Find it.")


@pytest.mark.parametrize(
    ("network", "cost", "budget", "width"),
    [
        ("one", "bytes", 10, 0.25),  # just enough
        ("one", "bytes", 9, None),
        ("one", "bytes", 39, 0.25),
        ("one", "bytes", 40, 0.5),
        ("one", "bytes", 100, 0.5),  # the widest is worse on validation images
        ("two", "bytes", 99, 0.5),
        ("two", "bytes", 100, 1.0),
        ("two", "latency_ms", 60, 0.25),
        ("two", "latency_ms", 58, None),
        ("two", "energy_joules", 100, 1.0),
    ],
)
def test_the_best_on_validation_images_within_the_budget_answers(
    shown, network, cost, budget, width
):
    result = shown.set(network=network, cost=cost, budget=budget)
    assert result.width == width
    most = TABLE[cost].max()
    assert result.limit == pytest.approx(most * budget / 100)
    ring = [line for line in shown._chart.lines if line.get_markersize() == 17]
    assert len(ring) == (width is not None)
    if width is not None:
        row = shown.networks[network][1].set_index("width").loc[width]
        by = {"bytes": 1e3, "latency_ms": 1, "energy_joules": 1e-3}[cost]
        assert ring[0].get_xdata()[0] == pytest.approx(row[cost] / by)
        assert ring[0].get_ydata()[0] == row["test_accuracy"]


def test_all_of_the_budget_is_enough_for_the_dearest_to_the_last_digit():
    for dearest in (0.1 * 3, 1 / 3, 2.0000000000000004, 13.514724915):
        table = TABLE.assign(latency_ms=[0.1, 0.2, dearest], val_accuracy=[0.1, 0.2, 0.3])
        result = BudgetExplorer({"one": (network(), table)}, DATA).set(cost="latency_ms")
        assert result.limit == dearest and result.width == 1


def test_each_width_is_asked_about_the_image_that_is_shown(shown):
    result = shown.set(network="two", label=1, draw=2)
    third_b = PART.x[7:8]
    assert result.picture == pytest.approx(X[7, 0].numpy(), abs=1e-6)
    nested = shown.networks["two"][0].eval()
    for width, p in zip(WIDTHS, result.answers, strict=True):
        with torch.no_grad():
            wanted = nested.subnetwork(width)(third_b).softmax(1)[0]
        assert p == pytest.approx(wanted.numpy(), abs=1e-5)
    assert shown.set(draw=5).picture == pytest.approx(result.picture)  # there are three
    assert np.abs(shown.set(draw=3).picture - result.picture).max() > 0.1


def test_asking_changes_nothing(shown):
    nested = shown.networks["one"][0].train()
    before = {name: value.clone() for name, value in nested.state_dict().items()}
    shown.set(network="one", label=2)
    assert nested.training and nested.width == 1
    assert all(torch.equal(before[name], value) for name, value in nested.state_dict().items())
    torch.set_num_threads(2)
    shown.set(label=1)
    given_back = torch.get_num_threads()
    torch.set_num_threads(1)
    assert given_back == 2


def test_what_is_drawn_is_what_was_computed(shown):
    result = shown.set(network="one", cost="bytes", budget=50, label=1)
    lines = {line.get_label(): line for line in shown._chart.lines}
    for name, (_, table) in shown.networks.items():
        assert list(lines[name].get_xdata()) == [1, 4, 10]
        assert list(lines[name].get_ydata()) == table["test_accuracy"].tolist()
    assert lines["one"].get_alpha() > lines["two"].get_alpha()
    budget = [line.get_xdata()[0] for line in lines.values() if line.get_linestyle() == "--"]
    assert budget == [5]
    written = {text.get_text() for text in shown._chart.texts}
    assert written == {"0.25", "0.5: 68.0%", "1"}
    parts = [part for bars in shown._bars[0] for part in bars]
    orange = [
        p for p in parts if p.get_facecolor()[:3] == pytest.approx((0.902, 0.624, 0), abs=0.01)
    ]
    assert sum(p.get_width() for p in orange) == pytest.approx(result.answers[:, 1].sum(), abs=1e-5)
    bold = [t.get_text() for t in shown._answers.get_yticklabels() if t.get_fontweight() == "bold"]
    assert bold == ["0.5"]
    strong = {p.get_y() for p in parts if p.get_alpha() == 1}
    assert len(strong) == 1 and len({p.get_y() for p in parts}) == 3


def test_the_words_name_the_budget_who_answers_and_what_is_said(shown):
    result = shown.set(network="one", cost="bytes", budget=50, label=0, draw=0)
    said = CLASSES[int(result.answers[1].argmax())]
    right = "right" if said == "8" else "wrong"
    assert repr(shown) == (
        "<BudgetExplorer one | file: 50% of the widest's, 5 kB | width 0.5 answers, for 4 kB; it "
        f"is right in about 7 of 10 | it says {said}, which is {right}>"
    )
    shown.set(budget=5)
    assert repr(shown) == (
        "<BudgetExplorer one | file: 5% of the widest's, 0.5 kB | nobody answers: the least is "
        "1 kB>"
    )


def test_the_verdict_is_about_who_answers(shown):
    nested = shown.networks["one"][0]
    with torch.no_grad():  # every width says E
        nested.model.head.weight.zero_()
        nested.model.head.bias.copy_(torch.tensor([0.0, 0.0, 5.0, 0.0]))
    shown.set(network="one", budget=100, label=2)
    assert "it says E, which is right" in repr(shown)
    shown.set(label=0)
    assert "it says E, which is wrong" in repr(shown)


def test_times_are_told_coarsely_and_estimates_by_name(shown):
    shown.set(cost="latency_ms", budget=60)
    assert "latency of 64 samples" in repr(shown)
    assert "about 2 ms; it is right in about 5 of 10" in repr(shown) and "2.34" not in repr(shown)
    shown.set(cost="energy_joules")
    assert "estimated energy of one sample" in repr(shown)


def test_costs_that_are_not_known_and_classes_without_images_are_not_offered(shown):
    offered = [column for _, column in shown.controls["cost"].options]
    assert offered == ["bytes", "latency_ms", "energy_joules"]
    assert [name for name, _ in shown.controls["label"].options] == ["8", "B", "E"]


def test_networks_may_have_other_widths():
    narrow = pd.DataFrame(TABLE.iloc[[2, 0]])  # and rows in another order
    networks = {"three": (network(), TABLE), "two": (network(1, (0.25, 1)), narrow)}
    shown = BudgetExplorer(networks, DATA)
    result = shown.set(network="two", budget=100)
    assert result.answers.shape == (2, 4) and result.width == 1 and result.place == 1
    assert [t.get_text() for t in shown._answers.get_yticklabels()] == ["0.25", "1"]


def test_the_same_controls_give_the_same_frame(shown):
    shown.set(network="one", cost="bytes", budget=50, label=1, draw=1)
    picture, told = shown.picture.value, repr(shown)
    shown.set(network="two", cost="latency_ms", budget=3, label=0)
    shown.set(network="one", cost="bytes", budget=50, label=1)
    assert shown.picture.value == picture and repr(shown) == told


def test_a_frame_is_quick_enough(shown):
    shown.set(budget=60)
    before = time.process_time()
    for at in (70, 80, 90):
        shown.set(budget=at)
    assert (time.process_time() - before) / 3 < 1.0  # 0.1 s on a free core; machines are busy


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ({"networks": {}}, "networks has 0 entries; expected 1 to 4"),
        ({"networks": {"a": (network(), TABLE.drop(columns="val_accuracy"))}}, "no column val_acc"),
        ({"networks": {"a": (network(), TABLE[:2])}}, r"widths \[0.25, 0.5\]; expected those of"),
        ({"networks": {"a": (network(), TABLE[["width", "val_accuracy", "test_accuracy"]])}},
         "no cost of all is known; expected one of bytes"),
        ({"data": Data("t", Split(X[:, 0, 0], PART.y), PART, PART, CLASSES, (), (), {})},
         "expected images"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_told(arguments, complaint):
    given = {"networks": {"a": (network(), TABLE)}, "data": DATA} | arguments
    with pytest.raises(ValueError, match=complaint):
        BudgetExplorer(**given)


def test_goal_and_labelled_controls(shown):
    assert "Find it." in shown.children[0].value
    assert list(shown.controls) == ["network", "cost", "budget", "label", "draw"]
    assert shown.result is not None and shown.picture.value
