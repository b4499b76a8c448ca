"""Each method is its losses times its weights, under names; a new file is a new method."""

import importlib
import re
import subprocess
import sys
from inspect import signature
from pathlib import Path

import pytest
import torch
from torch import nn

import kdlab.distillers as distillers
from kdlab import losses
from kdlab.distillers import (
    Distiller,
    LabelSmoothing,
    Outputs,
    SoftTargets,
    Sum,
    available,
    build,
    contestants,
)
from kdlab.distillers.base import Wrapper

METHODS = {
    "activation_boundary": "ActivationBoundary",
    "attention_distributions": "AttentionDistributions",
    "attention_links": "AttentionLinks",
    "attention_transfer": "AttentionTransfer",
    "channel_gated_hints": "ChannelGatedHints",
    "channel_wise": "ChannelWise",
    "class_mapping": "ClassMapping",
    "contrastive": "Contrastive",
    "correlation_congruence": "CorrelationCongruence",
    "decoupled": "Decoupled",
    "deep_supervision": "DeepSupervision",
    "dist": "Dist",
    "factor_transfer": "FactorTransfer",
    "flow": "Flow",
    "gated": "Gated",
    "gated_teachers": "GatedTeachers",
    "gradient_attention": "GradientAttention",
    "hard_targets": "HardTargets",
    "hidden_states": "HiddenStates",
    "hints": "Hints",
    "instance_graph": "InstanceGraph",
    "jacobian_matching": "JacobianMatching",
    "label_smoothing": "LabelSmoothing",
    "labels": "Labels",
    "logit_matching": "LogitMatching",
    "masked_generation": "MaskedGeneration",
    "multi_level": "MultiLevel",
    "mutual_learning": "MutualLearning",
    "neuron_selectivity": "NeuronSelectivity",
    "overhaul": "Overhaul",
    "probabilistic": "Probabilistic",
    "relational": "Relational",
    "reused_classifier": "ReusedClassifier",
    "review": "Review",
    "self_attention_relations": "SelfAttentionRelations",
    "self_distillation": "SelfDistillation",
    "sigmoid_targets": "SigmoidTargets",
    "similarity_preserving": "SimilarityPreserving",
    "sobolev": "Sobolev",
    "soft_targets": "SoftTargets",
    "standardized_soft_targets": "StandardizedSoftTargets",
    "transformed_teacher": "TransformedTeacher",
    "two_heads": "TwoHeads",
    "value_targets": "ValueTargets",
    "variational": "Variational",
    "weight_transfer": "WeightTransfer",
}

# those that train the classifier from logits alone; the others have files of their own
OUTSIDE = {"class_mapping", "hard_targets", "logit_matching", "multi_level"}  # the tournament
ON_LOGITS = [name for name in METHODS if name in OUTSIDE | contestants(complete=True).keys()]
TAUGHT = [name for name in ON_LOGITS if name not in ("label_smoothing", "labels")]
TEMPERED = [name for name in ON_LOGITS if "temperature" in signature(available()[name]).parameters]
SYMMETRIC = {"dist", "logit_matching"}  # neither a correlation nor a distance has a direction
COPIES = [name for name in TAUGHT if name != "hard_targets"]  # a choice is not all that is said


ELSEWHERE = {
    "flow": "CVPR 2017",
    "instance_graph": "CVPR 2019",
    "multi_level": "CVPR 2023",
    "value_targets": "NeurIPS 2017",
}
UNSOURCED = ("labels", "class_mapping")


def logits(seed: int, batch: int = 32, classes: int = 7) -> torch.Tensor:
    return 2 * torch.randn(batch, classes, generator=torch.Generator().manual_seed(seed))


S, T = logits(0), logits(1)
Y = torch.arange(32) % 7


def terms(distiller: Distiller, student=S, teacher=T, targets=Y) -> dict[str, torch.Tensor]:
    return distiller(Outputs(student), None if teacher is None else Outputs(teacher), targets)


def soft(temperature: float) -> torch.Tensor:
    return losses.soft_target_loss(S, T, temperature)


HARD = losses.hard_label_loss(S, Y)
EXPECTED = [
    ("soft_targets", {}, {"hard": 0.1 * HARD, "soft": 0.9 * soft(4.0)}),
    ("soft_targets", {"temperature": 2, "alpha": 0.25}, {"hard": 0.75 * HARD, "soft": soft(2) / 4}),
    (
        "decoupled",
        {"temperature": 3.0, "alpha": 2.0, "beta": 5.0, "weight": 0.5},
        {"hard": HARD, "decoupled": 0.5 * losses.decoupled_loss(S, T, Y, 3.0, 2.0, 5.0)},
    ),
    (
        "dist",
        {"temperature": 3.0, "beta": 1.0, "gamma": 4.0},
        {"hard": HARD, "dist": losses.dist_loss(S, T, 3.0, 1.0, 4.0)},
    ),
    (
        "standardized_soft_targets",
        {"temperature": 3.0, "weight": 2.0},
        {
            "hard": HARD,
            "soft": 2
            * losses.soft_target_loss(
                losses.standardize_logits(S), losses.standardize_logits(T), 3.0
            ),
        },
    ),
    (
        "transformed_teacher",
        {"temperature": 3.0, "weight": 2.0},
        {"hard": HARD, "transformed": 2 * losses.ttm_loss(S, T, 3.0)},
    ),
    (
        "transformed_teacher",
        {"weighted": True},
        {"hard": HARD, "transformed": losses.ttm_loss(S, T, 4.0, weighted=True)},
    ),
    ("label_smoothing", {"smoothing": 0.3}, {"hard": losses.hard_label_loss(S, Y, 0.3)}),
    *(
        (
            "soft_targets",
            {"temperature": 3.0, "divergence": divergence},
            {
                "hard": 0.1 * HARD,
                "soft": 0.9 * losses.soft_target_loss(S, T, 3.0, divergence=divergence),
            },
        )
        for divergence in ("forward", "reverse", "jensen-shannon")
    ),
    (
        "logit_matching",
        {"weight": 0.5},
        {"hard": HARD, "logits": 0.5 * losses.logit_matching_loss(S, T)},
    ),
    (
        "hard_targets",
        {"alpha": 0.25},
        {"hard": 0.75 * HARD, "choice": 0.25 * losses.hard_target_loss(S, T)},
    ),
    (
        "multi_level",
        {"temperatures": (1.0, 3.0), "alpha": 0.6, "batch_weight": 2.0, "class_weight": 5.0},
        {
            "hard": 0.4 * HARD,
            "instance": 0.6 * (soft(1.0) + soft(3.0)),
            "batch": 1.2 * sum(losses.batch_relation_loss(S, T, t) for t in (1.0, 3.0)),
            "class": 3.0 * sum(losses.class_relation_loss(S, T, t) for t in (1.0, 3.0)),
        },
    ),
    (
        "multi_level",
        {"temperatures": (2.0,)},
        {
            "hard": 0.1 * HARD,
            "instance": 0.9 * soft(2.0),
            "batch": 0.9 * 64 * losses.batch_relation_loss(S, T, 2.0),
            "class": 0.9 * 4096 * 0.07**2 * losses.class_relation_loss(S, T, 2.0),
        },
    ),
    ("class_mapping", {}, {"hard": 0.1 * HARD, "soft": 0.9 * soft(4.0)}),
    ("labels", {"weight": 0.5}, {"hard": 0.5 * HARD}),
]


@pytest.mark.parametrize(("name", "options", "expected"), EXPECTED)
def test_terms_are_losses_times_weights(name, options, expected):
    got = terms(build(name, **options))
    assert list(got) == list(expected)
    for key, value in expected.items():
        torch.testing.assert_close(got[key], value)
        assert value > 0


def test_no_method_is_without_a_test():
    """One on logits has its terms in EXPECTED, any other its tests in another file here."""
    assert {name for name, *_ in EXPECTED} == set(ON_LOGITS)
    here = Path(__file__)
    others = " ".join(p.read_text() for p in here.parent.glob("test_*.py") if p != here)
    inside = [METHODS[name] for name in METHODS if name not in ON_LOGITS]
    assert [name for name in inside if not re.search(rf"\b{name}\b", others)] == []


@pytest.mark.parametrize("name", ON_LOGITS)
def test_what_every_method_keeps(name):
    distiller = build(name)
    student, teacher = S.clone().requires_grad_(), T.clone().requires_grad_()
    total = torch.stack(list(terms(distiller, student, teacher).values())).sum()
    total.backward()
    assert total.shape == () and torch.isfinite(student.grad).all() and student.grad.any()
    assert teacher.grad is None  # defect 11
    assert distiller.needs_only_logits and distiller.needs_teacher == (name in TAUGHT)
    order = torch.randperm(32, generator=torch.Generator().manual_seed(2))
    for key, value in terms(distiller, S[order], T[order], Y[order]).items():
        torch.testing.assert_close(value, terms(distiller)[key])


@pytest.mark.parametrize("name", COPIES)
def test_a_student_that_agrees_is_left_alone(name):
    student = T.clone().requires_grad_()
    got = terms(build(name, **({"temperature": 1.0} if name in TEMPERED else {})), student)
    got.pop("hard")
    value = sum(got.values())
    value.backward()
    assert student.grad.abs().max() < 1e-6
    assert value.detach().abs() < 1e-5


@pytest.mark.parametrize("name", TAUGHT)
def test_both_sides_matter_and_roles_differ(name):
    def distance(student, teacher):
        got = terms(build(name), student, teacher)
        got.pop("hard")
        return float(sum(got.values()))

    assert distance(S, T) != pytest.approx(distance(T, T), rel=1e-3)
    assert distance(S, T) != pytest.approx(distance(S, S), rel=1e-3)
    if name not in SYMMETRIC:
        assert distance(S, T) != pytest.approx(distance(T, S), rel=1e-3)


@pytest.mark.parametrize("end", [0.0, 1.0])
def test_the_ends_of_alpha_are_no_special_case(end):
    """Defect 2: a path of its own for α = 0 that forgets T²."""
    near = terms(SoftTargets(4.0, abs(end - 1e-6)))
    for key, value in terms(SoftTargets(4.0, end)).items():
        assert float(value) == pytest.approx(float(near[key]), abs=1e-4)
    only = terms(SoftTargets(4.0, end))["soft" if end else "hard"]
    assert float(only) == pytest.approx(float(soft(4.0) if end else HARD))


@pytest.mark.parametrize("name", ON_LOGITS)
def test_unlabelled_images_learn_from_the_teacher_alone(name):
    unknown = torch.full_like(Y, -1)
    with losses.checks.unchecked_values():  # as in `fit`
        got = terms(build(name), targets=unknown)
    assert got["hard"] == 0
    assert all(torch.isfinite(value) for value in got.values())


@pytest.mark.parametrize("name", TAUGHT)
def test_without_a_teacher_the_message_is_kind(name):
    with pytest.raises(ValueError, match=f"^teacher: {METHODS[name]} needs .*teacher=teacher"):
        terms(build(name), teacher=None)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("soft_target", {}, "^unknown method 'soft_target' .did you mean 'soft_targets'"),
        ("xyz", {}, "^unknown method 'xyz'; known: activation_boundary, attention_distributions,"),
        ("base", {}, "^unknown method 'base'"),
        (
            "dist",
            {"temprature": 2},
            "^unknown option 'temprature' of dist .did you mean 'temp",
        ),
        ("dist", {"self": 2}, "^unknown option 'self' of dist;"),
        ("soft_targets", {"alpha": 1.1}, "^alpha: 1.1 came, expected a weight from 0 to 1"),
        ("soft_targets", {"alpha": float("nan")}, "^alpha: nan came"),
        ("soft_targets", {"alpha": "x"}, "^alpha: 'x' came, .* a number"),
        ("soft_targets", {"alpha": None}, "^alpha: None came, .* a number"),
        ("label_smoothing", {"smoothing": -0.1}, "^smoothing: -0.1 came"),
    ],
)
def test_a_wrong_name_or_option_is_refused(name, options, message):
    with pytest.raises(ValueError, match=message):
        build(name, **options)


@pytest.mark.parametrize("name", TEMPERED)
def test_a_bad_temperature_is_refused_by_name(name):
    with pytest.raises(ValueError, match=r"^temperature: "):
        terms(build(name, temperature=0.0))


def test_the_list_is_the_folder():
    assert {name: method.__name__ for name, method in available().items()} == METHODS
    for name, method in available().items():
        assert getattr(distillers, METHODS[name]) is method
        source = ELSEWHERE.get(name, "arXiv:")
        assert name in UNSOURCED or source in (method.__doc__ or "")
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        _ = distillers.Nothing


def test_the_contest_is_of_those_that_train_any_pair_of_image_models(monkeypatch):
    monkeypatch.setattr(distillers.Hints, "in_tournament", False)
    inside, on_logits = contestants(complete=False), contestants(complete=True)
    assert not inside.keys() & on_logits.keys() and "hints" not in inside
    assert inside["review"] is distillers.Review and on_logits["labels"] is distillers.Labels
    for name, method in available().items():
        kept = (on_logits if method.complete else inside).get(name)
        assert kept is (method if method.in_tournament else None)


@pytest.fixture
def plant(tmp_path, monkeypatch):
    """Put files into the folder of the methods, for one test."""
    planted = []

    def plant(**sources):
        for name, source in sources.items():
            lines = ["from kdlab.distillers.base import Distiller", *source]
            (tmp_path / f"{name}.py").write_text("\n".join(lines) + "\n")
            planted.append(name)
        importlib.invalidate_caches()

    monkeypatch.setattr(distillers, "__path__", [*distillers.__path__, str(tmp_path)])
    yield plant
    for name in planted:
        sys.modules.pop(f"kdlab.distillers.{name}", None)
        vars(distillers).pop(name, None)


FORWARD = [
    "    def forward(self, student, teacher, targets):",
    "        return {'size': student.logits.square().mean()}",
]


def test_a_new_file_is_a_new_method(plant):
    before = set(available())
    plant(homemade=["class Homemade(Distiller):", *FORWARD])
    assert set(available()) == {*before, "homemade"}
    assert terms(build("homemade"))["size"] > 0
    assert distillers.Homemade is available()["homemade"]
    assert "Homemade" in dir(distillers)


def test_a_method_may_take_its_formula_from_another(plant):
    plant(
        warmer=[
            "from kdlab.distillers.soft_targets import SoftTargets",
            "class Warmer(SoftTargets):",
            "    def __init__(self, alpha=0.9):",
            "        super().__init__(9.0, alpha)",
        ]
    )
    got = terms(build("warmer", alpha=0.5))
    torch.testing.assert_close(got["soft"], 0.5 * soft(9.0))


def test_what_methods_have_in_common_is_none_itself(plant):
    before = available().keys()
    plant(
        common=["class Common(Distiller):", "    pass"],
        first=["from kdlab.distillers.common import Common", "class First(Common):", *FORWARD],
        helpers=["from kdlab.distillers.hints import Hints", "class Helper:", "    pass"],
    )
    assert available().keys() - before == {"first"}


def test_a_method_without_its_formula_is_found_and_says_so(plant):
    plant(forgetful=["class Forgetful(Distiller):", "    def foward(self): pass"])
    with pytest.raises(NotImplementedError, match="Forgetful must define forward"):
        terms(build("forgetful"))


def test_two_methods_in_one_file_are_refused(plant):
    plant(
        pair=["class Left(Distiller):", *FORWARD, "Same = Left", "class Right(Left):", "    pass"]
    )
    expected = r"pair\.py: 2 methods in it, Left and Right, expected one; move each into a file"
    with pytest.raises(ImportError, match=expected):
        available()


def test_the_methods_are_seen_and_imported_only_when_they_are_asked_for():
    assert {*METHODS.values(), "available", "Distiller"} <= set(dir(distillers))
    script = "import sys, kdlab.distillers as d; sys.exit('kdlab.distillers.hints' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script]).returncode == 0


@pytest.mark.parametrize("name", METHODS)
def test_printed_it_says_what_it_does(name):
    shown = repr(build(name))
    assert shown.startswith(f"{METHODS[name]}(")
    assert "training" not in shown
    for option, value in vars(build(name)).items():
        inherited = hasattr(Distiller, option)  # such as the taps that a sum of methods collects
        if not option.startswith("_") and option != "training" and not inherited:
            assert f"{option}={value!r}" in shown
    assert repr(build(name)) == shown


def test_options_that_differ_are_printed_differently():
    assert repr(SoftTargets(4.0)) != repr(SoftTargets(4.5))
    assert "4.5" in repr(SoftTargets(4.5) + LabelSmoothing())


def test_an_option_that_would_not_show_is_noticed():
    """Else a checkpoint would take two values of it for the same run."""

    class Hidden(SoftTargets):
        def __init__(self, weight=1.0, *rest, **options):
            super().__init__(**options)
            self._weight = weight

    class Buffered(SoftTargets):
        def __init__(self, weight=1.0):
            super().__init__()
            self.register_buffer("weight", torch.tensor(weight))

    assert repr(Distiller()) == "Distiller()"  # what takes any options has none to show
    for method in (Hidden, Buffered):
        with pytest.raises(ValueError, match=r"^weight: .* own name.*write self.weight = weight"):
            repr(method())
        with pytest.raises(ValueError, match=r"^weight: "):
            repr(method() + LabelSmoothing())


def test_a_method_of_methods_shows_its_options():
    class Powered(Wrapper):
        def __init__(self, method, power):
            super().__init__(method)
            self.power = power

    shown = repr(Powered(SoftTargets(), 3))
    assert "power=3" in shown and "taps" not in shown and "complete" not in shown
    assert repr(0.1234567 * SoftTargets()) != repr(0.1234568 * SoftTargets())


def test_a_sum_has_the_terms_of_its_parts():
    both = SoftTargets(2.0) + SoftTargets(8.0) + LabelSmoothing(0.2)
    assert isinstance(both, Sum) and len(both.parts) == 3
    got = terms(both)
    assert list(got) == ["hard", "soft", "hard_2", "soft_2", "hard_3"]
    torch.testing.assert_close(got["soft"], 0.9 * soft(2.0))
    torch.testing.assert_close(got["soft_2"], 0.9 * soft(8.0))
    torch.testing.assert_close(got["hard_3"], losses.hard_label_loss(S, Y, 0.2))
    grouped = terms(SoftTargets(2.0) + (SoftTargets(8.0) + LabelSmoothing(0.2)))
    assert list(grouped) == list(got)


def test_a_sum_needs_what_its_parts_need():
    class Inner(Distiller):
        student_taps, teacher_taps = ("a", "b"), ("c",)

        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.ones(()))

        def prepare(self, student, teacher, train):
            self.prepared = True

    class Outer(Inner):
        student_taps, teacher_taps = ("b", "d"), ()

    both = Inner() + Outer() + SoftTargets()
    assert both.student_taps == ("a", "b", "d") and both.teacher_taps == ("c",)
    assert not both.needs_only_logits and (Outer() + SoftTargets()).needs_only_logits
    assert not (LabelSmoothing() + LabelSmoothing()).needs_teacher
    assert (LabelSmoothing() + SoftTargets()).needs_teacher
    both.prepare(nn.Identity(), None, S)
    assert [getattr(part, "prepared", False) for part in both.parts] == [True, True, False]
    assert len(list(both.parameters())) == 2  # defect 4


def test_a_factor_scales_every_term_and_nothing_else():
    plain, scaled = terms(SoftTargets(3.0)), terms(0.5 * SoftTargets(3.0))
    assert list(plain) == list(scaled)
    for name, value in plain.items():
        torch.testing.assert_close(scaled[name], 0.5 * value)
    both = terms(LabelSmoothing() + SoftTargets() * 2)
    torch.testing.assert_close(both["soft"], 2 * terms(SoftTargets())["soft"])
    assert (2 * SoftTargets()).needs_only_logits and not (2 * LabelSmoothing()).needs_teacher
    assert "factor=0.5" in repr(0.5 * SoftTargets())
    for wrong in (-1, float("nan"), "2"):
        with pytest.raises(ValueError, match="factor"):
            SoftTargets() * wrong


def test_a_method_without_a_formula_says_so():
    with pytest.raises(NotImplementedError, match="Distiller must define forward"):
        terms(Distiller())
