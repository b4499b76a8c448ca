"""What each method says about its terms, so that a batch can be taken in parts."""

import pytest
import torch
from pairs import ask, images, make, pair, prepared

from kdlab.datasets import Split
from kdlab.distillers import (
    DeepSupervision,
    Dist,
    Distiller,
    Gated,
    Labels,
    LabelSmoothing,
    Relational,
    SoftTargets,
    available,
    build,
)
from kdlab.losses.checks import unchecked_values

METHODS = {name: lambda name=name: make(name) for name in available("classes")} | {
    "a sum": lambda: Labels() + SoftTargets() + 0.5 * LabelSmoothing(),
    "a sum that relates": lambda: Labels() + Relational(),
    "a gated sum beside another": lambda: Gated(SoftTargets() + LabelSmoothing()) + Labels(),
    "a gate that looks at the batch": lambda: Gated(SoftTargets(), "median"),
    "a gated relation": lambda: Gated(Relational(weight=0.1)),
    "weights by the losses": lambda: DeepSupervision(balance="loss"),
    "classes alone": lambda: Dist(gamma=0.0),
}
Y = torch.tensor([0, 1, -1, 2, 3, -1, -1, 1])
WHOLE, HALVES = torch.arange(8), torch.arange(8).split(4)


def said(name):
    method, (student, teacher) = METHODS[name](), pair(name)
    train = Split(images(8).x, Y)
    prepared(method, student, teacher, train).eval()
    if name == "contrastive":  # the draws for an image should not depend on its company
        table = torch.arange(8).add(torch.arange(1, 6).unsqueeze(1)).remainder(8).T
        method.draw = lambda index: table[index]
    with unchecked_values():  # as in `fit`
        found = [ask(method, student, teacher, train, index) for index in (WHOLE, *HALVES)]
    whole, *parts = [{term: v.detach() for term, v in terms.items()} for terms in found]
    return method, whole, parts


def weighted(parts, name, by_labels):
    share = [int((Y[half] >= 0).sum()) / 5 if by_labels else 0.5 for half in HALVES]
    return sum(s * part[name] for s, part in zip(share, parts, strict=True))


@pytest.mark.parametrize("name", METHODS)
def test_parts_of_a_batch_add_up_as_the_method_says(name):
    method, whole, parts = said(name)
    assert set(method.labelled_terms) <= set(whole)
    if method.relates_images:
        off = [
            float((weighted(parts, t, t in method.labelled_terms) / v - 1).abs())
            for t, v in whole.items()
        ]
        assert max(off) > 1e-5, "nothing here relates images"
        return
    for term, value in whole.items():
        labelled = term in method.labelled_terms
        torch.testing.assert_close(weighted(parts, term, labelled), value, rtol=1e-4, atol=1e-6)
        if labelled and value:
            assert weighted(parts, term, not labelled) != pytest.approx(float(value), rel=1e-3)


def test_names_of_labelled_terms_follow_what_a_sum_calls_them():
    class Impostor(Distiller):
        def forward(self, student, teacher, targets):
            return {"hard": student.logits.mean()}  # over all images, whatever its name

    method = Impostor() + SoftTargets() + (Impostor() + 2.0 * Labels())
    terms = ask(method, *pair("labels"), images(8), WHOLE)
    assert list(terms) == ["hard", "hard_2", "soft", "hard_3", "hard_4"]
    assert method.labelled_terms == ("hard_2", "hard_4")
    assert (SoftTargets() + Labels()).labelled_terms == ("hard", "hard_2")  # before any forward


def test_no_term_of_a_sum_is_lost_to_another_of_its_name():
    method = Gated(SoftTargets() + LabelSmoothing()) + Labels()
    terms = ask(prepared(method, *pair("gated"), images(8)), *pair("gated"), images(8), WHOLE)
    assert list(terms) == ["hard", "soft", "hard_2", "hard_3"]
    alone = ask(Labels(), *pair("labels"), images(8), WHOLE)
    torch.testing.assert_close(terms["hard_3"], alone["hard"])


def test_what_is_said_of_terms_is_no_option():
    for name in available("classes"):
        assert "labelled_terms" not in repr(build(name)) + repr(Gated(gate="median"))
        assert "relates_images" not in repr(build(name)) + repr(Gated(gate="median"))
