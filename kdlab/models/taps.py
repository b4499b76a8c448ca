"""Taps read the output or input of any inner layer, in any model, without changing the model."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from kdlab.words import nearest

INPUT = ":input"
_Kept = dict[str, tuple[Tensor | None, int]]


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
            self.kept[self.path] = (tensor, _version(tensor))

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
    output or input. Of an output that is a tuple, list or mapping the first tensor is taken. Hooks
    are no part of a state dict, and a copy or a pickle of a tapped model is not tapped.

    Use it as a context manager or call `close()`; what was read last stays readable afterwards,
    and its memory is held as long as the Taps are.

    Raises:
        ValueError: a path that the model does not have (with the nearest match); on reading, if
            no forward has reached the layer, if what is read holds no tensor, or if it was
            overwritten in place since.
        KeyError: on reading a path that is not tapped.

    >>> with Taps(model, ["stage2"]) as taps:
    ...     logits = model(images)
    ...     features = taps["stage2"]
    """

    def __init__(self, model: nn.Module, paths: Iterable[str]) -> None:
        wanted = (paths,) if isinstance(paths, str) else tuple(dict.fromkeys(paths))
        modules = {path: check_path(model, path) for path in wanted}
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
                f"taps[{path!r}]: nothing to read yet; run a forward of the model that uses it."
            )
        tensor, version = self._kept[path]
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
    modules = _modules(model)
    outputs = {} if example is None else last_outputs(model, modules, example)
    shapes = {path: tuple(out.shape) for path, out in outputs.items() if out is not None}
    return [TapPath(path, type(m).__name__, shapes.get(path)) for path, m in modules.items()]


def check_path(model: nn.Module, path: str, *, inputs: bool = True) -> nn.Module:
    """The module that a tap path names; with `inputs` the path may end in ":input".

    Raises:
        ValueError: a path that the model does not have, with the nearest match.
    """
    modules = _modules(model)
    name = path.removesuffix(INPUT) if inputs else path
    if name not in modules:
        parts = ", ".join(part for part in modules if "." not in part)
        raise ValueError(
            f"paths: the model has no layer {name!r}{nearest(name, modules)}; its parts: "
            f"{parts}. kdlab.models.paths(model) lists all."
        )
    return modules[name]


def last_outputs(
    model: nn.Module, paths: Iterable[str], example: Tensor
) -> dict[str, Tensor | None]:
    """What the paths that were reached gave in one forward, in eval mode without gradients.

    None where an output holds no tensor. The mode of each layer is restored.
    """
    was_training = [(module, module.training) for module in model.modules()]
    try:
        with Taps(model, paths) as taps, torch.no_grad():
            model.eval()
            model(example)
    finally:
        for module, training in was_training:
            module.training = training
    return {path: tensor for path, (tensor, _) in taps._kept.items()}


def _modules(model: nn.Module) -> dict[str, nn.Module]:
    # A module shared by two paths can be tapped by either. The model itself is no inner layer.
    return {path: module for path, module in model.named_modules(remove_duplicate=False) if path}


def _first_tensor(output: Any) -> Tensor | None:
    if isinstance(output, Tensor):
        return output
    if isinstance(output, Mapping):
        output = tuple(output.values())
    if isinstance(output, tuple | list):
        return next((part for part in output if isinstance(part, Tensor)), None)
    return None


def _version(tensor: Tensor | None) -> int:
    """How often a tensor was written in place; inference tensors do not count it."""
    return 0 if tensor is None or tensor.is_inference() else tensor._version
