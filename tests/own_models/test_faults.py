"""Faults that the matrix found, each as small as it can be."""

import pytest
import torch
from torch import nn
from verdicts import FIT, answer, images, partner
from zoo import ZOO, Plain

from kdlab.distillers import Labels, MutualLearning, SelfAttentionRelations
from kdlab.training import fit


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
