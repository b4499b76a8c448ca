"""What a run, a model or a function is told apart by, the same in every process.

A checkpoint continues one run and a cache holds the outputs of one teacher. Both are recognised by
a description that holds no address and differs where anything differs that could change a result.
What a checkpoint restores (weights, buffers) is described by its shapes alone.
"""

from __future__ import annotations

import contextlib
import dis
import enum
import functools
import hashlib
import inspect
import re
import sys
import types
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path, PurePath
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedBuffer, UninitializedParameter

from kdlab.distillers import Distiller
from kdlab.models import WithOutput
from kdlab.models.modes import unwrapped

ADDRESS = re.compile(r"\bat 0x[0-9a-f]+", re.IGNORECASE)
OF_MODULES = {*vars(nn.Module()), "_compiled_call_impl", "extra_repr"}
LIBRARIES = {"kdlab", "torch", "numpy", *sys.stdlib_module_names} - {"__main__"}
MUTATORS = {
    "add", "append", "appendleft", "clear", "discard", "extend", "insert", "pop", "popitem",
    "popleft", "remove", "setdefault", "update",
}  # fmt: skip
STORES = {"STORE_SUBSCR": 1, "DELETE_SUBSCR": 1, "STORE_SLICE": 2}  # what lies over the container
PLAIN = (
    type(None), bool, int, float, complex, str, bytes, range, slice, type(...), torch.dtype,
    torch.device, torch.layout, torch.memory_format, np.generic,
)  # fmt: skip


def describe(value: Any, name: str = "value", unnamed: list[Any] | None = None) -> str:
    """Return a description of ``value`` that is the same in every process.

    Plain values are described by their repr, tensors and arrays by a hash, modules by class,
    settings and a hash of their state, functions by their qualified name and a hash of their code
    with what it reads, classes likewise, dataclasses by their fields, partials by their parts, any
    other object by its own ``__repr__``. The code of installed packages is left out.

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

    Its class and settings, the kind of each of its parameters and buffers, and which are frozen;
    no weights, since a checkpoint restores them.

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
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    kept = {key.replace("_orig_mod.", "") for key in model.state_dict()}
    kinds = {key.replace("_orig_mod.", ""): t for key, t in tensors.items()}
    own = _own(model) | (_own(beside) if beside is not None else set())
    text = _Describer(None, own).settings(model, name).strip().replace("\n", "; ")
    frozen = [
        key.replace("_orig_mod.", "")
        for key, parameter in model.named_parameters()
        if not parameter.requires_grad
    ]
    shapes = {key: _kind(tensor) for key, tensor in kinds.items() if key in kept}
    return dict(zip(names, (_short(text), shapes, frozen), strict=True))


def fingerprint(model: Any, name: str = "teacher", unnamed: list[Any] | None = None) -> str:
    """Return 16 hex digits of a hash over `describe` of a model: class, settings and state.

    Raises:
        ValueError: as `describe`.
    """
    return _digest(describe(model, name, unnamed))


def check_trainable(model: Any, name: str = "model") -> None:
    """Raise ValueError, before any work, unless ``model`` has parameters that can be trained.

    Refused by name: what is no module; a module without parameters or with frozen ones alone;
    parameters that are lazy, on the meta device, complex, or were made in inference mode; an
    exported program, which has one mode; an embedding with sparse gradients.
    """
    if not isinstance(model, nn.Module):
        raise ValueError(
            f"{name}: got {type(model).__name__}, expected a torch.nn.Module with parameters"
        )
    model = unwrapped(model)
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    for key, why, expected in (_unfit(key, tensor) for key, tensor in tensors.items()):
        if why:
            raise ValueError(f"{name}: got {key!r}, which {why}, expected {expected}")
    for key, module in model.named_modules():
        if isinstance(module, nn.Embedding | nn.EmbeddingBag) and module.sparse:
            raise ValueError(
                f"{name}: got {key or type(module).__name__!r} with sparse=True, whose gradients "
                "the optimizers cannot take, expected sparse=False; set it so"
            )
    if not any(True for _ in model.parameters()):
        raise ValueError(
            f"{name}: got {type(model).__name__} without any parameter, expected one that can be "
            "trained; give the model from before it was quantized, exported or frozen by "
            "TorchScript, or one with layers"
        )
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ValueError(
            f"{name}: got {type(model).__name__} with frozen parameters alone, expected at least "
            "one that is trained; call requires_grad_(True) on the layers to train"
        )
    if isinstance(model, torch.fx.GraphModule):
        modes = [(module, module.training) for module in model.modules()]
        try:
            model.train()
        except NotImplementedError as error:
            raise ValueError(
                f"{name}: got an exported program, expected a module with train and eval mode; "
                "give the model that it was exported from"
            ) from error
        finally:
            for module, training in modes:
                module.training = training


def _unfit(key: str, tensor: Tensor) -> tuple[str, str, str]:
    """Name, what is wrong with a parameter or buffer, and what to do; nothing if it is fine."""
    trained = isinstance(tensor, nn.Parameter)
    if isinstance(tensor, UninitializedParameter | UninitializedBuffer):
        return key, "is lazy and has no shape yet", "a built model; run it once on a batch, before"
    if tensor.is_meta:
        return key, "is on the meta device", "values; call to_empty(device='cpu'), load weights"
    if tensor.is_inference():
        return (
            key,
            "was made in inference mode",
            "an ordinary tensor; build or load the model outside of torch.inference_mode()",
        )
    if trained and tensor.is_complex():
        return key, f"is complex ({tensor.dtype})", "real ones; keep two, and torch.complex them"
    if trained and tensor.layout != torch.strided and tensor.requires_grad:
        return key, f"is sparse ({tensor.layout})", "a dense one; call to_dense()"
    return key, "", ""


def differences(stored: Any, now: Any) -> str:
    """Say in words how two entries of an identity differ."""
    if isinstance(stored, dict) and isinstance(now, dict):
        keys = [key for key in {**stored, **now} if stored.get(key) != now.get(key)]
        return _listed([f"{k}: {stored.get(k)} stored, {now.get(k)} now" for k in keys])
    if isinstance(stored, list) and isinstance(now, list):
        thawed, frozen = set(stored) - set(now), set(now) - set(stored)
        parts = [f"{key} was frozen and is trained now" for key in stored if key in thawed]
        parts += [f"{key} was trained and is frozen now" for key in now if key in frozen]
        return _listed(parts or ["in another order"])
    return f"{_short(repr(stored))} stored, {_short(repr(now))} now"


def _listed(parts: list[str]) -> str:
    more = f" and {len(parts) - 5} more" if len(parts) > 5 else ""
    return ", ".join(parts[:5]) + more


def _short(text: str, limit: int = 300) -> str:
    """A long text as its beginning and a hash of all of it."""
    return text if len(text) <= limit else f"{text[: limit - 20]}… {_digest(text)}"


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _kind(tensor: Tensor) -> str:
    if isinstance(tensor, UninitializedParameter | UninitializedBuffer):
        return "lazy"
    shape = "nested" if tensor.is_nested else list(tensor.shape)
    return f"{str(tensor.dtype).removeprefix('torch.')} {shape}"


@dataclass
class _Describer:
    """One description: what to do with callables without a name, and what is under way.

    ``own`` has the ids of tensors and layers that are described elsewhere, or left out.
    """

    unnamed: list[Any] | None
    own: set[int] = field(default_factory=set)
    under_way: list[int] = field(default_factory=list)
    codes: dict[int, str] = field(default_factory=dict)  # of functions and classes that were seen

    def of(self, value: Any, name: str) -> str:
        """Return the description of ``value``; ``name`` is where it stands."""
        if isinstance(value, enum.Enum):
            return f"{_name(type(value))}.{value.name}"
        if isinstance(value, PLAIN) or value is NotImplemented:
            return _short(repr(value)) if not isinstance(value, bytes) else _bytes(value)
        if isinstance(value, PurePath):
            return f"Path({str(value)!r})"
        if id(value) in self.own:
            return "a part of the trained model"
        if id(value) in self.under_way:
            return f"…{len(self.under_way) - self.under_way.index(id(value))}"
        self.under_way.append(id(value))
        try:
            return self._composed(value, name)
        finally:
            self.under_way.pop()

    def _composed(self, value: Any, name: str) -> str:
        if isinstance(value, Tensor):
            return self._tensor(value, name)
        if isinstance(value, np.ndarray):
            return self._array(value, name)
        if isinstance(value, Mapping):
            items = ", ".join(
                f"{self.of(key, name)}: {self.of(item, f'{name}[{key!r}]')}"
                for key, item in value.items()
            )
            return f"{_name(type(value))}({{{items}}})"
        if isinstance(value, list | tuple | deque):
            items = ", ".join(self.of(item, f"{name}[{n}]") for n, item in enumerate(value))
            return f"{_name(type(value))}({items})"
        if isinstance(value, set | frozenset):  # their order differs from process to process
            return f"{_name(type(value))}({', '.join(sorted(self.of(v, name) for v in value))})"
        if isinstance(value, WithOutput) and value.output is None:  # as `fit` wraps a function
            return self.of(value.model, name)
        if isinstance(value, nn.Module):
            return self._module(value, name)
        if isinstance(value, type):
            return f"{_name(value)}{self._code_of_class(value, name)}"
        if isinstance(value, types.ModuleType):
            return f"module {value.__name__}"
        if isinstance(value, torch.ScriptObject | torch.jit.ScriptFunction):
            return self._script(value, name)
        if isinstance(value, functools.partial):
            parts = self.of((value.args, value.keywords), name)
            return f"partial({self.of(value.func, name)}, {parts})"
        if (inner := _inner(value)) is not None:
            wraps = isinstance(value, types.FunctionType) and not _is_compiled(value)
            own = self._code(value, name) if wraps else ""
            return f"{self.of(inner, name)}{own}"
        if isinstance(value, types.MethodType):
            return f"{self.of(value.__self__, name)}.{self.of(value.__func__, name)}"
        if isinstance(value, types.FunctionType):
            return self._function(value, name)
        if isinstance(value, types.BuiltinFunctionType | types.WrapperDescriptorType):
            return self._builtin(value, name)
        return self._object(value, name)

    def _tensor(self, value: Tensor, name: str) -> str:
        if isinstance(value, UninitializedParameter | UninitializedBuffer) or value.is_meta:
            raise ValueError(
                f"{name}: got a tensor without values (lazy, or on the meta device), expected "
                "values; run the model once on a batch, or load its weights, before"
            )
        return f"{_kind(value)} {self._content(value.detach(), name)}"

    def _content(self, value: Tensor, name: str) -> str:
        """Return a hash of a tensor's values, or the description of the tensors that it is of."""
        parts: list[Any]
        if value.is_nested:
            parts = list(value.unbind())
        elif hasattr(value, "__tensor_flatten__"):  # of a subclass, such as torchao's
            names, settings = value.__tensor_flatten__()
            parts = [_name(type(value)), settings, {n: getattr(value, n) for n in names}]
        elif value.is_quantized:
            per_tensor = value.qscheme() in (torch.per_tensor_affine, torch.per_tensor_symmetric)
            scales = (
                [value.q_scale(), value.q_zero_point()]
                if per_tensor
                else [
                    value.q_per_channel_scales(),
                    value.q_per_channel_zero_points(),
                    value.q_per_channel_axis(),
                ]
            )
            parts = [str(value.qscheme()), scales, value.int_repr()]
        elif value.layout == torch.sparse_coo:
            value = value.coalesce()
            parts = [value.indices(), value.values()]
        elif value.layout in (torch.sparse_csr, torch.sparse_bsr):
            parts = [str(value.layout), value.crow_indices(), value.col_indices(), value.values()]
        elif value.layout in (torch.sparse_csc, torch.sparse_bsc):
            parts = [str(value.layout), value.ccol_indices(), value.row_indices(), value.values()]
        elif value.layout != torch.strided:
            parts = [value.to_dense()]
        else:
            plain = value.resolve_conj().resolve_neg().cpu().contiguous().reshape(-1)
            return _bytes(plain.view(torch.uint8).numpy().data)
        return _digest(self.of(parts, name))

    def _array(self, value: np.ndarray, name: str) -> str:
        if value.dtype.hasobject:
            return f"array {self.of(value.tolist(), name)}"
        return f"array {value.dtype} {value.shape} {_bytes(value.tobytes())}"

    def _module(self, value: nn.Module, name: str) -> str:
        value = unwrapped(value)
        state = {key.replace("_orig_mod.", ""): item for key, item in value.state_dict().items()}
        state |= {key: item for key, item in unsaved_buffers(value).items() if item is not None}
        states = "; ".join(f"{key} {self.of(state[key], f'{name}.{key}')}" for key in state)
        inner = _Describer(self.unnamed, self.own | _own(value), self.under_way, self.codes)
        return f"{_name(type(value))} {_digest(inner.settings(value, name))} {_digest(states)}"

    def settings(self, module: nn.Module, name: str) -> str:
        """Return class and settings of a module and of all within it; not their tensors."""
        lines = []
        known = _Describer(None, self.own, self.under_way, self.codes)
        for path, part in module.named_modules(remove_duplicate=False):
            if "_orig_mod" in path.split("."):
                path = ".".join(p for p in path.split(".") if p != "_orig_mod")
            if "_orig_mod" in part._modules:
                continue  # the wrapper of torch.compile; what it wraps comes next
            where = f"{name}.{path}" if path else name
            listing = ", ".join(
                f"{key}={self.of(item, f'{where}.{key}')}" for key, item in self._settings(part)
            )
            kind = f"{_name(type(part))}{self._code_of_class(type(part), where)}"
            hooks = " ".join(known._hook(hook, where) for hook in _hooks(part))
            lines.append(f"{path} {kind}({listing}){hooks}")
        return "\n".join(lines)

    def _settings(self, part: nn.Module) -> Iterator[tuple[str, Any]]:
        if isinstance(part, Distiller):
            part.extra_repr()  # refuses an option that is not stored under its own name
        if isinstance(part, torch.jit.ScriptModule):
            with contextlib.suppress(RuntimeError, AttributeError):  # a layer without forward
                code, constants = (
                    part.code_with_constants
                )  # a frozen module's weights are constants
                yield "code", [code, constants.const_mapping]
            return
        if isinstance(part, torch.fx.GraphModule):
            yield "code", part.code
            yield from ((k, t) for k, t in sorted(vars(part).items()) if isinstance(t, Tensor))
            return
        moved = _moving_of_class(type(part), "forward")  # type: ignore[arg-type]
        if isinstance(part, Distiller):  # made from models and data, which have their own entries
            prepared = _moving_of_class(type(part), "prepare")  # type: ignore[arg-type]
            moved = moved | (prepared - {*inspect.signature(type(part)).parameters})
        library = _is_library(type(part))
        for key, item in sorted(vars(part).items()):
            hidden = key[0] == "_" and (library or isinstance(part, Distiller))
            # a tensor that PyTorch keeps in a layer is made from parameters, as by weight_norm
            derived = isinstance(item, Tensor) and library and not isinstance(part, Distiller)
            exported = key == "forward" and _is_library(item)
            if not (key in OF_MODULES or key in moved or hidden or derived or exported):
                yield key, item

    def _hook(self, hook: Any, name: str) -> str:
        """Return what a hook is; one without a name may only record, and is known by its code."""
        try:
            return f" hook {self.of(hook, name)}"
        except ValueError:
            code = self._code(hook, name) if isinstance(hook, types.FunctionType) else ""
            return f" hook {_name(type(hook))}{code}"

    def _function(self, value: types.FunctionType, name: str) -> str:
        if "<lambda>" in value.__qualname__.split(".")[-1]:
            return self._no_name(value, name, f"a lambda (line {value.__code__.co_firstlineno})")
        cells = zip(value.__code__.co_freevars, value.__closure__ or (), strict=True)
        changed = moving(value.__code__)
        kept = {key: _content_of(cell) for key, cell in cells if key not in changed}
        parts = "".join(f" {key}={self.of(item, f'{name}, {key}')}" for key, item in kept.items())
        return f"{_name(value)}{self._code(value, name)}{parts}"

    def _code(self, value: types.FunctionType, name: str) -> str:
        """Return a hash of a function's code, its defaults and the globals that it reads."""
        if _is_installed(value):
            return ""
        if id(value) not in self.codes:
            self.codes[id(value)] = ""  # where it calls itself
            parts = [_code_text(value.__code__)]
            parts.append(self.of((value.__defaults__, value.__kwdefaults__), f"{name}'s defaults"))
            parts += self._globals(value.__code__, value.__globals__)
            self.codes[id(value)] = f" {_digest(' '.join(parts))}"
        return self.codes[id(value)]

    def _globals(self, code: types.CodeType, scope: Mapping[str, Any]) -> list[str]:
        known = _Describer(None, self.own, [*self.under_way], self.codes)
        found = []
        for key in sorted(_names(code, "LOAD_GLOBAL", "LOAD_NAME") - moving(code)):
            item = scope.get(key, code)
            if item is code or isinstance(item, types.ModuleType | type):
                continue
            try:
                lambdas = isinstance(item, types.FunctionType)
                found.append(f"{key}={known._code(item, key) if lambdas else known.of(item, key)}")
            except ValueError:  # a generator, a lock: no part of what the function is
                found.append(f"{key} {_name(type(item))}")
        return found

    def _code_of_class(self, kind: type, name: str) -> str:
        """Return a hash of the methods of a class that is not of a library, and of its bases."""
        if id(kind) in self.codes:
            return self.codes[id(kind)]
        self.codes[id(kind)] = ""  # where its methods name it
        parts = []
        for base in kind.__mro__:
            if _is_installed(base):
                continue
            for key, item in sorted(vars(base).items()):
                item = getattr(item, "fget", None) or getattr(item, "__func__", item)
                if isinstance(item, types.FunctionType):
                    parts.append(f"{key} {_code_text(item.__code__)}")
                    parts += self._globals(item.__code__, item.__globals__)
                elif not key.startswith("__") and isinstance(item, (*PLAIN, tuple, Tensor)):
                    parts.append(f"{key} {self.of(item, f'{name}.{key}')}")
        self.codes[id(kind)] = f" {_digest(' '.join(parts))}" if parts else ""
        return self.codes[id(kind)]

    def _builtin(self, value: Any, name: str) -> str:
        owner = getattr(value, "__self__", None)
        if owner is None or isinstance(owner, types.ModuleType | type):
            return _name(value)
        return f"{self.of(owner, name)}.{value.__name__}"

    def _script(self, value: Any, name: str) -> str:
        if isinstance(value, torch.jit.ScriptFunction):
            return f"{value.name} {_digest(str(value.graph))}"
        try:
            return f"{value._type().qualified_name()} {self.of(value.__getstate__(), name)}"
        except (RuntimeError, AttributeError) as error:
            raise ValueError(_refusal(name, f"{value} without a state")) from error

    def _object(self, value: Any, name: str) -> str:
        kind = type(value)
        head = f"{_name(kind)}{self._code_of_class(kind, name)}"
        path = getattr(value, "path", None)
        if callable(value) and isinstance(path, Path) and path.is_file():
            answer = getattr(value, "answer", None)
            if isinstance(answer, nn.Module):  # what was read from the file; two files of one
                return f"{head}({self.of(answer, name)})"  # model differ in order and card
            return f"{head}(file {_bytes(path.read_bytes())})"
        if is_dataclass(value):
            entries = {each.name: getattr(value, each.name, None) for each in fields(value)}
            return f"{head}({self._entries(entries, kind, name)})"
        text = repr(value)
        if kind.__repr__ is not object.__repr__ and not ADDRESS.search(text):
            return f"{head} {_short(text)}"
        shown = ADDRESS.sub("at …", f"{text:.80}")
        if callable(value) and not _is_library(kind):
            return self._no_name(value, name, f"{shown}, whose __repr__ shows an address")
        if kind.__getstate__ is not object.__getstate__:
            state = value.__getstate__()
            if state is None:
                return self._no_name(value, name, f"{shown}, which does not show what is in it")
            return f"{head}({self.of(state, name)})"
        entries = {**getattr(value, "__dict__", {})}
        slots = [s for base in kind.__mro__ for s in vars(base).get("__slots__", ())]
        entries |= {slot: getattr(value, slot) for slot in slots if hasattr(value, slot)}
        if not entries and not (hasattr(value, "__dict__") and _is_python(kind)):
            return self._no_name(value, name, f"{shown}, which does not show what is in it")
        return f"{head}({self._entries(entries, kind, name)})"

    def _entries(self, entries: Mapping[str, Any], kind: type, name: str) -> str:
        moved = _moving_of_class(kind)
        return ", ".join(
            f"{key}={self.of(item, f'{name}.{key}')}"
            for key, item in entries.items()
            if key not in moved and key not in ("__weakref__", "__dict__")
        )

    def _no_name(self, value: Any, name: str, shown: str) -> str:
        if self.unnamed is None:
            raise ValueError(_refusal(name, shown))
        self.unnamed.append(value)
        return f"unnamed {type(value).__name__}"


def _refusal(name: str, shown: str) -> str:
    return (
        f"{name}: got {shown}, expected something with a stable name, by which a checkpoint, a "
        "cache on disk or another rank knows it again; use a function defined with def, a "
        "dataclass or an object whose class has a __repr__ that shows its settings"
    )


def unsaved_buffers(module: nn.Module) -> dict[str, Tensor | None]:
    """Return the buffers that ``state_dict`` leaves out (``persistent=False``), by name."""
    found = {}
    for path, part in module.named_modules():
        for key in sorted(part._non_persistent_buffers_set):
            name = f"{path}.{key}" if path else key
            found[name.replace("_orig_mod.", "")] = part._buffers.get(key)
    return found


def _hooks(part: nn.Module) -> Iterator[Any]:
    """Yield what a reader, or PyTorch, has a layer call; not what kdlab reads layers with."""
    if not isinstance(part, torch.jit.ScriptModule | torch.fx.GraphModule):
        for hook in [*part._forward_pre_hooks.values(), *part._forward_hooks.values()]:
            if not str(getattr(hook, "__module__", "")).startswith("kdlab."):
                yield hook


def _own(model: nn.Module) -> set[int]:
    parts: list[Any] = [*model.modules(), *model.parameters(), *model.buffers()]
    return {id(part) for part in parts}


def _name(thing: Any) -> str:
    module = getattr(thing, "__module__", None) or "builtins"
    name = getattr(thing, "__qualname__", None) or str(getattr(thing, "__name__", type(thing)))
    return name if module == "builtins" else f"{module}.{name}"


def _is_library(thing: Any) -> bool:
    return str(getattr(thing, "__module__", "")).partition(".")[0] in LIBRARIES


def _is_installed(thing: Any) -> bool:
    """Whether it belongs to an installed package, whose version is no part of an identity."""
    top = str(getattr(thing, "__module__", "")).partition(".")[0]
    file = str(getattr(sys.modules.get(top), "__file__", ""))
    return top in LIBRARIES or "site-packages" in file or "dist-packages" in file


def _is_python(kind: type) -> bool:
    """Whether a class is written in Python, so that its instances hide nothing."""
    return all(bool(base.__flags__ & (1 << 9)) for base in kind.__mro__ if base is not object)


def _content_of(cell: types.CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # not set yet
        return None


def _inner(value: Any) -> Any:
    """What a wrapper was put around: torch.compile's, functools.wraps's, lru_cache's."""
    if _is_compiled(value):
        return value._torchdynamo_orig_callable
    return getattr(value, "__wrapped__", None) if callable(value) else None


def _is_compiled(value: Any) -> bool:
    return hasattr(value, "_torchdynamo_orig_callable")


def _bytes(content: Any) -> str:
    return hashlib.sha256(content).hexdigest()[:32]


def _names(code: types.CodeType, *operations: str) -> set[str]:
    """Return the names that a piece of code, or code within it, uses in these operations."""
    steps = dis.get_instructions(code)
    inner = (const for const in code.co_consts if isinstance(const, types.CodeType))
    found = {step.argval for step in steps if step.opname in operations}
    return found.union(*(_names(const, *operations) for const in inner))


def _code_text(code: types.CodeType) -> str:
    """What a piece of bytecode does; neither where it stands nor in which file."""
    consts = [
        _code_text(const) if isinstance(const, types.CodeType) else _Describer(None).of(const, "")
        for const in code.co_consts
    ]
    names = (code.co_names, code.co_varnames, code.co_freevars)
    return f"{code.co_code.hex()} {names} {consts}"


@functools.lru_cache(maxsize=4096)
def moving(code: types.CodeType) -> set[str]:
    """Return the names of attributes and globals that a piece of code changes.

    They are what the thing has come to, such as a count of calls, and not what it is.
    """
    found: set[str] = set()
    steps = list(dis.get_instructions(code))
    height, heights = 0, []  # of the interpreter's stack, before each step
    for number, step in enumerate(steps):
        heights.append(height)
        height += dis.stack_effect(step.opcode, step.arg, jump=False)
        if step.opname in ("STORE_ATTR", "STORE_GLOBAL", "STORE_DEREF", "DELETE_ATTR"):
            found.add(step.argval)
        elif step.opname in STORES:
            container = heights[number] - STORES[step.opname]
            last = next((n for n in range(number, 0, -1) if heights[n] == container), 0)
            found.add(str(steps[last - 1].argval))
        elif step.opname in ("LOAD_METHOD", "LOAD_ATTR") and number:
            name = str(step.argval)
            if name in MUTATORS or (name.endswith("_") and not name.endswith("__")):
                found.add(str(steps[number - 1].argval))
    for const in code.co_consts:
        if isinstance(const, types.CodeType):
            found |= moving(const)
    return found


@functools.lru_cache(maxsize=1024)
def _moving_of_class(kind: type, start: str = "__call__") -> set[str]:
    """Return the attributes that a method changes, or another that it calls.

    A method that only a reader calls, such as ``set_temperature``, makes a setting of none.
    """
    found: set[str] = set()
    methods = {
        key: item.__code__
        for base in reversed(kind.__mro__)
        if not _is_library(base) or issubclass(base, Distiller)
        for key, item in vars(base).items()
        if isinstance(item, types.FunctionType)
    }
    waiting = [start]
    while waiting:
        code = methods.pop(waiting.pop(), None)
        if code is not None:
            found |= moving(code)
            waiting += _names(code, "LOAD_ATTR", "LOAD_METHOD")
    return found
