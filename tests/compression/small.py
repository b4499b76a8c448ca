"""Data and models for compression: small, and quickly learned."""

import numpy as np
import torch
from torch import nn

from kdlab.datasets import Data, from_arrays
from kdlab.models import build_for


def make_data(n: int = 256, classes: int = 4, seed: int = 0) -> Data:
    """Noisy patterns of 12×12 pixels."""
    rng = np.random.default_rng(seed)
    patterns = rng.random((classes, 12, 12, 1))

    def draw(count: int) -> tuple[np.ndarray, np.ndarray]:
        y = np.arange(count) % classes
        x = 0.5 * patterns[y] + 0.5 * rng.random((count, 12, 12, 1))
        return x.astype(np.float32), y

    x_val, y_val = draw(64)
    return from_arrays(*draw(n), *draw(64), x_val=x_val, y_val=y_val)


def make_model(name: str, data: Data, seed: int = 0, **options) -> nn.Module:
    """A model with statistics in its batch norms that are not those of the start."""
    model = build_for(name, data.shape, data.num_classes, seed=seed, **options)
    generator = torch.Generator().manual_seed(seed)
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm2d):
            for tensor, low in (
                (layer.weight, 0.5),
                (layer.bias, -0.5),
                (layer.running_mean, -0.2),
                (layer.running_var, 0.5),
            ):
                drawn = torch.rand(tensor.shape, generator=generator)
                tensor.data.copy_(low + drawn)
    return model.eval()
