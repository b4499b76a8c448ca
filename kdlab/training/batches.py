"""Training samples on the device, read by index, and the precision of a forward pass."""

from __future__ import annotations

import torch
from torch import Tensor

from kdlab.datasets import Split
from kdlab.datasets.views import Augmentation
from kdlab.training.predict import channels_last


class Batches:
    """Training images (or token numbers) and labels resident on the device, read by index.

    ``size`` is the usual number of samples in a batch, ``class_weights`` ``[C]`` says by how much
    each label counts.
    """

    def __init__(
        self,
        split: Split,
        augment: Augmentation | None,
        device: torch.device,
        size: int = 1,
        class_weights: Tensor | None = None,
        task: str = "classes",
    ) -> None:
        # rows of a [N, h, w, c] tensor, permuted, are channels-last batches at the cost of a gather
        self.are_images = split.x.dim() == 4
        rows = split.x.permute(0, 2, 3, 1) if self.are_images else split.x
        self.rows = rows.contiguous().to(device)
        self.labels = split.y.to(device)
        self.label_weights = split.labelled.float().to(
            device
        )  # by which a mean over labels counts each
        self.class_weights = None if class_weights is None else class_weights.to(device)
        if self.class_weights is not None:
            self.label_weights *= self.class_weights[self.labels.clamp(min=0)]
        self.size = size
        self.task = task
        self.augment = augment

    def __call__(self, index: Tensor, view: int) -> Tensor:
        """Return the images ``[B, c, h, w]`` at ``index`` ``[B]``, channels-last.

        Other samples, such as token numbers ``[B, N]``, come as they are.
        """
        rows = self.rows.index_select(0, index)
        images = rows.permute(0, 3, 1, 2) if self.are_images else rows
        if self.augment is None:
            return images
        return channels_last(self.augment(images, index, view))


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """Return the context in which a forward pass runs at ``precision``."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")
