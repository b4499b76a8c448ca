"""A committee's logits are its members' mean, and each member can be read; branches see so far."""

import copy

import pytest
import torch
from torch import nn

from kdlab.models import Committee, Taps, build_for, multi_scale, paths


def images(seed=0, batch=3, size=28):
    return torch.randn(batch, 1, size, size, generator=torch.Generator().manual_seed(seed))


def model(seed, classes=5):
    return build_for("cnn_tiny", (1, 28, 28), classes, seed=seed)


def test_the_mean_of_the_members():
    first, second = model(0).eval(), model(1).eval()
    both, x = Committee([first, second]).eval(), images()
    with Taps(both, ["members.0", "members.1", "members.1.stage2"]) as taps:
        logits = both(x)
        torch.testing.assert_close(logits, (first(x) + second(x)) / 2)
        both(x)
        assert torch.equal(taps["members.0"], first(x)) and torch.equal(
            taps["members.1"], second(x)
        )
        assert taps["members.1.stage2"].shape == (3, 16, 7, 7)
    assert not torch.equal(first(x), second(x))
    torch.testing.assert_close(Committee([second, first]).eval()(x), logits)
    assert torch.equal(Committee(iter([first])).eval()(x), first(x))
    assert "members.0" in [place.path for place in paths(both)]


def test_what_a_committee_refuses():
    with pytest.raises(ValueError, match=r"^members: none came"):
        Committee([])
    one = model(0)
    with pytest.raises(ValueError, match=r"^members: one model came twice"):
        Committee([one, one])
    Committee([one, copy.deepcopy(one)])
    with pytest.raises(ValueError, match=r"^members: they answer with shapes \[3, 5\], \[3, 4\]"):
        Committee([model(0), model(1, classes=4)])(images())


def test_fit_trains_all_members():
    both = Committee([model(0), model(1)])
    both(images()).square().mean().backward()
    assert all(p.grad is not None for p in both.parameters())
    assert len(list(both.parameters())) == 2 * len(list(model(0).parameters()))


def seen_across(branch, size=64):
    """How many pixels across one place of the last feature map can see, from the gradient."""
    body = nn.Sequential(branch.stem, branch.body).eval()
    for module in body.modules():  # every weight positive and no ReLU closed: nothing cancels
        if isinstance(module, nn.Conv2d):
            nn.init.constant_(module.weight, 0.01)
    x = torch.ones(1, 1, size, size, requires_grad=True)
    out = body(x)
    out[0, :, out.shape[2] // 2, out.shape[3] // 2].sum().backward()
    touched = x.grad[0, 0] != 0
    return int(touched.any(0).sum()), int(touched.any(1).sum())


@pytest.mark.parametrize("fields", [(7,), (7, 15, 27), (11, 19)])
def test_each_branch_sees_as_far_as_it_says(fields):
    teacher = multi_scale(5, 1, fields=fields, width=4)
    assert isinstance(teacher, Committee) and len(teacher.members) == len(fields)
    for branch, field in zip(teacher.members, fields, strict=True):
        assert seen_across(branch) == (field, field)
        assert branch(images()).shape == (3, 5)


def test_a_small_field_cannot_see_the_arrangement():
    """Where two far strokes stand to each other is the same to a branch that sees one at a time."""
    torch.manual_seed(0)
    teacher = multi_scale(5, 1, fields=(7, 27), width=8).eval()
    near, far = torch.zeros(2, 1, 1, 64, 64).unbind()
    for image, place in ((near, 36), (far, 44)):
        image[0, 0, 20:24, 20:24] = image[0, 0, 20:24, place : place + 4] = 1.0
    small, large = ((b(near) - b(far)).abs().max() for b in teacher.members)
    assert small < 1e-5 < large


@pytest.mark.parametrize("fields", [(), (3,), (8,), (7, 9)])
def test_fields_that_no_stack_has(fields):
    with pytest.raises(ValueError, match=r"^fields: \["):
        multi_scale(5, 1, fields=fields)
