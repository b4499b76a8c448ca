"""Many small MLP students at once: one stacked model, gradients written out.

A student of a few thousand parameters keeps a processor busy with bookkeeping, not arithmetic.
Stacked along a first axis, k students cost little more than one, and each is trained exactly as
``fit`` would train it alone: its own initial weights, its own shuffling.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from kdlab.datasets import Data
from kdlab.datasets.checks import check_inputs, check_labels
from kdlab.distillers import Distiller, Outputs
from kdlab.distillers.base import Scaled, Sum
from kdlab.losses import hard_label_loss
from kdlab.losses.checks import unchecked_values
from kdlab.models.mlp import MLP
from kdlab.training.device import keep_pages
from kdlab.training.loop import OPTIMIZERS, Plan, check_budget
from kdlab.training.teacher_outputs import TeacherOutputs

Slope = Callable[..., Tensor]


def stackable(model: nn.Module, distiller: Distiller | None) -> bool:
    """Say whether ``fit_stacked`` can train this student: a ReLU MLP, a method on logits alone.

    All its parameters are trained, and in single precision. Methods that prepare something, such as
    the student's weights, or that measure something besides their terms are left to ``fit``.
    """
    plain = distiller is None or (
        distiller.needs_only_logits
        and not distiller.student_taps
        and not any(True for _ in distiller.parameters())
        and not any(map(_is_more_than_terms, distiller.modules()))
    )
    usual = all(p.requires_grad and p.dtype == torch.float32 for p in model.parameters())
    return isinstance(model, MLP) and isinstance(model.activation, nn.ReLU) and usual and plain


def fit_stacked(
    models: Sequence[MLP],
    data: Data,
    distiller: Distiller | None = None,
    *,
    seeds: Sequence[int],
    teacher_outputs: TeacherOutputs | None = None,
    epochs: int = 20,
    batch_size: int = 128,
    lr: float = 0.1,
    optimizer: str = "sgd",
    weight_decay: float = 5e-4,
) -> None:
    """Train ``models`` in place on the CPU, model i with the shuffling of ``seeds[i]``.

    The weights agree with those of k single calls of ``fit`` within float error.

    Args:
        models: k MLPs of one shape, each with its own initial weights.
        data: the training images; flattened.
        distiller: a method that needs only logits; None trains on the labels.
        seeds: k seeds.
        teacher_outputs: the teacher's cached logits, if the method needs a teacher.
        epochs, batch_size, lr, optimizer, weight_decay: as in ``fit``.

    Raises:
        ValueError: models that cannot be stacked, not one seed per model, or an argument out of
            its range, labels or inputs that cannot be learned from.
    """
    if len(models) != len(seeds) or not models:
        raise ValueError(f"seeds: {len(seeds)} came, expected one for each of {len(models)} models")
    if not all(stackable(model, distiller) for model in models):
        raise ValueError("models: only MLPs with ReLU and methods on logits alone can be stacked")
    for seed in seeds:
        check_budget(epochs, batch_size, lr, optimizer, weight_decay, seed)
    check_labels(data)
    check_inputs(data)
    keep_pages()
    same_place = list(zip(*(_linears(model) for model in models), strict=True))
    layers = [
        (
            torch.stack([linear.weight.detach() for linear in linears]),
            torch.stack([linear.bias.detach() for linear in linears]).unsqueeze(1),
        )
        for linears in same_place
    ]
    update = OPTIMIZERS[optimizer](
        [tensor for layer in layers for tensor in layer],
        lr=lr,
        weight_decay=weight_decay,
        fused=True,
    )
    images = data.train.x
    plans = [Plan(len(images), epochs, min(batch_size, len(images)), lr, seed, 1) for seed in seeds]
    size, steps = plans[0].batch_size, plans[0].steps
    slope = _logit_slope(distiller)
    with unchecked_values():
        for epoch in range(epochs):
            order = torch.stack([plan.order(epoch) for plan in plans])
            for step in range(steps):
                index = order[:, step * size : (step + 1) * size]
                answers = teacher_outputs(index, 0) if teacher_outputs is not None else None
                for group in update.param_groups:
                    group["lr"] = plans[0].learning_rate(epoch, step)
                now = partial(slope, progress=plans[0].progress(epoch, step))
                _backpropagate(layers, images[index], data.train.y[index], answers, index, now)
                update.step()
    for linears, (weight, bias) in zip(same_place, layers, strict=True):
        for linear, w, b in zip(linears, weight, bias, strict=True):
            linear.weight.data.copy_(w)
            linear.bias.data.copy_(b[0])
    for model in models:
        model.eval()


def _is_more_than_terms(part: nn.Module) -> bool:
    if not isinstance(part, Distiller) or isinstance(part, Sum | Scaled):
        return False
    kind = type(part)
    return kind.prepare is not Distiller.prepare or kind.measures is not Distiller.measures


def _linears(model: MLP) -> list[nn.Linear]:
    return [layer for layer in model.layers if isinstance(layer, nn.Linear)]


def _logit_slope(distiller: Distiller | None) -> Slope:
    """Return the function that gives ∂loss/∂logits ``[k, B, C]``, for all students in one go."""

    def slope(
        logits: Tensor,
        images: Tensor,
        targets: Tensor,
        answers: Tensor | None,
        index: Tensor,
        progress: float,
    ) -> Tensor:
        def loss(
            logits: Tensor, images: Tensor, targets: Tensor, answers: Tensor | None, index: Tensor
        ) -> Tensor:
            if distiller is None:
                return hard_label_loss(logits, targets)
            teacher = None if answers is None else Outputs(answers, {}, images, index)
            terms = distiller(Outputs(logits, {}, images, index, progress), teacher, targets)
            return torch.stack(list(terms.values())).sum()

        logits = logits.detach().requires_grad_()
        places = (0, 0, 0, None if answers is None else 0, 0)
        per_student = torch.vmap(loss, in_dims=places, randomness="different")
        losses = per_student(logits, images, targets, answers, index)
        return torch.autograd.grad(losses.sum(), logits)[0]

    return slope


def _backpropagate(
    layers: list[tuple[Tensor, Tensor]],
    images: Tensor,
    targets: Tensor,
    answers: Tensor | None,
    index: Tensor,
    slope: Slope,
) -> None:
    """Set each layer's gradients; the forward pass, and the chain rule back through it."""
    inputs = [images.flatten(2)]
    for number, (weight, bias) in enumerate(layers, start=1):
        output = torch.baddbmm(bias, inputs[-1], weight.mT)
        inputs.append(output.relu_() if number < len(layers) else output)
    gradient = slope(inputs.pop(), images, targets, answers, index)
    for (weight, bias), entering in zip(reversed(layers), reversed(inputs), strict=True):
        weight.grad = gradient.mT @ entering
        bias.grad = gradient.sum(dim=1, keepdim=True)
        if entering is not inputs[0]:
            gradient = (gradient @ weight) * (entering > 0)
