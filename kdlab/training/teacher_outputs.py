"""The teacher's answers, computed once: a lookup by image and view instead of a forward pass."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from kdlab.datasets import Data
from kdlab.datasets.views import Augmentation
from kdlab.files import atomic_write
from kdlab.losses.checks import check_count
from kdlab.models import WithOutput
from kdlab.training.device import pick_device
from kdlab.training.distributed import ALONE, Alone, join
from kdlab.training.identity import describe, fingerprint


class TeacherOutputs:
    """The logits of one teacher for K views of each training image.

    Stored as float16 distances to each row's largest logit, which is kept in float32: float16 is
    finest near 0, and that is where the classes lie that matter. The cache knows the teacher, the
    data and the augmentation that it was made from, and refuses any other.

    Attributes:
        below: ``[K, N, C]`` float16, each logit minus its row's largest.
        peak: ``[K, N, 1]`` float32, the largest logit of each row.
        key: fingerprints of teacher, data and augmentation, and the number of views.
        unnamed: what in teacher and augmentation has no stable name, such as a lambda; with it the
            cache serves this process alone and cannot be saved.
    """

    def __init__(
        self,
        below: Tensor,
        peak: Tensor,
        key: dict[str, str],
        unnamed: Sequence[Any] = (),
    ) -> None:
        self.below = below
        self.peak = peak
        self.key = key
        self.unnamed = tuple(unnamed)

    @classmethod
    def build(
        cls,
        teacher: nn.Module | Callable[[Tensor], Any],
        data: Data,
        augment: Augmentation | None = None,
        views: int = 1,
        device: str | torch.device = "auto",
        ranks: Alone = ALONE,
    ) -> TeacherOutputs:
        """Ask ``teacher`` about ``views`` views of every training image of ``data``.

        With several ``ranks``, which must all call this, each asks about its share.

        Raises:
            ValueError: views < 1, several views without augmentation, or a teacher that answers
                with NaN or infinity.
        """
        if views < 1 or (views > 1 and augment is None):
            raise ValueError(
                f"views: {views} came, expected 1, or more together with an augmentation"
            )
        asked = teacher if isinstance(teacher, nn.Module) else WithOutput(teacher)
        index = torch.arange(len(data.train))
        below, peak = [], []
        for view in range(views):
            images = augment(data.train.x, index, view) if augment else data.train.x
            logits = ranks.predict(asked, images, device=device)
            if not torch.isfinite(logits).all():
                raise ValueError("teacher: its logits hold NaN or infinity; was it trained well?")
            largest = logits.amax(dim=-1, keepdim=True)
            peak.append(largest)
            below.append((logits - largest).clamp_(min=-6e4).half())
        unnamed: list[Any] = []
        key = cache_key(teacher, data, augment, views, unnamed)
        return cls(torch.stack(below), torch.stack(peak), key, unnamed)

    def to(self, device: torch.device) -> TeacherOutputs:
        """Return the same cache on ``device``."""
        return TeacherOutputs(self.below.to(device), self.peak.to(device), self.key, self.unnamed)

    def __call__(self, index: Tensor, view: int) -> Tensor:
        """Return the logits ``[B, C]`` float32 of the images ``index`` in view ``view``."""
        row = view % len(self.below)
        return self.below[row, index].float() + self.peak[row, index]

    def check(
        self, teacher: nn.Module, data: Data, augment: Augmentation | None, views: int
    ) -> None:
        """Raise ValueError if this cache was made from anything else."""
        unnamed: list[Any] = []
        self._compare(cache_key(teacher, data, augment, views, unnamed), unnamed)

    def _compare(self, wanted: dict[str, str], unnamed: Sequence[Any] = ()) -> None:
        differing = [name for name in wanted if self.key.get(name) != wanted[name]]
        if not differing and [*map(id, unnamed)] != [*map(id, self.unnamed)]:
            differing = ["function without a name (a lambda, or an object of the same kind)"]
        if differing:
            others = " and another ".join(differing)
            raise ValueError(
                f"teacher_outputs: this cache was made with another {others}; build it anew "
                "with TeacherOutputs.build(teacher, data, augment, views)"
            )

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the cache atomically as safetensors, its key in the header.

        Raises:
            ValueError: teacher or augmentation hold a function without a stable name, by which no
                other process could know the file again.
        """
        for each in self.unnamed:
            describe(each, "teacher_outputs")
        tensors = {"below": self.below.cpu(), "peak": self.peak.cpu()}
        with atomic_write(path) as temporary:
            temporary.write_bytes(save(tensors, metadata={"key": json.dumps(self.key)}))

    @classmethod
    def load(cls, path: str | os.PathLike[str], **expected: str) -> TeacherOutputs:
        """Read a cache; ``expected`` is the wanted ``cache_key(...)`` or a part of it.

        Raises:
            ValueError: the file is damaged, or was made from something else.
        """
        try:
            with safe_open(path, framework="pt") as file:
                key = json.loads(file.metadata()["key"])
                cache = cls(file.get_tensor("below"), file.get_tensor("peak"), key)
        except (SafetensorError, KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"path: {Path(path).name} is no whole cache of teacher outputs "
                f"({type(error).__name__}); delete it and build it anew"
            ) from error
        cache._compare(expected)
        return cache


def cache_bytes(samples: int, classes: int, views: int = 1) -> int:
    """Return how many bytes `TeacherOutputs` take, in memory and (but for a header) in a file.

    For each view of a sample 2 bytes for each of the C classes and 4 for the largest logit.

    Args:
        samples: training images, at least 1.
        classes: C, at least 1.
        views: views of each image, at least 1.

    Raises:
        ValueError: an argument that is no whole number from 1 on.
    """
    for name, count in (("samples", samples), ("classes", classes), ("views", views)):
        check_count(name, count)
    return views * samples * (2 * classes + 4)


def cache_key(
    teacher: nn.Module | Callable[[Tensor], Any],
    data: Data,
    augment: Augmentation | None,
    views: int,
    unnamed: list[Any] | None = None,
) -> dict[str, str]:
    """Return what a cache of teacher outputs depends on, as short text by name.

    Raises:
        ValueError: teacher or augmentation hold a function without a stable name and no list
            ``unnamed`` came to gather it in.
    """
    return {
        "teacher": fingerprint(teacher, unnamed=unnamed),
        "data set": data.fingerprint,
        "augmentation": describe(augment, "augment", unnamed),
        "number of views": str(views),
    }


def stored_teacher_outputs(
    folder: str | os.PathLike[str],
    teacher: nn.Module | Callable[[Tensor], Any],
    data: Data,
    augment: Augmentation | None = None,
    views: int = 1,
    device: str = "auto",
) -> TeacherOutputs:
    """Return the cache kept in ``folder``, building and storing it where it is missing or damaged.

    Two processes may do this at once: each writes a whole file, and either file is right. Under
    ``torchrun`` each rank asks about its share, and rank 0 writes; all must see the folder. Where
    it cannot be written, a warning says so and the cache serves this once.
    """
    key = cache_key(teacher, data, augment, views)
    name = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:16]
    path = Path(folder) / f"teacher-outputs-{name}.safetensors"
    ranks, target = join(pick_device(device))
    found = None
    with contextlib.suppress(FileNotFoundError, ValueError):  # missing, or damaged: replaced
        found = TeacherOutputs.load(path, **key)
    if not ranks.any(found is None) and found is not None:
        return found
    cache = TeacherOutputs.build(teacher, data, augment, views, target, ranks)
    ranks.from_first(lambda: _try_to_save(cache, path))
    return cache


def _try_to_save(cache: TeacherOutputs, path: Path) -> None:
    try:
        cache.save(path)
    except OSError as error:
        warnings.warn(
            f"teacher_outputs: {path.name} could not be written ({error.strerror}); the answers "
            "are used but not kept. Free some space or choose a writable folder.",
            stacklevel=5,
        )
