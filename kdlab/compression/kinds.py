"""Which kinds of arguments the functions of compression take, and what they say of others."""

from __future__ import annotations

import os
from typing import Any

from torch import Tensor, nn

from kdlab.datasets import Data
from kdlab.losses.checks import check_kind

MODEL = "a torch.nn.Module; of load_teacher's pair, model and card, give the first"
KINDS: dict[str, tuple[Any, str]] = {
    "model": (nn.Module, MODEL),
    "pruned": (nn.Module, MODEL),
    "teacher": (nn.Module | None, MODEL),
    "data": (Data, "a data set, as kdlab.datasets.load gives it"),
    "example": (Tensor, "inputs [B, ...], such as data.train.x[:2]"),
    "path": (str | os.PathLike, 'the path of a file, such as "student.onnx"'),
}


def check_kinds(**arguments: object) -> None:
    """Raise ValueError, with its name, for the first argument that is not of its kind."""
    for name, value in arguments.items():
        check_kind(name, value, *KINDS[name])
