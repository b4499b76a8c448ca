"""The Pareto explorer: winner and front against brute force, units, gaps, what is drawn."""

import math
import re
from itertools import combinations

import numpy as np
import pandas as pd
import pytest

from kdlab.explorers import ParetoExplorer
from kdlab.explorers.pareto import ALL
from kdlab.explorers.tradeoffs import COSTS
from kdlab.metrics import mean_interval

NAMES = {
    "teacher": ("teacher", 0.97, 0.96, 400_000, 9.2),
    "student, labels": ("labels", 0.90, 0.91, 80_000, 2.0),
    "student, distilled": ("distilled", 0.93, 0.92, 80_000, 2.1),
    "student, int8": ("quantized", 0.92, 0.93, 30_000, math.nan),
    "half of it": ("pruned", 0.94, 0.90, 50_000, 1.5),
    "tiny": ("labels", 0.80, 0.81, 10_000, 0.7),
}


def row(name, seed=0, shift=0.0):
    made_by, accuracy, val, size, latency = NAMES[name]
    return {
        "model": name, "made_by": made_by, "seed": seed, "accuracy": accuracy + shift,
        "val_accuracy": val, "agreement": math.nan if name == "tiny" else accuracy,
        "ece": 1.02 - accuracy, "nll": 2 - accuracy, "bytes": size, "latency_ms": latency,
        "memory_bytes": None,
    }  # fmt: skip


def table(seeds=1):
    return pd.DataFrame(
        [
            row(name, seed, 0.01 * (seed - (seeds - 1) / 2))
            for name in NAMES
            for seed in range(seeds)
        ]
    )


SHOWN = ParetoExplorer(table())  # for what is computed only


@pytest.fixture
def explorer():
    return ParetoExplorer(table(), goal="Find it.")


def brute_front(models, cost, quality, sign):
    """Nobody who costs as little is better, nobody who is as good costs less."""
    return {
        a
        for a in models.index
        if not any(
            models[cost][b] <= models[cost][a]
            and sign * models[quality][b] >= sign * models[quality][a]
            and (
                models[cost][b] < models[cost][a]
                or sign * models[quality][b] > sign * models[quality][a]
            )
            for b in models.index
        )
    }


@pytest.mark.parametrize("cost", ["bytes", "latency_ms"])
@pytest.mark.parametrize(("quality", "sign"), [("accuracy", 1), ("agreement", 1), ("ece", -1)])
def test_front_and_winner_equal_brute_force(cost, quality, sign):
    models = table().set_index("model").dropna(subset=[cost, quality])
    for budget in range(0, 101, 10):
        state = {"cost": cost, "quality": quality, "budget": budget, "model": "tiny"}
        result = SHOWN.compute(state)
        assert set(result.front) == brute_front(models, cost, quality, sign)
        assert list(models[cost][result.front]) == sorted(models[cost][result.front])
        within = models[models[cost] <= result.limit * (1 + 1e-6)]
        assert set(result.within) == set(within.index)
        assert result.winner == within["val_accuracy"].idxmax()


def test_the_front_of_many_equals_brute_force():
    rng = np.random.default_rng(3)
    many = pd.DataFrame(
        {
            "model": [f"m{i}" for i in range(60)], "made_by": "chance",
            "accuracy": rng.integers(1, 20, 60) / 20, "val_accuracy": rng.random(60),
            "bytes": rng.integers(1, 15, 60),
        }
    )  # fmt: skip
    front = ParetoExplorer(many).result.front
    values = many.set_index("model")
    wanted = brute_front(values, "bytes", "accuracy", 1)
    places = {(values["bytes"][n], values["accuracy"][n]) for n in wanted}
    assert {(values["bytes"][n], values["accuracy"][n]) for n in front} == places
    assert len(front) == len(places)  # of equal ones, one


def test_validation_chooses_and_not_the_test_images(explorer):
    result = explorer.set(cost="bytes", budget=50)  # 10 to 400 kB, in the middle: 63 kB
    assert result.limit == pytest.approx(math.sqrt(10_000 * 400_000))
    assert set(result.within) == {"student, int8", "half of it", "tiny"}
    assert result.models["accuracy"][result.within].idxmax() == "half of it"
    assert result.winner == "student, int8"


def test_the_budget_goes_from_the_cheapest_to_all(explorer):
    for cost in ("bytes", "latency_ms"):
        assert explorer.set(cost=cost, budget=0).within == ["tiny"]
        result = explorer.set(budget=ALL)
        assert result.within == list(result.models.index)


def test_who_costs_the_budget_exactly_is_within_it():
    """32 to the power of 0.6 is 8, and 7.999999999999999 in floats."""
    names = ["cheap", "exact", "dear"]
    models = pd.DataFrame({"model": names, "made_by": "powers", "bytes": [1, 8, 32]})
    models = models.assign(accuracy=[0.5, 0.6, 0.7], val_accuracy=[0.5, 0.6, 0.7])
    result = ParetoExplorer(models).set(cost="bytes", budget=60)
    assert (result.within, result.winner) == (["cheap", "exact"], "exact")


def test_a_small_range_has_a_plain_axis_and_the_budget_follows_it():
    near = table()
    near["bytes"] = [100, 120, 140, 160, 180, 200]
    explorer = ParetoExplorer(near)
    assert explorer.set(budget=50).limit == pytest.approx(150)
    assert explorer.figure.axes[0].get_xscale() == "linear"
    explorer.set(cost="latency_ms")
    assert explorer.figure.axes[0].get_xscale() == "log"


def test_another_cost_keeps_the_share_of_the_budget_and_the_chosen_model(explorer):
    explorer.set(budget=30, model="half of it")
    result = explorer.set(cost="latency_ms")
    assert explorer.state["budget"] == 30 and result.chosen == "half of it"
    assert result.limit == pytest.approx(0.7 * (9.2 / 0.7) ** 0.3)


def test_the_slider_of_models_goes_by_cost_and_redraws_once(explorer):
    slider = explorer.controls["model"]
    assert list(slider.options) == [
        "tiny", "student, int8", "half of it", "student, labels", "student, distilled", "teacher"
    ]  # fmt: skip
    slider.value = "half of it"
    frames = []
    compute = explorer.compute
    explorer.compute = lambda state: frames.append(state) or compute(state)
    explorer.controls["cost"].value = "latency_ms"  # as a reader does, without set
    assert list(slider.options) == [
        "tiny", "half of it", "student, labels", "student, distilled", "teacher", "student, int8"
    ]  # fmt: skip
    assert len(frames) == 1 and frames[0]["model"] == "half of it"
    slider.index += 1  # the arrow key
    assert explorer.result.chosen == "student, labels"


def test_models_without_a_number_are_left_out_and_named(explorer):
    result = explorer.set(cost="latency_ms", model="student, int8")
    assert result.missing == ["student, int8"] and "student, int8" not in result.models.index
    assert "| left out, latency unknown: student, int8>" in repr(explorer)
    assert "looked at: student, int8 (quantized, one seed), test accuracy 92.0%" in repr(explorer)
    assert "4 of 5" in repr(explorer) or "5 of 5" in repr(explorer)
    result = explorer.set(quality="agreement")
    assert set(result.missing) == {"student, int8", "tiny"}
    assert "left out, latency or agreement with the teacher unknown: " in repr(explorer)
    explorer.set(cost="bytes", quality="accuracy")
    assert "left out" not in repr(explorer)


def test_only_what_is_known_can_be_chosen(explorer):
    with pytest.raises(
        ValueError, match="cost='flops' is not possible; expected one of bytes, lat"
    ):
        explorer.set(cost="flops")
    with pytest.raises(ValueError, match="expected one of accuracy, agreement, ece, nll"):
        explorer.set(quality="kl_to_teacher")
    assert [name for name, _ in explorer.controls["cost"].options] == ["file (kB)", "latency (ms)"]


def test_seeds_become_means_with_intervals():
    given = table(seeds=3)
    explorer = ParetoExplorer(given)
    result = explorer.set(model="tiny")
    wanted = mean_interval(given[given["model"] == "tiny"]["accuracy"])
    assert result.models["accuracy"]["tiny"] == pytest.approx(wanted.mean)
    assert tuple(result.models.loc["tiny", ["low", "high"]]) == pytest.approx(
        (wanted.low, wanted.high)
    )
    assert "tiny (labels, 3 seeds), test accuracy 80.0% [77.5%, 82.5%]" in repr(explorer)
    bars = [path.vertices[:, 1] for bars in explorer.figure.axes[0].collections
            for path in bars.get_paths()]  # fmt: skip
    assert any(bar == pytest.approx([wanted.low, wanted.high]) for bar in bars)


def test_one_seed_has_no_interval(explorer):
    assert explorer.result.models[["low", "high"]].isna().all(axis=None)
    assert "[" not in repr(explorer)


def test_a_cost_that_one_seed_lacks_is_not_known():
    given = table(seeds=2).astype({"latency_ms": float})
    given.loc[given["model"].eq("tiny") & given["seed"].eq(1), "latency_ms"] = np.nan
    assert "tiny" in ParetoExplorer(given).set(cost="latency_ms").missing


def test_readout_is_coarse_where_a_clock_measured(explorer):
    explorer.set(cost="latency_ms", budget=50, model="teacher")
    assert repr(explorer) == (
        "<ParetoExplorer latency up to about 3 ms: 4 of 5 models | best on validation: student, "
        "distilled, test accuracy 93.0% | looked at: teacher (teacher, one seed), test accuracy "
        "97.0%, agreement with the teacher 97.0%, calibration error 5.0%, negative log-likelihood "
        "1.03, file 400 kB, latency about 9 ms | left out, latency unknown: student, int8>"
    )


@pytest.mark.parametrize(
    ("column", "value", "text"),
    [
        ("bytes", 123_456, "123 kB"),
        ("parameters", 1_234_567, "1,230 thousand"),
        ("flops", 2_345_678, "2.35 million"),
        ("latency_ms", 17.2, "about 20 ms"),
        ("latency_ms", 0.0123, "about 0.01 ms"),
        ("memory_bytes", 999_900, "1,000 kB"),
        ("energy_joules", 0.00123, "about 1 mJ"),
    ],
)
def test_costs_have_their_units(column, value, text):
    assert COSTS[column].text(value) == text


def test_a_guess_is_called_one_and_a_batch_is_counted():
    given = table().assign(
        energy_joules=0.002, energy_from="estimate: 10 W while it computes", batch=64
    )
    names = [name for name, _ in ParetoExplorer(given).controls["cost"].options]
    assert "estimated energy of one sample (mJ)" in names and "latency of 64 samples (ms)" in names
    given = given.assign(energy_from="RAPL: the whole processor", batch=1)
    names = [name for name, _ in ParetoExplorer(given).controls["cost"].options]
    assert "energy of one sample (mJ)" in names and "latency of one sample (ms)" in names


def test_what_is_drawn_is_what_was_computed(explorer):
    result = explorer.set(cost="bytes", budget=50, model="student, labels")
    (axis,) = explorer.figure.axes
    points = {tuple(xy) for line in axis.lines for xy in np.round(line.get_xydata(), 6)}
    for name in NAMES:
        made_by, accuracy, _, size, _ = NAMES[name]
        assert (size / 1e3, accuracy) in points
        assert made_by in [text.get_text() for text in explorer.figure.legends[0].get_texts()]
    ring = next(line for line in axis.lines if line.get_markersize() == 17)
    assert tuple(ring.get_xydata()[0]) == (30, 0.92)
    square = next(line for line in axis.lines if line.get_markersize() == 13)
    assert tuple(square.get_xydata()[0]) == (80, 0.90)
    step = next(line for line in axis.lines if line.get_drawstyle() == "steps-post")
    assert list(step.get_ydata()) == [0.80, 0.92, 0.94, 0.97, 0.97]
    assert list(step.get_xdata())[:-1] == [10, 30, 50, 400]
    budget = next(line for line in axis.lines if line.get_linestyle() == "--")
    assert budget.get_xdata()[0] == pytest.approx(result.limit / 1e3)
    assert [text.get_text() for text in axis.texts] == ["student, int8", "student, labels"]


def test_the_good_is_at_the_top(explorer):
    (axis,) = explorer.figure.axes
    explorer.set(quality="ece")
    assert axis.yaxis_inverted() and "less is better" in axis.get_ylabel()
    explorer.set(quality="accuracy")
    assert not axis.yaxis_inverted() and "less" not in axis.get_ylabel()


def test_kinds_differ_in_colour_and_in_marker():
    kinds = table()
    kinds["made_by"] = [f"kind {i}" for i in range(len(kinds))]
    looks = ParetoExplorer(kinds).looks
    assert len({look["color"] for look in looks.values()}) == len(kinds)
    assert len({look["marker"] for look in looks.values()}) == len(kinds)
    many = pd.concat([kinds.assign(model=kinds.model + str(i), made_by=f"{i}") for i in range(20)])
    looks = ParetoExplorer(many).looks
    assert len({tuple(look.values()) for look in looks.values()}) == 20


def test_texts_are_neither_cut_nor_on_top_of_each_other():
    long = table()
    long["made_by"] = "made in a way that has a very long name, " + long["made_by"]
    long["model"] = "distilled, pruned, recovered, rounded: " + long["model"]
    explorer = ParetoExplorer(long)
    for name, budget in (("teacher", 0), ("tiny", 50), ("student, labels", 70)):
        explorer.set(model=f"distilled, pruned, recovered, rounded: {name}", budget=budget)
        explorer.figure.draw_without_rendering()
        (axis,) = explorer.figure.axes
        names = [super(type(t), t).get_window_extent() for t in axis.texts]
        for box in (*names, *(t.get_window_extent() for t in (axis.xaxis.label, axis.yaxis.label))):
            assert box.x0 >= 0 and box.y0 >= 0
            assert box.x1 <= explorer.figure.bbox.x1 and box.y1 <= explorer.figure.bbox.y1
        assert not any(a.overlaps(b) for a, b in combinations(names, 2))
        (legend,) = explorer.figure.legends
        box = legend.get_window_extent()
        assert box.x1 <= explorer.figure.bbox.x1 and box.y0 >= 0 and box.x0 >= axis.bbox.x1


def test_compute_is_pure_and_frames_do_not_depend_on_the_way(explorer):
    picture = explorer.picture.value
    state = {"cost": "latency_ms", "quality": "ece", "budget": 40, "model": "tiny"}
    explorer.compute(state)
    assert explorer.picture.value == picture
    straight = ParetoExplorer(table())
    straight.set(**state)
    for change in ({"quality": "nll"}, {"cost": "latency_ms", "budget": 2}, {"cost": "bytes"}):
        explorer.set(**change)
    explorer.set(**state)
    assert explorer.picture.value == straight.picture.value and repr(explorer) == repr(straight)


def test_the_table_may_be_shuffled_and_changed_later():
    own = table(seeds=2)
    explorer = ParetoExplorer(own.sample(frac=1, random_state=0))
    own["bytes"] = 1
    assert explorer.set(cost="bytes", budget=0).limit == 10_000


def test_a_stored_page_shows_the_picture(explorer):
    data, metadata = explorer._repr_mimebundle_()
    assert data["image/png"] and metadata["image/png"]["alt"] == repr(explorer)
    assert "Find it." in explorer.children[0].value


def test_one_model_alone():
    one = ParetoExplorer(table().head(1))
    assert one.set(budget=40).winner == "teacher" and one.result.front == ["teacher"]


def test_two_numbers_that_no_model_has_both_of():
    given = table()
    given["agreement"] = [math.nan] * 3 + [0.9] + [math.nan] * 2  # int8, which has no latency
    explorer = ParetoExplorer(given)
    explorer.set(quality="agreement")
    with pytest.raises(ValueError, match="no model has both latency_ms and agreement"):
        explorer.set(cost="latency_ms")


def changed(column, value):
    given = table().astype({"bytes": float})
    given.loc[1, column] = value
    return given


@pytest.mark.parametrize(
    ("given", "match"),
    [
        (table().drop(columns=["made_by", "val_accuracy"]), "made_by, val_accuracy is missing"),
        (table().iloc[:0], "table has no rows"),
        (table().drop(columns=["bytes", "latency_ms"]), "no cost is known; expected .* bytes, par"),
        (changed("val_accuracy", math.nan), "val_accuracy of 'student, labels' is nan; expected 0"),
        (changed("accuracy", 91.0), "accuracy of 'student, labels' is 91; expected 0 to 1"),
        (changed("agreement", 1.2), "agreement of 'student, labels' is 1.2"),
        (changed("bytes", 0.0), "bytes of 'student, labels' is 0; expected a cost above 0"),
        (changed("latency_ms", math.inf), "latency_ms of 'student, labels' is inf"),
        (changed("model", "teacher"), "'teacher' has several made_by"),
    ],
)
def test_refuses(given, match):
    with pytest.raises(ValueError, match=match):
        ParetoExplorer(given)


def test_numbers_of_the_readout_are_those_of_the_table(explorer):
    for name, (_, accuracy, _, size, _) in NAMES.items():
        explorer.set(model=name)
        told = re.search(r"looked at: .*test accuracy ([\d.]+)%.*file (\d+) kB", repr(explorer))
        assert float(told[1]) == pytest.approx(100 * accuracy)
        assert int(told[2]) == size // 1000
