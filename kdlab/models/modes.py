"""How a model is run: in which mode, on which inputs, compiled or not, with its FLOPs counted."""

import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count


def to_eval(model: nn.Module) -> None:
    """Set eval mode in place; an exported program, wherever it is inside, keeps its one mode."""
    try:
        model.eval()
    except NotImplementedError:  # what an exported program raises; what comes after it is not set
        for child in model.children():
            to_eval(child)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Eval mode for a while; then each layer is in the mode that it was in.

    An exported program (``torch.export``) has one mode, in which it was exported, and keeps it.
    """
    modes = [(module, module.training) for module in model.modules()]
    try:
        to_eval(model)
        yield
    finally:
        for module, training in modes:
            module.training = training


def unwrapped(model: nn.Module) -> nn.Module:
    """What ``torch.compile`` was given, or the model itself."""
    while isinstance(inner := getattr(model, "_orig_mod", None), nn.Module):
        model = inner
    return model


def check_initialised(model: nn.Module, who: str = "model") -> None:
    """Raise ValueError for weights without values: of a lazy layer, or on the meta device."""
    for name, weight in (*model.named_parameters(), *model.named_buffers()):
        if is_lazy(weight):
            raise ValueError(
                f"{who}: got {name} without a shape, expected weights; run one forward first, "
                "which initialises lazy layers"
            )
        if weight.is_meta:
            raise ValueError(
                f"{who}: got {name} on the meta device, expected values; call "
                "to_empty(device='cpu') and load weights"
            )


def device_of(model: nn.Module) -> torch.device:
    """The device of the first parameter; the CPU for a model that has none."""
    return next((p.device for p in model.parameters()), torch.device("cpu"))


def inputs_for(model: nn.Module, inputs: Tensor) -> Tensor:
    """Inputs as this model takes them: on its device, contiguous, floating ones in its dtype.

    The dtype is that of its first floating parameter; a model without one takes them as they are.
    """
    floating = (p.dtype for p in model.parameters() if p.is_floating_point())
    dtype = next(floating, inputs.dtype) if inputs.is_floating_point() else inputs.dtype
    # a copy, as a forward may write into what it is given
    return inputs.to(device_of(model), dtype, copy=True).contiguous()


_UNCOMPILED: ContextVar[bool] = ContextVar("kdlab_uncompiled", default=False)


@contextmanager
def uncompiled() -> Iterator[None]:
    """Whatever was compiled runs as it was written, for a while.

    So hooks are seen that came after the compilation, and nothing is compiled for a single batch.
    """
    if torch.compiler.is_compiling() or "torch._dynamo" not in sys.modules:  # nothing was compiled
        yield
        return
    token = _UNCOMPILED.set(True)
    try:
        with torch.compiler.set_stance("force_eager"):
            yield
    finally:
        _UNCOMPILED.reset(token)


def as_written(model: nn.Module) -> AbstractContextManager[None]:
    """`uncompiled` where a model was compiled; nothing where all of this is being compiled."""
    return uncompiled() if compiles(model) else nullcontext()


def compiles(model: nn.Module) -> bool:
    """Whether a forward of the model, here and now, runs something that torch.compile made."""
    return not (_UNCOMPILED.get() or torch.compiler.is_compiling()) and any(
        getattr(module, "_compiled_call_impl", None) is not None
        or hasattr(getattr(module, "forward", None), "_torchdynamo_inline")
        for module in model.modules()
    )


def _attention_flops(query: Any, key: Any, value: Any, *args: Any, **options: Any) -> int:
    return sdpa_flop_count(query, key, value)


ATTENTION = {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention_flops}


@contextmanager
def counting_flops() -> Iterator[FlopCounterMode]:
    """PyTorch's counter, without what computes a whole layer in one operation that does not count.

    That is oneDNN for an LSTM, and the fast path of ``nn.MultiheadAttention``. What computes
    attention on a processor is counted as PyTorch counts it on a graphics card.
    """
    fast = torch.backends.mha.get_fastpath_enabled()
    set_flags = torch.backends.mkldnn.set_flags  # mkldnn.flags() also touches TF32, and warns
    enabled, *_ = set_flags(_enabled=False, _fp32_precision=None)
    try:
        torch.backends.mha.set_fastpath_enabled(False)
        with FlopCounterMode(display=False, custom_mapping=ATTENTION) as counter:
            yield counter
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
        set_flags(_enabled=enabled, _fp32_precision=None)
