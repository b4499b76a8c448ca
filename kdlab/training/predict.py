"""Ask a trained model about many images."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from kdlab.training.device import pick_device


@torch.no_grad()
def predict(
    model: nn.Module, images: Tensor, batch_size: int = 1024, device: str | torch.device = "auto"
) -> Tensor:
    """Return the logits ``[N, C]`` float32, on the CPU, of images ``[N, c, h, w]``.

    The model answers in eval mode and comes back in the mode and on the device it came from.

    Raises:
        ValueError: no images, or an unknown device.
    """
    if len(images) == 0:
        raise ValueError("images: none came, expected at least one, [N, c, h, w]")
    target = pick_device(device) if isinstance(device, str) else device
    with visiting(model, target):
        parts = [
            model(channels_last(chunk.to(target))).float() for chunk in images.split(batch_size)
        ]
        return torch.cat(parts).cpu()


def channels_last(images: Tensor) -> Tensor:
    """Return 4-D images in the memory order in which convolutions are fastest."""
    if images.dim() != 4 or images.stride(1) == 1:
        return images
    # not .contiguous(): it leaves images of one channel as they are, in the strides of the slow way
    return torch.empty_like(images, memory_format=torch.channels_last).copy_(images)


class visiting:
    """Have a model in eval mode on a device for a while; then put it back as it was."""

    def __init__(self, model: nn.Module, device: torch.device) -> None:
        self.model = model
        self.device = device

    def __enter__(self) -> nn.Module:
        self.modes = {module: module.training for module in self.model.modules()}
        self.home = next((p.device for p in self.model.parameters()), torch.device("cpu"))
        self.model.eval()
        return self.model.to(self.device)

    def __exit__(self, *_: object) -> None:
        self.model.to(self.home)
        for module, mode in self.modes.items():
            module.training = mode
