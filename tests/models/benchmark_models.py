"""The CIFAR-100 benchmark's networks a second time: weights by published names, and a forward.

Nothing here uses `kdlab`. A network is a list of (name, shape) in the order in which RepDistiller's
state dict has them, and a function that computes with such a dict; both are written from the
descriptions of the architectures. `forward` also returns what its feature list before the
activations has: one map for each stage.
"""

import torch
import torch.nn.functional as F

RESNET = {8: 1, 14: 2, 20: 3, 32: 5, 44: 7, 56: 9, 110: 18}
VGG = {
    "vgg8": (1, 1, 1, 1, 1),
    "vgg11": (1, 1, 2, 2, 2),
    "vgg13": (2, 2, 2, 2, 2),
    "vgg16": (2, 2, 3, 3, 3),
    "vgg19": (2, 2, 4, 4, 4),
}
MOBILE = [
    (1, 16, 1, 1),
    (6, 24, 2, 1),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
]
NAMES = [
    *(f"resnet{depth}" for depth in RESNET),
    *("resnet8x4", "resnet32x4", "resnet50"),
    *("wrn_16_1", "wrn_16_2", "wrn_40_1", "wrn_40_2"),
    *VGG,
    *("mobilenetv2", "shufflenetv1", "shufflenetv2"),
]


class Net:
    """Takes weights from a state dict in their order, or makes them up if there is none."""

    def __init__(self, weights=None, seed=0):
        self.weights = {} if weights is None else weights
        self.makes = weights is None
        self.random = torch.Generator().manual_seed(seed)

    def take(self, name, *shape, scale=1.0, shift=0.0):
        if self.makes:
            self.weights[name] = torch.randn(*shape, generator=self.random) * scale + shift
        return self.weights[name]

    def conv(self, name, x, out, size=3, stride=1, groups=1, bias=False):
        fan = x.shape[1] // groups * size**2
        weight = self.take(f"{name}.weight", out, x.shape[1] // groups, size, size, scale=fan**-0.5)
        shift = self.take(f"{name}.bias", out, scale=0.1) if bias else None
        return F.conv2d(x, weight, shift, stride, size // 2, groups=groups)

    def norm(self, name, x):
        c = x.shape[1]
        weight = self.take(f"{name}.weight", c, scale=0.2, shift=1.0)
        bias = self.take(f"{name}.bias", c, scale=0.2)
        mean = self.take(f"{name}.running_mean", c, scale=0.2)
        if self.makes:
            self.weights[f"{name}.running_var"] = torch.rand(c, generator=self.random) + 0.5
            self.weights[f"{name}.num_batches_tracked"] = torch.tensor(7)
        var = self.weights[f"{name}.running_var"]
        scale = weight / (var + 1e-5).sqrt()
        return (x - mean.view(-1, 1, 1)) * scale.view(-1, 1, 1) + bias.view(-1, 1, 1)

    def head(self, name, x, classes):
        x = x.mean((2, 3))
        weight = self.take(f"{name}.weight", classes, x.shape[1], scale=x.shape[1] ** -0.5)
        return x @ weight.T + self.take(f"{name}.bias", classes)


def forward(name, images, classes, weights=None):
    """Logits, the maps of the stages before their activations, and the weights by name."""
    net = Net(weights)
    if name in VGG:
        logits, maps = _vgg(net, images, classes, VGG[name])
    elif name.startswith("wrn"):
        depth, widen = map(int, name.split("_")[1:])
        logits, maps = _wrn(net, images, classes, (depth - 4) // 6, widen)
    elif name == "mobilenetv2":
        logits, maps = _mobile(net, images, classes)
    elif name == "shufflenetv1":
        logits, maps = _shuffle1(net, images, classes)
    elif name == "shufflenetv2":
        logits, maps = _shuffle2(net, images, classes)
    elif name == "resnet50":
        logits, maps = _resnet50(net, images, classes)
    else:
        depth = int(name.removeprefix("resnet").removesuffix("x4"))
        widths = (32, 64, 128, 256) if name.endswith("x4") else (16, 16, 32, 64)
        logits, maps = _resnet(net, images, classes, RESNET[depth], widths)
    return logits, maps, net.weights


def _resnet(net, x, classes, blocks, widths):
    x, maps = F.relu(net.norm("bn1", net.conv("conv1", x, widths[0]))), []
    for stage, width in enumerate(widths[1:], 1):
        for block in range(blocks):
            at, stride = f"layer{stage}.{block}", 2 if stage > 1 and block == 0 else 1
            out = F.relu(net.norm(f"{at}.bn1", net.conv(f"{at}.conv1", x, width, stride=stride)))
            out = net.norm(f"{at}.bn2", net.conv(f"{at}.conv2", out, width))
            if stride > 1 or x.shape[1] != width:
                x = net.conv(f"{at}.downsample.0", x, width, 1, stride)
                x = net.norm(f"{at}.downsample.1", x)
            last = out + x
            x = F.relu(last)
        maps.append(last)
    return net.head("fc", x, classes), maps


def _resnet50(net, x, classes):
    x, maps = F.relu(net.norm("bn1", net.conv("conv1", x, 64))), []
    for stage, (width, blocks) in enumerate(((64, 3), (128, 4), (256, 6), (512, 3)), 1):
        for block in range(blocks):
            at, stride = f"layer{stage}.{block}", 2 if stage > 1 and block == 0 else 1
            out = F.relu(net.norm(f"{at}.bn1", net.conv(f"{at}.conv1", x, width, 1)))
            out = F.relu(net.norm(f"{at}.bn2", net.conv(f"{at}.conv2", out, width, stride=stride)))
            out = net.norm(f"{at}.bn3", net.conv(f"{at}.conv3", out, 4 * width, 1))
            if stride > 1 or x.shape[1] != 4 * width:
                x = net.conv(f"{at}.shortcut.0", x, 4 * width, 1, stride)
                x = net.norm(f"{at}.shortcut.1", x)
            last = out + x
            x = F.relu(last)
        maps.append(last)
    return net.head("linear", x, classes), maps


def _wrn(net, x, classes, blocks, widen):
    x, maps = net.conv("conv1", x, 16), []
    for stage, width in enumerate((16 * widen, 32 * widen, 64 * widen), 1):
        for block in range(blocks):
            at, stride = f"block{stage}.layer.{block}", 2 if stage > 1 and block == 0 else 1
            normed = net.norm(f"{at}.bn1", x)
            if block == 0 and stage > 1:
                maps.append(normed)  # of the stage before
            active = F.relu(normed)
            out = net.conv(f"{at}.conv1", active, width, stride=stride)
            out = net.conv(f"{at}.conv2", F.relu(net.norm(f"{at}.bn2", out)), width)
            if x.shape[1] != width:
                x = net.conv(f"{at}.convShortcut", active, width, 1, stride)
            x = out + x
    maps.append(net.norm("bn1", x))
    return net.head("fc", F.relu(maps[-1]), classes), maps


def _vgg(net, x, classes, depths):
    maps = []
    for group, (width, depth) in enumerate(zip((64, 128, 256, 512, 512), depths, strict=True)):
        x = F.max_pool2d(x, 2) if group in (1, 2, 3) else x
        for layer in range(depth):
            at = 3 * layer
            x = net.conv(f"block{group}.{at}", x, width, bias=True)
            x = net.norm(f"block{group}.{at + 1}", x)
            maps.append(x)
            x = F.relu(x)
        maps = [*maps[:group], maps[-1]]
    return net.head("classifier", x, classes), maps[1:]


def _mobile(net, x, classes):
    x, maps = F.relu(net.norm("conv1.1", net.conv("conv1.0", x, 16, stride=2))), []
    for group, (expansion, width, blocks, first) in enumerate(MOBILE):
        for block in range(blocks):
            at, stride, out = f"blocks.{group}.{block}.conv", first if block == 0 else 1, width // 2
            inner = expansion * x.shape[1]
            y = F.relu(net.norm(f"{at}.1", net.conv(f"{at}.0", x, inner, 1)))
            y = net.conv(f"{at}.3", y, inner, stride=stride, groups=inner)
            y = net.norm(f"{at}.7", net.conv(f"{at}.6", F.relu(net.norm(f"{at}.4", y)), out, 1))
            x = x + y if stride == 1 and x.shape[1] == out else y
        if group in (1, 2, 4, 6):
            maps.append(x)
    x = F.relu(net.norm("conv2.1", net.conv("conv2.0", x, 1280, 1)))
    return net.head("classifier.0", x, classes), maps


def _shuffled(x, groups):
    b, c, h, w = x.shape
    return x.reshape(b, groups, c // groups, h, w).permute(0, 2, 1, 3, 4).reshape(b, c, h, w)


def _shuffle1(net, x, classes):
    x, maps = F.relu(net.norm("bn1", net.conv("conv1", x, 24, 1))), []
    for stage, (width, blocks) in enumerate(((240, 4), (480, 8), (960, 4)), 1):
        for block in range(blocks):
            at, first = f"layer{stage}.{block}", block == 0
            made = width - x.shape[1] if first else width
            groups = 1 if x.shape[1] == 24 else 3
            y = F.relu(net.norm(f"{at}.bn1", net.conv(f"{at}.conv1", x, made // 4, 1, 1, groups)))
            y = _shuffled(y, groups)
            y = net.conv(f"{at}.conv2", y, made // 4, 3, 2 if first else 1, made // 4)
            y = net.conv(f"{at}.conv3", F.relu(net.norm(f"{at}.bn2", y)), made, 1, 1, 3)
            y = net.norm(f"{at}.bn3", y)
            last = torch.cat([y, F.avg_pool2d(x, 3, 2, 1)], 1) if first else y + x
            x = F.relu(last)
        maps.append(last)
    return net.head("linear", x, classes), maps


def _shuffle2(net, x, classes):
    x, maps = F.relu(net.norm("bn1", net.conv("conv1", x, 24, 1))), []
    for stage, (width, blocks) in enumerate(((116, 3), (232, 7), (464, 3)), 1):
        half, at = width // 2, f"layer{stage}.0"
        left = net.norm(f"{at}.bn1", net.conv(f"{at}.conv1", x, x.shape[1], 3, 2, x.shape[1]))
        left = F.relu(net.norm(f"{at}.bn2", net.conv(f"{at}.conv2", left, half, 1)))
        right = F.relu(net.norm(f"{at}.bn3", net.conv(f"{at}.conv3", x, half, 1)))
        right = net.norm(f"{at}.bn4", net.conv(f"{at}.conv4", right, half, 3, 2, half))
        right = F.relu(net.norm(f"{at}.bn5", net.conv(f"{at}.conv5", right, half, 1)))
        x = _shuffled(torch.cat([left, right], 1), 2)
        for block in range(1, blocks + 1):
            at = f"layer{stage}.{block}"
            kept, y = x[:, :half], x[:, half:]
            y = F.relu(net.norm(f"{at}.bn1", net.conv(f"{at}.conv1", y, half, 1)))
            y = net.norm(f"{at}.bn2", net.conv(f"{at}.conv2", y, half, groups=half))
            y = net.norm(f"{at}.bn3", net.conv(f"{at}.conv3", y, half, 1))
            x = _shuffled(torch.cat([kept, F.relu(y)], 1), 2)
        maps.append(_shuffled(torch.cat([kept, y], 1), 2))  # as published but for the order
    x = F.relu(net.norm("bn2", net.conv("conv2", x, 1024, 1)))
    return net.head("linear", x, classes), maps
