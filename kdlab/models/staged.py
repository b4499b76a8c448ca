"""What all vision models share: named stages in a row, one start of the weights, one check."""

from collections import OrderedDict

import torch
from torch import Tensor, nn

LEAST_SIZE = 8  # pixels; below it the deeper models would pool an image away


class Staged(nn.Sequential):
    """A vision model as a row of named parts: `stem`, `stage1`, `stage2`, ..., `pool`, `head`.

    `forward(images)` takes float images `[B, c, h, w]` with h and w at least 8 and gives logits
    `[B, C]`. Part by part, in the order in which `named_children()` lists them:

    - `stem`, `stage1`, ...: feature maps `[B, c_i, h_i, w_i]`;
    - `pool`: the embedding `[B, d]`, the mean over all places of the last feature map;
    - `head`: the classifier, a `Linear` that gives the logits.

    Every part can be read by `Taps`. No layer works in place, so a tapped tensor stays as it was.

    Raises:
        ValueError: images of another rank, channel count or of fewer than 8 pixels a side.
    """

    def __init__(self, in_channels: int, parts: dict[str, nn.Module]) -> None:
        super().__init__(OrderedDict(parts))
        self.in_channels = in_channels

    def forward(self, images: Tensor) -> Tensor:
        """Logits `[B, C]` of images `[B, c, h, w]`."""
        if images.ndim != 4 or images.shape[1] != self.in_channels:
            raise ValueError(
                f"images: expected shape [B, {self.in_channels}, h, w], got {list(images.shape)}; "
                "build the model with the data's in_channels (build_for does so)."
            )
        if min(images.shape[2:]) < LEAST_SIZE:
            raise ValueError(
                f"images: expected at least {LEAST_SIZE}x{LEAST_SIZE} pixels, got "
                f"{images.shape[2]}x{images.shape[3]}; enlarge them or use the model 'mlp'."
            )
        return super().forward(images)


def global_pool() -> nn.Sequential:
    """Mean over all places: feature map `[B, d, h, w]` to embedding `[B, d]`."""
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())


def conv(
    in_width: int, out_width: int, size: int = 3, stride: int = 1, groups: int = 1
) -> nn.Conv2d:
    """A convolution that keeps the size at stride 1, without bias, since a norm follows."""
    return nn.Conv2d(
        in_width, out_width, size, stride, padding=size // 2, groups=groups, bias=False
    )


def conv_norm_relu(
    in_width: int, out_width: int, size: int = 3, stride: int = 1, groups: int = 1
) -> list[nn.Module]:
    """Convolution, batch norm, ReLU."""
    return [
        conv(in_width, out_width, size, stride, groups),
        nn.BatchNorm2d(out_width),
        nn.ReLU(),
    ]


@torch.no_grad()
def initialise(model: nn.Module, *, head_std: float | None = None) -> None:
    """Start the weights as the CIFAR-100 distillation benchmark does.

    Convolutions: Kaiming normal by fan-out, biases 0. Batch norms: scale 1, shift 0 (PyTorch's
    own). Linear layers: PyTorch's own, or normal(0, head_std) with bias 0 if `head_std` is given.
    The benchmark also starts the bias of a Wide ResNet's classifier at 0 (`wide_resnet` does), and
    its ShuffleNets as PyTorch does (these do not come here).

    Source: He, Zhang, Ren, Sun, Delving deep into rectifiers, 2015, arXiv 1502.01852.
    """
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Linear) and head_std is not None:
            nn.init.normal_(module.weight, std=head_std)
            nn.init.zeros_(module.bias)
