"""Every method in any floating dtype: of the models, of the data, of PyTorch's default."""

import pytest
import torch
from pairs import ask, images, make, pair, prepared

from kdlab.distillers import available

BATCH = torch.arange(8)
DOUBLE, SINGLE, HALF = torch.float64, torch.float32, torch.bfloat16
CASES = {  # student, teacher, data: what the method then computes in
    "float64": (DOUBLE, DOUBLE, DOUBLE, DOUBLE),
    "float64 models, float32 data": (DOUBLE, DOUBLE, SINGLE, DOUBLE),
    "float64 data": (SINGLE, SINGLE, DOUBLE, SINGLE),
    "float64 teacher": (SINGLE, DOUBLE, SINGLE, DOUBLE),
    "float64 student": (DOUBLE, SINGLE, SINGLE, DOUBLE),
    "bf16": (HALF, HALF, SINGLE, SINGLE),
    "bf16 teacher": (SINGLE, HALF, SINGLE, SINGLE),
    "bf16 student, float64 teacher": (HALF, DOUBLE, SINGLE, DOUBLE),
}


REDRAWN = ("mutual_learning",)  # a second student, whose random start depends on the dtype


def gradients(name, mine, theirs, data):
    """The method after one backward, and the student's gradients."""
    student, teacher = pair(name)
    student, teacher, train = student.to(mine), teacher.to(theirs), images(12, data)
    method = prepared(make(name), student, teacher, train)
    terms = ask(method, student, teacher, train, BATCH)
    if terms:  # a transfer of weights has none
        sum(terms.values()).backward()
    return method, [p.grad for p in student.parameters() if p.grad is not None]


def own(method):
    return [t for t in (*method.parameters(), *method.buffers()) if t.is_floating_point()]


@pytest.mark.parametrize("name", available("classes"))
def test_every_method_in_every_dtype(name):
    _, usual = gradients(name, SINGLE, SINGLE, SINGLE)
    for case, (mine, theirs, data, computes_in) in CASES.items():
        method, found = gradients(name, mine, theirs, data)
        assert {t.dtype for t in own(method)} <= {computes_in}, case
        assert all(bool(g.isfinite().all()) and g.dtype == mine for g in found), case
        assert len(found) == len(usual), case
        if (
            HALF not in (mine, theirs) and usual and name not in REDRAWN
        ):  # the random start of adapters is the same
            got, expected = (
                torch.cat([g.flatten().double() for g in each]) for each in (found, usual)
            )
            assert (got - expected).norm() <= 1e-3 * expected.norm(), case
            assert expected.norm() > 0


@pytest.mark.parametrize("name", available("classes"))
def test_every_method_under_another_default_dtype(name):
    torch.set_default_dtype(DOUBLE)
    try:
        for dtype in (SINGLE, DOUBLE):  # models from before, models from now
            method, found = gradients(name, dtype, dtype, SINGLE)
            assert {t.dtype for t in own(method)} <= {dtype}
            assert all(bool(g.isfinite().all()) and g.dtype == dtype for g in found)
    finally:
        torch.set_default_dtype(SINGLE)
