"""One step without an update, before the first: whatever cannot work is said here, by name."""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from kdlab.distillers import Distiller
from kdlab.distillers.base import Wrapper
from kdlab.models.taps import without_graph
from kdlab.training.device import forked_generators
from kdlab.training.divergence import copied
from kdlab.training.predict import Forward, visiting
from kdlab.training.step import Step, shared_parameters

CONTAINERS = (dict, list, set, deque)
SAMPLES = 4  # few, but enough for relations between images


def check_outputs(
    forward: Forward, inputs: Tensor, classes: int | None, device: torch.device
) -> None:
    """Raise ValueError unless a model, in eval mode, gives finite logits ``[B, C]`` for a batch.

    Args:
        forward: how the model is called; learns which memory order it takes.
        inputs: ``[B, ...]``.
        classes: C must be at least this; None takes any C, as a teacher of other classes has.
        device: where to compute.
    """
    who = forward.who
    with (
        torch.no_grad(),
        visiting(forward.model, device),
        blaming(who, f"in eval mode on {_form(inputs)}"),
    ):
        logits = forward(inputs.to(device))
    _check_shape(who, logits, len(inputs), classes)
    if not torch.isfinite(logits).all():
        raise ValueError(
            f"{who}: got logits with NaN or infinity in eval mode, expected finite ones; look at "
            "its weights (was it trained well?) and at what it divides by"
        )


def rehearse(step: Step, count: int, classes: int, device: torch.device) -> None:
    """Make one step on the first ``count`` training samples, but for the update.

    Student, method and random numbers are afterwards as they were.

    Raises:
        ValueError: a forward that fails or is not finite in training mode, a method that fails on
            this pair of models, a term that is not finite, and a layer that a term reads but
            through which no gradient can flow.
    """
    call, step.forward.call = step.forward.call, step.model  # compiling it for few samples is dear
    index = torch.arange(count, device=step.batches.labels.device)
    try:
        with restored(step.trained, device):
            step.train()
            _try(step, index, classes)
    except torch.OutOfMemoryError:
        pass  # the step itself knows what to do
    finally:
        step.forward.call = call
        step.optimizer.zero_grad(set_to_none=True)


def _try(step: Step, index: Tensor, classes: int) -> None:
    images = step.batches(index, 0)
    how = f"in training mode on {_form(images)}"
    method = type(step.distiller).__name__
    with blaming("teacher", f"on {_form(images)}"):
        teacher = step.ask_teacher(images, index, 0)
    with blaming("model", how):
        student = step.ask_student(images, index, 0.0)
    _check_shape("model", student.logits, len(index), classes)
    if not torch.isfinite(student.logits).all():
        raise ValueError(
            "model: got logits with NaN or infinity in training mode, expected finite ones as in "
            "eval mode; look at what its forward does only while training (dropout, norms, "
            "branches on self.training)"
        )
    if not student.logits.requires_grad and any(p.requires_grad for p in step.model.parameters()):
        raise ValueError(
            "model: got logits without a graph, expected some that can be differentiated; its "
            "forward must not run under no_grad or inference_mode, nor detach them"
        )
    if lost := without_graph(step.taps):
        path, cause = next(iter(lost.items()))
        raise ValueError(
            f"layers: the student's {path!r} gives what no gradient can flow through ({cause}), "
            f"expected a part of the graph, or {method} would teach it nothing; read another layer"
        )
    for part in _parts(step.distiller):
        read = {path: step.taps[path] for path in part.student_taps}
        if read and not part.complete and not any(tap.requires_grad for tap in read.values()):
            raise ValueError(
                f"layers: got {', '.join(map(repr, read))} of the student, where all is frozen, "
                f"expected a layer that learns, or {type(part).__name__} would teach it nothing; "
                "read a later layer, or unfreeze this one"
            )
    with blaming("distiller", f"in {method}, {how}"):
        terms = step.judge(student, teacher, index)
        total = torch.stack(list(terms.values())).sum()
        if total.requires_grad:
            total.backward()
    if not (step.batches.label_weights.any() or any(bool(term != 0) for term in terms.values())):
        raise ValueError(
            f"data: got no training sample with a label, expected some, because {method} learns "
            "from labels alone; add a method that hears the teacher, such as SoftTargets()"
        )
    if bad := [name for name, term in terms.items() if not torch.isfinite(term)]:
        raise ValueError(
            f"distiller: got a term {bad[0]!r} that is NaN or infinite on the first training "
            f"samples, expected a finite one; the logits are finite, so look at {method}'s options "
            "and at the layers that it reads"
        )
    if not any(p.grad is not None for part in step.trained for p in part.parameters()):
        raise ValueError(
            "model: got no gradient for any parameter, expected one; all are frozen "
            "(requires_grad=False), or no term depends on them"
        )


def _parts(method: Distiller | None) -> Iterator[Distiller]:
    """The methods inside a method, without those whose heads may learn on a frozen student."""
    if isinstance(method, Wrapper):
        for part in method._parts:
            yield from _parts(part)
    elif method is not None and not (hasattr(method, "exits") or hasattr(method, "assemble")):
        yield method


def check_shared(teacher: nn.Module, trained: Mapping[str, nn.Module]) -> None:
    """Raise ValueError that names a trainable parameter of student or method that is the teacher's.

    Frozen ones may be shared.
    """
    for part, name in shared_parameters(teacher, trained):
        raise ValueError(
            f"{part}: got the parameter {name!r}, which is the teacher's, too, and would be "
            "trained, expected the teacher to stay as it is; copy that module (copy.deepcopy) or "
            "freeze it (requires_grad_(False))"
        )


@contextmanager
def blaming(who: str, where: str) -> Iterator[None]:
    """Turn what is raised inside into one ValueError that begins with the argument's name."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        said = " ".join(str(error).split())
        if isinstance(error, ValueError) and (who == "distiller" or said.startswith(f"{who}:")):
            raise
        raise ValueError(
            f"{who}: got {type(error).__name__} {where} ({said:.300}), expected an answer; "
            "the lines above this one show where in it"
        ) from error


@contextmanager
def restored(parts: list[nn.Module], device: torch.device) -> Iterator[None]:
    """Afterwards buffers, modes, attributes and extra state of these modules are as they were."""
    modules = [module for part in parts for module in part.modules()]
    plain = [m for m in modules if not isinstance(m, torch.jit.ScriptModule)]
    attributes = [vars(module) for module in plain]
    inner = [value for own in attributes for value in own.values() if isinstance(value, CONTAINERS)]
    containers = [(each, copy.copy(each)) for each in [*attributes, *inner]]
    held = [v for c, _ in containers for v in (c.values() if isinstance(c, dict) else c)]
    held += [buffer for module in modules for buffer in module.buffers(recurse=False)]
    tensors = {id(t): (t, t.detach().clone()) for t in held if isinstance(t, Tensor) and t.is_leaf}
    extra = [(m, copied(m.get_extra_state())) for m in plain if _has_extra_state(m)]
    try:
        with forked_generators(device):
            yield
    finally:
        with torch.no_grad():
            for tensor, value in tensors.values():
                tensor.copy_(value)
        for container, content in containers:
            container.clear()
            (container.extend if hasattr(container, "extend") else container.update)(content)
        for module, state in extra:
            module.set_extra_state(state)


@contextmanager
def unmoved(module: nn.Module) -> Iterator[None]:
    """Afterwards parameters and buffers hold what they held, whatever a forward wrote into them.

    Some write in eval mode, too: an embedding with ``max_norm``, a counter, a norm that a
    ``train`` of its own keeps in training mode.
    """
    plain = [m for m in module.modules() if not isinstance(m, torch.jit.ScriptModule)]
    held: list[tuple[Any, str, Tensor, Tensor]] = [
        (own, name, tensor, copied(tensor.detach()))
        for part in plain
        for own in (part._parameters, part._buffers)
        for name, tensor in own.items()
        if tensor is not None
    ]
    try:
        yield
    finally:
        with torch.no_grad():
            for own, name, tensor, value in held:
                own[name] = tensor
                if tensor.layout == torch.strided and not torch.equal(tensor, value):
                    tensor.copy_(value)


def _has_extra_state(module: nn.Module) -> bool:
    return type(module).get_extra_state is not nn.Module.get_extra_state


def _form(inputs: Tensor) -> str:
    return f"{list(inputs.shape)} {str(inputs.dtype).removeprefix('torch.')}"


def _check_shape(who: str, logits: Tensor, count: int, classes: int | None) -> None:
    if logits.dim() != 2 or len(logits) != count or logits.shape[1] < (classes or 1):
        wanted = f"[{count}, {classes or 'C'}]"
        build = f"; build it with num_classes={classes}" if classes else ""
        raise ValueError(
            f"{who}: got outputs of shape {list(logits.shape)} for {count} samples, expected "
            f"logits {wanted}{build}"
        )
