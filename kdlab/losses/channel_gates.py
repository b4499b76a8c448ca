"""A hint whose channels are gated: match only what the teacher's own answer needs."""

import torch
from torch import Tensor

from kdlab.losses.checks import check_reduction, prepare_features, reduce, values_are_checked


def by_channel(gate: Tensor, features: Tensor) -> Tensor:
    """``gate`` ``[c]`` in the form in which it multiplies features, whose channels are in dim 1 of
    maps ``[B, c, h, w]`` and last in tokens ``[B, N, c]`` and embeddings ``[B, c]``.

    Raises:
        ValueError: another number of channels.
    """
    channels = features.shape[1 if features.dim() == 4 else -1]
    if gate.shape != (channels,):
        raise ValueError(f"gate: shape {list(gate.shape)}, expected [{channels}], one per channel")
    return gate.view(-1, 1, 1) if features.dim() == 4 else gate


def channel_gated_hint_loss(
    student: Tensor, teacher: Tensor, gate: Tensor, *, reduction: str = "mean"
) -> Tensor:
    """1/n · Σ g_c (s − t)² over the n features of an image, g_c the gate of the feature's channel.

    With a gate of ones it is `hint_loss`. A closed channel (0) gets a gradient of exactly 0,
    whatever the student has there.

    Args:
        student: features ``[B, c, h, w]``, ``[B, N, c]`` or ``[B, c]``, after the regressor.
        teacher: features of the same shape, finite.
        gate: ``[c]`` from 0 to 1; detached.
        reduction: "mean" over the images, or "none": ``[B]``.

    Raises:
        ValueError: as `hint_loss`; a gate of another length, or outside [0, 1].

    Source: the hint is Romero et al.'s, 2014, arXiv:1412.6550; a learned gate for each channel is
    known from network slimming (Liu, Li, Shen, Huang, Yan, Zhang, "Learning Efficient Convolutional
    Networks through Network Slimming", ICCV 2017, arXiv:1708.06519). Lesson 05.
    """
    check_reduction(reduction)
    student, teacher = prepare_features(student, teacher, (2, 3, 4))
    weight = by_channel(gate.detach(), student).to(student.dtype)
    if values_are_checked() and not bool(((weight >= 0) & (weight <= 1)).all()):
        raise ValueError("gate: values outside [0, 1] or NaN came, expected 0 to 1")
    # Replaced before anything is computed: what is not finite stays out of value and gradient.
    gap = torch.where(weight > 0, student, teacher) - teacher
    return reduce((weight * gap.square()).flatten(1).mean(1), None, reduction)
