"""Small convolutional networks for the lessons: fast on a CPU, yet with room to be taught."""

from collections.abc import Sequence

from torch import nn

from kdlab.models.staged import Staged, conv_norm_relu, global_pool, initialise


def cnn(
    num_classes: int,
    in_channels: int = 3,
    *,
    widths: Sequence[int] = (16, 24, 48),
    depth: int = 1,
) -> Staged:
    """A plain CNN whose stem halves the image, so that every later layer costs a quarter.

    Paths for taps, with the output's size for 28x28 images: `stem` (14x14, `widths[0]` channels),
    `stage1` (14x14, `widths[0]`), `stage2` (7x7, `widths[1]`), `stage3` (4x4, `widths[2]`), ...,
    `pool` (the embedding), `head`. Each stage is `depth` times convolution 3x3, norm, ReLU; from
    `stage2` on it begins with a max-pool.

    Args:
        num_classes: C, classes.
        in_channels: channels of an image.
        widths: channels of each stage, one to three of them.
        depth: convolutions per stage.

    Raises:
        ValueError: no or more than three widths, a width or depth below 1.
    """
    if not 1 <= len(widths) <= 3 or min(widths) < 1:
        raise ValueError(f"widths: expected one to three positive integers, got {widths!r}.")
    if depth < 1:
        raise ValueError(f"depth: expected at least 1 convolution per stage, got {depth!r}.")
    stem_width = widths[0]
    parts: dict[str, nn.Module] = {
        "stem": nn.Sequential(*conv_norm_relu(in_channels, stem_width, stride=2))
    }
    before = stem_width
    for number, width in enumerate(widths, start=1):
        layers: list[nn.Module] = [nn.MaxPool2d(2, ceil_mode=True)] if number > 1 else []
        for _ in range(depth):
            layers += conv_norm_relu(before, width)
            before = width
        parts[f"stage{number}"] = nn.Sequential(*layers)
    parts |= {"pool": global_pool(), "head": nn.Linear(before, num_classes)}
    model = Staged(in_channels, parts)
    initialise(model)
    return model
