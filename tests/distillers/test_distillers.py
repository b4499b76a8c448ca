"""Each method is its losses times its weights, under names; a new file is a new method."""

import importlib
import sys
from inspect import signature

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

METHODS = {
    "activation_boundary": "ActivationBoundary",
    "attention_distributions": "AttentionDistributions",
    "attention_links": "AttentionLinks",
    "attention_transfer": "AttentionTransfer",
    "channel_gated_hints": "ChannelGatedHints",
    "channel_wise": "ChannelWise",
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
    "hidden_states": "HiddenStates",
    "hints": "Hints",
    "jacobian_matching": "JacobianMatching",
    "label_smoothing": "LabelSmoothing",
    "labels": "Labels",
    "neuron_selectivity": "NeuronSelectivity",
    "overhaul": "Overhaul",
    "probabilistic": "Probabilistic",
    "relational": "Relational",
    "review": "Review",
    "self_attention_relations": "SelfAttentionRelations",
    "self_distillation": "SelfDistillation",
    "similarity_preserving": "SimilarityPreserving",
    "sobolev": "Sobolev",
    "soft_targets": "SoftTargets",
    "standardized_soft_targets": "StandardizedSoftTargets",
    "transformed_teacher": "TransformedTeacher",
    "variational": "Variational",
    "weight_transfer": "WeightTransfer",
}

# those that train the classifier from logits alone; the others have files of their own
ON_LOGITS = [name for name in METHODS if name in contestants(complete=True)]
TAUGHT = [name for name in ON_LOGITS if name not in ("label_smoothing", "labels")]
TEMPERED = [name for name in ON_LOGITS if "temperature" in signature(available()[name]).parameters]
SYMMETRIC = {"dist"}  # a correlation has no direction


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
]


@pytest.mark.parametrize(("name", "options", "expected"), EXPECTED)
def test_terms_are_losses_times_weights(name, options, expected):
    got = terms(build(name, **options))
    assert list(got) == list(expected)
    for key, value in expected.items():
        torch.testing.assert_close(got[key], value)
        assert value > 0


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


@pytest.mark.parametrize("name", TAUGHT)
def test_a_student_that_agrees_is_left_alone(name):
    student = T.clone().requires_grad_()
    got = terms(build(name, **({"temperature": 1.0} if name in TEMPERED else {})), student)
    got.pop("hard")
    (value,) = got.values()
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
        source = "arXiv:" if name != "flow" else "CVPR 2017"
        assert name == "labels" or source in (method.__doc__ or "")
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


def test_a_new_file_is_a_new_method(tmp_path, monkeypatch):
    (tmp_path / "homemade.py").write_text(
        "from kdlab.distillers.base import Distiller\n"
        "class Homemade(Distiller):\n"
        "    def forward(self, student, teacher, targets):\n"
        "        return {'size': student.logits.square().mean()}\n"
    )
    monkeypatch.setattr(distillers, "__path__", [*distillers.__path__, str(tmp_path)])
    importlib.invalidate_caches()
    try:
        assert set(available()) == {*METHODS, "homemade"}
        assert terms(build("homemade"))["size"] > 0
        assert distillers.Homemade is available()["homemade"]
    finally:
        sys.modules.pop("kdlab.distillers.homemade", None)
        vars(distillers).pop("homemade", None)


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
