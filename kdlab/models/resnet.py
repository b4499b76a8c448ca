"""Residual networks for small images, as in the CIFAR-100 distillation benchmark."""

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn

from kdlab.models.staged import Staged, conv, conv_norm_relu, global_pool, initialise

EXPANSION = 4  # of a bottleneck


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut, added before the last ReLU.

    The shortcut is the input itself, or a 1x1 convolution with norm where the shape changes
    (He et al.'s option B). `[B, in, h, w]` to `[B, out, h / stride, w / stride]`.
    """

    def __init__(self, in_width: int, out_width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = conv(in_width, out_width, stride=stride)
        self.bn1 = nn.BatchNorm2d(out_width)
        self.act1 = nn.ReLU()
        self.conv2 = conv(out_width, out_width)
        self.bn2 = nn.BatchNorm2d(out_width)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or in_width != out_width:
            self.shortcut = nn.Sequential(
                conv(in_width, out_width, size=1, stride=stride), nn.BatchNorm2d(out_width)
            )
        # Defined last because it runs last: `before_activation` goes by that.
        self.act2 = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """The block's feature map, after its last ReLU."""
        out = self.act1(self.bn1(self.conv1(x)))
        return self.act2(self.bn2(self.conv2(out)) + self.shortcut(x))


class Bottleneck(nn.Module):
    """Narrow by 1x1, filter by 3x3, widen by 1x1, and a shortcut, added before the last ReLU.

    The stride is the 3x3 convolution's; the shortcut is a 1x1 convolution with norm where the shape
    changes. `[B, in, h, w]` to `[B, 4 · width, h / stride, w / stride]`.
    """

    def __init__(self, in_width: int, width: int, stride: int) -> None:
        super().__init__()
        out_width = EXPANSION * width
        self.conv1 = conv(in_width, width, size=1)
        self.bn1 = nn.BatchNorm2d(width)
        self.act1 = nn.ReLU()
        self.conv2 = conv(width, width, stride=stride)
        self.bn2 = nn.BatchNorm2d(width)
        self.act2 = nn.ReLU()
        self.conv3 = conv(width, out_width, size=1)
        self.bn3 = nn.BatchNorm2d(out_width)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or in_width != out_width:
            self.shortcut = nn.Sequential(
                conv(in_width, out_width, size=1, stride=stride), nn.BatchNorm2d(out_width)
            )
        # Defined last because it runs last: `before_activation` goes by that.
        self.act3 = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """The block's feature map, after its last ReLU."""
        out = self.act2(self.bn2(self.conv2(self.act1(self.bn1(self.conv1(x))))))
        return self.act3(self.bn3(self.conv3(out)) + self.shortcut(x))


def resnet50(num_classes: int, in_channels: int = 3) -> Staged:
    """ResNet-50 in the form for small images: its stem keeps the size, with no pooling.

    Paths for taps, with the output's size for 32x32 images: `stem` (32x32, 64 channels), `stage1`
    (32x32, 256), `stage2` (16x16, 512), `stage3` (8x8, 1024), `stage4` (4x4, 2048), all after their
    last ReLU; `pool` (the embedding), `head`.

    Sources: as `resnet`; the benchmark calls it ResNet50.
    """
    parts: dict[str, nn.Module] = {"stem": nn.Sequential(*conv_norm_relu(in_channels, 64))}
    before = 64
    for number, (width, count) in enumerate(zip((64, 128, 256, 512), (3, 4, 6, 3), strict=True), 1):
        first = Bottleneck(before, width, 1 if number == 1 else 2)
        before = EXPANSION * width
        rest = [Bottleneck(before, width, 1) for _ in range(count - 1)]
        parts[f"stage{number}"] = nn.Sequential(first, *rest)
    parts |= {"pool": global_pool(), "head": nn.Linear(before, num_classes)}
    model = Staged(in_channels, parts)
    initialise(model)
    return model


def resnet(
    num_classes: int,
    in_channels: int = 3,
    *,
    depth: int,
    widths: Sequence[int],
) -> Staged:
    """A residual network of `depth` = 6n + 2 layers: n blocks in each of three stages.

    Paths for taps, with the output's size for 32x32 images: `stem` (32x32, `widths[0]` channels),
    `stage1` (32x32, `widths[1]`), `stage2` (16x16, `widths[2]`), `stage3` (8x8, `widths[3]`), all
    after their last ReLU; `pool` (the embedding), `head`.

    The widths are 16, 16, 32, 64, and in the names with x4 (resnet8x4) 32, 64, 128, 256.

    Sources: He, Zhang, Ren, Sun, Deep residual learning, 2015, arXiv 1512.03385. Widths as in
    Tian, Krishnan, Isola, Contrastive representation distillation, 2020, arXiv 1910.10699.
    """
    blocks = (depth - 2) // 6
    parts: dict[str, nn.Module] = {"stem": nn.Sequential(*conv_norm_relu(in_channels, widths[0]))}
    for number, (before, width) in enumerate(pairwise(widths), start=1):
        stride = 1 if number == 1 else 2
        first = BasicBlock(before, width, stride)
        rest = [BasicBlock(width, width, 1) for _ in range(blocks - 1)]
        parts[f"stage{number}"] = nn.Sequential(first, *rest)
    parts |= {"pool": global_pool(), "head": nn.Linear(widths[-1], num_classes)}
    model = Staged(in_channels, parts)
    initialise(model)
    return model
