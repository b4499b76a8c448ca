"""An exported model of images is given whole numbers: normalised as its data were, or refused."""

import numpy as np
import pytest
import torch

from kdlab.compression import export, load
from kdlab.datasets import from_arrays, from_tensors
from kdlab.models import build_for

X = np.random.default_rng(0).integers(0, 256, (20, 8, 8, 1), np.uint8)


@pytest.fixture(scope="module")
def deployed(tmp_path_factory):
    data = from_arrays(X, np.arange(20) % 2, X[:6], np.arange(6) % 2)
    model = build_for("mlp", data.shape, 2, seed=0)
    path = export(model, tmp_path_factory.mktemp("m") / "m.safetensors", data)
    return load(path, model=build_for("mlp", data.shape, 2, seed=1))


def test_bytes_are_divided_as_in_training(deployed):
    whole = torch.from_numpy(X).movedim(-1, 1)
    wanted = deployed(whole / 255)
    torch.testing.assert_close(deployed(whole), wanted)
    torch.testing.assert_close(deployed(whole.numpy()), wanted)
    torch.testing.assert_close(deployed(whole * 0), deployed(whole * 0.0))


@pytest.mark.parametrize("kind", ["int16", "int64", "uint16"])
def test_other_whole_numbers_are_refused(deployed, kind):
    with pytest.raises(ValueError, match=rf"inputs: got torch.{kind} from 0 to 255, expected"):
        deployed(X.transpose(0, 3, 1, 2).astype(kind))
    with pytest.raises(ValueError, match=r"got torch.uint8 from 0 to 1.*inputs.float"):
        deployed(torch.from_numpy(X).movedim(-1, 1) // 255)


def test_tensors_that_were_normalised_elsewhere_are_not_cut_to_pixels(tmp_path):
    x, y = torch.randn(20, 1, 8, 8), torch.arange(20) % 2
    data = from_tensors(x, y, x[:6], y[:6])
    model = build_for("mlp", data.shape, 2, seed=0).eval()
    path = export(model, tmp_path / "m.safetensors", data)
    teacher = load(path, model=build_for("mlp", data.shape, 2, seed=1)).for_data(data)
    torch.testing.assert_close(teacher(x), model(x).detach(), rtol=1e-4, atol=1e-5)
