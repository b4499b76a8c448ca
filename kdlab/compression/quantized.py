"""A quantized model, and the refusal of one where layers are to be changed."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from kdlab.compression.kinds import check_kinds


class Quantized(nn.Module):
    """A model as a graph of PyTorch operations with whole numbers between them.

    `forward` takes what the model took and gives logits `[B, C]`. In PyTorch it *simulates*: each
    layer's numbers are rounded to 8 bits, then computed with as floats, so it is slower than the
    model was. Exported to .onnx, onnxruntime computes with the 8 bits themselves.

    Args:
        graph: a program that torchao has prepared or converted.
    """

    def __init__(self, graph: Any) -> None:
        super().__init__()
        self.graph: Any = graph

    def forward(self, inputs: Tensor) -> Tensor:
        """Logits `[B, C]`."""
        return self.graph(inputs)

    def train(self, mode: bool = True) -> Quantized:
        """In training, and only there, learn the ranges; a program knows no other difference."""
        self.training = mode
        for module in self.graph.modules():
            if hasattr(module, "enable_observer"):
                module.enable_observer(mode)
        return self


def check_not_quantized(model: nn.Module) -> None:
    """Raise ValueError unless this is a model whose layers can still be seen and changed."""
    check_kinds(model=model)
    if isinstance(model, Quantized):
        raise ValueError(
            "model: it is quantized, so there are no layers to change any more; take the model "
            "that it was made of, and quantize last"
        )
