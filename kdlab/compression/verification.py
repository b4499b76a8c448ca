"""What every function of compression does before and after its work: copy, look, run, report."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.nn.utils import parametrize, remove_spectral_norm, remove_weight_norm
from torch.nn.utils import prune as torch_prune
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm
from torch.utils._pytree import tree_leaves

from kdlab.compression.extras import quiet
from kdlab.compression.kinds import check_kinds
from kdlab.compression.quantized import check_not_quantized
from kdlab.models import logits_of
from kdlab.models.modes import check_initialised, device_of, unwrapped

REPORT = "compression_report"  # the attribute of a compressed model that `report` reads


@dataclass(frozen=True)
class Report:
    """What the last step of compression did to each layer; printed, it has one line per layer.

    Attributes:
        changed: path of a layer → what became of it.
        left: path of a layer → why it stayed as it was.
    """

    changed: dict[str, str] = field(default_factory=dict)
    left: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        lines = [f"{path or 'the model'}: {what}" for path, what in self.changed.items()]
        lines += [
            f"{path or 'the model'} is left as it was: {why}" for path, why in self.left.items()
        ]
        return "\n".join(lines) or "nothing was changed"


def report(model: nn.Module) -> Report:
    """What the function of compression that returned this model changed, what it left, and why.

    ``print(kdlab.compression.report(small))`` shows one line per layer. It is the report of the
    last step alone.

    Raises:
        ValueError: a model that no function of compression returned.
    """
    check_kinds(model=model)
    found = getattr(model, REPORT, None)
    if found is None:
        raise ValueError(
            f"model: got a {type(model).__name__} without a report, expected what a function of "
            "kdlab.compression returned; compress it first"
        )
    return found


class ForwardFails(Exception):
    """A forward raised.

    Attributes:
        layer: path of the innermost layer that was being computed.
        why: the first line of the error.
    """

    def __init__(self, layer: str, error: BaseException) -> None:
        self.layer = layer
        self.why = f"{type(error).__name__}: {_first(error)}"
        super().__init__(f"its forward fails {place(layer)}: {self.why}")


def place(layer: str) -> str:
    """Where something happens, for a sentence."""
    return f"in the layer {layer!r}" if layer else "in the model's own forward"


WEIGHTED = (_ConvNd, nn.Linear)  # the layers whose weights compression changes


def opened(
    model: nn.Module, example: Tensor | None = None
) -> tuple[nn.Module, Expected | None, dict[str, str]]:
    """A copy to change, what the model answers to the example, and what became plain parameters.

    Raises:
        ValueError: what `plain_copy` and `expect` refuse.
    """
    if example is not None:
        check_kinds(example=example)
    plain, baked = plain_copy(model)
    check_finite(plain, "before the step")
    expected = None if example is None else expect(plain, example)
    return plain, expected, baked


def weighted(model: nn.Module) -> tuple[dict[str, Any], dict[str, str]]:
    """The convolutions and Linear layers whose weights may be changed, and why others may not."""
    layers: dict[str, Any] = {}
    left: dict[str, str] = {}
    seen: dict[int, str] = {}
    for path, layer in model.named_modules():
        if isinstance(layer, WEIGHTED):
            weight = layer._parameters.get("weight")
            if weight is None:
                left[path] = "its weight is computed in each forward"
            elif id(weight) in seen:
                left[path] = f"its weight is that of {seen[id(weight)]}"
            else:
                layers[path], seen[id(weight)] = layer, path
        else:
            own = [name for name, p in layer._parameters.items() if p is not None and p.dim() > 1]
            if own:
                left[path] = f"the {', '.join(own)} of a {type(layer).__name__} cannot be changed"
    return layers, left


def nothing_to_change(model: nn.Module, left: Mapping[str, str]) -> ValueError:
    """What to raise for a model without a layer whose weight could be changed."""
    why = "; ".join(f"{path or 'the model'}: {reason}" for path, reason in left.items())
    return ValueError(
        f"model: got a {type(model).__name__} with no convolution and no Linear layer to change"
        f"{why and f' ({why})'}, expected one with such layers; give the model that holds them"
    )


def plain_copy(model: nn.Module) -> tuple[nn.Module, dict[str, str]]:
    """A copy whose layers can be seen and changed, and what was done for that to which layer.

    Compiled parts become what they were compiled from. Weights that are computed in each forward
    (weight norm, spectral norm, a mask of ``torch.nn.utils.prune``, any parametrization) become
    plain parameters with the values that they have in eval mode.

    Raises:
        ValueError: what cannot be copied or changed, such as a ScriptModule, layers that are
            quantized, lazy or complex.
    """
    check_open(model)
    whole = plain_names(model)
    return whole, _bake(whole)


def copied(model: nn.Module) -> Any:
    """A deep copy, in which tensors with a graph, such as a weight norm's weight, have none."""
    held = (leaf for module in model.modules() for leaf in tree_leaves(dict(vars(module))))
    tensors = [leaf for leaf in held if isinstance(leaf, Tensor) and not leaf.is_leaf]
    with quiet():  # a program's copy warns of PyTorch's own future
        return copy.deepcopy(model, {id(tensor): tensor.detach().clone() for tensor in tensors})


def check_open(model: nn.Module) -> None:
    """Raise ValueError unless the layers of this model are PyTorch's, real and initialised."""
    check_not_quantized(model)
    check_initialised(model)
    for path, module in model.named_modules():
        kind = type(module).__name__
        at = f" in the layer {path!r}" if path else ""
        if isinstance(module, torch.jit.ScriptModule):
            raise ValueError(
                f"model: got a {kind}{at}, expected layers that can be changed; give the module "
                "that it was scripted or traced from"
            )
        if type(module).__module__.startswith(("torch.ao.nn", "torch.nn.quantized")) and not (
            isinstance(module, nn.Linear)
        ):
            raise ValueError(
                f"model: got a quantized {kind}{at}, expected layers with floats; it is quantized "
                "already: take the model that it was made of, and quantize last"
            )
        for name, weight in module._parameters.items():
            if weight is None:
                continue
            full = f"{path}.{name}" if path else name
            if type(weight.data) is not Tensor:
                raise ValueError(
                    f"model: got {full} as a {type(weight.data).__name__}, expected floats; it "
                    "is quantized already: take the model that it was made of, and quantize last"
                )
            if weight.is_complex():
                raise ValueError(
                    f"model: got complex numbers in {full}, expected real ones; compression knows "
                    "no complex layers"
                )


def plain_names(model: nn.Module) -> nn.Module:
    """A copy without what ``torch.compile`` put around it or its parts; nothing else changes.

    Raises:
        ValueError: it cannot be copied, or has lazy layers without weights.
    """
    check_initialised(model)
    with torch.inference_mode(False):
        try:
            return _uncompiled(copied(model))
        except Exception as error:
            raise ValueError(
                f"model: got a {type(model).__name__} that cannot be copied ({_first(error)}), "
                "expected one that copy.deepcopy copies; detach the tensors that it holds"
            ) from error


def _uncompiled(whole: nn.Module) -> nn.Module:
    for module in list(whole.modules()):
        for name, child in module._modules.items():
            if child is not None and child is not unwrapped(child) and name != "_orig_mod":
                module._modules[name] = unwrapped(child)
    return unwrapped(whole)


@torch.no_grad()
def _bake(whole: nn.Module) -> dict[str, str]:
    baked: dict[str, str] = {}
    modes = [(module, module.training) for module in whole.modules()]
    for module, _ in modes:
        module.training = False  # or a spectral norm would take a step
    for path, module in list(whole.named_modules()):
        for hook in list(module._forward_pre_hooks.values()):
            name: Any = getattr(hook, "name", getattr(hook, "_tensor_name", None))
            for kind, remove in BAKED.items():
                if isinstance(hook, kind):
                    parts = [p for n, p in module._parameters.items() if n.startswith(f"{name}_")]
                    remove(module, name)
                    _forget_loading(module)
                    learns = any(p is not None and p.requires_grad for p in parts)
                    module.get_parameter(name).requires_grad_(learns)
                    baked[path] = f"{kind.__name__} of its {name} became a plain parameter"
        if parametrize.is_parametrized(module):
            _bake_parametrizations(module)
            baked[path] = "the parametrization of its weights became plain parameters"
    for module, training in modes:
        module.training = training
    return baked


def _forget_loading(module: nn.Module) -> None:
    """Drop what a spectral norm does at ``load_state_dict``, which PyTorch forgets to remove."""
    for hooks in (module._load_state_dict_pre_hooks, module._state_dict_hooks):
        for key, hook in list(hooks.items()):
            if type(getattr(hook, "hook", hook)).__name__.startswith("SpectralNorm"):
                del hooks[key]


def _bake_parametrizations(module: Any) -> None:
    # not remove_parametrizations: it changes a class that the copy shares with the original
    lists = dict(module.parametrizations.items())
    values = {name: getattr(module, name).detach().clone() for name in lists}
    del module._modules["parametrizations"]
    module.__class__ = type(module).__bases__[0]
    for name, parts in lists.items():
        originals = [t for n, t in parts.named_parameters(recurse=False) if "original" in n]
        if originals:
            learns = any(t.requires_grad for t in originals)
            module.register_parameter(name, nn.Parameter(values[name], learns))
        else:
            module.register_buffer(name, values[name])


BAKED: dict[type, Callable[[nn.Module, str], Any]] = {
    WeightNorm: remove_weight_norm,
    SpectralNorm: remove_spectral_norm,
    torch_prune.BasePruningMethod: torch_prune.remove,
}


def suited(example: Tensor, model: nn.Module) -> Tensor:
    """At least two inputs, on the model's device, images in the dtype of its weights."""
    example = example.to(device_of(model))
    if example.is_floating_point():
        floats = (p.dtype for p in model.parameters() if p.is_floating_point())
        example = example.to(next(floats, example.dtype))
    return torch.cat([example, example])[:2] if len(example) == 1 else example


def logits(
    model: nn.Module, example: Tensor, *, training: bool = False, seed: int | None = None
) -> Tensor:
    """The logits of one forward of a copy, so that neither statistics nor random numbers move.

    Args:
        model: stays as it was.
        example: inputs ``[B, ...]``.
        training: the mode.
        seed: of random numbers; None leaves them as they are.

    Raises:
        ForwardFails: the forward raises, or gives no logits.
    """
    probe = copied(model)
    for module in probe.modules():  # an exported program has one mode and refuses another
        module.training = training
    path = {module: name for name, module in probe.named_modules()}
    running: list[str] = []

    def enter(module: nn.Module, _: Any) -> None:
        running.append(path[module])

    def leave(*_: Any) -> None:
        running.pop()

    for module in probe.modules():
        if not isinstance(module, torch.jit.ScriptModule):  # which takes no hooks
            module.register_forward_pre_hook(enter)
            module.register_forward_hook(leave)
    devices = [device_of(probe)] if device_of(probe).type == "cuda" else []
    try:
        with torch.random.fork_rng(devices), torch.no_grad():
            if seed is not None:
                torch.manual_seed(seed)
            return logits_of(probe(example.clone()))
    except Exception as error:
        raise ForwardFails(running[-1] if running else "", error) from error


@dataclass(frozen=True)
class Expected:
    """What a model answered before it was compressed.

    Attributes:
        example: inputs ``[2, ...]``.
        shapes: in eval mode (False) and train mode (True); no entry where it fails by itself.
        finite: whether its own logits were.
    """

    example: Tensor
    shapes: dict[bool, torch.Size]
    finite: dict[bool, bool]


def expect(model: nn.Module, example: Tensor) -> Expected:
    """Run a model before it is compressed, in eval and in train mode.

    Raises:
        ValueError: its forward fails in eval mode, or gives no logits.
    """
    example = suited(example, model)[:2]
    shapes, finite = {}, {}
    for training in (False, True):
        try:
            found = logits(model, example, training=training)
        except ForwardFails as failure:
            if not training:
                raise ValueError(
                    f"model: got an example of shape {list(example.shape)} with which {failure}; "
                    "expected one that it takes; try model(example) by itself"
                ) from failure
        else:
            shapes[training] = found.shape
            finite[training] = bool(found.isfinite().all())
    return Expected(example, shapes, finite)


def misses(after: nn.Module, expected: Expected) -> tuple[str, str] | None:
    """The layer and the fault, if a compressed model does not answer as is expected."""
    for training, shape in expected.shapes.items():
        mode = "train" if training else "eval"
        try:
            found = logits(after, expected.example, training=training)
        except ForwardFails as failure:
            return failure.layer, f"in {mode} mode {failure}"
        if found.shape != shape:
            return "", f"in {mode} mode logits {list(found.shape)} instead of {list(shape)}"
        if expected.finite[training] and not found.isfinite().all():
            return "", f"in {mode} mode logits that are not finite"
    return None


def finished(
    who: str,
    after: nn.Module,
    found: Report,
    baked: Mapping[str, str],
    expected: Expected | None = None,
) -> nn.Module:
    """The compressed model with its report, if it answers as is expected and is finite.

    Args:
        who: the function of compression.
        after: what it made.
        found: what it changed and what it left.
        baked: what became plain parameters, of `opened`.
        expected: None, where there is no example, looks at the weights alone.

    Raises:
        ValueError: it does not; the layer is named.
    """
    broken = expected and misses(after, expected)
    if broken:
        raise ValueError(
            f"model: got a {type(after).__name__} of which {who} made a model that has "
            f"{place(broken[0])}: {broken[1]}; expected the same shape and finite numbers; nothing "
            "was changed: leave out this step, or replace this layer"
        )
    check_finite(after, f"after {who}")
    for path, what in baked.items():
        before = found.changed.get(path)
        found.changed[path] = what if before is None else f"{what}; {before}"
    after.__dict__[REPORT] = found
    return after


def check_finite(model: nn.Module, when: str) -> None:
    """Raise ValueError for the first weight that is not finite."""
    for name, weight in model.named_parameters():
        if weight.is_floating_point() and not weight.isfinite().all():
            raise ValueError(
                f"model: got {name} with numbers that are not finite {when}, expected finite ones; "
                "train it with a lower learning rate first"
            )


def check_steady(model: nn.Module, example: Tensor) -> Tensor:
    """The logits in eval mode of a model that gives the same ones in two runs.

    Raises:
        ValueError: it does not, or the forward fails.
    """
    try:
        first, second = (logits(model, example, seed=seed) for seed in (1, 2))
    except ForwardFails as failure:
        raise ValueError(
            f"model: got inputs {list(example.shape)} with which {failure}; expected ones that it "
            "takes; try model(inputs) by itself"
        ) from failure
    if not torch.allclose(first, second, rtol=0, atol=0, equal_nan=True):
        raise ValueError(
            "model: got other logits in a second run in eval mode, expected the same; what is "
            "random has to look at self.training, as F.dropout(x, training=self.training) does"
        )
    return first


def _first(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [""])[0]


@contextmanager
def naming(who: str) -> Iterator[None]:
    """Turn what another package raises into one ValueError that says which step it was."""
    try:
        yield
    except ImportError:
        raise
    except Exception as error:
        if isinstance(error, ValueError) and str(error).startswith("model: "):
            raise
        raise ValueError(
            f"model: got a forward that {who} cannot follow ({type(error).__name__}: "
            f"{_first(error)}), expected operations that it knows; leave out this step"
        ) from error
