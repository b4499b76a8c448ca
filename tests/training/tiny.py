"""Data and models so small that a training run takes milliseconds."""

import contextlib
import signal
import warnings

import numpy as np
import torch
from torch import Tensor, nn

from kdlab.datasets import Data, Split, from_arrays
from kdlab.distillers import Distiller, Outputs
from kdlab.models import build_for


def make_data(n: int = 96, classes: int = 4, seed: int = 0, channels: int = 1) -> Data:
    """Noisy patterns of 8×8 pixels, all of the n + n images different."""
    rng = np.random.default_rng(seed)
    patterns = rng.random((classes, 8, 8, channels))

    def draw(count: int) -> tuple[np.ndarray, np.ndarray]:
        y = np.arange(count) % classes
        x = 0.6 * patterns[y] + 0.4 * rng.random((count, 8, 8, channels))
        return x.astype(np.float32), y

    return from_arrays(*draw(n), *draw(n), x_val=draw(20)[0], y_val=np.arange(20) % classes)


def make_mlp(data: Data, seed: int = 0, hidden: tuple[int, ...] = (12,)) -> nn.Module:
    return build_for("mlp", data.shape, data.num_classes, seed=seed, hidden=hidden)


def make_cnn(data: Data, seed: int = 0, dropout: float = 0.0) -> nn.Sequential:
    """Convolution, batch norm, dropout: all that makes a run hard to repeat."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Conv2d(data.shape[0], 6, 3, padding=1),
            nn.BatchNorm2d(6),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.AdaptiveAvgPool2d(3),
            nn.Flatten(),
            nn.Linear(54, data.num_classes),
        )


class Readable(nn.Module):
    """A teacher whose logits tell which picture it saw, and that counts what it is asked."""

    def __init__(self, data: Data) -> None:
        super().__init__()
        weight = torch.randn(
            data.train.x[0].numel(), data.num_classes, generator=torch.Generator().manual_seed(5)
        )
        self.weight = nn.Parameter(weight)
        self.images = 0
        self.modes: set[bool] = set()

    def forward(self, x: Tensor) -> Tensor:
        self.images += len(x)
        self.modes.add(self.training)
        return self.of(x)

    def of(self, x: Tensor) -> Tensor:
        return x.flatten(1) @ self.weight


class Adapted(Distiller):
    """A method with an adapter of its own and one that is built from an example."""

    student_taps = ("0",)

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def prepare(self, student: nn.Module, teacher: nn.Module | None, train: Split) -> None:
        assert teacher is not None
        classes = teacher(train.x[:2]).shape[-1]
        self.adapter = nn.Linear(student(train.x[:2]).shape[-1], classes)

    def forward(
        self, student: Outputs, teacher: Outputs | None, targets: Tensor
    ) -> dict[str, Tensor]:
        assert teacher is not None
        gap = self.adapter(student.logits) * self.scale - teacher.logits
        return {"gap": gap.square().mean(), "tap": 1e-3 * student.taps["0"].square().mean()}


@contextlib.contextmanager
def stopping_is_expected():
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="stopped in epoch")
        yield


def interrupt_at(epoch: int, step: int):
    """A callback that presses Ctrl-C after one step."""

    def callback(moment) -> None:
        if (moment.epoch, moment.step) == (epoch, step):
            signal.raise_signal(signal.SIGINT)

    return callback


def same(a: object, b: object) -> bool:
    """Equality to the last bit of nested states."""
    if isinstance(a, Tensor):
        return isinstance(b, Tensor) and torch.equal(a, b)
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))  # type: ignore[arg-type]
    return a == b


def distance(a: nn.Module, b: nn.Module) -> float:
    """The largest difference between two models' weights and buffers."""
    pairs = zip(a.state_dict().values(), b.state_dict().values(), strict=True)
    return max(float((x.double() - y.double()).abs().max()) for x, y in pairs)
