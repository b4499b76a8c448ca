"""Ask a trained model about many images."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from kdlab.models import Taps
from kdlab.models.modes import device_of, evaluating
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


@torch.no_grad()
def read_taps(
    model: nn.Module,
    images: Tensor,
    paths: str | Iterable[str],
    batch_size: int = 256,
    device: str | torch.device = "auto",
) -> dict[str, Tensor]:
    """Return what inner layers say to images: path → ``[N, ...]`` float32, on the CPU.

    The model answers in eval mode and comes back in the mode and on the device it came from. A
    feature map may be large: N · c · h · w · 4 bytes for each path are held in memory.

    Args:
        model: any module; ``kdlab.models.paths(model)`` lists its layers.
        images: ``[N, c, h, w]``, or whatever the model takes.
        paths: dotted module paths, as for ``kdlab.models.Taps``.
        batch_size: images in one forward.
        device: where to compute.

    Raises:
        ValueError: no images, no paths, a path that the model does not have (with the nearest
            match), an output without one entry per image, or an unknown device.
    """
    wanted = (paths,) if isinstance(paths, str) else tuple(paths)
    if len(images) == 0 or not wanted:
        missing = "images" if len(images) == 0 else "paths"
        raise ValueError(f"{missing}: none came, expected at least one")
    target = pick_device(device) if isinstance(device, str) else device
    parts: dict[str, list[Tensor]] = {path: [] for path in wanted}
    with Taps(model, wanted) as taps, visiting(model, target):
        for chunk in images.split(batch_size):
            model(channels_last(chunk.to(target)))
            for path, outputs in parts.items():
                output = taps[path]
                if output.ndim == 0 or len(output) != len(chunk):
                    raise ValueError(
                        f"paths: {path!r} gives {list(output.shape)} for {len(chunk)} images; "
                        "expected one entry per image: choose another layer"
                    )
                outputs.append(output.float().cpu())
    return {path: torch.cat(outputs) for path, outputs in parts.items()}


def channels_last(images: Tensor) -> Tensor:
    """Return 4-D images in the memory order in which convolutions are fastest."""
    if images.dim() != 4 or images.stride(1) == 1:
        return images
    # not .contiguous(): it leaves images of one channel as they are, in the strides of the slow way
    return torch.empty_like(images, memory_format=torch.channels_last).copy_(images)


@contextmanager
def visiting(model: nn.Module, device: torch.device) -> Iterator[nn.Module]:
    """Have a model in eval mode on a device for a while; then put it back as it was."""
    home = device_of(model)
    with evaluating(model):
        try:
            yield model.to(device)
        finally:
            model.to(home)
