"""What a run, a model or a function is told apart by, the same in every process.

A checkpoint continues one run and a cache holds the outputs of one teacher. Both are recognised by
a description that holds no address and differs where anything differs that could change a result.
What a checkpoint restores (weights, buffers) is described by its shapes alone.

Not seen: globals that a function reads, hooks, and what a module keeps under another name than its
constructor's (a forward may change that, as a count of calls), unless its extra_repr shows it.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import inspect
import re
import sys
import types
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from kdlab.distillers import Distiller
from kdlab.models import WithOutput
from kdlab.models.modes import evaluating, unwrapped

ADDRESS = re.compile(r"\b0x[0-9a-f]{6,}", re.IGNORECASE)
MANGLED = re.compile(r"___torch_mangle_\d+\.")  # TorchScript numbers the modules of a process
COMPILED = "_torchdynamo_orig_callable"  # where torch.compile keeps the function that it was given
LIBRARIES = {"kdlab", "torch", "numpy", *sys.stdlib_module_names} - {"__main__"}
PLAIN = (type(None), bool, int, float, complex, str, bytes, range, slice, np.generic)
CONSTANT = (*PLAIN, tuple, type, Tensor, torch.dtype, types.BuiltinFunctionType)  # of a class
UNFIT: tuple[tuple[Callable[[Any], bool], str, str], ...] = (  # what no model is trained with
    (is_lazy, "is lazy and has no shape yet", "a built model; run it once on a batch, before"),
    (lambda t: t.is_meta, "is on the meta device", "values; call to_empty(), load weights"),
    (Tensor.is_inference, "was made in inference mode", "a tensor that was made outside of it"),
    (lambda t: isinstance(t, nn.Parameter) and t.is_complex(), "is complex", "two real ones"),
    (lambda t: t.requires_grad and t.layout != torch.strided, "is sparse", "a dense one"),
)


def describe(value: Any, name: str = "value", unnamed: list[Any] | None = None) -> str:
    """Return a description of ``value`` that is the same in every process.

    Plain values are described by their repr, tensors by a hash, modules by class, settings and a
    hash of their state, functions by name and a hash of their code, with defaults and closure,
    classes likewise, dataclasses by their fields, other objects by their own ``__repr__`` or else
    their attributes. The code of kdlab, PyTorch, NumPy and Python is left out.

    Args:
        value: anything.
        name: what a refusal calls it.
        unnamed: gathers the callables without a stable name instead of refusing them. Within one
            process they can be compared with ``is``, as the list keeps them alive.

    Raises:
        ValueError: a callable without a stable name (a lambda, an object that prints its address),
            or something that no description can tell apart, such as a random generator.
    """
    return _Describer(unnamed).of(value, name)


def describe_trained(
    model: nn.Module | None, name: str = "model", beside: nn.Module | None = None
) -> dict[str, Any]:
    """Return what tells a module that is being trained apart from others, as plain values by name.

    Its class and settings, the kind of each of its tensors, and which are frozen; no weights.

    Args:
        model: the student, or a distiller with its adapters; None has the same names.
        name: what a refusal calls it.
        beside: what is trained with it, whose weights are left out too where it refers to them.

    Raises:
        ValueError: as `describe`.
    """
    names = (name, f"{name}'s tensors", f"{name}'s frozen parameters")
    if model is None:
        return dict.fromkeys(names)
    model = unwrapped(model)
    own = _parts(model) | (_parts(beside) if beside is not None else set())
    text = _Describer(None, own).settings(model, name).strip().replace("\n", "; ")
    kept = model.state_dict().keys()
    shapes = {_plain(key): _kind(t) for key, t in _tensors(model).items() if key in kept}
    frozen = [_plain(key) for key, p in model.named_parameters() if not p.requires_grad]
    return dict(zip(names, (_short(text), shapes, frozen), strict=True))


def fingerprint(model: Any, name: str = "teacher", unnamed: list[Any] | None = None) -> str:
    """Return 16 hex digits of a hash of `describe` of a model: of class, settings and state.

    Raises:
        ValueError: as `describe`.
    """
    return _digest(describe(model, name, unnamed))


def check_trainable(model: Any, name: str = "model") -> None:
    """Raise ValueError, before any work, unless ``model`` has parameters that can be trained.

    Refused by name: what is no module; a module without parameters or with frozen ones alone;
    tensors that are lazy, on the meta device, complex, sparse, or were made in inference mode;
    an exported program, which has one mode; an embedding with sparse gradients.
    """
    said = f"{name}: got {type(model).__name__}"
    if not isinstance(model, nn.Module):
        raise ValueError(f"{said}, expected a torch.nn.Module with parameters")
    model = unwrapped(model)
    for key, tensor in _tensors(model).items():
        for is_unfit, why, expected in UNFIT:
            if is_unfit(tensor):
                raise ValueError(f"{name}: got {key!r}, which {why}, expected {expected}")
    for key, module in model.named_modules():
        if isinstance(module, nn.Embedding | nn.EmbeddingBag) and module.sparse:
            raise ValueError(
                f"{name}: got {key or type(module).__name__!r} with sparse=True, whose gradients "
                "the optimizers cannot take, expected sparse=False; set it so"
            )
    trained = [parameter.requires_grad for parameter in model.parameters()]
    if not trained:
        raise ValueError(
            f"{said} without any parameter, expected one that can be trained; give the model from "
            "before it was quantized, exported or frozen by TorchScript, or one with layers"
        )
    if not any(trained):
        raise ValueError(
            f"{said} with frozen parameters alone, expected at least one that is trained; call "
            "requires_grad_(True) on the layers to train"
        )
    try:
        with evaluating(model):  # which brings the modes back
            model.train()
    except NotImplementedError as error:
        raise ValueError(
            f"{name}: got an exported program, expected a module with train and eval mode; give "
            "the model that it was exported from"
        ) from error


def differences(stored: Any, now: Any) -> str:
    """Say in words how two entries of an identity differ."""
    if isinstance(stored, dict) and isinstance(now, dict):
        keys = [key for key in {**stored, **now} if stored.get(key) != now.get(key)]
        parts = [f"{key}: {stored.get(key)} stored, {now.get(key)} now" for key in keys]
    elif isinstance(stored, list) and isinstance(now, list):
        parts = [f"{key} was frozen and is trained now" for key in stored if key not in now]
        parts += [f"{key} was trained and is frozen now" for key in now if key not in stored]
    else:
        parts = [f"{_short(repr(stored))} stored, {_short(repr(now))} now"]
    more = f" and {len(parts) - 5} more" if len(parts) > 5 else ""
    return ", ".join(parts[:5] or ["in another order"]) + more


def unsaved_buffers(module: nn.Module) -> dict[str, Tensor | None]:
    """Return the buffers that ``state_dict`` leaves out (``persistent=False``), by name."""
    return {
        _plain(f"{path}.{key}" if path else key): part._buffers.get(key)
        for path, part in module.named_modules()
        for key in sorted(part._non_persistent_buffers_set)
    }


@dataclass
class _Describer:
    """Makes one description; ``known`` has the ids of what is described elsewhere or under way."""

    unnamed: list[Any] | None
    known: set[int] = field(default_factory=set)
    classes: dict[type, str] = field(default_factory=dict)

    def of(self, value: Any, name: str) -> str:
        """Return the description of ``value``; ``name`` is where it stands."""
        if isinstance(value, PLAIN):
            return _short(repr(value))
        if id(value) in self.known:
            return "…"
        self.known.add(id(value))
        try:
            return self._composed(value, name)
        finally:
            self.known.discard(id(value))

    def _composed(self, value: Any, name: str) -> str:
        if isinstance(value, Tensor):
            return f"{_kind(value)} {self._values(value, name)}"
        if isinstance(value, np.ndarray):
            content = self.of(value.tolist(), name) if value.dtype.hasobject else value.tobytes()
            return f"array {value.dtype} {value.shape} {_digest(content)}"
        if isinstance(value, Mapping | list | tuple):
            pairs = value.items() if isinstance(value, Mapping) else enumerate(value)
            items = [f"{self.of(k, name)}: {self.of(v, f'{name}[{k!r}]')}" for k, v in pairs]
            return f"{_name(type(value))}({', '.join(items)})"
        if isinstance(value, set | frozenset):  # their order differs from process to process
            return f"set({', '.join(sorted(self.of(item, name) for item in value))})"
        if isinstance(value, WithOutput) and value.output is None:  # as `fit` wraps a function
            return self.of(value.model, name)
        if isinstance(value, nn.Module):
            return self._module(unwrapped(value), name)
        if isinstance(value, type):
            return self._class(value, name)
        if isinstance(value, functools.partial):
            return f"partial{self.of((value.func, value.args, value.keywords), name)}"
        inner = getattr(value, COMPILED, getattr(value, "cache_info", None) and value.__wrapped__)
        if inner is not None:
            return self.of(inner, name)
        if isinstance(value, types.FunctionType):
            if value.__name__ != "<lambda>":
                return f"{_name(value)} {self._code(value, name)}"
            return self._no_name(value, name, f"a lambda (line {value.__code__.co_firstlineno})")
        if isinstance(value, types.MethodType):
            return f"{self.of(value.__self__, name)}.{self.of(value.__func__, name)}"
        if isinstance(value, types.BuiltinFunctionType):  # its owner: an object, class or module
            return f"{self.of(value.__self__, name)}.{_name(value)}"
        if isinstance(value, types.ModuleType):
            return value.__name__
        if isinstance(value, torch.jit.ScriptFunction):
            return f"{value.name} {value.code}"
        return self._object(value, name)

    def _values(self, value: Tensor, name: str) -> str:
        """Return a hash of a tensor's values, or of the tensors that it is made of."""
        parts: list[Any]
        if is_lazy(value) or value.is_meta:
            raise ValueError(
                f"{name}: got a tensor without values (lazy, or on the meta device), expected "
                "values; run the model once on a batch, or load its weights, before"
            )
        value = value.detach()
        if value.is_nested:
            parts = list(value.unbind())
        elif hasattr(value, "__tensor_flatten__"):  # a subclass, such as torchao's
            names, settings = value.__tensor_flatten__()
            parts = [settings, *(getattr(value, each) for each in names)]
        elif value.is_quantized:
            parts = [str(value.qscheme()), value.dequantize()]
        elif str(value.layout).startswith("torch.sparse"):
            pairs = value.to_sparse_coo().coalesce()
            parts = [str(value.layout), pairs.indices(), pairs.values()]
        elif value.layout != torch.strided:
            parts = [value.to_dense()]
        else:
            plain = value.resolve_conj().resolve_neg().cpu().contiguous().reshape(-1)
            return _digest(plain.view(torch.uint8).numpy().data)
        return _digest(self.of(parts, name))

    def _module(self, value: nn.Module, name: str) -> str:
        state = {**value.state_dict(), **unsaved_buffers(value)}
        states = [f"{_plain(k)} {self.of(v, f'{name}.{_plain(k)}')}" for k, v in state.items()]
        settings = _Describer(self.unnamed, self.known | _parts(value)).settings(value, name)
        return f"{_name(type(value))} {_digest(settings)} {_digest('; '.join(states))}"

    def settings(self, module: nn.Module, name: str) -> str:
        """Return class and settings of a module and of all within it; not their tensors."""
        lines = []
        for path, part in module.named_modules(remove_duplicate=False):
            if "_orig_mod" not in part._modules:  # torch.compile's; what it wraps comes next
                at = f"{name}.{_plain(path)}" if path else name
                found = [f"{k}={self.of(v, f'{at}.{k}')}" for k, v in _settings(part).items()]
                lines.append(f"{_plain(path)} {self._class(type(part), at)}({', '.join(found)})")
        return "\n".join(lines)

    def _code(self, value: types.FunctionType, name: str) -> str:
        """Return what a function does: a hash of its code, its defaults and its closure."""
        cells = dict(zip(value.__code__.co_freevars, value.__closure__ or (), strict=True))
        kept = {key: cell.cell_contents for key, cell in cells.items() if cell != types.CellType()}
        parts = [f"{key}={self.of(item, f'{name}, {key}')}" for key, item in kept.items()]
        if not _is_library(value):
            parts.append(self.of((value.__defaults__, value.__kwdefaults__), f"{name}'s defaults"))
            parts.append(_digest(_source(value.__code__)))
        return " ".join(parts)

    def _class(self, kind: type, name: str) -> str:
        """Return a class's name and, unless it is a library's, a hash of what it defines."""
        if kind not in self.classes:
            self.classes[kind] = _name(kind)  # where its methods refer to it
            own = [base for base in kind.__mro__ if not _is_library(base)]
            parts = []
            for key, item in ((k, v) for base in own for k, v in sorted(vars(base).items())):
                item = inspect.unwrap(getattr(item, "fget", getattr(item, "func", item)))
                if isinstance(item, types.FunctionType):
                    parts.append(f"{key} {self._code(item, f'{name}.{key}')}")
                elif not key.startswith("__") and isinstance(item, CONSTANT):
                    parts.append(f"{key} {self.of(item, f'{name}.{key}')}")
            self.classes[kind] += f" {_digest(' '.join(parts))}" if own else ""
        return self.classes[kind]

    def _object(self, value: Any, name: str) -> str:
        kind, text = type(value), repr(value)
        own = kind.__repr__ is not object.__repr__ and not ADDRESS.search(text)
        shown = ADDRESS.sub("…", f"{text:.80}")
        held: Any = None
        answer, path = getattr(value, "answer", None), getattr(value, "path", None)
        if answer is not None and isinstance(path, Path) and path.is_file():  # a Deployed
            held = answer if isinstance(answer, nn.Module) else path.read_bytes()
        elif is_dataclass(value):
            held = {each.name: getattr(value, each.name, None) for each in fields(value)}
        elif own and "..." not in text:
            held = text
        elif callable(value) and not own and not _is_library(kind):
            return self._no_name(value, name, f"{shown}, whose __repr__ shows an address")
        else:
            with contextlib.suppress(TypeError):  # it cannot be pickled
                held = value.__getstate__()
            if held is None and not hasattr(value, "__dict__"):
                return self._no_name(value, name, f"{shown}, which does not show what is in it")
        return f"{self._class(kind, name)}({self.of(held, name)})"

    def _no_name(self, value: Any, name: str, shown: str) -> str:
        if self.unnamed is None:
            raise ValueError(
                f"{name}: got {shown}, expected something with a stable name, by which a "
                "checkpoint, a cache on disk or another rank knows it again; use a function "
                "defined with def, a dataclass or an object whose class has a __repr__ that shows "
                "its settings"
            )
        self.unnamed.append(value)
        return f"unnamed {type(value).__name__}"


def _settings(part: nn.Module) -> dict[str, Any]:
    """Return what a module's constructor takes and keeps, and what the printed module shows."""
    if isinstance(part, torch.jit.ScriptModule):
        with contextlib.suppress(RuntimeError, AttributeError):  # a layer without forward
            code, constants = part.code_with_constants  # where a frozen module has its weights
            return {"code": MANGLED.sub("", code), "constants": constants.const_mapping}
        return {}
    if isinstance(part, torch.fx.GraphModule):
        return {"code": part.code, **{k: t for k, t in vars(part).items() if torch.is_tensor(t)}}
    shown = part.extra_repr()  # a method refuses here an option that it keeps under another name
    makers = filter(inspect.isfunction, (vars(k).get("__init__") for k in type(part).__mro__))
    taken = set().union(*(inspect.signature(make).parameters for make in makers))
    kept = vars(part).keys() & {*taken, *(f"_{key}" for key in taken)}
    found = {key: vars(part)[key] for key in sorted(kept - vars(nn.Module()).keys())}
    if shown and not isinstance(part, Distiller) and not ADDRESS.search(shown):
        found["shown"] = shown
    return found


def _source(code: types.CodeType) -> str:
    """Return the source of a function, or else its bytecode, as of one made by ``exec``."""
    if not code.co_filename.startswith("<"):
        with contextlib.suppress(OSError):
            return inspect.getsource(code)
    consts = [_source(c) if inspect.iscode(c) else describe(c) for c in code.co_consts]
    return f"{code.co_code.hex()} {code.co_names} {code.co_varnames} {consts}"


def _parts(model: nn.Module) -> set[int]:
    return {id(part) for part in (*model.modules(), *_tensors(model).values())}


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


def _kind(tensor: Tensor) -> str:
    shape = "lazy" if is_lazy(tensor) else "nested" if tensor.is_nested else list(tensor.shape)
    return f"{str(tensor.dtype).removeprefix('torch.')} {shape}"


def _name(thing: Any) -> str:
    module = getattr(thing, "__module__", None) or "builtins"
    name = getattr(thing, "__qualname__", None) or str(getattr(thing, "__name__", type(thing)))
    return name if module == "builtins" else f"{module}.{name}"


def _plain(path: str) -> str:
    """Return the path that a part has when nothing is compiled."""
    return ".".join(key for key in path.split(".") if key != "_orig_mod")


def _is_library(thing: Any) -> bool:
    return str(getattr(thing, "__module__", "")).partition(".")[0] in LIBRARIES


def _short(text: str, limit: int = 300) -> str:
    """Return a long text as its beginning and a hash of all of it."""
    return text if len(text) <= limit else f"{text[: limit - 20]}… {_digest(text)}"


def _digest(content: Any) -> str:
    content = content.encode() if isinstance(content, str) else content
    return hashlib.sha256(content).hexdigest()[:16]
