"""A teacher of other classes: refused in one sentence by whatever compares answers."""

import re

import pytest
import torch
from pairs import CLASSES, ask, cnn, images, make, pair, prepared, vit

from kdlab.distillers import available
from kdlab.losses.checks import unchecked_values
from kdlab.models import Committee

INSIDE = {  # these compare inner layers, or have no teacher
    *("activation_boundary", "attention_distributions", "attention_links", "attention_transfer"),
    *("channel_gated_hints", "channel_wise", "contrastive", "correlation_congruence"),
    *("factor_transfer", "flow", "hidden_states", "hints", "label_smoothing", "labels"),
    *("masked_generation", "mutual_learning", "neuron_selectivity", "overhaul", "probabilistic"),
    *("relational", "reused_classifier", "review", "self_attention_relations"),
    *("self_distillation", "similarity_preserving", "variational"),
}
REFUSAL = r"teacher: shape .*, expected student's .*same classes\? .*ClassMapping"


def teacher_of(name, classes):
    if name == "gated_teachers":
        return Committee([cnn(6, 2, classes), cnn(5, 3, classes)]).eval()
    is_vit = type(pair(name)[0]) is type(vit(8))
    return vit(12, 2, classes) if is_vit else cnn(6, 2, classes)


@pytest.mark.parametrize("name", available("classes"))
@pytest.mark.parametrize("classes", [CLASSES - 2, CLASSES + 2])
def test_a_teacher_of_other_classes(name, classes):
    student, teacher = pair(name)[0], teacher_of(name, classes)

    def terms():
        with unchecked_values():  # as in `fit`
            method = prepared(make(name), student, teacher, images())
            return ask(method, student, teacher, images(), torch.arange(8))

    if name in INSIDE:
        assert all(bool(term.isfinite()) for term in terms().values())
        return
    with pytest.raises(ValueError) as refusal:
        terms()
    told = str(refusal.value)
    assert re.match(REFUSAL, told) or re.match("student: .*number of classes", told), told
