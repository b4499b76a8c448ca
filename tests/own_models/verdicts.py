"""One cell of the matrix: a foreign model in one function of the package, and the verdict.

"right": compared with a plain reference. "refused": one ValueError that begins with the name of an
argument, and everything is as it was. All else is a fault: "raw", an error of another kind, or
"wrong", a result that looks like success.
"""

from __future__ import annotations

import contextlib
import copy
import inspect
import math
import re
import signal
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from zoo import CLASSES, ZOO, Foreign, Plain

from kdlab import compression, metrics
from kdlab.datasets import Data, Split, from_arrays
from kdlab.distillers import Distiller, Labels, Outputs, SoftTargets, available, build
from kdlab.losses.checks import unchecked_values
from kdlab.models import Committee, WithOutput, logits_of, paths
from kdlab.training import fit, predict, read_taps

# "argument: what came, what was expected; what to do"
NAMED = re.compile(r"^[a-z_]+(\[.+?\])?: .*(expected|needs|cannot|; )", re.S)
METHODS = available()
EPOCHS, SIZE, RATE, SEED = 1, 12, 0.05, 3
FIT: dict[str, Any] = {"batch_size": SIZE, "lr": RATE, "seed": SEED, "device": "cpu"}
FIT |= {"precision": "fp32", "validate": False}  # the same on every machine


class Wrong(Exception):
    """A result that is not what a plain reference gives."""


def hold(true: object, what: str) -> None:
    if not true:
        raise Wrong(what)


@dataclass(frozen=True)
class Cell:
    """The verdict on one cell, and what was said where it is not "right"."""

    verdict: str
    said: str = ""


def judge(action: Callable[[], None], *watched: Any) -> Cell:
    """Run one cell; if it is refused, ``watched`` must be as they were."""
    before = [snapshot(model) for model in watched]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            action()
    except Wrong as error:
        return Cell("wrong", str(error))
    except Exception as error:
        said = f"{type(error).__name__}: {' '.join(str(error).split())}"
        if type(error) is not ValueError or not NAMED.match(str(error)):
            return Cell("raw", said)
        for old, model in zip(before, watched, strict=True):
            for what in differences(old, snapshot(model)):
                return Cell("wrong", f"refused, but this changed: {what}; {said}")
        return Cell("refused", str(error))
    return Cell("right")


def snapshot(model: Any) -> dict[str, Any]:
    """What a call may not change: numbers, what of them learns, modes and hooks."""
    if not isinstance(model, nn.Module):
        return {}
    found: dict[str, Any] = {}
    for path, module in model.named_modules(remove_duplicate=False):
        found[f"mode of {path!r}"] = module.training
        hooks = ("_forward_hooks", "_forward_pre_hooks")
        found[f"hooks of {path!r}"] = [len(getattr(module, name, ())) for name in hooks]
    for name, tensor in tensors(model).items():
        found[f"learning of {name!r}"] = tensor.requires_grad
        found[name] = tensor.detach().clone()
    return found


def tensors(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers by name, without those that have no size yet."""
    both = (*model.named_parameters(), *model.named_buffers())
    return {n: t for n, t in both if not nn.parameter.is_lazy(t)}


def differences(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    def same(a: Any, b: Any) -> bool:
        if not (isinstance(a, Tensor) and isinstance(b, Tensor)):
            return type(a) is type(b) and a == b
        return a.dtype == b.dtype and a.shape == b.shape and bool(((a == b) | (a != a)).all())

    return [n for n in {**before, **after} if not same(before.get(n), after.get(n))]


def close(a: Tensor, b: Tensor, share: float) -> bool:
    """Finite, of one shape, and nowhere further apart than a share of the largest value."""
    if a.shape != b.shape or not bool(torch.isfinite(a).all()):
        return False
    return float((a.double() - b.double()).abs().max()) <= share * float(b.abs().max()) + 1e-6


def suited(model: Any, x: Tensor) -> Tensor:
    """Images in the dtype of a model's parameters."""
    own = [p.dtype for p in model.parameters()] if isinstance(model, nn.Module) else []
    return x.to(next((dtype for dtype in own if dtype.is_floating_point), x.dtype))


def answer(model: Any, x: Tensor, training: bool = False) -> Tensor:
    """Logits of a plain forward; the model comes back in the modes that it had."""
    layers = [*model.modules()] if isinstance(model, nn.Module) else []
    modes = [layer.training for layer in layers]
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        with contextlib.suppress(NotImplementedError):  # an exported program has one mode
            if layers:
                model.train(training)
        logits = logits_of(model(suited(model, x)))
    for layer, mode in zip(layers, modes, strict=True):
        layer.training = mode
    return logits.float()


# Data, and pairs of models.


@cache
def images(dtype: torch.dtype = torch.float32) -> Data:
    """24 training images, of which 3 have no label, and 12 of each other split."""
    generator = torch.Generator().manual_seed(7)
    patterns = torch.rand(CLASSES, 8, 8, 3, generator=generator)

    def draw(count: int) -> tuple[Any, Any]:
        y = torch.arange(count) % CLASSES
        x = 0.6 * patterns[y] + 0.4 * torch.rand(count, 8, 8, 3, generator=generator)
        return x.numpy(), y.numpy()

    (x_val, y_val), name = draw(12), "tiny"
    data = from_arrays(*draw(24), *draw(12), x_val=x_val, y_val=y_val, name=name)
    data.train.y[::8] = -1
    splits = {part: getattr(data, part) for part in ("train", "val", "test")}
    return replace(data, **{part: Split(s.x.to(dtype), s.y) for part, s in splits.items()})


@cache
def lessons(task: str, dtype: torch.dtype) -> Data:
    """The images with targets of a task: class numbers, or one number for each class."""
    data, parts = images(dtype), {}
    if task == "classes":
        return data
    for part in ("train", "val", "test"):
        split = getattr(data, part)
        y = nn.functional.one_hot(split.y.clamp(min=0), CLASSES).to(dtype)
        parts[part] = Split(split.x, y.masked_fill(split.y[:, None] < 0, math.nan))
    return replace(data, **parts, task=task)


PLAIN = Foreign(lambda: Plain(5))


def partner(dtype: torch.dtype, seed: int = 1) -> nn.Module:
    return PLAIN.build(seed).to(dtype)


def method(name: str, student: Foreign, teacher: Foreign) -> Distiller:
    """A method with its pairs of layers; beside the labels if it never trains the classifier."""
    wanted = inspect.signature(METHODS[name]).parameters
    mine, theirs = (model.layers or PLAIN.layers for model in (student, teacher))
    several = dict(zip(mine[-len(theirs) :], theirs[-len(mine) :], strict=True))
    embeddings = {student.embedding: teacher.embedding}
    options: dict[str, Any] = {}
    if "layers" in wanted:
        default = wanted["layers"].default
        if not METHODS[name].needs_teacher:
            options["layers"] = mine
        elif isinstance(default, str):
            options["layers"] = embeddings if "pool" in default else {mine[-1]: theirs[-1]}
        else:
            options["layers"] = several | (embeddings if "pool" in default else {})
    if "embedding" in wanted:
        options["embedding"] = student.embedding
    if "student_layers" in wanted:
        options |= {"student_layers": mine, "teacher_layers": theirs}
    short = {"steps": 5, "epochs": 1, "width": 16, "dimension": 16}
    options |= {name: value for name, value in short.items() if name in wanted}
    if "classifier" in wanted:
        options["classifier"] = teacher.classifier
    if "classes" in wanted:
        options["classes"] = [1, 0, 3, 2]
    made = build(name, **options)
    return made if made.complete else Labels() + made


def asked(name: str, teacher: Any, dtype: torch.dtype) -> Any:
    """The teacher, or for a method of several teachers a committee of it and another."""
    return Committee([teacher, partner(dtype, 2)]) if name == "gated_teachers" else teacher


# Training.


def as_student(name: str, who: str) -> Cell:
    foreign = ZOO[who]
    student, teacher = foreign.build(), None
    if METHODS[name].needs_teacher:
        teacher = asked(name, partner(foreign.dtype), foreign.dtype)
    return judge(lambda: learns(name, who, student, teacher, foreign, PLAIN), student, teacher)


def as_teacher(name: str, who: str) -> Cell:
    foreign = ZOO[who]
    student, teacher = partner(foreign.dtype), foreign.build(5)

    def action() -> None:
        them = asked(name, teacher, foreign.dtype)
        learns(name, "plain", student, them, PLAIN, foreign)

    return judge(action, student, teacher)


def learns(name: str, who: str, student: Any, teacher: Any, mine: Foreign, its: Foreign) -> None:
    """`fit` moves what may move, by what the method's terms say, and nothing else."""
    dtype = mine.dtype if its is PLAIN else its.dtype
    data, distiller = lessons(METHODS[name].tasks[0], dtype), method(name, mine, its)
    before, taught = snapshot(student), snapshot(teacher)
    run = fit(student, data, distiller, teacher=teacher, epochs=EPOCHS, **FIT)
    after = snapshot(student)
    moved = set(differences(before, after))
    learning = {n for n, p in student.named_parameters() if p.requires_grad}
    hold(not differences(taught, snapshot(teacher)), "the teacher changed")
    hold(all(map(math.isfinite, run.history.last.values())), f"not finite: {run.history.last}")
    hold(all(bool(torch.isfinite(t).all()) for t in tensors(student).values()), "NaN in weights")
    hold(moved & learning, "nothing was learned")
    hold(moved.isdisjoint(still(student)), "a frozen part moved")
    hold(not any(what.startswith("hooks") for what in moved), "hooks stayed on the student")
    alone = on_labels(who, dtype, data.task)
    apart = [n for n in learning if not torch.equal(after[n], alone[n])]
    heads = name in ("deep_supervision", "reused_classifier") and any(
        p.grad is not None and bool(p.grad.any()) for p in distiller.parameters()
    )  # what they add learns on a frozen backbone, too
    hold(apart or heads or name == "labels", "the method taught nothing: as by labels alone")
    if not (mine.random or its.random or distiller.student_taps or not distiller.needs_only_logits):
        plain = mine.build() if mine is not PLAIN else partner(dtype)
        train_plainly(plain, teacher, method(name, mine, its), data)
        gone = max(float((after[n] - before[n]).abs().max()) for n in learning)
        gaps = {n: float((after[n] - t).abs().max()) for n, t in plain.named_parameters()}
        error = max(2e-3, mine.error, its.error) * gone
        hold(max(gaps.values()) <= error, f"a plain loop ends elsewhere: {gaps} of {gone}")


def still(model: nn.Module) -> set[str]:
    """Names that may not move: frozen parameters, and buffers of norms of which none learns."""
    names = {n for n, p in model.named_parameters() if not p.requires_grad}
    for path, module in model.named_modules():
        own = [*module.parameters(recurse=False)]
        if own and not any(p.requires_grad for p in own):
            names |= {f"{path}.{n}" for n, _ in module.named_buffers(recurse=False)}
    return names


@cache
def on_labels(who: str, dtype: torch.dtype, task: str) -> dict[str, Tensor]:
    """A model's weights after the labels alone."""
    student = partner(dtype) if who == "plain" else ZOO[who].build()
    fit(student, lessons(task, dtype), Labels(), epochs=EPOCHS, **FIT)
    return {n: t.detach().clone() for n, t in tensors(student).items()}


def train_plainly(student: Any, teacher: Any, distiller: Distiller, data: Data) -> None:
    """What `fit` promises, written as one would write it by hand, for methods on logits."""
    x, y = data.train.x, data.train.y
    if teacher is not None and not isinstance(teacher, nn.Module):
        teacher = WithOutput(teacher)
    torch.manual_seed(SEED)
    with torch.no_grad(), contextlib.suppress(NotImplementedError):  # as an exported program has
        for model in (student, teacher):
            if isinstance(model, nn.Module):
                model.eval()
    with torch.no_grad():
        logits_of(student(suited(student, x[:2])))  # what weight norms compute has no graph now
        distiller.prepare(student, teacher, data.train)
    learning = [p for m in (student, distiller) for p in m.parameters() if p.requires_grad]
    sgd = torch.optim.SGD(learning, lr=RATE, momentum=0.9, nesterov=True, weight_decay=5e-4)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(SEED * 1_000_003))
    student.train()
    distiller.train()
    for module in (*student.modules(), *distiller.modules()):
        own = [*module.parameters(recurse=False)]
        if own and not any(p.requires_grad for p in own):
            module.eval()  # frozen is frozen
    for chosen in order.split(SIZE):  # two steps: the end of the climb, the top of the cosine
        said = None if teacher is None else Outputs(kept(answer(teacher, x[chosen])), {}, x[chosen])
        logits = logits_of(student(suited(student, x[chosen]).clone()))
        outputs = Outputs(logits.to(x.dtype), {}, x[chosen], chosen, task=data.task)
        sgd.zero_grad()
        with unchecked_values():  # some functions of losses refuse -1, methods leave it out
            terms = distiller(outputs, said, y[chosen])
        sum(terms.values()).backward()
        sgd.step()
    student.eval()


def kept(logits: Tensor) -> Tensor:
    """A teacher's answers as a cache keeps them: float16 below the largest of each row."""
    largest = logits.amax(-1, keepdim=True)
    return (logits - largest).half().float() + largest


def resumes(who: str) -> Cell:
    """Stopped after the first step and continued by new objects: the same to the last bit."""
    foreign = ZOO[who]
    data = images(foreign.dtype)

    def train(epochs: int, **options: Any) -> Any:
        teacher = foreign.build(5)
        student = foreign.build() if foreign.student else partner(foreign.dtype)
        fit(student, data, SoftTargets(), teacher=teacher, epochs=epochs, **options, **FIT)
        return student

    def stop(moment: Any) -> None:
        if moment.step == 1:
            signal.raise_signal(signal.SIGINT)

    def action() -> None:
        straight = train(2)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "run"
            halfway = train(2, checkpoint=path, callbacks=[stop])
            resumed = train(2, checkpoint=path)
        apart = differences(tensors(straight), tensors(resumed))
        hold(not apart, f"a resumed run ends elsewhere: {apart}")
        hold(differences(tensors(straight), tensors(halfway)), "the run was not stopped")

    return judge(action)


# Asking and measuring.


def answers(who: str) -> Cell:
    foreign = ZOO[who]
    model, x = foreign.build(), images(foreign.dtype).test.x

    def action() -> None:
        before = snapshot(model)
        logits = predict(model, x, device="cpu", batch_size=5)
        parts = [answer(model, part) for part in x.split(5)]
        hold(logits.shape == (len(x), CLASSES), f"predict gives {list(logits.shape)}")
        hold(foreign.dice or close(logits, torch.cat(parts), foreign.error), "predict is wrong")
        hold(not differences(before, snapshot(model)), "predict changed the model")

    return judge(action, model)


def tapped(who: str) -> Cell:
    foreign = ZOO[who]
    model, x = foreign.build(), images(foreign.dtype).test.x

    def action() -> None:
        before = snapshot(model)
        found = read_taps(model, x, foreign.layers, batch_size=5, device="cpu")
        hold(not differences(before, snapshot(model)), "read_taps changed the model")
        hold({p.path for p in paths(model)} >= set(foreign.layers), "paths does not list a layer")
        for path, features in found.items():
            plain: list[Any] = []
            layer = model.get_submodule(path)
            with layer.register_forward_hook(lambda *given, to=plain: to.append(given[-1])):
                last = [(answer(model, part), plain[-1])[1] for part in x.split(5)]
            first = torch.cat([out[0] if isinstance(out, tuple) else out for out in last])
            hold(close(features, first.float(), foreign.error), f"{path} differs from a hook's")

    return judge(action, model)


def costs(who: str) -> Cell:
    foreign = ZOO[who]
    model, x = foreign.build(), images(foreign.dtype).test.x[:2]

    def action() -> None:
        before = snapshot(model)
        found = metrics.cost(model, x, runs=3)
        hold(not differences(before, snapshot(model)), "cost changed the model")
        if isinstance(model, nn.Module):
            by_hand = sum(p.numel() for p in {id(p): p for p in model.parameters()}.values())
            unknown = found.parameters is None and by_hand == 0  # packed, as torch.ao does
            hold(
                unknown or found.parameters == by_hand,
                f"{found.parameters} parameters, not {by_hand}",
            )
        flops = None if foreign.macs is None else 2 * foreign.macs
        hold(flops is None or found.flops == flops, f"{found.flops} FLOPs, by hand {flops}")

    return judge(action, model)


# Compression: each returns what it made, after what is special about it was compared.


def rounded(model: Any, data: Data, x: Tensor) -> nn.Module:
    finer, made = (compression.round_weights(model, bits) for bits in (12, 3))
    hold(close(answer(finer, x), answer(model, x), 0.02), "12 bits change the logits")
    hold(not torch.equal(answer(made, x), answer(model, x)), "3 bits changed nothing")
    return made


def zeroed(model: Any, data: Data, x: Tensor) -> nn.Module:
    made = compression.prune_weights(model, 0.5)
    kinds = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.ConvTranspose2d)
    weights = torch.cat([m.weight.flatten() for m in made.modules() if isinstance(m, kinds)])
    hold((weights == 0).float().mean() > 0.2, "few weights are 0")
    return made


def narrowed(model: Any, data: Data, x: Tensor) -> nn.Module:
    whole = compression.prune_channels(model, x[:2], 0.0)
    hold(close(answer(whole, x), answer(model, x), 1e-4), "to prune nothing changes the logits")
    made = compression.prune_channels(model, x[:2], 0.5)
    with torch.no_grad():
        again = compression.prune_channels(model, x[:2], 0.5)
    sizes = [sum(p.numel() for p in m.parameters()) for m in (model, made, again)]
    hold(sizes[1] < sizes[0], "nothing was pruned")
    hold(sizes[1] == sizes[2], "under no_grad something else is pruned")
    return made


def factored(model: Any, data: Data, x: Tensor) -> nn.Module:
    nearly = compression.factorize(model, 0.9999)
    hold(close(answer(nearly, x), answer(model, x), 0.1), "all of the energy is not the model")
    made = compression.factorize(model, 0.4)
    sizes = [sum(p.numel() for p in m.parameters()) for m in (model, made)]
    hold(sizes[1] <= sizes[0], "it has grown")
    return made


def quantized(model: Any, data: Data, x: Tensor) -> nn.Module:
    made = compression.quantize(model, data)
    hold(close(answer(made, x), answer(model, x), 0.2), "8 bits change the logits")
    return made


def quantized_aware(model: Any, data: Data, x: Tensor) -> nn.Module:
    options = {"epochs": 1, "batch_size": SIZE, "lr": 1e-4, "validate": False}
    made = compression.quantize_aware(model, data, model, **options)
    hold(close(answer(made, x), answer(model, x), 0.2), "8 bits change the logits")
    return made


def nested(model: Any, data: Data, x: Tensor) -> nn.Module:
    within = compression.Nested(model, x[:2], (0.5, 1.0))
    hold(close(answer(within, x), answer(model, x), 1e-4), "the whole width is not the model")
    made = within.subnetwork(0.5)
    with torch.no_grad():
        within.eval().width = 0.5
        hold(close(answer(made, x), answer(within, x), 1e-4), "a width alone answers otherwise")
    return made


COMPRESSION: dict[str, Callable[[Any, Data, Tensor], nn.Module]] = {
    "round_weights": rounded,
    "prune_weights": zeroed,
    "prune_channels": narrowed,
    "factorize": factored,
    "quantize": quantized,
    "quantize_aware": quantized_aware,
    "Nested": nested,
}


def compressed(name: str, who: str) -> Cell:
    """The original is as it was; what was made answers in both modes with as many classes."""
    foreign = ZOO[who]
    model, data = foreign.build(), images(foreign.dtype)
    if isinstance(model, nn.Module):
        with contextlib.suppress(NotImplementedError):
            model.eval()

    def action() -> None:
        before = snapshot(model)
        made = COMPRESSION[name](model, data, data.test.x)
        hold(not differences(before, snapshot(model)), "the original changed")
        for count in (1, 2, 5):
            for training in (False, True):
                if count == 1 and training:
                    continue  # batch statistics of one image are refused by PyTorch
                logits = answer(copy.deepcopy(made), data.test.x[:count], training)
                right = logits.shape == (count, CLASSES) and bool(torch.isfinite(logits).all())
                hold(right, f"{list(logits.shape)} for {count} images, training={training}")

    return judge(action, model)


def exported(ending: str, who: str) -> Cell:
    """The file, read again, gives the model's logits to images that are not normalised."""
    foreign = ZOO[who]
    model, data = foreign.build(), images(foreign.dtype)

    def action() -> None:
        before, x = snapshot(model), data.test.x
        mean, std = (torch.tensor(v, dtype=x.dtype).view(-1, 1, 1) for v in (data.mean, data.std))
        with tempfile.TemporaryDirectory() as folder:
            path = compression.export(model, Path(folder) / f"model{ending}", data)
            hold(not differences(before, snapshot(model)), "the original changed")
            options = {"model": foreign.build(9)} if ending == ".safetensors" else {}
            deployed = compression.load(path, **options)
            logits = deployed((x * std + mean).float())
        hold(
            close(logits, answer(model, x), max(1e-4, foreign.error)), "the file answers otherwise"
        )

    return judge(action, model)


# The row of one model.

FAMILIES = (
    "learns, logits",
    "learns, inner layers",
    "teaches, logits",
    "teaches, inner layers",
    "compression",
    "export",
    "cost, predict, taps, resume",
)


def row(who: str) -> dict[str, dict[str, Cell]]:
    """All cells of one model: family → function → verdict."""
    foreign = ZOO[who]
    found: dict[str, dict[str, Cell]] = {family: {} for family in FAMILIES}
    logits = [name for name, kind in METHODS.items() if reads_logits(kind)]
    inner = [name for name in METHODS if name not in logits][:: foreign.every]
    for read, names in (("logits", logits), ("inner layers", inner)):
        for name in names:
            if foreign.student:
                found[f"learns, {read}"][name] = as_student(name, who)
            if METHODS[name].needs_teacher:
                found[f"teaches, {read}"][name] = as_teacher(name, who)
    if foreign.student:
        found["compression"] = {name: compressed(name, who) for name in COMPRESSION}
    endings = (".safetensors", ".pt2", ".onnx") if foreign.onnx else (".safetensors", ".pt2")
    found["export"] = {ending: exported(ending, who) for ending in endings}
    use = {"cost": costs, "predict": answers, "read_taps": tapped, "resume": resumes}
    found["cost, predict, taps, resume"] = {name: ask(who) for name, ask in use.items()}
    return found


def reads_logits(kind: type[Distiller]) -> bool:
    return kind.complete and not {"layers", "embedding"} & set(inspect.signature(kind).parameters)
