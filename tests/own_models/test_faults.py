"""Faults that the matrix found, each as small as it can be."""

from dataclasses import replace

import pytest
import torch
from torch import nn
from verdicts import FIT, answer, images, partner
from zoo import ZOO, Plain

from kdlab import compression
from kdlab.datasets import Split
from kdlab.distillers import (
    Decoupled,
    GatedTeachers,
    Hints,
    Labels,
    MutualLearning,
    SelfAttentionRelations,
    SoftTargets,
)
from kdlab.models import Committee
from kdlab.training import fit, predict


@pytest.mark.parametrize(
    ("dtype", "optimizer"),
    [
        (torch.bfloat16, "sgd"),
        (torch.bfloat16, "momentum"),
        (torch.bfloat16, "adamw"),
        (torch.float16, "sgd"),
    ],
)
def test_every_number_of_a_16_bit_model_learns(dtype, optimizer):
    """PyTorch's fused SGD leaves the numbers of full vectors as they were, on a CPU."""
    layer = nn.Linear(192, 4).to(dtype)
    before = layer.weight.detach().clone()
    model = nn.Sequential(nn.Flatten(), layer)
    fit(model, images(), epochs=1, optimizer=optimizer, **(FIT | {"lr": 0.5}))
    assert (layer.weight != before).float().mean() > 0.9


class Late(Plain):
    """A branch that takes part from the second forward in training on, after the dry run's."""

    def __init__(self):
        super().__init__()
        self.late = nn.Linear(8, 4)
        self.forwards = 0

    def forward(self, x):
        features = self.pool(self.stage2(self.stage1(x)))
        self.forwards += self.training
        late = self.late(features) if self.training and self.forwards > 1 else 0
        return self.head(features) + late


def test_a_first_gradient_may_come_after_the_first_step():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Late()
    before = model.late.weight.detach().clone()
    fit(model, images(), epochs=2, **FIT)
    assert not torch.equal(model.late.weight, before)


def test_what_is_refused_comes_back_in_its_modes():
    student, teacher = partner(torch.float32).train(), partner(torch.float32, 2).train()
    student.stage1.eval()
    modes = [module.training for module in student.modules()]
    with pytest.raises(ValueError, match=r"^student: Plain has no"):
        method = Labels() + SelfAttentionRelations()
        fit(student, images(), method, teacher=teacher, epochs=1, **FIT)
    assert [module.training for module in student.modules()] == modes
    fit(student, images(), epochs=1, **FIT)
    assert not any(module.training for module in student.modules())


def test_a_peer_gets_images_in_the_memory_order_that_the_student_takes():
    student = ZOO["view(-1, 54)"].build()
    method = MutualLearning()
    fit(student, images(), method, epochs=1, **FIT)
    assert torch.isfinite(answer(method.peer, images().test.x)).all()


def test_an_exported_program_in_a_committee_leaves_nobody_in_training_mode():
    """Its ``eval`` raises, and modules after it were not reached."""
    members = [ZOO["exported program"].build(), partner(torch.float32, 2).train()]
    teacher = Committee([*members, lambda x: members[1](x)])
    before = {n: t.clone() for n, t in members[1].state_dict().items()}
    fit(partner(torch.float32), images(), GatedTeachers(), teacher=teacher, epochs=1, **FIT)
    assert all(torch.equal(t, before[n]) for n, t in members[1].state_dict().items())
    assert members[1].training
    with pytest.raises(ValueError, match=r"^members: got str, expected"):
        Committee(["resnet8"])


def test_a_teacher_whose_weights_are_not_there_yet_is_refused():
    teacher = ZOO["lazy"].build()
    with pytest.raises(ValueError, match=r"^teacher: got conv.weight without a shape"):
        fit(partner(torch.float32), images(), SoftTargets(), teacher=teacher, epochs=1, **FIT)
    with pytest.raises(ValueError, match=r"^model: got conv.weight without a shape"):
        predict(teacher, images().test.x)
    assert nn.parameter.is_lazy(teacher.conv.weight)


def test_a_method_that_reads_frozen_layers_alone_is_refused():
    student, teacher = ZOO["frozen backbone"].build(), partner(torch.float32)
    method = SoftTargets() + 0.5 * Hints("stage2")
    with pytest.raises(ValueError, match=r"^layers: got 'stage2' of the student.*frozen.*Hints"):
        fit(student, images(), method, teacher=teacher, epochs=1, **FIT)
    student.stage2[0].requires_grad_(True)
    fit(student, images(), method, teacher=teacher, epochs=1, **FIT)


def test_to_load_a_spectral_norm_does_not_change_it(tmp_path):
    model, other = ZOO["spectral norm"].build(), ZOO["spectral norm"].build(9)
    path = compression.export(model, tmp_path / "model.safetensors", images())
    compression.load(path, model=other.train())
    for name, tensor in model.state_dict().items():
        assert torch.equal(other.state_dict()[name], tensor), name


def test_a_function_is_no_model():
    with pytest.raises(ValueError, match=r"^model: .*function.*WithOutput"):
        predict(lambda x: x, images().test.x)


@pytest.mark.parametrize("method", [Labels(), Decoupled(), Labels() + Decoupled()])
def test_nothing_but_unlabelled_images_for_a_method_that_needs_labels_is_refused(method):
    data = images()
    nobody = Split(data.train.x, torch.full_like(data.train.y, -1))
    data, teacher = replace(data, train=nobody), partner(torch.float32, 2)
    with pytest.raises(ValueError, match=r"^data: got no training sample with a label"):
        fit(partner(torch.float32), data, method, teacher=teacher, epochs=1, **FIT)
    fit(partner(torch.float32), data, method + SoftTargets(), teacher=teacher, epochs=1, **FIT)
