"""Wide residual networks for small images, as in the CIFAR-100 distillation benchmark."""

from torch import Tensor, nn

from kdlab.models.staged import Staged, conv, global_pool, initialise


class PreActivationBlock(nn.Module):
    """Norm and ReLU come before each of two 3x3 convolutions; the sum is left as it is.

    Where the shape changes, the shortcut is a 1x1 convolution of the *activated* input.
    `[B, in, h, w]` to `[B, out, h / stride, w / stride]`.
    """

    def __init__(self, in_width: int, out_width: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_width)
        self.act1 = nn.ReLU()
        self.conv1 = conv(in_width, out_width, stride=stride)
        self.bn2 = nn.BatchNorm2d(out_width)
        self.act2 = nn.ReLU()
        self.conv2 = conv(out_width, out_width)
        self.shortcut = (
            None if in_width == out_width else conv(in_width, out_width, size=1, stride=stride)
        )

    def forward(self, x: Tensor) -> Tensor:
        """The block's feature map, before the next norm and ReLU."""
        active = self.act1(self.bn1(x))
        out = self.conv2(self.act2(self.bn2(self.conv1(active))))
        return out + (x if self.shortcut is None else self.shortcut(active))


def wide_resnet(num_classes: int, in_channels: int = 3, *, depth: int, widen: int) -> Staged:
    """A wide residual network of `depth` = 6n + 4 layers, `widen` times as wide as a plain one.

    Paths for taps, with the output's size for 32x32 images: `stem` (32x32, 16 channels), `stage1`
    (32x32, 16 · widen), `stage2` (16x16, 32 · widen), `stage3` (8x8, 64 · widen), all *before* the
    next norm and ReLU; `norm` (stage3 after both), `pool` (the embedding), `head`.

    Sources: Zagoruyko, Komodakis, Wide residual networks, 2016, arXiv 1605.07146. Names as in
    Tian, Krishnan, Isola, Contrastive representation distillation, 2020, arXiv 1910.10699.
    """
    blocks = (depth - 4) // 6
    parts: dict[str, nn.Module] = {"stem": conv(in_channels, 16)}
    before = 16
    for number, width in enumerate((16 * widen, 32 * widen, 64 * widen), start=1):
        first = PreActivationBlock(before, width, 1 if number == 1 else 2)
        rest = [PreActivationBlock(width, width, 1) for _ in range(blocks - 1)]
        parts[f"stage{number}"] = nn.Sequential(first, *rest)
        before = width
    parts["norm"] = nn.Sequential(nn.BatchNorm2d(before), nn.ReLU())
    head = nn.Linear(before, num_classes)
    parts |= {"pool": global_pool(), "head": head}
    model = Staged(in_channels, parts)
    initialise(model)
    nn.init.zeros_(head.bias)  # the benchmark does so in this family, not in the residual networks
    return model
