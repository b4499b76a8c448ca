"""Whole numbers of 8 bits instead of 32-bit floats: after training, or already while training."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from operator import attrgetter
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim

from kdlab.compression.export import MOST, Preprocessed, seal, unsealed
from kdlab.compression.extras import need, quiet
from kdlab.compression.kinds import check_kinds
from kdlab.compression.loading import READERS, Deployed, load
from kdlab.compression.quantized import Quantized, check_not_quantized
from kdlab.compression.verification import (
    Expected,
    Report,
    check_steady,
    expect,
    finished,
    naming,
    nothing_to_change,
    opened,
    suited,
    weighted,
)
from kdlab.datasets import Data
from kdlab.distillers import Distiller, SoftTargets
from kdlab.files import atomic_write
from kdlab.training import fit

PT2E = "torchao.quantization.pt2e"
WEIGHT = "kdlab weight"  # under which a node keeps the name of the weight that it multiplies by


@contextmanager
def single_precision() -> Iterator[None]:
    """Tensors without a dtype are float32 for a while, as torchao expects."""
    usual = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        yield
    finally:
        torch.set_default_dtype(usual)


@torch.inference_mode(False)
@single_precision()
def quantize(model: nn.Module, data: Data, *, samples: int = 256) -> Quantized:
    """Quantize weights and activations after training, with ranges seen on training samples.

    Convolutions and Linear layers get int8 weights, one scale for each output; what enters them
    becomes uint8, with a scale and an offset from a histogram over ``samples``. Weights use 7 of
    their 8 bits: processors without VNNI (most laptops before 2020, and many cloud machines) add
    pairs of products in 16 bits, where full ranges overflow silently.

    The file shrinks to less than a third. Whether it is faster depends on the layers: with few
    channels the rounding between layers costs more than narrow products save. So measure, with
    `kdlab.metrics.cost`. Recurrent layers stay as they are.

    Args:
        model: trained; stays as it was.
        data: its training images set the ranges; labels are not looked at.
        samples: how many of them, the first ones.

    Returns:
        In eval mode, on the CPU; ``export`` writes it to .onnx.

    Raises:
        ValueError: fewer than one sample; a model that is quantized already; no data set.
        ImportError: the package torchao is missing.

    Source: Jacob, Kligys, Chen, Zhu, Tang, Howard, Adam, Kalenichenko, Quantization and training
    of neural networks for efficient integer-arithmetic-only inference, 2018, arXiv:1712.05877;
    made by torchao's PT2E for x86.
    """
    check_not_quantized(model)
    check_kinds(data=data)
    if samples < 1:
        raise ValueError(f"samples: {samples!r} came, expected at least 1 to see the ranges on")
    graph, start = _prepare(model, data, learning=False)
    with torch.no_grad():
        for chunk in data.train.x[:samples].split(64):
            # a copy, as a forward may write into what it is given
            graph(chunk.float().clone() if chunk.is_floating_point() else chunk.clone())
    return _convert(graph, start, "quantize")


@torch.inference_mode(False)
@single_precision()
def quantize_aware(
    model: nn.Module,
    data: Data,
    teacher: nn.Module | None = None,
    distiller: Distiller | None = None,
    **options: Any,
) -> Quantized:
    """Train a while with rounded weights and activations, then quantize as `quantize` does.

    In the forward all numbers are rounded as they will be; gradients pass the rounding as if it
    were not there. Batch norms are folded into the convolutions before, with the statistics that
    they have, and dropout is off. Worth its time where `quantize` loses accuracy.

    Args:
        model: trained; stays as it was.
        data: what to train on.
        teacher: usually the model itself, before; None trains on the labels alone.
        distiller: the method under the teacher, on logits; None takes ``SoftTargets()``.
        options: of ``kdlab.training.fit``, such as ``epochs`` and a small ``lr``.

    Returns:
        In eval mode, on the CPU.

    Raises:
        ValueError: a model that is quantized already, what ``fit`` raises.
        ImportError: the package torchao is missing.

    Sources: as `quantize`; with a teacher: Polino, Pascanu, Alistarh, Model compression via
    distillation and quantization, 2018, arXiv:1802.05668.
    """
    check_not_quantized(model)
    check_kinds(data=data, teacher=teacher)
    graph, start = _prepare(model, data, learning=True)
    student = Quantized(graph)
    if teacher is not None and distiller is None:
        distiller = SoftTargets()
    fit(student, data, distiller, teacher=teacher, device="cpu", **options)
    return _convert(student.eval().graph, start, "quantize_aware")


def quantize_file(source: str | os.PathLike[str], target: str | os.PathLike[str]) -> Path:
    """Quantize an exported .onnx file dynamically: no data, no training.

    Weights of matrix products and embeddings become int8 in the file. What is multiplied with them
    is rounded anew for each batch, by its own range. Made by onnxruntime; convolutions stay as they
    are; for them there is `quantize`.

    Args:
        source: a file that ``export`` wrote.
        target: where to write; may be the source.

    Returns:
        The target.

    Raises:
        ValueError: a damaged or foreign file, one that is no .onnx, or in which nothing can be
            rounded.
        ImportError: the packages onnx and onnxruntime are missing.

    Source: as `quantize`.
    """
    source, target = Path(source), Path(target)
    if (source.suffix, target.suffix) != (".onnx", ".onnx"):
        raise ValueError(
            f"source and target: {source.name} and {target.name} came, expected .onnx files"
        )
    before = load(source)  # refuses what is damaged
    onnx, tools = need("onnx"), need("onnxruntime.quantization")
    model = onnx.load_from_string(unsealed(source.read_bytes()))
    del model.graph.value_info[:]  # shapes that no longer hold
    with atomic_write(target) as temporary, quiet():
        tools.quantize_dynamic(
            model,
            temporary,
            op_types_to_quantize=["MatMul", "Gemm", "Gather"],
            per_channel=True,
            reduce_range=True,  # 7 bits, as in `quantize`
        )
        content = seal(temporary.read_bytes())
        _check_rounded(before, Path(target.name), content)
        temporary.write_bytes(content)
    return target


def _check_rounded(before: Deployed, path: Path, content: bytes) -> None:
    """Refuse a file in which nothing was rounded, or that does not answer as the one before."""
    kinds = {node.op_type for node in need("onnx").load_from_string(content).graph.node}
    if not kinds & {"MatMulInteger", "DynamicQuantizeLinear", "DequantizeLinear"}:
        raise ValueError(
            f"source: got {before.path.name} without weights of matrix products or embeddings, "
            "expected some to round; use quantize, which takes convolutions too"
        )
    kind = torch.int64 if len(before.shape) == 1 else torch.float32
    inputs = torch.zeros(2, *before.shape, dtype=kind)
    _, answer = READERS[".onnx"](path, content, 1, None)
    wanted, found = (
        before(inputs),
        answer(inputs),
    )
    if found.shape != wanted.shape or not found.isfinite().all():
        raise ValueError(
            f"source: got {before.path.name}, of which a file was made that answers "
            f"{list(found.shape)} instead of {list(wanted.shape)} or numbers that are not finite, "
            "expected the same logits; nothing was written"
        )


@torch.inference_mode(False)
@torch.no_grad()
def round_weights(model: nn.Module, bits: int, *, example: Tensor | None = None) -> nn.Module:
    """A copy whose weights are rounded to so many bits: what accuracy is left at 4, 3, 2 bits.

    A simulation: they are stored as floats, so file and time stay. Convolutions and Linear layers,
    one scale for each output, symmetric about 0: w becomes s · round(w / s) with
    s = max |w| / (2^(bits - 1) - 1). What weight norm and other parametrizations make is rounded
    as it is in eval mode, and becomes a plain parameter. `report` has a line for each layer.

    Args:
        model: stays as it was.
        bits: 2 to 16.
        example: inputs ``[2, ...]`` for a forward in eval and in train mode before and after; None
            looks at the weights alone.

    Raises:
        ValueError: bits out of range, a model without such layers, or one that cannot be copied
            and changed, such as a quantized one or a ScriptModule.

    Source: Krishnamoorthi, Quantizing deep convolutional networks for efficient inference: a
    whitepaper, 2018, arXiv:1806.08342 (one symmetric scale for each output).
    """
    check_not_quantized(model)
    if isinstance(bits, bool) or not isinstance(bits, int) or not 2 <= bits <= 16:
        raise ValueError(f"bits: {bits!r} came, expected a whole number from 2 to 16")
    rounded, expected, baked = opened(model, example)
    layers, left = weighted(rounded)
    if not layers:
        raise nothing_to_change(rounded, left)
    for layer in layers.values():
        weight = layer.weight.transpose(0, 1) if _transposed(layer) else layer.weight
        rows = weight.flatten(1)
        scale = rows.abs().amax(1, keepdim=True) / (2 ** (bits - 1) - 1)
        scale = scale.masked_fill(scale == 0, 1)
        weight.copy_((scale * (rows / scale).round()).view_as(weight))
    changed = {path: f"its weight is rounded to {bits} bits" for path in layers}
    return finished("round_weights", rounded, Report(changed, left), baked, expected)


def _transposed(layer: Any) -> bool:
    return bool(getattr(layer, "transposed", False))


def _prepare(model: nn.Module, data: Data, *, learning: bool) -> tuple[nn.Module, Start]:
    """The model as a program with observers of ranges, or with rounding that learns them."""
    tools = need(f"{PT2E}.quantize_pt2e")
    x86 = need(f"{PT2E}.quantizer.x86_inductor_quantizer")
    plain, _, baked = opened(model)
    plain = plain.cpu().float().eval()  # whole numbers are made of 32-bit floats
    inputs = suited(data.train.x[:2].cpu(), plain).clone()
    wanted = check_steady(plain, inputs)
    expected = expect(plain, inputs)
    layers, left = weighted(plain)
    whole = Preprocessed(plain, (), ()).eval()
    with quiet(), naming("quantize"):
        shapes = ({0: Dim("batch", min=1, max=MOST)},)
        program = torch.export.export(whole, (inputs,), dynamic_shapes=shapes).module()
        _spell_padding(program)
        _name_layers(program)
        if not any(WEIGHT in node.meta for node in program.graph.nodes):
            raise nothing_to_change(plain, left)
        _fold_norms(program)
        with torch.no_grad():
            folded = program(inputs)
    if not torch.allclose(folded, wanted, rtol=1e-3, atol=1e-3 * float(wanted.abs().max())):
        raise ValueError(
            "model: got a program that answers otherwise than the model once its norms are folded "
            "into the layers before them, expected the same logits; leave out this step"
        )
    with quiet(), naming("quantize"):
        usual = x86.get_default_x86_inductor_quantization_config(is_qat=learning)
        weight = replace(usual.weight, quant_min=-64, quant_max=63)
        plan = x86.X86InductorQuantizer().set_global(replace(usual, weight=weight))
        prepare = tools.prepare_qat_pt2e if learning else tools.prepare_pt2e
        start = Start(expected, baked, {p: type(m) for p, m in layers.items()}, left)
        return prepare(program, plan), start


@dataclass(frozen=True)
class Start:
    """What was known of a model before it was quantized: see `opened` and `weighted`."""

    expected: Expected
    baked: dict[str, str]
    layers: dict[str, type]
    left: dict[str, str]


def _convert(graph: nn.Module, start: Start, who: str) -> Quantized:
    with quiet(), naming(who):
        program = need(f"{PT2E}.quantize_pt2e").convert_pt2e(graph)
    _drop_unused(program)
    rounded, read = _weights_of(program)
    found = Report({name.removesuffix(".weight"): "int8 weights, uint8 inputs" for name in rounded})
    for path, kind in start.layers.items():
        name = f"{path}.weight"
        if name not in read:
            found.left[path] = "no forward in eval mode multiplies by its weight as it is"
        elif name not in rounded:
            found.left[path] = f"torchao's quantizer for x86 takes no {kind.__name__} here"
    found.left.update({path: why for path, why in start.left.items() if path not in found.changed})
    if not found.changed:
        raise nothing_to_change(graph, found.left)
    one_mode = replace(start.expected, shapes={False: start.expected.shapes[False]})
    small = Quantized(program).eval()
    finished(who, small, found, start.baked, one_mode)
    return small


def _weights_of(program: Any) -> tuple[set[str], set[str]]:
    """Names of the weights that became whole numbers, and of all that a layer multiplies by."""
    rounded, read = set(), set()
    for node in program.graph.nodes:
        if name := node.meta.get(WEIGHT):
            read.add(name)
            if "dequantize" in str(getattr(node.args[1], "target", "")):
                rounded.add(name)
    return rounded, read


def _name_layers(program: Any) -> None:
    """Tell torchao which operations are a Linear layer or a convolution, one call of it each.

    By itself it goes by the modules: it fails on one that is called twice or has a hook, and
    overlooks functional calls.
    """
    graph, aten = program.graph, torch.ops.aten
    kinds = {
        aten.linear.default: nn.Linear,
        aten.conv2d.default: nn.Conv2d,
        aten.conv1d.default: nn.Conv1d,
        aten.conv3d.default: nn.Conv3d,
        aten.conv_transpose1d.default: nn.ConvTranspose1d,
        aten.conv_transpose2d.input: nn.ConvTranspose2d,
        aten.conv_transpose3d.input: nn.ConvTranspose3d,
    }
    for node in list(graph.nodes):
        if node.op != "call_function":
            continue
        kind = kinds.get(node.target)
        if kind is not None and node.args[1].op == "get_attr":
            weight, name = node.args[1], node.args[1].target.removeprefix("model.")
            node.meta[WEIGHT] = name
            node.meta["source_fn_stack"] = [(node.name, kind)]
            if len(weight.users) > 1:  # each call rounds it by itself
                with graph.inserting_before(node):
                    alone = graph.get_attr(weight.target)
                alone.meta = dict(weight.meta)
                node.replace_input_with(weight, alone)
        else:
            node.meta["source_fn_stack"] = node.meta.get("source_fn_stack") or (
                [(node.name, node.target)] if _inside(node) in (nn.Linear, nn.Conv2d) else None
            )
    program.recompile()


def _inside(node: Any) -> type | None:
    """The module in whose forward this operation stands, of those that torchao looks for."""
    stack = list((node.meta.get("nn_module_stack") or {}).values())
    named = {f"{kind.__module__}.{kind.__qualname__}": kind for kind in (nn.Linear, nn.Conv2d)}
    return named.get(str(stack[-1][1])) if stack else None


def _spell_padding(program: Any) -> None:
    """Write padding="same" and "valid" as numbers, which is the form that torchao knows."""
    graph, aten = program.graph, torch.ops.aten
    for dims, op in ((1, aten.conv1d), (2, aten.conv2d), (3, aten.conv3d)):
        for node in graph.find_nodes(op="call_function", target=op.padding):
            usual: list[Any] = [None, [1] * dims, "valid", [1] * dims, 1]
            given = [*node.args, *usual[len(node.args) - 2 :]]
            image, weight, bias, stride, padding, dilation, groups = given
            kernel = weight.meta["val"].shape[2:]
            dilation = list(dilation) * (dims if len(dilation) == 1 else 1)
            reach = zip(dilation, kernel, strict=True)
            both = [d * (k - 1) * (padding == "same") for d, k in reach]
            before = [n // 2 for n in both]  # on each side; an odd one comes after
            extra = [side for n in reversed(both) for side in (0, n % 2)]
            if any(extra):
                with graph.inserting_before(node):
                    padded = graph.call_function(aten.constant_pad_nd.default, (image, extra, 0.0))
                padded.meta = dict(node.meta)
                padded.meta["val"] = nn.functional.pad(image.meta["val"], extra)
                image = padded
            node.target = op.default
            node.args = (image, weight, bias, stride, before, dilation, groups)
    graph.lint()
    program.recompile()


@torch.no_grad()
def _fold_norms(program: Any) -> None:
    """Put each batch norm into the layer before it, or make it a factor and a summand.

    In place. torchao would fold them too, but takes half a minute for each model. A norm that
    takes the statistics of the batch is written in single operations, which torchao leaves alone.
    """
    graph, aten = program.graph, torch.ops.aten
    before_norms = (
        aten.conv1d.default,
        aten.conv2d.default,
        aten.conv3d.default,
        aten.linear.default,
    )
    for norm in graph.find_nodes(op="call_function", target=aten.batch_norm.default):
        before, *tensors = norm.args[:5]
        gamma, beta, mean, var = (_tensor(program, node) for node in tensors)
        if mean is None or var is None or norm.args[5]:
            _spell_norm(graph, norm)
            continue
        gamma = torch.ones_like(mean) if gamma is None else gamma
        scale = gamma * (var + norm.args[7]).rsqrt()
        shift = (0 if beta is None else beta) - mean * scale
        dims = norm.meta["val"].dim()
        follows = (
            before.target in before_norms
            and len(before.users) == 1
            and (
                before.target is not aten.linear.default or dims == 2
            )  # else axis 1 is not its outputs
        )
        if follows:
            image, weight, bias, *rest = (*before.args, None)[: max(3, len(before.args))]
            kernel, old = _tensor(program, weight), _tensor(program, bias)
            values = (
                kernel * scale.view([-1] + [1] * (kernel.dim() - 1)),
                shift if old is None else old * scale + shift,
            )
        else:
            values = tuple(v.view([1, -1] + [1] * (dims - 2)) for v in (scale, shift))
        with graph.inserting_before(before if follows else norm):
            nodes = [_keep(program, f"{norm.name}_{i}", value) for i, value in enumerate(values)]
            if follows:
                before.args = (image, *nodes, *rest)
            else:
                for operation, node in zip(("mul", "add"), nodes, strict=True):
                    function = getattr(aten, operation).Tensor
                    before = graph.call_function(function, (before, node))
                    before.meta = dict(norm.meta)  # torchao asks for the shape
        norm.replace_all_uses_with(before)
        graph.erase_node(norm)
    graph.eliminate_dead_code()
    program.recompile()
    _drop_unused(program)


def _spell_norm(graph: Any, norm: Any) -> None:
    """(x - mean) / √(var + ε) · γ + β, with the statistics of the batch."""
    aten = torch.ops.aten
    image, gamma, beta = norm.args[:3]
    dims = norm.meta["val"].dim()
    axes, side = [axis for axis in range(dims) if axis != 1], [1, -1] + [1] * (dims - 2)

    def call(function: Any, *args: Any, **options: Any) -> Any:
        node = graph.call_function(function, args, options)
        values = [a.meta["val"] if isinstance(a, torch.fx.Node) else a for a in args]
        node.meta = dict(norm.meta) | {"val": function(*values, **options)}
        return node

    with graph.inserting_before(norm):
        mean = call(aten.mean.dim, image, axes, True)
        var = call(aten.var.correction, image, axes, correction=0, keepdim=True)
        root = call(aten.rsqrt.default, call(aten.add.Tensor, var, norm.args[7]))
        out = call(aten.mul.Tensor, call(aten.sub.Tensor, image, mean), root)
        for function, tensor in ((aten.mul.Tensor, gamma), (aten.add.Tensor, beta)):
            if tensor is not None:
                out = call(function, out, call(aten.view.default, tensor, side))
    norm.replace_all_uses_with(out)
    graph.erase_node(norm)


def _keep(program: Any, name: str, value: Tensor) -> Any:
    program.register_parameter(name, nn.Parameter(value))
    node = program.graph.get_attr(name)
    node.meta["val"] = value
    return node


def _tensor(program: nn.Module, node: Any) -> Any:
    return None if node is None else attrgetter(node.target)(program)


def _drop_unused(program: Any) -> None:
    """Forget tensors that the program does not read, such as floats that became whole numbers."""
    used = {node.target for node in program.graph.nodes if node.op == "get_attr"}
    own = [name for name, _ in (*program.named_parameters(), *program.named_buffers())]
    for name in own:
        if name not in used:
            path, _, tensor = name.rpartition(".")
            delattr(program.get_submodule(path), tensor)
