"""How many tables as large as the input a loss makes: in memory-bound losses that is the time."""

import pytest
import torch
from torch.utils import _pytree
from torch.utils._python_dispatch import TorchDispatchMode

from kdlab import losses
from kdlab.losses.checks import all_finite


class Tables(TorchDispatchMode):
    """Counts new tensors of at least so many values, forward and backward."""

    def __init__(self, values):
        super().__init__()
        self.values, self.made = values, []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        known = {x.untyped_storage().data_ptr() for x in _tensors(args)}
        for x in _tensors(result):
            if x.numel() >= self.values and x.untyped_storage().data_ptr() not in known:
                self.made.append(str(function))
        return result


def _tensors(tree):
    return [x for x in _pytree.tree_leaves(tree) if isinstance(x, torch.Tensor)]


@pytest.mark.parametrize(
    ("loss", "shape", "most"),
    [
        (losses.hint_loss, (8, 16, 8, 8), 3),  # squares, their share of the mean, the gradient
        (losses.attention_transfer_loss, (8, 16, 8, 8), 8),
        (lambda s, t: losses.hard_label_loss(s, torch.arange(8)), (8, 64), 5),
    ],
    ids=["hint", "attention transfer", "hard label"],
)
def test_few_tables_are_made_with_all_checks_on(loss, shape, most):
    student = torch.randn(shape, requires_grad=True)
    with Tables(student.numel()) as tables:
        loss(student, torch.randn(shape)).backward()
    assert len(tables.made) <= most + 1, tables.made  # the teacher is made in here, too


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
def test_the_check_of_values_sees_every_one(dtype):
    large = torch.full((4, 50), torch.finfo(dtype).max, dtype=dtype)
    assert all_finite(large) and all_finite(-large) and all_finite(torch.zeros(3, dtype=dtype))
    for junk in (torch.nan, torch.inf, -torch.inf):
        values = torch.randn(4, 50).to(dtype)
        values[2, 7] = junk
        assert not all_finite(values)
    both = torch.zeros(4, dtype=dtype)
    both[0], both[1] = torch.inf, -torch.inf
    assert not all_finite(both)
