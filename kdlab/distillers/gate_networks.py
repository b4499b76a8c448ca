"""Small networks that learn where a teacher is right, each on an objective of its own."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdlab.datasets import Split
from kdlab.losses import mixture_loss
from kdlab.models.modes import inputs_for

BATCH, RATE = 64, 1e-2


def image_network(channels: int, outputs: int, width: int = 8) -> nn.Sequential:
    """Return a small CNN from images ``[B, channels, h, w]`` to scores ``[B, outputs]``."""
    return nn.Sequential(
        nn.Conv2d(channels, width, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(width, 2 * width, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(2 * width, 2 * width, 3, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(2 * width, outputs),
    )


def answer_network(classes: int, outputs: int, width: int = 32) -> nn.Sequential:
    """Return an MLP from a teacher's log-probabilities ``[B, classes]`` to ``[B, outputs]``."""
    return nn.Sequential(nn.Linear(classes, width), nn.ReLU(), nn.Linear(width, outputs))


def build_network(inputs: Tensor, outputs: int) -> nn.Sequential:
    """Return the network for inputs of this shape, on their device.

    Raises:
        ValueError: neither images ``[N, c, h, w]`` nor rows ``[N, d]`` of numbers.
    """
    if inputs.dim() == 4 and inputs.is_floating_point():
        return image_network(inputs.shape[1], outputs).to(inputs)
    if inputs.dim() == 2 and inputs.is_floating_point():
        return answer_network(inputs.shape[1], outputs).to(inputs)
    raise ValueError(
        f"inputs: {inputs.dtype} of shape {list(inputs.shape)}, expected images [N, c, h, w]; a "
        'gate on texts can look at the teacher\'s answer: LearnedGate(sees="answer")'
    )


def train_mixture(
    inputs: Tensor,
    log_likelihoods: Tensor,
    *,
    budget: Tensor | None = None,
    budget_weight: float = 1.0,
    steps: int = 300,
) -> nn.Sequential:
    """Return a trained, frozen network that says which of K experts to follow for an input.

    It minimises −log Σ_k g_k p_k(y) (`kdlab.losses.mixture_loss`), and with a budget also
    ``budget_weight · Σ_k (mean g_k − budget_k)²``, which holds the mean weights near the budget.
    Random batches, Adam, a rate that falls to 0. It draws from PyTorch's global generator, which
    ``fit`` seeds.

    Args:
        inputs: ``[N, ...]`` what the network sees.
        log_likelihoods: ``[N, K]``, log p_k(y) of each expert.
        budget: wanted mean weights ``[K]``, or None for no budget.
        budget_weight: of the budget's term.
        steps: batches to train on.
    """
    with torch.enable_grad():
        network = build_network(inputs, log_likelihoods.shape[1])
        optimizer = torch.optim.Adam(network.parameters(), lr=RATE)
        for step in range(steps):
            for group in optimizer.param_groups:
                group["lr"] = RATE * (1 - step / steps)
            chosen = torch.randint(len(inputs), (min(BATCH, len(inputs)),)).to(inputs.device)
            scores = network(inputs[chosen])
            loss = mixture_loss(scores, log_likelihoods[chosen])
            if budget is not None:
                gap = F.softmax(scores, dim=-1).mean(0) - budget
                loss = loss + budget_weight * gap.square().sum()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return network.requires_grad_(False).eval()


def take_examples(given: Split | None, share: float, train: Split) -> Split:
    """Return the labelled examples for a gate: those given, or a random share of ``train``.

    Raises:
        ValueError: none of them has a label.
    """
    examples = train if given is None else given
    labelled = (examples.y >= 0).nonzero().squeeze(1)
    if given is None:
        order = torch.randperm(len(labelled))
        labelled = labelled[order[: max(1, round(share * len(labelled)))]]
    if len(labelled) == 0:
        raise ValueError(
            "examples: no image with a label came, expected some to learn from whom to trust"
        )
    return examples.select(labelled)


def batches(images: Tensor, model: nn.Module, size: int = 256) -> Iterator[Tensor]:
    """Yield ``images`` in batches as the model takes them."""
    for part in images.split(size):
        yield inputs_for(model, part)
