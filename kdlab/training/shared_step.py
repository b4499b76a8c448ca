"""One optimizer step that several ranks make together, each on its share of the batch."""

from __future__ import annotations

import functools
import warnings
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.overrides import TorchFunctionMode

from kdlab.training.distributed import Ranks
from kdlab.training.step import Step


class SharedStep(Step):
    """A step of which this rank does its share; terms and gradients are those of all ranks.

    Shares may differ in size by one image: each counts by its size, and where a term is a mean over
    the labelled images by how many it has of those, so that the loss is the mean over the whole
    batch. Batch norms use the statistics of the whole batch. A term that relates images to one
    another is the mean of its values on the shares.
    """

    def __init__(self, ranks: Ranks, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.ranks = ranks
        # images in channels-last order give gradients of one input channel in other strides
        warnings.filterwarnings("ignore", message="Grad strides do not match bucket view strides")
        for buffer in (terms := _Terms(self)).buffers():
            dist.broadcast(buffer, 0)
        with warnings.catch_warnings():
            # a newer name, which older versions do not know, and which would do as much
            warnings.filterwarnings("ignore", message=".*broadcast_buffers", category=FutureWarning)
            self.together = DistributedDataParallel(
                terms, broadcast_buffers=False, find_unused_parameters=True
            )

    def call_model(self, images: Tensor) -> Tensor:
        """Return the student's logits."""
        with self.ranks.branch(own=True):  # or dropout would be the same in every share
            return self.forward(images)

    def _accumulate(self, index: Tensor, view: int, progress: float) -> dict[str, Tensor]:
        mine = self.ranks.share(index)
        self.optimizer.zero_grad(set_to_none=True)
        with self.ranks.branch(), WholeBatchStatistics(self.ranks):
            terms = self.together(mine, view, progress)
        # the gradients that come are the mean over the ranks, and the sum is wanted
        terms = self.weighted(terms, mine, index, times=self.ranks.size)
        torch.stack(list(terms.values())).sum().backward()
        self._update()
        measures = {} if self.distiller is None else self.distiller.measures()
        self.measured = self.ranks.total(measures, len(mine) / len(index))
        return self.ranks.total(terms, 1 / self.ranks.size)

    def _halve(self, batch: int) -> None:
        raise RuntimeError(
            f"rank {self.ranks.rank} is out of memory with its share of {batch} images: start more "
            "ranks, or take a smaller batch_size"
        )


class _Terms(nn.Module):
    """All that is trained, in one module: what DistributedDataParallel wants to wrap.

    It looks in each step for parameters that got no gradient, because methods may leave some out,
    and warns where it finds none: so it finds one.
    """

    def __init__(self, step: Step) -> None:
        super().__init__()
        self.model = step.model
        self.distiller = step.distiller
        self.unused = nn.Parameter(torch.zeros((), device=next(step.model.parameters()).device))
        self.terms = step.terms

    def forward(self, index: Tensor, view: int, progress: float) -> dict[str, Tensor]:
        return self.terms(index, view, progress)


class WholeBatchStatistics(TorchFunctionMode):
    """Inside, batch norms in training mode use mean and variance of the batch over all ranks.

    As ``nn.SyncBatchNorm``, which works on GPUs alone and would replace modules of the model.
    Source: Ioffe, Szegedy, "Batch Normalization", 2015, arXiv:1502.03167.
    """

    def __init__(self, ranks: Ranks) -> None:
        super().__init__()
        self.ranks = ranks

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Call ``func``, or what stands in for it."""
        if func is F.batch_norm:
            func = functools.partial(batch_norm, self.ranks)
        return func(*args, **(kwargs or {}))


def batch_norm(
    ranks: Ranks,
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """Return what ``torch.nn.functional.batch_norm`` would for the batch of all ranks.

    Each rank tells the others mean and variance of its share ``[n, c, ...]`` and n; the variance of
    the whole is the mean variance within the shares plus the variance of their means.
    """
    if not training:
        return F.batch_norm(input, running_mean, running_var, weight, bias, False, momentum, eps)
    values = input.float() if input.dtype in (torch.float16, torch.bfloat16) else input
    axes = [axis for axis in range(values.dim()) if axis != 1]
    variance, mean = torch.var_mean(values, axes, correction=0)
    count = values.new_tensor([values.numel() / values.shape[1]])
    told = torch.cat([mean, variance, count])
    mine = torch.eye(ranks.size, dtype=told.dtype, device=told.device)[ranks.rank]
    table = _Sum.apply(mine.unsqueeze(1) * told)  # one row per rank
    means, variances, counts = table.split([len(mean), len(mean), 1], dim=1)
    shares = counts / counts.sum()
    mean = (shares * means).sum(0)
    variance = (shares * (variances + (means - mean).square())).sum(0)
    if running_mean is not None and running_var is not None:
        total = counts.sum().detach()
        unbiased = variance.detach() * total / (total - 1)
        running_mean.lerp_(mean.detach().to(running_mean.dtype), momentum)
        running_var.lerp_(unbiased.to(running_var.dtype), momentum)
    shape = [-1 if axis == 1 else 1 for axis in range(values.dim())]
    scale = (variance + eps).rsqrt() * (1 if weight is None else weight)
    shift = (0 if bias is None else bias) - mean * scale
    return torch.addcmul(shift.view(shape), values, scale.view(shape)).to(input.dtype)


class _Sum(torch.autograd.Function):
    """The sum of a tensor over the ranks; so is its gradient."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        total = tensor.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return _Sum.apply(*gradients)
