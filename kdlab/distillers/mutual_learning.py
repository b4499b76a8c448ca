"""Deep mutual learning: two students, no teacher; each learns what the other says, too."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from kdlab.datasets import Split
from kdlab.distillers.adapters import example_of
from kdlab.distillers.base import Distiller, Outputs, computing_dtype
from kdlab.losses import soft_target_loss
from kdlab.losses.checks import check_kind, check_positive, check_weight
from kdlab.models import logits_of
from kdlab.models.modes import device_of, inputs_for


class MutualLearning(Distiller):
    """DML: ``CE(labels) + weight · T² · KL(other ‖ own)`` for the student, and for its peer.

    The peer trains beside the student, in the same optimizer, on the same images. Each takes the
    other's answer as it is: no gradient goes from one to the other. After training it is
    ``method.peer``: ``method.peer.eval()`` is a model like the student, of the last run.

    Source: Zhang, Xiang, Hospedales, Lu, "Deep Mutual Learning", CVPR 2018, arXiv:1706.00384, with
    T = 1, weight 1 and two networks. The paper updates one after the other, with new answers in
    between; here both move at once, from the same answers, as in public code
    (github.com/AberHu/Knowledge-Distillation-Zoo).

    Args:
        peer: another model for the same data, with weights of its own. It stays as it is: each
            run trains a copy. None takes the student with newly drawn weights; what is frozen in it
            stays.
        temperature: T > 0.
        weight: of the term on the other's answer, at least 0.

    Raises:
        ValueError: an option out of its range; in ``prepare`` a peer that answers with other
            classes, of another dtype, or with the student's own weights, or a student whose weights
            cannot be drawn anew.
    """

    needs_teacher = False
    labelled_terms = ("hard", "peer_hard")
    in_tournament = False

    def __init__(
        self, peer: nn.Module | None = None, temperature: float = 1.0, weight: float = 1.0
    ) -> None:
        super().__init__()
        if peer is not None:
            check_kind("peer", peer, nn.Module, "a model (not its name), or None")
        check_positive("temperature", temperature)
        check_weight("weight", weight)
        self.peer = peer
        self._given = (peer,)  # in a tuple, so that it is not trained itself
        self.temperature = temperature
        self.weight = float(weight)

    def prepare(self, student: nn.Module, teacher: nn.Module | None, train: Split) -> None:
        """Make the peer anew, and look whether it can answer."""
        (given,) = self._given
        if given is None:
            self.peer = redrawn(student)
        else:
            self.peer = copied(given, "expected a model that can be copied").to(device_of(student))
            self.peer.eval()
            check_peer(self.peer, student, train)

    def forward(
        self, student: Outputs, teacher: Outputs | None, targets: Tensor
    ) -> dict[str, Tensor]:
        """Return the terms ``hard`` and ``mutual``, ``peer_hard`` and ``peer_mutual``."""
        if self.peer is None or student.inputs is None:
            missing = "the peer has not been made" if self.peer is None else "no images came"
            raise ValueError(f"peer: {missing}, expected both; train with fit, which sees to it")
        mine, theirs = (
            student.logits,
            logits_of(self.peer(inputs_for(self.peer, student.inputs)), "peer"),
        )
        return {
            "hard": student.label_loss(targets),
            "mutual": self.weight * soft_target_loss(mine, theirs, self.temperature),
            "peer_hard": student.label_loss(targets, logits=theirs),
            "peer_mutual": self.weight * soft_target_loss(theirs, mine, self.temperature),
        }


def copied(model: nn.Module, expected: str) -> nn.Module:
    """Return a deep copy, or raise ValueError that says why there is none."""
    try:
        twin = copy.deepcopy(model)
    except Exception as error:
        raise ValueError(
            f"peer: got {type(error).__name__} while copying a {type(model).__name__} "
            f"({error!s:.200}), {expected}; an old weight norm is such a layer, "
            "torch.nn.utils.parametrizations.weight_norm is none"
        ) from error
    for mine, theirs in zip(twin.parameters(), model.parameters(), strict=True):
        mine.requires_grad_(theirs.requires_grad)  # the copy of a scripted module is frozen
    return twin


def redrawn(model: nn.Module) -> nn.Module:
    """Return a copy of a model whose trainable layers have started anew.

    Raises:
        ValueError: a layer with parameters of its own that does not say how it starts.
    """
    fresh = copied(model, "expected a student that can be copied, or a second model").cpu()
    with torch.random.fork_rng(devices=[]):
        # The model may have been drawn with the very seed of this run, in the same order.
        torch.manual_seed(int(torch.randint(2**62, ())))
        for path, module in fresh.named_modules():
            if not any(p.requires_grad for p in module.parameters(recurse=False)):
                continue
            start = getattr(module, "reset_parameters", None)
            start = start or getattr(module, "_reset_parameters", None)  # nn.MultiheadAttention's
            if start is None:
                raise ValueError(
                    f"peer: got None, but the student's layer {path or 'model'!r} "
                    f"({type(module).__name__}) has no reset_parameters that draws its weights "
                    "anew, expected one; give a second model, as in MutualLearning(peer)"
                )
            start()
    return fresh.to(device_of(model))


def check_peer(peer: nn.Module, student: nn.Module, train: Split) -> None:
    """Raise ValueError unless a peer answers like the student, with other weights."""
    own, wanted_dtype = computing_dtype(peer), computing_dtype(student)
    if own != wanted_dtype:
        raise ValueError(
            f"peer: got a model of {own}, expected the student's {wanted_dtype}; convert it, as in "
            "peer.to(torch.float32)"
        )
    images = inputs_for(student, example_of(train))
    wanted = logits_of(student(images), "model").shape
    try:
        shape = logits_of(peer(inputs_for(peer, images)), "peer").shape
    except Exception as error:
        raise ValueError(
            f"peer: got {type(error).__name__} on {list(images.shape)} ({error!s:.200}), "
            f"expected logits {list(wanted)}; build it for the same data as the student"
        ) from error
    if shape != wanted:
        raise ValueError(
            f"peer: got an answer of shape {list(shape)}, expected the student's {list(wanted)}; "
            f"build it with num_classes={wanted[-1]}"
        )
    pairs = list(zip(peer.parameters(), student.parameters(), strict=False))
    same = all(a.shape == b.shape and torch.equal(a, b) for a, b in pairs)
    if same and len(list(peer.parameters())) == len(list(student.parameters())):
        raise ValueError(
            "peer: got a model with the student's own weights, expected others, or both would stay "
            "alike and teach each other nothing; build it with another seed, or leave it out"
        )
