"""How a model is run: in which mode, on which device, with its FLOPs counted."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Eval mode for a while; then each layer is in the mode that it was in.

    An exported program (``torch.export``) has one mode, in which it was exported, and keeps it.
    """
    modes = [(module, module.training) for module in model.modules()]
    try:
        with suppress(NotImplementedError):  # what an exported program raises
            model.eval()
        yield
    finally:
        for module, training in modes:
            module.training = training


def device_of(model: nn.Module) -> torch.device:
    """The device of the first parameter; the CPU for a model that has none."""
    return next((p.device for p in model.parameters()), torch.device("cpu"))


@contextmanager
def counting_flops() -> Iterator[FlopCounterMode]:
    """PyTorch's counter, without oneDNN: that computes a whole LSTM in one uncounted operation."""
    set_flags = torch.backends.mkldnn.set_flags  # mkldnn.flags() also touches TF32, and warns
    enabled, *_ = set_flags(_enabled=False, _fp32_precision=None)
    try:
        with FlopCounterMode(display=False) as counter:
            yield counter
    finally:
        set_flags(_enabled=enabled, _fp32_precision=None)
