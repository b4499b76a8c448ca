"""Out of memory: the same update in smaller pieces."""

import warnings

import pytest
import torch
from tiny import Adapted, distance, make_data, make_mlp
from torch import nn

from kdlab.distillers import LabelSmoothing, SoftTargets
from kdlab.training import fit

DATA = make_data()


class Tight(nn.Module):
    """A model on a device with room for so many images in training."""

    def __init__(self, limit: int, model: nn.Module) -> None:
        super().__init__()
        self.limit = limit
        self.model = model
        self.sizes: list[int] = []
        self.add_module("0", model.layers[0])

    def forward(self, x):
        if torch.is_grad_enabled():
            if len(x) > self.limit:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
            self.sizes.append(len(x))
        return self.model(x)


def train(limit: int, distiller, **options):
    model = Tight(limit, make_mlp(DATA))
    needs = distiller is not None and distiller.needs_teacher
    teacher = make_mlp(DATA, seed=9) if needs else None
    run = fit(model, DATA, distiller, teacher=teacher, epochs=2, lr=0.05, **options)
    return model, run


@pytest.mark.parametrize(
    "make", [lambda: None, LabelSmoothing, SoftTargets, lambda: Adapted() + SoftTargets()]
)
@pytest.mark.parametrize(("batch_size", "limit", "micro"), [(32, 10, 8), (30, 8, 7), (32, 1, 1)])
def test_halved_until_it_fits_with_the_same_result(make, batch_size, limit, micro):
    roomy, whole = train(1000, make(), batch_size=batch_size)
    with pytest.warns(UserWarning, match="out of memory: going on with micro-batches") as warned:
        tight, parts = train(limit, make(), batch_size=batch_size)
    sizes = [w for w in warned if "out of memory" in str(w.message)]
    assert f"micro-batches of {micro} " in str(sizes[-1].message)
    assert f"micro-batches of {batch_size // 2} " in str(sizes[0].message)
    assert distance(roomy, tight) < 1e-6
    assert max(tight.sizes) == micro and sum(tight.sizes) == sum(roomy.sizes)
    assert parts.steps == whole.steps and parts.facts["micro_batch"] == micro
    for row, expected in zip(parts.history.rows, whole.history.rows, strict=True):
        assert row == pytest.approx(expected, abs=1e-5)


def test_no_room_for_a_single_image():
    with (
        warnings.catch_warnings(),
        pytest.raises(RuntimeError, match="out of memory with a single image: use a smaller model"),
    ):
        warnings.simplefilter("ignore")
        train(0, None)


def test_other_errors_are_not_taken_for_lack_of_memory():
    class Broken(nn.Module):
        def forward(self, x):
            raise RuntimeError("shapes do not fit")

    model = make_mlp(DATA)
    with pytest.raises(ValueError, match=r"^model: got RuntimeError .*shapes do not fit"):
        fit(nn.Sequential(model, Broken()), DATA, epochs=1)
