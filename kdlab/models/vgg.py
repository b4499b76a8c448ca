"""VGG networks for small images, as in the CIFAR-100 distillation benchmark."""

from collections.abc import Sequence

from torch import nn

from kdlab.models.staged import Staged, global_pool, initialise

# Name: channels, and whether a max-pool comes first.
GROUPS = {
    "stem": (64, False),
    "stage1": (128, True),
    "stage2": (256, True),
    "stage3": (512, True),
    "stage4": (512, False),
}


def vgg(num_classes: int, in_channels: int = 3, *, depths: Sequence[int]) -> Staged:
    """A VGG network with batch norm: five groups of `depths[i]` convolutions 3x3, then one Linear.

    Paths for taps, with the output's size for 32x32 images: `stem` (the first group: 32x32, 64
    channels), `stage1` (16x16, 128), `stage2` (8x8, 256), `stage3` (4x4, 512), `stage4` (4x4, 512),
    all after their last ReLU; `pool` (the embedding), `head`.

    Sources: Simonyan, Zisserman, Very deep convolutional networks, 2014, arXiv 1409.1556. Form for
    small images as in Tian, Krishnan, Isola, Contrastive representation distillation, 2020,
    arXiv 1910.10699 (the convolutions keep their biases).
    """
    parts: dict[str, nn.Module] = {}
    before = in_channels
    for (name, (width, pooled)), depth in zip(GROUPS.items(), depths, strict=True):
        layers: list[nn.Module] = [nn.MaxPool2d(2)] if pooled else []
        for _ in range(depth):
            layers += [nn.Conv2d(before, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU()]
            before = width
        parts[name] = nn.Sequential(*layers)
    parts |= {"pool": global_pool(), "head": nn.Linear(before, num_classes)}
    model = Staged(in_channels, parts)
    initialise(model, head_std=0.01)
    return model
