"""MobileNetV2 for small images, as in the CIFAR-100 distillation benchmark."""

from torch import Tensor, nn

from kdlab.models.staged import Staged, conv, conv_norm_relu, global_pool, initialise

# Per stage, groups of blocks: (channels at width 1, blocks, stride of the first block). A stage
# holds the groups of one resolution. The very first group has expansion 1.
STAGES = (
    ((16, 1, 1), (24, 2, 1)),
    ((32, 3, 2),),
    ((64, 4, 2), (96, 3, 1)),
    ((160, 3, 2), (320, 1, 1)),
)
LAST_WIDTH = 1280


class InvertedResidual(nn.Module):
    """Widen by 1x1, filter each channel by 3x3, narrow by 1x1; a shortcut where the shape stays.

    `[B, in, h, w]` to `[B, out, h / stride, w / stride]`, without a ReLU at the end.
    """

    def __init__(self, in_width: int, out_width: int, stride: int, expansion: int) -> None:
        super().__init__()
        inner = in_width * expansion
        self.layers = nn.Sequential(
            *conv_norm_relu(in_width, inner, size=1),
            *conv_norm_relu(inner, inner, stride=stride, groups=inner),
            conv(inner, out_width, size=1),
            nn.BatchNorm2d(out_width),
        )
        self.has_shortcut = stride == 1 and in_width == out_width

    def forward(self, x: Tensor) -> Tensor:
        """The block's feature map."""
        return x + self.layers(x) if self.has_shortcut else self.layers(x)


def mobilenetv2(
    num_classes: int, in_channels: int = 3, *, width: float = 0.5, expansion: int = 6
) -> Staged:
    """MobileNetV2 whose stem halves the image; at width 0.5 the benchmark's usual light student.

    Paths for taps, with the output's size for 32x32 images and the channels at width 0.5: `stem`
    (16x16, 16), `stage1` (16x16, 12), `stage2` (8x8, 16), `stage3` (4x4, 48), `stage4` (2x2, 160),
    the stages without a last ReLU; `mix` (2x2, 1280: convolution 1x1, norm, ReLU), `pool` (the
    embedding), `head`.

    Args:
        num_classes: C, classes.
        in_channels: channels of an image.
        width: factor on all channel counts but the last; above 1 on that one too.
        expansion: factor by which a block widens its input.

    Raises:
        ValueError: a width below 1/16, which would leave a group without channels, or an
            expansion below 1.

    Sources: Sandler, Howard, Zhu, Zhmoginov, Chen, MobileNetV2, 2018, arXiv 1801.04381. Form for
    small images as in Tian, Krishnan, Isola, Contrastive representation distillation, 2020,
    arXiv 1910.10699.
    """
    if width < 1 / 16 or expansion < 1:
        raise ValueError(
            f"width and expansion: expected at least 1/16 and 1, got {width!r} and {expansion!r}."
        )
    before = int(32 * width)
    parts: dict[str, nn.Module] = {
        "stem": nn.Sequential(*conv_norm_relu(in_channels, before, stride=2))
    }
    for number, groups in enumerate(STAGES, start=1):
        blocks: list[nn.Module] = []
        for channels, count, stride in groups:
            out = int(channels * width)
            for index in range(count):
                first_of_all = number == 1 and not blocks
                blocks.append(
                    InvertedResidual(
                        before, out, stride if index == 0 else 1, 1 if first_of_all else expansion
                    )
                )
                before = out
        parts[f"stage{number}"] = nn.Sequential(*blocks)
    last = int(LAST_WIDTH * max(width, 1.0))
    parts["mix"] = nn.Sequential(*conv_norm_relu(before, last, size=1))
    parts |= {"pool": global_pool(), "head": nn.Linear(last, num_classes)}
    model = Staged(in_channels, parts)
    initialise(model, head_std=0.01)
    return model
