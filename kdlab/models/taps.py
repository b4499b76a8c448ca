"""Taps read the output or input of any inner layer, in any model, without changing the model."""

from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn
from torch.nn.utils.rnn import PackedSequence
from torch.utils.hooks import RemovableHandle

from kdlab.models.modes import compiles, evaluating, inputs_for, uncompiled
from kdlab.words import nearest

INPUT = ":input"
COMPILED = "_orig_mod"  # under which torch.compile puts the module that it was given
CHANNELS_FIRST = (  # layers that give [B, c, l] where they are given it
    *(nn.Conv1d, nn.ConvTranspose1d, nn.BatchNorm1d, nn.InstanceNorm1d, nn.SyncBatchNorm),
    *(nn.GroupNorm, nn.LocalResponseNorm, nn.Dropout1d, nn.Unfold, nn.Upsample),
    *(nn.MaxPool1d, nn.AvgPool1d, nn.LPPool1d, nn.MaxUnpool1d),
    *(nn.AdaptiveAvgPool1d, nn.AdaptiveMaxPool1d),
    *(nn.ConstantPad1d, nn.ReflectionPad1d, nn.ReplicationPad1d, nn.CircularPad1d),
)
CHANNELS_LAST = (  # layers that give [B, N, d]
    *(nn.Linear, nn.Bilinear, nn.LayerNorm, nn.RMSNorm, nn.Embedding),
    *(nn.RNNBase, nn.MultiheadAttention),
)
MAIN = ("last_hidden_state", "logits")  # what counts in an output with named parts, before others


class _Read(NamedTuple):
    """What a hook saw: a tensor, how often it had been written, whether a graph was being made."""

    tensor: Tensor | None
    version: int
    graph: bool


_Kept = dict[str, _Read]


class _OutputHook:
    """A forward hook that keeps a module's last output in a dict of its own Taps."""

    def __init__(self, path: str, kept: _Kept | None) -> None:
        self.path = path
        self.kept = kept

    def __call__(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        self._keep(output)

    def _keep(self, value: Any) -> None:
        if self.kept is not None:
            tensor = _first_tensor(value)
            if tensor is not None and tensor.is_inference():
                tensor = tensor.clone()  # nobody would notice that it is overwritten
            self.kept[self.path] = _Read(tensor, _version(tensor), torch.is_grad_enabled())

    def __reduce__(self) -> tuple[type["_OutputHook"], tuple[str, None]]:
        # A copied or pickled model takes the hook along. There it must do nothing: else the copy's
        # forward would overwrite what the original's Taps hold.
        return type(self), (self.path, None)


class _InputHook(_OutputHook):
    """A forward pre-hook that keeps the input: before the module can overwrite it in place."""

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: Any) -> None:
        self._keep((*args, *kwargs.values()))


class Taps(Mapping[str, Tensor]):
    """What inner layers gave or took, by dotted module path: `taps["stage2"]` after a forward.

    Args:
        model: any module; it is not changed but for a hook on each tapped layer.
        paths: dotted module paths as in `model.named_modules()`; `paths(model)` lists them. A path
            reads the layer's output, and with ":input" at its end, as in "stage2.3:input", the
            layer's first input that is a tensor. So an activation's ":input" is what came before
            it (`before_activation` finds that path).

    The tensor is part of the graph, so a loss on it trains the layers below. Each forward replaces
    what the one before left. A module that is used several times in one forward keeps its last
    output or input. Of an output with several parts (a tuple, list, mapping or object)
    ``last_hidden_state`` or ``logits`` is taken if it has one, else the first tensor. Hooks are no
    part of a state dict, and a copy or a pickle of a tapped model is not tapped.

    A compiled model (``torch.compile(model)``, ``model.compile()``) is compiled again at its next
    forward, since what was compiled before does not see new hooks; its paths are those of the
    model as it was. Give what torch.compile returned if that is what you call.

    Use it as a context manager or call `close()`; what was read last stays readable afterwards,
    and its memory is held as long as the Taps are.

    Raises:
        ValueError: a path that the model does not have (with the nearest match), or a layer that
            hooks cannot reach (`untappable`); on reading, if no forward has reached the layer, if
            what is read holds no tensor, or if it was overwritten in place since.
        KeyError: on reading a path that is not tapped.

    >>> with Taps(model, ["stage2"]) as taps:
    ...     logits = model(images)
    ...     features = taps["stage2"]
    """

    def __init__(self, model: nn.Module, paths: Iterable[str]) -> None:
        wanted = (paths,) if isinstance(paths, str) else tuple(dict.fromkeys(paths))
        known = modules_of(model)
        modules = {path: check_path(model, path, known=known) for path in wanted}
        for path in wanted:
            if cause := untappable(model, path, known):
                raise ValueError(
                    f"paths: {path!r} cannot be read, {cause}; methods that need only logits "
                    "(SoftTargets, Decoupled, Dist, ...) take such a teacher as it is"
                )
        if wanted and compiles(model):
            torch.compiler.reset()
        self._model = model
        self._paths = wanted
        self._kept: _Kept = {}
        self._handles = [self._hook(path, module) for path, module in modules.items()]

    def _hook(self, path: str, module: nn.Module) -> RemovableHandle:
        if path.endswith(INPUT):
            return module.register_forward_pre_hook(_InputHook(path, self._kept), with_kwargs=True)
        return module.register_forward_hook(_OutputHook(path, self._kept))

    def __getitem__(self, path: str) -> Tensor:
        if path not in self._paths:
            raise KeyError(f"{path!r} is not tapped; tapped: {', '.join(self._paths) or 'nothing'}")
        if path not in self._kept:
            raise ValueError(
                f"taps[{path!r}]: nothing to read yet; run a forward of the model that uses it (of "
                "the very model that was given: tap what torch.compile returned, not what it took)."
            )
        tensor, version, _ = self._kept[path]
        what = "input" if path.endswith(INPUT) else "output"
        if tensor is None:
            raise ValueError(f"taps[{path!r}]: the layer's {what} holds no tensor; tap another.")
        if _version(tensor) != version:
            raise ValueError(
                f"taps[{path!r}]: this {what} has been overwritten in place (such as by "
                "ReLU(inplace=True)); make that layer work out of place, or tap its output."
            )
        return tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self._paths)

    def __len__(self) -> int:
        return len(self._paths)

    def __contains__(self, path: object) -> bool:
        return path in self._paths

    def __repr__(self) -> str:
        return f"Taps({', '.join(self._paths)})"

    def close(self) -> None:
        """Take the hooks off the model; may be called again."""
        for handle in self._handles:
            handle.remove()

    def __enter__(self) -> "Taps":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


class TapPath(NamedTuple):
    """A layer that can be tapped: its dotted path, its class, the shape of its output if known."""

    path: str
    kind: str
    shape: tuple[int, ...] | None


def paths(model: nn.Module, example: Tensor | None = None) -> list[TapPath]:
    """All layers of a model that can be tapped, in the order in which they are defined.

    Args:
        model: any module.
        example: inputs `[B, ...]` for one forward in eval mode without gradients, which fills in
            the shapes. A layer whose `forward` is not called, such as a ModuleList, keeps None.
            The mode of each layer is restored.
    """
    modules = modules_of(model)
    outputs = {} if example is None else last_outputs(model, modules, example)
    shapes = {path: tuple(out.shape) for path, out in outputs.items() if out is not None}
    return [TapPath(path, type(m).__name__, shapes.get(path)) for path, m in modules.items()]


def check_path(
    model: nn.Module,
    path: str,
    *,
    inputs: bool = True,
    known: Mapping[str, nn.Module] | None = None,
) -> nn.Module:
    """The module that a tap path names; with `inputs` the path may end in ":input".

    Args:
        model: any module.
        path: a dotted module path.
        inputs: whether it may end in ":input".
        known: `modules_of(model)`, for who asks about many paths.

    Raises:
        ValueError: a path that the model does not have, with the nearest match.
    """
    modules = modules_of(model) if known is None else known
    name = path.removesuffix(INPUT) if inputs else path
    found = modules.get(_as_written(name)) if name else None
    if found is None:
        parts = ", ".join(part for part in modules if "." not in part)
        raise ValueError(
            f"paths: the model has no layer {name!r}{nearest(name, modules)}; its parts: "
            f"{parts or 'none'}. kdlab.models.paths(model) lists all."
        )
    return found


def untappable(model: nn.Module, path: str, known: Mapping[str, nn.Module] | None = None) -> str:
    """Why hooks on a layer would see nothing, in words; "" for a layer that can be tapped."""
    known = modules_of(model) if known is None else known
    names = _as_written(path.removesuffix(INPUT)).split(".")
    for depth in range(len(names)):
        around = known[".".join(names[:depth])] if depth else model
        inner = ".".join(names[depth:])
        if isinstance(around, torch.jit.ScriptModule):
            return (
                "it lies in a TorchScript module (torch.jit), which runs outside Python; give the "
                "model that this was made from"
            )
        if isinstance(around, fx.GraphModule) and not _calls(around, inner):
            return (
                "it lies in an exported program or graph (torch.export, torch.fx), which has "
                "operations in its layers' place; give the model that this was made from"
            )
        if isinstance(around, nn.DataParallel) and len(around.device_ids or ()) > 1:
            return (
                "DataParallel runs a copy of it on each GPU, of which one alone would be read; "
                "give the module inside it (.module)"
            )
    if type(known[".".join(names)]).__name__ == "RecursiveScriptModule":
        return "it is a TorchScript module (torch.jit.script), which takes no hooks"
    return ""


def _calls(graph: fx.GraphModule, path: str) -> bool:
    """Whether a graph calls the layer, or one in which it lies."""
    called = {str(node.target) for node in graph.graph.nodes if node.op == "call_module"}
    return any(path == name or path.startswith(f"{name}.") for name in called)


def without_graph(taps: Taps) -> dict[str, str]:
    """Which tapped tensors no gradient leads down from, path → cause in words; a loss on them
    would teach the model nothing.

    Call it after a forward with gradients on. A tensor of a part that is frozen from the bottom up
    (no parameter of the layer, nor of those that are defined before it, requires gradients) has no
    graph by intent and is not listed.

    Args:
        taps: of the student.
    """
    return {path: cause for path in taps if (cause := _lost(taps, path))}


def _lost(taps: Taps, path: str) -> str:
    try:
        tensor = taps[path]
    except ValueError as error:
        return str(error)
    if tensor.is_inference():
        return "it was made under torch.inference_mode, and no gradient can pass it"
    if tensor.requires_grad or not _trains_below(taps._model, path):
        return ""
    if not tensor.is_floating_point():
        return f"it holds {str(tensor.dtype).removeprefix('torch.')}, which have no gradients"
    if taps._kept[path].graph:
        return "the layer's forward, or one before it, detaches what it returns"
    return (
        "the layer's forward ran without gradients, under torch.no_grad or in a checkpoint with "
        "use_reentrant=True; take use_reentrant=False"
    )


def _trains_below(model: nn.Module, path: str) -> bool:
    """Whether the layer, or one that is defined before it, has a trainable parameter."""
    name = _as_written(path.removesuffix(INPUT))
    below: list[bool] = []
    for other, module in {"": model, **modules_of(model)}.items():
        inside = other == name or other.startswith(f"{name}.")
        if below and below[-1] and not inside:
            break
        below.append(inside)
        if inside and path.endswith(INPUT):
            continue
        if any(parameter.requires_grad for parameter in module.parameters(recurse=False)):
            return True
    return False


def last_outputs(
    model: nn.Module, paths: Iterable[str], example: Tensor
) -> dict[str, Tensor | None]:
    """What the paths that were reached gave in one forward, in eval mode without gradients.

    None where an output holds no tensor; layers that cannot be tapped (`untappable`) are left out.
    The mode of each layer is restored.
    """
    known = modules_of(model)
    reached = [path for path in paths if not untappable(model, path, known)]
    with uncompiled(), Taps(model, reached) as taps, evaluating(model), torch.no_grad():
        model(inputs_for(model, example))
    return {path: read.tensor for path, read in taps._kept.items()}


def channels_first(model: nn.Module, paths: Iterable[str], example: Tensor) -> frozenset[str]:
    """Those paths that give ``[B, c, l]``, channels first; others of three dimensions are tokens.

    The shape cannot tell, so the layers do: channels come first where the last layer that ran
    before the tensor was read, and whose kind shows it, is one of a Conv1d's (convolution, batch
    or group norm, pooling, padding along one axis: `CHANNELS_FIRST`) and gave that very shape.
    After a Linear, LayerNorm, LSTM or attention (`CHANNELS_LAST`), or a transposition, channels
    come last.

    Args:
        model: any module; run once on ``example``, in eval mode without gradients.
        paths: that can be tapped.
        example: inputs ``[B, ...]``.
    """
    known, found = modules_of(model), set[str]()
    last: list[torch.Size | None] = [None]

    def note(module: nn.Module, _: Any, output: Any) -> None:
        shape = _shape(output)
        last[0] = shape if isinstance(module, CHANNELS_FIRST) else None

    def compare(path: str, value: Any) -> None:
        shape = _shape(value)
        is_first = shape is not None and len(shape) == 3 and shape == last[0]
        (found.add if is_first else found.discard)(path)

    kinds = (*CHANNELS_FIRST, *CHANNELS_LAST)
    handles = [m.register_forward_hook(note) for m in model.modules() if isinstance(m, kinds)]
    for path in paths:
        layer = check_path(model, path, known=known)
        if path.endswith(INPUT):
            hook = partial(
                lambda path, _, args, kwargs: compare(path, (*args, *kwargs.values())), path
            )
            handles.append(layer.register_forward_pre_hook(hook, with_kwargs=True))
        else:
            see = partial(lambda path, _, args, output: compare(path, output), path)
            handles.append(layer.register_forward_hook(see))
    try:
        with uncompiled(), evaluating(model), torch.no_grad():
            model(inputs_for(model, example))
    finally:
        for handle in handles:
            handle.remove()
    return frozenset(found)


def _shape(value: Any) -> torch.Size | None:
    tensor = _first_tensor(value)
    return None if tensor is None else tensor.shape


def modules_of(model: nn.Module) -> dict[str, nn.Module]:
    """The inner layers by path, as the model was written: without what torch.compile put around.

    A module that two paths share stands under both. The model itself is no inner layer.
    """
    found: dict[str, nn.Module] = {}
    for path, module in model.named_modules(remove_duplicate=False):
        if name := _as_written(path):
            found[name] = module  # of a compiled layer, the one inside: it is called, too
    return found


def _as_written(path: str) -> str:
    return ".".join(part for part in path.split(".") if part != COMPILED)


def _first_tensor(output: Any) -> Tensor | None:
    if isinstance(output, Tensor):
        return output
    parts: list[Any]
    if isinstance(output, tuple | list):
        parts = [output] if isinstance(output, PackedSequence) else list(output)
    else:
        named = output if isinstance(output, Mapping) else getattr(output, "__dict__", {})
        parts = [named[name] for name in MAIN if named.get(name) is not None] or [*named.values()]
    for part in parts:
        if isinstance(part, PackedSequence):  # its rows are no samples
            return None
        if isinstance(part, Tensor | tuple | list | Mapping):
            tensor = _first_tensor(part)
            if tensor is not None:
                return tensor
    return None


def _version(tensor: Tensor | None) -> int:
    """How often a tensor was written in place; inference tensors do not count it."""
    return 0 if tensor is None or tensor.is_inference() else tensor._version
