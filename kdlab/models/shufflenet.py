"""ShuffleNets for small images, as in the CIFAR-100 distillation benchmark."""

import torch
from torch import Tensor, nn

from kdlab.models.staged import Staged, conv, conv_norm_relu, global_pool

STEM = 24
GROUPS = 3  # of version 1
WIDTHS_V1, BLOCKS_V1 = (240, 480, 960), (4, 8, 4)
WIDTHS_V2, BLOCKS_V2 = (116, 232, 464), (4, 8, 4)
LAST_V2 = 1024


class ChannelShuffle(nn.Module):
    """Channel i of group g goes to place i · groups + g: the next groups see all of them."""

    def __init__(self, groups: int) -> None:
        super().__init__()
        self.groups = groups

    def forward(self, x: Tensor) -> Tensor:
        """`[B, c, h, w]`, its channels in another order."""
        return x.unflatten(1, (self.groups, -1)).transpose(1, 2).flatten(1, 2)


class GroupBlock(nn.Module):
    """ShuffleNet v1: grouped 1x1, shuffle, 3x3 of each channel, grouped 1x1; then the shortcut.

    With stride 2 the pooled input is put beside the result, else the input is added.
    `[B, in, h, w]` to `[B, out, h / stride, w / stride]`, after the last ReLU.
    """

    def __init__(self, in_width: int, out_width: int, stride: int) -> None:
        super().__init__()
        made = out_width - in_width if stride == 2 else out_width
        inner = made // 4
        groups = 1 if in_width == STEM else GROUPS
        self.conv1 = conv(in_width, inner, size=1, groups=groups)
        self.bn1 = nn.BatchNorm2d(inner)
        self.act1 = nn.ReLU()
        self.shuffle = ChannelShuffle(groups)
        self.conv2 = conv(inner, inner, stride=stride, groups=inner)
        self.bn2 = nn.BatchNorm2d(inner)
        self.act2 = nn.ReLU()
        self.conv3 = conv(inner, made, size=1, groups=GROUPS)
        self.bn3 = nn.BatchNorm2d(made)
        self.pool = nn.AvgPool2d(3, stride=2, padding=1) if stride == 2 else None
        # Defined last because it runs last: `before_activation` goes by that.
        self.act3 = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """The block's feature map, after its last ReLU."""
        out = self.shuffle(self.act1(self.bn1(self.conv1(x))))
        out = self.bn3(self.conv3(self.act2(self.bn2(self.conv2(out)))))
        return self.act3(x + out if self.pool is None else torch.cat([out, self.pool(x)], 1))


class SplitBlock(nn.Module):
    """ShuffleNet v2: half of the channels passes by, half goes through 1x1, 3x3, 1x1; shuffle.

    What passes by is not negative, so the ReLU after the shuffle changes only the other half, as
    if it came before. `[B, c, h, w]` to the same shape, after the last ReLU.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        half = width // 2
        self.conv1 = conv(half, half, size=1)
        self.bn1 = nn.BatchNorm2d(half)
        self.act1 = nn.ReLU()
        self.conv2 = conv(half, half, groups=half)
        self.bn2 = nn.BatchNorm2d(half)
        self.conv3 = conv(half, half, size=1)
        self.bn3 = nn.BatchNorm2d(half)
        self.shuffle = ChannelShuffle(2)
        self.act2 = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """The block's feature map, after its last ReLU."""
        passed, out = x.chunk(2, dim=1)
        out = self.bn2(self.conv2(self.act1(self.bn1(self.conv1(out)))))
        out = self.bn3(self.conv3(out))
        return self.act2(self.shuffle(torch.cat([passed, out], dim=1)))


class DownBlock(nn.Module):
    """ShuffleNet v2 at half the size: both halves are computed from the whole input.

    `[B, in, h, w]` to `[B, out, h / 2, w / 2]`, after the last ReLU.
    """

    def __init__(self, in_width: int, out_width: int) -> None:
        super().__init__()
        half = out_width // 2
        self.conv1 = conv(in_width, in_width, stride=2, groups=in_width)
        self.bn1 = nn.BatchNorm2d(in_width)
        self.conv2 = conv(in_width, half, size=1)
        self.bn2 = nn.BatchNorm2d(half)
        self.conv3 = conv(in_width, half, size=1)
        self.bn3 = nn.BatchNorm2d(half)
        self.act1 = nn.ReLU()
        self.conv4 = conv(half, half, stride=2, groups=half)
        self.bn4 = nn.BatchNorm2d(half)
        self.conv5 = conv(half, half, size=1)
        self.bn5 = nn.BatchNorm2d(half)
        self.shuffle = ChannelShuffle(2)
        self.act2 = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """The block's feature map, after its last ReLU."""
        left = self.bn2(self.conv2(self.bn1(self.conv1(x))))
        right = self.bn4(self.conv4(self.act1(self.bn3(self.conv3(x)))))
        right = self.bn5(self.conv5(right))
        return self.act2(self.shuffle(torch.cat([left, right], dim=1)))


def shufflenetv1(num_classes: int, in_channels: int = 3) -> Staged:
    """ShuffleNet v1 with three groups, whose stem keeps the image's size.

    Paths for taps, with the output's size for 32x32 images: `stem` (32x32, 24 channels), `stage1`
    (16x16, 240), `stage2` (8x8, 480), `stage3` (4x4, 960), all after their last ReLU; `pool` (the
    embedding), `head`. The weights start as PyTorch's own, as in the benchmark.

    Sources: Zhang, Zhou, Lin, Sun, ShuffleNet, 2017, arXiv 1707.01083. Form for small images as in
    Tian, Krishnan, Isola, Contrastive representation distillation, 2020, arXiv 1910.10699.
    """
    parts: dict[str, nn.Module] = {"stem": nn.Sequential(*conv_norm_relu(in_channels, STEM, 1))}
    before = STEM
    for number, (width, count) in enumerate(zip(WIDTHS_V1, BLOCKS_V1, strict=True), start=1):
        rest = [GroupBlock(width, width, 1) for _ in range(count - 1)]
        parts[f"stage{number}"] = nn.Sequential(GroupBlock(before, width, 2), *rest)
        before = width
    parts |= {"pool": global_pool(), "head": nn.Linear(before, num_classes)}
    return Staged(in_channels, parts)


def shufflenetv2(num_classes: int, in_channels: int = 3) -> Staged:
    """ShuffleNet v2 of width 1, whose stem keeps the image's size.

    Paths for taps, with the output's size for 32x32 images: `stem` (32x32, 24 channels), `stage1`
    (16x16, 116), `stage2` (8x8, 232), `stage3` (4x4, 464), `mix` (4x4, 1024: convolution 1x1, norm,
    ReLU), all after their last ReLU; `pool` (the embedding), `head`. The weights start as PyTorch's
    own, as in the benchmark. With another `activation` than ReLU, which no published result has,
    the half that passes a block by goes through the activation again.

    Sources: Ma, Zhang, Zheng, Sun, ShuffleNet V2, 2018, arXiv 1807.11164. Form for small images as
    in Tian, Krishnan, Isola, Contrastive representation distillation, 2020, arXiv 1910.10699.
    """
    parts: dict[str, nn.Module] = {"stem": nn.Sequential(*conv_norm_relu(in_channels, STEM, 1))}
    before = STEM
    for number, (width, count) in enumerate(zip(WIDTHS_V2, BLOCKS_V2, strict=True), start=1):
        rest = [SplitBlock(width) for _ in range(count - 1)]
        parts[f"stage{number}"] = nn.Sequential(DownBlock(before, width), *rest)
        before = width
    parts["mix"] = nn.Sequential(*conv_norm_relu(before, LAST_V2, size=1))
    parts |= {"pool": global_pool(), "head": nn.Linear(LAST_V2, num_classes)}
    return Staged(in_channels, parts)
