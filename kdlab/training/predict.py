"""Ask a trained model about many images."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from kdlab.losses.checks import check_kind, compute_dtype
from kdlab.models import Taps, logits_of
from kdlab.models.modes import check_initialised, device_of, evaluating
from kdlab.models.outputs import Output
from kdlab.training.device import pick_device

MODULE = "a torch.nn.Module; wrap a function of a batch in kdlab.models.WithOutput"


class Forward:
    """How the package calls any model: a batch in, logits out.

    The batch comes in the memory order in which convolutions are fastest and, where it is
    floating, in the dtype of the model's weights. A model that cannot take that order, because its
    forward has a ``.view``, gets all its batches contiguous from the first refusal on.

    Args:
        model: any module; returns logits in a form that `kdlab.models.logits_of` knows.
        output: takes the logits out of what the model returns, where it returns anything else.
        who: the argument that an error names, "model" or "teacher".
        call: what to call in the model's place: the same, compiled.
    """

    def __init__(
        self,
        model: nn.Module,
        output: Output | None = None,
        who: str = "model",
        call: Callable[..., Any] | None = None,
    ) -> None:
        check_initialised(model, who)
        self.model, self.output, self.who = model, output, who
        self.call = model if call is None else call
        self.contiguous = False
        floating = (p.dtype for p in model.parameters() if p.is_floating_point())
        self.dtype = next(floating, None)

    def __call__(self, inputs: Tensor) -> Tensor:
        """Return the logits ``[B, C]`` of ``inputs`` ``[B, ...]``, float64 if the model is."""
        if inputs.is_floating_point() and self.dtype is not None:
            inputs = inputs.to(self.dtype)
        if not self.contiguous:
            try:
                returned = self.call(channels_last(inputs))
            except RuntimeError as error:
                if "view size is not compatible" not in str(error):
                    raise
                self.contiguous = True
        if self.contiguous:
            returned = self.call(_in_order(inputs, torch.contiguous_format))
        if self.output is not None:
            returned = self.output(returned)
        logits = logits_of(returned, self.who)
        if not logits.is_floating_point():
            raise ValueError(
                f"{self.who}: got outputs of dtype {logits.dtype}, expected floating logits; "
                "return what stands before the argmax"
            )
        return logits.to(compute_dtype(logits))


@torch.no_grad()
def predict(
    model: nn.Module,
    images: Tensor,
    batch_size: int = 1024,
    device: str | torch.device = "auto",
    *,
    output: Output | None = None,
) -> Tensor:
    """Return the logits ``[N, C]``, on the CPU, of images ``[N, c, h, w]``; float32 or float64.

    The model answers in eval mode and comes back in the mode and on the device it came from. What
    it returns may be a tensor, a tuple or list (its first element), a dict with "logits" or an
    object with ``.logits``.

    Args:
        model: any module.
        images: or whatever else the model takes.
        batch_size: images in one forward.
        device: where to compute.
        output: takes the logits out of what the model returns, where it returns anything else.

    Raises:
        ValueError: no images, an unknown device, or a model that returns no logits.
    """
    check_kind("model", model, nn.Module, MODULE)
    if len(images) == 0:
        raise ValueError("images: none came, expected at least one, [N, c, h, w]")
    target = pick_device(device) if isinstance(device, str) else device
    forward = Forward(model, output)
    with visiting(model, target):
        return torch.cat([forward(chunk.to(target)) for chunk in images.split(batch_size)]).cpu()


@torch.no_grad()
def read_taps(
    model: nn.Module,
    images: Tensor,
    paths: str | Iterable[str],
    batch_size: int = 256,
    device: str | torch.device = "auto",
) -> dict[str, Tensor]:
    """Return what inner layers say to images: path → ``[N, ...]`` float32, on the CPU.

    The model answers in eval mode and comes back in the mode and on the device it came from. A
    feature map may be large: N · c · h · w · 4 bytes for each path are held in memory.

    Args:
        model: any module; ``kdlab.models.paths(model)`` lists its layers.
        images: ``[N, c, h, w]``, or whatever the model takes.
        paths: dotted module paths, as for ``kdlab.models.Taps``.
        batch_size: images in one forward.
        device: where to compute.

    Raises:
        ValueError: no images, no paths, a path that the model does not have (with the nearest
            match), an output without one entry per image, or an unknown device.
    """
    check_kind("model", model, nn.Module, MODULE)
    wanted = (paths,) if isinstance(paths, str) else tuple(paths)
    if len(images) == 0 or not wanted:
        missing = "images" if len(images) == 0 else "paths"
        raise ValueError(f"{missing}: none came, expected at least one")
    target = pick_device(device) if isinstance(device, str) else device
    parts: dict[str, list[Tensor]] = {path: [] for path in wanted}
    forward = Forward(model, output=_ignored)
    with Taps(model, wanted) as taps, visiting(model, target):
        for chunk in images.split(batch_size):
            forward(chunk.to(target))
            for path, outputs in parts.items():
                output = taps[path]
                if output.ndim == 0 or len(output) != len(chunk):
                    raise ValueError(
                        f"paths: {path!r} gives {list(output.shape)} for {len(chunk)} images; "
                        "expected one entry per image: choose another layer"
                    )
                outputs.append(output.to(compute_dtype(output)).cpu())
    return {path: torch.cat(outputs) for path, outputs in parts.items()}


def _ignored(returned: Any) -> Tensor:
    return torch.zeros(())


def channels_last(images: Tensor) -> Tensor:
    """Return 4-D images in the memory order in which convolutions are fastest."""
    if images.dim() != 4 or images.stride(1) == 1:
        return images
    return _in_order(images, torch.channels_last)


def _in_order(images: Tensor, order: torch.memory_format) -> Tensor:
    # not .contiguous(): it leaves images of one channel as they are, in the strides of either way
    return torch.empty_like(images, memory_format=order).copy_(images)


@contextmanager
def visiting(model: nn.Module | None, device: torch.device) -> Iterator[None]:
    """Have a model, if there is one, in eval mode on a device; then put it back as it was."""
    if model is None:
        yield
        return
    home = device_of(model)
    with evaluating(model):
        try:
            model.to(device)
            yield
        finally:
            model.to(home)
