"""Taps read the output of any inner layer, in any model, without changing the model."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from kdlab.words import nearest


class _Hook:
    """A forward hook that keeps a module's last output in a dict of its own Taps."""

    def __init__(self, path: str, outputs: dict[str, tuple[Tensor | None, int]] | None) -> None:
        self.path = path
        self.outputs = outputs

    def __call__(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if self.outputs is not None:
            tensor = _first_tensor(output)
            self.outputs[self.path] = (tensor, _version(tensor))

    def __reduce__(self) -> tuple[type["_Hook"], tuple[str, None]]:
        # A copied or pickled model takes the hook along. There it must do nothing: else the copy's
        # forward would overwrite what the original's Taps hold.
        return _Hook, (self.path, None)


class Taps(Mapping[str, Tensor]):
    """Outputs of inner layers by dotted module path: `taps["stage2"]` after a forward.

    Args:
        model: any module; it is not changed but for a forward hook on each tapped layer.
        paths: dotted module paths as in `model.named_modules()`; `paths(model)` lists them.

    The tensor is part of the graph, so a loss on it trains the layers below. Each forward replaces
    what the one before left. A module that is used several times in one forward keeps its last
    output. Of an output that is a tuple, list or mapping the first tensor is taken. Hooks are no
    part of a state dict, and a copy or a pickle of a tapped model is not tapped.

    Use it as a context manager or call `close()`; what was read last stays readable afterwards,
    and its memory is held as long as the Taps are.

    Raises:
        ValueError: a path that the model does not have (with the nearest match); on reading, if
            no forward has reached the layer, if its output holds no tensor, or if a later layer
            has overwritten it in place.
        KeyError: on reading a path that is not tapped.

    >>> with Taps(model, ["stage2"]) as taps:
    ...     logits = model(images)
    ...     features = taps["stage2"]
    """

    def __init__(self, model: nn.Module, paths: Iterable[str]) -> None:
        wanted = (paths,) if isinstance(paths, str) else tuple(dict.fromkeys(paths))
        modules = _modules(model)
        for path in wanted:
            if path not in modules:
                parts = ", ".join(name for name in modules if "." not in name)
                raise ValueError(
                    f"paths: the model has no layer {path!r}{nearest(path, modules)}; its parts: "
                    f"{parts}. kdlab.models.paths(model) lists all."
                )
        self._paths = wanted
        self._outputs: dict[str, tuple[Tensor | None, int]] = {}
        self._handles = [
            modules[path].register_forward_hook(_Hook(path, self._outputs)) for path in wanted
        ]

    def __getitem__(self, path: str) -> Tensor:
        if path not in self._paths:
            raise KeyError(f"{path!r} is not tapped; tapped: {', '.join(self._paths) or 'nothing'}")
        if path not in self._outputs:
            raise ValueError(
                f"taps[{path!r}]: nothing to read yet; run a forward of the model that uses it."
            )
        tensor, version = self._outputs[path]
        if tensor is None:
            raise ValueError(f"taps[{path!r}]: the layer's output holds no tensor; tap another.")
        if _version(tensor) != version:
            raise ValueError(
                f"taps[{path!r}]: a later layer has overwritten this output in place (such as "
                "ReLU(inplace=True)); tap that layer, or make it work out of place."
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
    shapes: dict[str, tuple[int, ...] | None] = {}
    if example is not None:
        shapes = _shapes(model, example)
    return [TapPath(path, type(m).__name__, shapes.get(path)) for path, m in modules.items()]


def _shapes(model: nn.Module, example: Tensor) -> dict[str, tuple[int, ...] | None]:
    was_training = [(module, module.training) for module in model.modules()]
    try:
        with Taps(model, _modules(model)) as taps, torch.no_grad():
            model.eval()
            model(example)
    finally:
        for module, training in was_training:
            module.training = training
    outputs = taps._outputs.items()
    return {path: None if tensor is None else tuple(tensor.shape) for path, (tensor, _) in outputs}


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
