"""The one training loop: for teachers, baselines and students alike."""

from __future__ import annotations

import math
import numbers
import os
import time
import warnings
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from kdlab.datasets import Data
from kdlab.datasets.checks import check_inputs, check_labels
from kdlab.datasets.views import Augmentation
from kdlab.distillers import Distiller
from kdlab.losses.checks import check_kind, check_positive, unchecked_values
from kdlab.losses.labels import check_class_weights
from kdlab.metrics import scores
from kdlab.models.modes import device_of
from kdlab.models.outputs import Output
from kdlab.training.asking import as_teacher, choose_asker
from kdlab.training.batches import Batches
from kdlab.training.device import (
    fast_kernels,
    forked_generators,
    pick_device,
    pick_precision,
    seed_generators,
)
from kdlab.training.distributed import Alone, Ranks, join
from kdlab.training.divergence import LastGood
from kdlab.training.history import History, Run
from kdlab.training.identity import check_trainable, describe, describe_trained, fingerprint
from kdlab.training.interrupt import Stop
from kdlab.training.predict import Forward, visiting
from kdlab.training.progress import Progress
from kdlab.training.rehearsal import (
    SAMPLES,
    blaming,
    check_outputs,
    check_shared,
    rehearse,
    unmoved,
)
from kdlab.training.shared_step import SharedStep
from kdlab.training.state import State
from kdlab.training.step import Step
from kdlab.training.teacher_outputs import TeacherOutputs
from kdlab.words import check_known


def _sgd(parameters: Sequence[Tensor], nesterov: bool, **options: Any) -> torch.optim.Optimizer:
    """SGD with momentum 0.9, for parameters whose first gradient comes in different steps, too."""
    update = torch.optim.SGD(parameters, momentum=0.9, nesterov=nesterov, **options)
    for parameter in parameters:  # PyTorch's fused kernel wants buffers for all of them, or none
        update.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return update


OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "sgd": partial(_sgd, nesterov=True),
    "momentum": partial(_sgd, nesterov=False),
    "adamw": torch.optim.AdamW,
}
WARM_UPS = {"cosine": 0.1, "steps": 0.0}  # fraction of all steps in which the learning rate climbs
SUITED = {  # where softmaxes say nothing
    "classes": "such as SoftTargets()",
    "labels": "such as SigmoidTargets()",
    "values": "such as ValueTargets()",
}
DROPS = (5 / 8, 3 / 4, 7 / 8)  # of all epochs: 150, 180, 210 of 240, as is published


@dataclass(frozen=True)
class Moment:
    """What a callback is told after each step; reading a term's value makes a GPU wait."""

    epoch: int
    step: int
    steps: int
    terms: dict[str, Tensor]
    model: nn.Module
    history: History


@dataclass(frozen=True)
class Plan:
    """The numbers of one run, and what follows from them for each epoch and step."""

    images: int
    epochs: int
    batch_size: int
    lr: float
    seed: int
    views: int | None
    schedule: str = "cosine"
    warm_up: float = WARM_UPS["cosine"]
    milestones: tuple[int, ...] = ()
    lr_decay: float = 0.1

    @property
    def steps(self) -> int:
        """Steps per epoch; the last, incomplete batch of an epoch is dropped."""
        return self.images // self.batch_size

    def order(self, epoch: int) -> Tensor:
        """Return the order of the images in one epoch; it depends on the seed and the epoch."""
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
        return torch.randperm(self.images, generator=generator)

    def view(self, epoch: int) -> int:
        """Return which view of the images an epoch shows."""
        return epoch if self.views is None else epoch % self.views

    def progress(self, epoch: int, step: int) -> float:
        """Return the share of all steps that are done before this one."""
        return (epoch * self.steps + step) / (self.epochs * self.steps)

    def learning_rate(self, epoch: int, step: int) -> float:
        """Return the learning rate of one step: a linear climb, then a cosine to 0, or drops."""
        total, now = self.epochs * self.steps, epoch * self.steps + step
        climb = max(1, round(self.warm_up * total)) if self.warm_up else 0
        if now < climb:
            return self.lr * (now + 1) / climb
        if self.schedule == "steps":
            return self.lr * self.lr_decay ** sum(epoch >= drop for drop in self.milestones)
        return self.lr * 0.5 * (1 + math.cos(math.pi * (now - climb) / max(1, total - climb)))


@dataclass
class Clock:
    """Steps made and the time they took, validation and set-up excluded."""

    steps: int = 0
    seconds: float = 0.0
    _since: float = field(default=0.0, repr=False)

    def __enter__(self) -> None:
        self._since = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        self.seconds += time.perf_counter() - self._since


def fit(
    model: nn.Module,
    data: Data,
    distiller: Distiller | None = None,
    *,
    teacher: nn.Module | None = None,
    epochs: int = 20,
    batch_size: int = 128,
    lr: float = 0.1,
    seed: int = 0,
    optimizer: str = "sgd",
    weight_decay: float = 5e-4,
    schedule: str = "cosine",
    milestones: Sequence[int] | None = None,
    lr_decay: float = 0.1,
    warm_up: float | None = None,
    clip: float | None = None,
    class_weights: Sequence[float] | Tensor | None = None,
    micro_batch: int | None = None,
    output: Output | None = None,
    update_frozen_norms: bool = False,
    device: str = "auto",
    precision: str = "auto",
    compile: bool = False,
    augment: Augmentation | None = None,
    views: int | None = None,
    teacher_outputs: TeacherOutputs | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    validate: bool = True,
    callbacks: Iterable[Callable[[Moment], None]] = (),
    progress: bool = False,
) -> Run:
    """Train ``model`` on ``data.train``; with a distiller, under ``teacher``.

    Both models may be anybody's: they return logits in one of the forms that
    `kdlab.models.logits_of` knows, or ``output`` takes them out. One step is tried on a few samples
    before the first update, so that what cannot work is said at once, by name. The teacher stays
    bit for bit as it is; so do parameters with ``requires_grad=False`` and the norms among them.

    The learning rate climbs to ``lr`` over a tenth of all steps and falls to 0 along a cosine.
    Each epoch shuffles anew and drops the last, incomplete batch. The same seed gives the same
    run. An interrupt (Ctrl-C, the toolbar's square) ends it between two steps with a usable
    model; with ``checkpoint`` the next call goes on from there bit for bit. SIGTERM, with which
    schedulers announce the end of a job, then waits for the checkpoint too, and ends the process
    after it. Derived in lesson 01.
    Under ``torchrun`` all ranks share each batch and end with the same model: docs/scale.md.

    Args:
        model: returns logits ``[B, C]`` for images ``[B, c, h, w]``; trained in place.
        data: what to learn from; targets of -1 are unlabelled and count for the teacher alone.
        distiller: the method; None trains on the labels alone.
        teacher: who answers; frozen and in eval mode, whatever it was before. For a method that
            reads logits alone also a function of a batch, an exported program, or what
            ``kdlab.compression.load`` returns.
        epochs: passes over the training images.
        batch_size: images per step.
        lr: peak learning rate.
        seed: shuffling and dropout.
        optimizer: ``sgd`` (Nesterov, momentum 0.9), ``momentum`` (the same without Nesterov) or
            ``adamw``.
        weight_decay: on all parameters.
        schedule: ``cosine``, or ``steps``: ``lr`` times ``lr_decay`` from each milestone on.
        milestones: epochs at which the learning rate drops, ascending; None takes 5/8, 3/4 and 7/8
            of ``epochs`` (150, 180 and 210 of 240).
        lr_decay: factor of each drop, above 0 and at most 1.
        warm_up: fraction of all steps in which the learning rate climbs, from 0 to below 1; None
            takes 0.1 with ``cosine`` and 0 with ``steps``.
        clip: the largest L2 length of the gradient; None leaves it.
        class_weights: one number per class, at least 0; the mean over the labelled samples then
            weighs each by the number of its class, as in PyTorch's ``cross_entropy``.
        micro_batch: samples in one forward; the gradients of a batch are accumulated.
        output: takes the logits out of what a model returns; it is used on student and teacher
            (for one of them alone: ``kdlab.models.WithOutput``).
        update_frozen_norms: let the running statistics of frozen norms follow the batches.
        device: ``auto``, ``cpu``, ``cuda`` or ``mps``.
        precision: ``auto``, ``fp32`` or ``bf16``.
        compile: run the student through torch.compile; pays on a GPU in long runs.
        augment: shows another view of each image in each epoch.
        views: how many views there are; None means a new one each epoch. With a number, and a
            method that needs only logits, the teacher is asked once per view and its answers are
            kept.
        teacher_outputs: such answers, made before with ``TeacherOutputs.build``.
        checkpoint: a file, written after each epoch and when interrupted.
        validate: measure ``val_accuracy`` and ``val_nll`` (of values ``val_mse`` and ``val_r2``)
            after each epoch, else after the last.
        callbacks: called with a ``Moment`` after each step, on every rank.
        progress: show a progress bar.

    Raises:
        ValueError: an argument out of its range, labels or inputs that cannot be learned from, a
            model that does not give finite logits ``[B, C]``, a distiller without the teacher it
            needs (or the reverse), a method that cannot be used on this pair, a checkpoint of
            another run or one that cannot be written, a cache of another teacher or data set,
            ranks that were told different things or whose buffers differ.
        Diverged: a loss or a weight is no longer finite; a ValueError. The model, and the
            checkpoint, hold the state after the last epoch in which all were.
        RuntimeError: another rank is gone, or there is too little memory.
    """
    check_budget(epochs, batch_size, lr, optimizer, weight_decay, seed)
    drops = check_schedule(schedule, milestones, lr_decay, warm_up, int(epochs))
    _check_options(clip, micro_batch, output)
    weights = _class_weights(class_weights, data)
    teacher = _check(model, data, distiller, teacher, augment, views, compile)
    ranks, target = join(pick_device(device))
    dtype = pick_precision(precision, target)
    lr, weight_decay = float(lr), float(weight_decay)  # a checkpoint holds no NumPy numbers
    size = int(min(batch_size, len(data.train)))
    plan = Plan(
        images=len(data.train),
        epochs=int(epochs),
        batch_size=size,
        lr=lr,
        seed=int(seed),
        views=1 if augment is None else views,
        schedule=schedule,
        warm_up=WARM_UPS[schedule] if warm_up is None else float(warm_up),
        milestones=drops,
        lr_decay=float(lr_decay),
    )
    home = device_of(model)
    with ExitStack() as stack:
        stack.enter_context(ranks.guarded())
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        stack.enter_context(torch.autocast(target.type, enabled=False))  # precision= decides
        stack.enter_context(forked_generators(target))
        stack.enter_context(fast_kernels(target))
        stack.enter_context(unchecked_values())
        seed_generators(plan.seed, target)
        refused = stack.enter_context(ExitStack())
        for module in model.modules():  # what is refused comes back in the modes that it had
            refused.callback(setattr, module, "training", module.training)
        stack.callback(lambda: model.to(home).eval())
        batches = Batches(data.train, augment, target, size, weights, data.task)
        modules = {"model": model.to(target)}
        first = data.train.x[: min(size, micro_batch or size, SAMPLES)]
        check_outputs(Forward(model, output), first, data.num_classes, target)
        if teacher is not None:
            asked = Forward(teacher, output, "teacher")
            stack.enter_context(unmoved(teacher))
            if teacher_outputs is None:
                check_outputs(asked, data.train.x[:64], None, target)
        identity: dict[str, Any] = {}
        if checkpoint is not None or ranks.size > 1:  # what has no name is refused before any work
            identity = asdict(plan) | _identity(model, data, distiller, teacher)
            identity |= {"optimizer": optimizer, "weight_decay": weight_decay}
            identity |= {"augment": describe(augment, "augment"), "clip": clip}
            identity |= {"output": describe(output, "output"), "micro_batch": micro_batch}
            identity |= {"class_weights": None if weights is None else weights.tolist()}
            identity |= {"update_frozen_norms": update_frozen_norms}
        if distiller is not None:
            with (
                torch.no_grad(),
                visiting(model, target),
                visiting(teacher, target),
                blaming("distiller", f"in {type(distiller).__name__}.prepare"),
            ):
                distiller.prepare(model, teacher, data.train)
            modules["distiller"] = distiller.to(target)
        if teacher is not None:
            check_shared(teacher, modules)
        if identity:
            identity |= describe_trained(distiller, "distiller", model)  # with its adapters
        ranks.check(size, identity, distiller)
        learning = [p for module in modules.values() for p in module.parameters()]
        learning = [p for p in learning if p.requires_grad]
        update = OPTIMIZERS[optimizer](
            learning,
            lr=torch.tensor(lr) if compile else lr,
            weight_decay=weight_decay,
            fused=_can_fuse(learning, target),
        )
        start_momentum(update)
        ask = choose_asker(
            *(stack, teacher, data, distiller, plan.views, batches, teacher_outputs, dtype, ranks),
            output=output,
        )
        step = make_step(
            *(ranks, model, distiller, ask, update, batches, dtype, compile),
            output=output,
            micro_batch=micro_batch,
            clip=clip,
            update_frozen_norms=update_frozen_norms,
            teacher=teacher,
        )
        stack.callback(step.close)
        rehearse(step, len(first), data.num_classes, target)
        state = State(modules, update, identity, checkpoint, ranks)
        state.resume()
        refused.pop_all()
        bar = Progress(
            (epochs - state.epoch) * plan.steps, "training", progress and ranks.rank == 0
        )
        stack.enter_context(bar)

        def score() -> dict[str, float]:
            if not (validate or state.epoch == epochs):
                return {}
            logits = ranks.predict(model, data.val.x, device=target, output=output)
            found = scores(data.task, logits, data.val.y)
            return {f"val_{name}": value for name, value in found.items()}

        def tell(terms: dict[str, Tensor], epoch: int, number: int) -> None:
            bar.advance()
            for callback in callbacks:
                callback(Moment(epoch, number, plan.steps, terms, model, state.history))

        stop = stack.enter_context(ranks.interrupts(terminate=checkpoint is not None))
        clock = run_epochs(plan, state, step, score, tell, stop)
        kept = state.save()
        interrupted = state.epoch < epochs
        if interrupted and ranks.rank == 0:
            _say_interrupted(state, plan, kept)
    facts = {"device": target.type, "precision": dtype, "micro_batch": step.micro_batch or size}
    if step.forward.contiguous:
        facts["memory_format"] = "contiguous"  # the model's forward has a .view
    rate = clock.steps * size / clock.seconds if clock.seconds else math.nan
    if ranks.size > 1:
        facts["ranks"] = ranks.size
    return Run(model, state.history, interrupted, clock.steps, clock.seconds, rate, facts)


def _can_fuse(parameters: Sequence[Tensor], device: torch.device) -> bool:
    """Whether an optimizer may update all parameters in one kernel.

    On a CPU PyTorch's (2.13) leaves most of the numbers of a 16-bit parameter as they were.
    """
    single = all(p.dtype in (torch.float32, torch.float64) for p in parameters)
    return device.type == "cuda" or (device.type == "cpu" and single)


def make_step(ranks: Alone, *arguments: Any, **options: Any) -> Step:
    """Return a step of this process alone, or this rank's part of a step of all ranks."""
    if isinstance(ranks, Ranks):
        return SharedStep(ranks, *arguments, **options)
    return Step(*arguments, **options)


def start_momentum(optimizer: torch.optim.Optimizer) -> None:
    """Give each parameter a momentum of 0, from which its first step is as without one.

    PyTorch's fused SGD fails if parameters get their first gradients in different steps, as those
    of a layer that is skipped at random (stochastic depth).
    """
    for group in optimizer.param_groups:
        if group.get("momentum"):
            for parameter in group["params"]:
                optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)


def run_epochs(
    plan: Plan,
    state: State,
    step: Step,
    score: Callable[[], dict[str, float]],
    tell: Callable[[dict[str, Tensor], int, int], None],
    stop: Stop,
) -> Clock:
    """Go from where ``state`` stands to the last epoch, or to the step after ``stop``: the loop.

    Nothing in here waits for the device: the sums are read once, at the end of an epoch.
    """
    clock, size = Clock(), plan.batch_size
    good = LastGood(state.modules, plan.lr, state.epoch)
    while state.epoch < plan.epochs and not stop.requested:
        epoch, view = state.epoch, plan.view(state.epoch)
        order = plan.order(epoch).to(step.batches.labels.device)
        step.train()
        with clock:
            for number in range(state.step, plan.steps):
                rate = plan.learning_rate(epoch, number)
                chosen = order[number * size : (number + 1) * size]
                terms = step(chosen, view, rate, plan.progress(epoch, number))
                state.add(terms, step.measured)
                clock.steps += 1
                tell(terms, epoch, number + 1)
                if stop.requested and number + 1 < plan.steps:
                    good.check({name: float(term) for name, term in terms.items()}, epoch + 1)
                    return clock
            row = state.end_epoch()
        good.check({name: row[name] for name in terms}, state.epoch)
        state.history.append(**row, lr=rate, **score())
        state.save()
    return clock


def check_budget(
    epochs: int, batch_size: int, lr: float, optimizer: str, weight_decay: float, seed: int
) -> None:
    """Raise ValueError that names the first of these arguments that is out of its range."""
    for name, count, least in (("epochs", epochs, 1), ("batch_size", batch_size, 1)):
        _check_count(name, count, least)
    _check_count("seed", seed, 0)
    for name, value in (("lr", lr), ("weight_decay", weight_decay)):
        if not isinstance(value, numbers.Real) or not math.isfinite(value) or value < 0:
            raise ValueError(f"{name}: {value!r} came, expected a finite number, not negative")
    if lr == 0:
        raise ValueError("lr: 0 came, expected a positive number such as 0.1")
    if optimizer not in OPTIMIZERS:
        raise ValueError(f"optimizer: {optimizer!r} came, expected one of {', '.join(OPTIMIZERS)}")


def check_schedule(
    schedule: str,
    milestones: Sequence[int] | None,
    lr_decay: float,
    warm_up: float | None,
    epochs: int,
) -> tuple[int, ...]:
    """Return the epochs at which the learning rate drops, none with a cosine.

    Raises:
        ValueError: names the first of these arguments that is out of its range.
    """
    check_known("schedule", schedule, WARM_UPS)
    for name, value, least in (("lr_decay", lr_decay, "above 0"), ("warm_up", warm_up, "from 0")):
        if value is None:
            continue
        real = isinstance(value, numbers.Real) and not isinstance(value, bool)
        if not real or not 0 <= value <= 1 or value == (0 if name == "lr_decay" else 1):
            most = "to below 1" if name == "warm_up" else "to 1"
            raise ValueError(f"{name}: got {value!r}, expected a fraction {least} {most}")
    if schedule == "cosine":
        if milestones is not None:
            raise ValueError(
                f"milestones: got {milestones!r} with schedule='cosine', which has none; "
                "give schedule='steps'"
            )
        return ()
    if milestones is None:
        return tuple(sorted({round(drop * epochs) for drop in DROPS}))
    drops = list(milestones) if isinstance(milestones, Iterable) else [None]
    whole = all(isinstance(d, numbers.Integral) and not isinstance(d, bool) for d in drops)
    if not whole or drops != sorted(set(drops)) or not all(0 < drop < epochs for drop in drops):
        raise ValueError(
            f"milestones: got {milestones!r}, expected epochs from 1 to {epochs - 1}, ascending, "
            "such as (150, 180, 210) of 240"
        )
    return tuple(int(drop) for drop in drops)


def _check_options(clip: float | None, micro_batch: int | None, output: Output | None) -> None:
    if clip is not None:
        check_positive("clip", clip)
    if micro_batch is not None:
        _check_count("micro_batch", micro_batch, 1)
    if output is not None and not callable(output):
        raise ValueError(
            f"output: got {type(output).__name__}, expected a function that takes the logits out "
            "of what the model returns, such as lambda returned: returned['scores']"
        )


def _class_weights(given: Sequence[float] | Tensor | None, data: Data) -> Tensor | None:
    if given is None:
        return None
    if data.task != "classes":
        raise ValueError(f"class_weights: got some for the task {data.task!r}, expected None")
    try:
        weights = torch.as_tensor(given, dtype=torch.float32)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(
            f"class_weights: got {given!r:.80}, expected {data.num_classes} numbers, one for each "
            "class"
        ) from error
    check_class_weights(weights, data.num_classes)
    return weights


def _check_count(name: str, value: int, least: int) -> None:
    if (
        isinstance(value, bool)
        or not isinstance(value, numbers.Integral)
        or not least <= value < 2**40
    ):
        raise ValueError(f"{name}: {value!r} came, expected a whole number from {least} on")


def _check(
    model: nn.Module,
    data: Data,
    distiller: Distiller | None,
    teacher: Any,
    augment: Augmentation | None,
    views: int | None,
    compile: bool,
) -> nn.Module | None:
    """Raise ValueError that names what does not fit; return the teacher as a module."""
    check_kind("data", data, Data, "a data set, such as kdlab.datasets.load('digits')")
    check_kind(
        "distiller",
        distiller,
        Distiller | None,
        "a method such as SoftTargets(), not the class, not a name; None for the labels alone",
    )
    check_trainable(model)
    check_labels(data)
    check_inputs(data)
    if views is not None:
        _check_count("views", views, 1)
    if views and views > 1 and augment is None:
        raise ValueError(f"views: {views} came without augment; say how the views should differ")
    if distiller is None and teacher is not None:
        raise ValueError(
            "teacher: it came without a distiller and would not be asked; "
            "add one, as in fit(model, data, SoftTargets(), teacher=teacher)"
        )
    if distiller is not None and not distiller.complete:
        warnings.warn(
            f"distiller: {type(distiller).__name__} alone never trains the student's classifier; "
            "that is right for a first stage, else add a method that does, as in "
            "Labels() + Hints() or SoftTargets() + Hints()",
            stacklevel=3,
        )
    if compile and distiller is not None and distiller.needs_input_gradients:
        raise ValueError(
            f"compile: {type(distiller).__name__} differentiates twice, which torch.compile "
            "cannot; leave compile=False"
        )
    if teacher is model:
        raise ValueError("teacher: it is the student itself; give copy.deepcopy(model)")
    if distiller is not None and distiller.needs_teacher and teacher is None:
        raise ValueError(f"teacher: {type(distiller).__name__} needs one, and none came")
    if distiller is not None and data.task not in distiller.tasks:
        raise ValueError(
            f"distiller: got {type(distiller).__name__} for data of the task {data.task!r}, "
            f"expected a method for it, {SUITED[data.task]}; {type(distiller).__name__} is for "
            f"{' and '.join(distiller.tasks) or 'no task, as its parts have none in common'}"
        )
    if distiller is None and not data.train.labelled.any():
        raise ValueError("data: no training image has a label, and there is no teacher to ask")
    module = as_teacher(teacher, data)
    if module is not teacher and distiller is not None and not distiller.needs_only_logits:
        raise ValueError(
            f"teacher: got a {type(teacher).__name__}, a function without layers, expected a "
            f"torch.nn.Module: {type(distiller).__name__} reads more than logits"
        )
    return module


def _identity(
    model: nn.Module, data: Data, distiller: Distiller | None, teacher: nn.Module | None
) -> dict[str, Any]:
    return {
        **describe_trained(model, "model"),
        **describe_trained(distiller, "distiller", model),
        "data": data.fingerprint,
        "teacher": fingerprint(teacher) if teacher is not None else None,
    }


def _say_interrupted(state: State, plan: Plan, kept: bool) -> None:
    advice = (
        f"call fit again with checkpoint={str(state.path)!r} to go on"
        if kept
        else "with a checkpoint=... that can be written the next call could go on from here"
    )
    warnings.warn(
        f"stopped in epoch {state.epoch + 1} of {plan.epochs} after step {state.step} of "
        f"{plan.steps}: the model is usable as it is; {advice}",
        stacklevel=3,
    )
