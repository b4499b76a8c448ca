"""Whole numbers of 8 bits instead of 32-bit floats: after training, or already while training."""

from __future__ import annotations

import copy
import os
from dataclasses import replace
from operator import attrgetter
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim
from torch.nn.utils.fusion import fuse_conv_bn_weights

from kdlab.compression.export import MOST, seal, unsealed
from kdlab.compression.extras import need, quiet
from kdlab.compression.kinds import check_kinds
from kdlab.compression.loading import load
from kdlab.compression.quantized import Quantized, check_not_quantized
from kdlab.datasets import Data
from kdlab.distillers import Distiller, SoftTargets
from kdlab.files import atomic_write
from kdlab.training import fit

PT2E = "torchao.quantization.pt2e"


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
    graph = _prepare(model, data, learning=False)
    with torch.no_grad():
        for chunk in data.train.x[:samples].split(64):
            graph(chunk)
    return _convert(graph)


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
    student = Quantized(_prepare(model, data, learning=True))
    if teacher is not None and distiller is None:
        distiller = SoftTargets()
    fit(student, data, distiller, teacher=teacher, device="cpu", **options)
    return _convert(student.eval().graph)


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
        ValueError: a damaged or foreign file, or one that is no .onnx.
        ImportError: the packages onnx and onnxruntime are missing.

    Source: as `quantize`.
    """
    source, target = Path(source), Path(target)
    if (source.suffix, target.suffix) != (".onnx", ".onnx"):
        raise ValueError(
            f"source and target: {source.name} and {target.name} came, expected .onnx files"
        )
    load(source)  # refuses what is damaged
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
        temporary.write_bytes(seal(temporary.read_bytes()))
    return target


@torch.no_grad()
def round_weights(model: nn.Module, bits: int) -> nn.Module:
    """A copy whose weights are rounded to so many bits: what accuracy is left at 4, 3, 2 bits.

    A simulation: they are stored as floats, so file and time stay. Convolutions and Linear layers,
    one scale for each output, symmetric about 0: w becomes s · round(w / s) with
    s = max |w| / (2^(bits - 1) - 1).

    Args:
        model: stays as it was.
        bits: 2 to 16.

    Raises:
        ValueError: bits out of range, or a model that is quantized already.

    Source: Krishnamoorthi, Quantizing deep convolutional networks for efficient inference: a
    whitepaper, 2018, arXiv:1806.08342 (one symmetric scale for each output).
    """
    check_not_quantized(model)
    if isinstance(bits, bool) or not isinstance(bits, int) or not 2 <= bits <= 16:
        raise ValueError(f"bits: {bits!r} came, expected a whole number from 2 to 16")
    rounded = copy.deepcopy(model)
    for layer in rounded.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            rows = layer.weight.flatten(1)
            scale = rows.abs().amax(1, keepdim=True) / (2 ** (bits - 1) - 1)
            scale = scale.masked_fill(scale == 0, 1)
            layer.weight.copy_((scale * (rows / scale).round()).view_as(layer.weight))
    return rounded


def _prepare(model: nn.Module, data: Data, *, learning: bool) -> nn.Module:
    """The model as a program with observers of ranges, or with rounding that learns them."""
    tools = need(f"{PT2E}.quantize_pt2e")
    x86 = need(f"{PT2E}.quantizer.x86_inductor_quantizer")
    inputs = torch.cat([data.train.x[:2]] * 2)[:2].cpu()
    with quiet():
        shapes = ({0: Dim("batch", min=1, max=MOST)},)
        whole = copy.deepcopy(model).cpu().eval()
        program = torch.export.export(whole, (inputs,), dynamic_shapes=shapes).module()
        _fold_norms(program)
        usual = x86.get_default_x86_inductor_quantization_config(is_qat=learning)
        weight = replace(usual.weight, quant_min=-64, quant_max=63)
        plan = x86.X86InductorQuantizer().set_global(replace(usual, weight=weight))
        prepare = tools.prepare_qat_pt2e if learning else tools.prepare_pt2e
        return prepare(program, plan)


def _convert(graph: nn.Module) -> Quantized:
    with quiet():
        program = need(f"{PT2E}.quantize_pt2e").convert_pt2e(graph)
    _drop_unused(program)
    return Quantized(program).eval()


@torch.no_grad()
def _fold_norms(program: Any) -> None:
    """Put each batch norm into the convolution before it, or make it a factor and a summand.

    In place. torchao would fold them too, but takes half a minute for each model.
    """
    graph = program.graph
    for norm in graph.find_nodes(op="call_function", target=torch.ops.aten.batch_norm.default):
        before, *tensors = norm.args[:5]
        gamma, beta, mean, var = (_tensor(program, node) for node in tensors)
        statistics = (mean, var, norm.args[7], gamma, beta)
        values: tuple[Tensor, ...]
        follows = before.target == torch.ops.aten.conv2d.default and len(before.users) == 1
        if follows:
            image, weight, bias, *rest = (*before.args, None)[: max(3, len(before.args))]
            kernel, shift = _tensor(program, weight), _tensor(program, bias)
            values = fuse_conv_bn_weights(kernel, shift, *statistics)
        else:
            values = fuse_conv_bn_weights(torch.ones(len(mean), 1, 1, 1), None, *statistics)
            values = tuple(value.detach().view(1, -1, 1, 1) for value in values)
        with graph.inserting_before(before if follows else norm):
            nodes = [_keep(program, f"{norm.name}_{i}", value) for i, value in enumerate(values)]
            if follows:
                before.args = (image, *nodes, *rest)
            else:
                for operation, node in zip(("mul", "add"), nodes, strict=True):
                    function = getattr(torch.ops.aten, operation).Tensor
                    before = graph.call_function(function, (before, node))
                    before.meta = dict(norm.meta)  # torchao asks for the shape
        norm.replace_all_uses_with(before)
        graph.erase_node(norm)
    graph.eliminate_dead_code()
    program.recompile()
    _drop_unused(program)


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
