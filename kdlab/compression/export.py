"""Write a trained model as one file that runs, or can be read, without its Python code."""

from __future__ import annotations

import copy
import hashlib
import io
import json
import os
import re
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from kdlab import __version__
from kdlab.compression import untrusted
from kdlab.compression.extras import need, quiet
from kdlab.compression.kinds import check_kinds
from kdlab.compression.quantized import Quantized
from kdlab.compression.shapes import is_extra
from kdlab.compression.verification import (
    ForwardFails,
    check_steady,
    logits,
    naming,
    plain_names,
)
from kdlab.datasets import Data
from kdlab.files import atomic_write
from kdlab.models import count_parameters, logits_of
from kdlab.models.modes import evaluating
from kdlab.words import check_known

FACTS = "kdlab"  # the name under which a file keeps what is known of its model
SEAL = "kdlab sha256 "  # stands before the digest of a file, inside that file
OPEN = "0" * 64  # in the digest's place while it is computed
SEALED = re.compile(SEAL.encode() + b"[0-9a-f]{64}")
MOST = 2**16  # samples in one batch
NARROW = (torch.float64, torch.bfloat16, torch.float16)


class Preprocessed(nn.Module):
    """A model together with what its inputs must go through first.

    `forward` takes images `[B, c, h, w]` with values in [0, 1] (of texts token numbers `[B, L]`,
    which stay as they are) and gives logits `[B, C]`.

    Args:
        model: takes normalised inputs.
        mean: one number per channel that is subtracted; empty for texts.
        std: one number per channel by which is divided.
    """

    inputs_mean: Tensor  # not `mean`: a forward's own mean would have that name in .onnx
    inputs_std: Tensor

    def __init__(self, model: nn.Module, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        super().__init__()
        self.model = model
        self.normalises = len(mean) > 0
        for name, value in (("inputs_mean", mean), ("inputs_std", std)):
            self.register_buffer(name, torch.tensor(value).view(1, -1, 1, 1), persistent=False)

        floats = (p.dtype for p in model.parameters() if p.is_floating_point())
        self.dtype = next(floats, torch.float32)

    def forward(self, inputs: Tensor) -> Tensor:
        """Logits `[B, C]` float32."""
        if self.normalises:
            inputs = (inputs - self.inputs_mean) / self.inputs_std
        if inputs.is_floating_point() and inputs.dtype != self.dtype:
            inputs = inputs.to(self.dtype)
        logits = logits_of(self.model(inputs))
        return logits if logits.dtype == torch.float32 else logits.float()


def export(
    model: nn.Module,
    path: str | os.PathLike[str],
    data: Data,
    *,
    card: Mapping[str, Any] | None = None,
) -> Path:
    """Write a model to a file, together with preprocessing, class names and a card.

    The ending of the path says how. All three take any batch size, are whole or absent, and
    ``kdlab.compression.load`` reads them without ever unpickling anything.

    - ``.onnx``: runs in onnxruntime, in a browser or on a telephone, without PyTorch. Its logits
      are the model's within 1e-4 of the largest one.
    - ``.pt2``: PyTorch's exported program, which runs without the model's Python code.
    - ``.safetensors``: the weights alone; whoever loads them builds the model first.

    Args:
        model: gives logits ``[B, C]``, or a tuple, dict or object that holds them, of which the
            file gives the logits alone; stays as it was. Exported as it answers in eval mode, on
            the CPU, in 32-bit floats; .safetensors keeps each weight's dtype and name (without
            what ``torch.compile`` puts before it) and what ``get_extra_state`` gives.
        path: ends in .onnx, .pt2 or .safetensors.
        data: what it was trained on: shape, normalisation and class names are taken from it. The
            file's model takes images with values in [0, 1], not normalised; of texts it takes
            token numbers, and the tokens stand in the file beside it.
        card: plain facts to keep in the file, such as scores; anything that JSON can hold.

    Returns:
        The path.

    Raises:
        ValueError: an argument of another kind; another ending; a card that JSON cannot hold; a
            model that gives other logits than ``[B, C]`` for this data, or other ones in a second
            run, whose forward the format cannot say, or whose file answers otherwise than it does:
            the file is run once for two samples and once for one before it is kept.
        ImportError: for .onnx, the packages onnx, onnxscript and onnxruntime are missing.
        OSError: the folder cannot be written.
    """
    check_kinds(model=model, path=path, data=data)
    path = Path(path)
    check_known("ending", path.suffix, WRITERS, f" of the path {path.name!r}")
    inputs = data.train.x[:2]
    inputs = torch.cat([inputs, inputs])[:2].cpu()  # a batch of 1 would be taken for a constant
    inputs = inputs.float() if inputs.is_floating_point() else inputs
    plain = plain_names(model).cpu()
    if path.suffix != ".safetensors" and any(p.dtype in NARROW for p in plain.parameters()):
        plain = plain.float()  # which every runtime computes with
    whole = Preprocessed(plain, data.mean, data.std)
    with torch.inference_mode(False), torch.no_grad(), evaluating(whole):
        wanted = check_steady(whole, inputs)
        _check_logits(wanted, data)
        facts = _facts(plain, data, card)
        with naming(f"the export to {path.suffix}"):
            content = WRITERS[path.suffix](whole, inputs, facts)
        _check_file(path, content, whole, inputs, isinstance(model, Quantized))
    with atomic_write(path) as temporary:
        temporary.write_bytes(content)
    return path


def _check_file(
    path: Path, content: bytes, whole: Preprocessed, inputs: Tensor, rounded: bool
) -> None:
    """Refuse a file that answers otherwise than its model, for two samples or for one."""
    from kdlab.compression.loading import READERS  # which imports this module

    other = copy.deepcopy(whole.model) if path.suffix == ".safetensors" else None
    try:
        _, answer = READERS[path.suffix](path, content, torch.get_num_threads(), other)
    except Exception as error:
        raise ValueError(
            f"model: got weights or a forward that a {path.suffix} file cannot hold "
            f"({type(error).__name__}: {error}), expected plain tensors; try another ending"
        ) from error
    for n in (2, 1):
        try:
            wanted = logits(whole, inputs[:n])
        except ForwardFails:
            continue  # the model itself takes no single sample
        with naming(f"the file's runtime ({path.suffix})"):
            found = answer(inputs[:n])
        share = 0.1 if rounded else 1e-3  # runtimes round whole numbers in ways of their own
        near = found.shape == wanted.shape and torch.allclose(
            found, wanted, rtol=0, atol=share * float(wanted.abs().max()) + 1e-6
        )
        if not near:
            raise ValueError(
                f"model: got a forward of which {path.suffix} makes another one: for {n} samples "
                "the file answers otherwise than the model, expected the same logits; try another "
                "ending, or look for shapes and numbers that the forward turns into constants"
            )


def seal(content: bytes) -> bytes:
    """Write the digest of a file, with zeros in its place, into that place."""
    digest = hashlib.sha256(content).hexdigest()
    return content.replace((SEAL + OPEN).encode(), (SEAL + digest).encode(), 1)


def unsealed(content: bytes) -> bytes:
    """A file with zeros in the place of its digest."""
    return SEALED.sub((SEAL + OPEN).encode(), content)


def _facts(model: nn.Module, data: Data, card: Mapping[str, Any] | None) -> str:
    facts = {
        "made_by": f"kdlab {__version__}, torch {torch.__version__}",
        "shape": data.shape,
        "classes": data.classes,
        "task": data.task,
        "mean": data.mean,
        "std": data.std,
        "tokens": data.tokenizer.tokens if data.tokenizer else None,
        "parameters": count_parameters(model),
        "card": dict(card or {}),
    }
    try:
        return json.dumps(facts)
    except (TypeError, ValueError) as error:
        raise ValueError(f"card: {error}; expected plain facts that JSON can hold") from None


def _check_logits(found: Tensor, data: Data) -> None:
    if found.dim() != 2 or found.shape[1] != data.num_classes:
        raise ValueError(
            f"model: it answers two samples of {data.name!r} with shape {list(found.shape)}, "
            f"expected logits [2, {data.num_classes}]; export it with the data it was trained on"
        )
    if not found.isfinite().all():
        raise ValueError(
            f"model: it answers two samples of {data.name!r} with numbers that are not finite, "
            "expected finite logits; train it with a lower learning rate"
        )


def _program(whole: nn.Module, inputs: Tensor) -> ExportedProgram:
    shapes = ({0: Dim("batch", min=1, max=MOST)},)
    return torch.export.export(whole, (inputs,), dynamic_shapes=shapes)


def _onnx(whole: Preprocessed, inputs: Tensor, facts: str) -> bytes:
    for package in ("onnx", "onnxscript"):
        need(package)
    try:
        with quiet():
            program = torch.onnx.export(
                _program(whole, inputs),
                (),
                dynamo=True,
                external_data=False,
                input_names=["inputs"],
                output_names=["logits"],
                verbose=False,
            )
    except torch.onnx.OnnxExporterError as error:
        unknown = re.search(
            r"No ONNX function found for (.+?)[.,]? ", f"{error} {error.__cause__} "
        )
        what = unknown[1] if unknown else str(error).splitlines()[0]
        raise ValueError(
            f"model: got {what}, which ONNX cannot express, expected operators of PyTorch's own; "
            "replace it, or write .safetensors"
        ) from error
    assert program is not None
    proto = program.model_proto
    for part in (proto.graph, *proto.graph.node, *proto.graph.value_info, *proto.graph.initializer):
        part.ClearField("metadata_props")  # lines of code and where they lie on this machine
    for key, value in ((FACTS, facts), ("digest", SEAL + OPEN)):
        proto.metadata_props.add(key=key, value=value)
    return seal(proto.SerializeToString())


def _pt2(whole: Preprocessed, inputs: Tensor, facts: str) -> bytes:
    with quiet():
        program = _program(whole, inputs)
        program.example_inputs = None  # would be pickled, as the only thing in the file
        buffer = io.BytesIO()
        torch.export.save(program, buffer, extra_files={FACTS: facts})
    with zipfile.ZipFile(buffer) as archive:
        programs = [name for name in archive.namelist() if name.endswith("models/model.json")]
        strange = "".join(untrusted.strange_program(archive.read(name)) for name in programs)
    if strange:
        raise ValueError(
            f"model: got {strange[:80]!r}, expected operators of PyTorch's own; what else stands "
            "in a .pt2 could run code, so that nobody may load it; write .safetensors"
        )
    return buffer.getvalue()


def _safetensors(whole: Preprocessed, inputs: Tensor, facts: str) -> bytes:
    state = whole.model.state_dict()
    extra = {n: _written(n, value) for n, value in state.items() if is_extra(n)}
    for name, value in state.items():
        if type(value) not in (Tensor, nn.Parameter) and not is_extra(name):
            raise ValueError(
                f"model: got {name} as a {type(value).__name__}, expected plain tensors, which is "
                "all that .safetensors holds; export to .onnx or .pt2"
            )
    # clones: two names of one tensor are two entries, which the format wants
    weights = {n: t.contiguous().clone() for n, t in state.items() if not is_extra(n)}
    told = json.dumps(json.loads(facts) | {"extra": extra}) if extra else facts
    return seal(save(weights, metadata={FACTS: told, "digest": SEAL + OPEN}))


def _written(name: str, value: Any) -> Any:
    """An extra state in JSON; of what it has no form for, a pair of the kind and its parts."""
    if isinstance(value, Tensor):
        return {"tensor": [str(value.dtype).removeprefix("torch."), value.tolist()]}
    if isinstance(value, tuple | list):
        return {type(value).__name__: [_written(name, part) for part in value]}
    if isinstance(value, dict) and all(isinstance(key, str) for key in value):
        return {"dict": {key: _written(name, part) for key, part in value.items()}}
    if isinstance(value, bytes):
        return {"bytes": value.hex()}
    if value is None or isinstance(value, str | int | float | bool):
        return value
    raise ValueError(
        f"model: got a {type(value).__name__} in its {name}, expected tensors, numbers, texts, and "
        "tuples, lists or dicts of them; let get_extra_state give those, or export to .pt2 or .onnx"
    )


def read_extra(written: Any) -> Any:
    """An extra state as it was before `export` wrote it."""
    if not isinstance(written, dict):
        return written
    ((kind, parts),) = written.items()
    if kind == "tensor":
        return torch.tensor(parts[1], dtype=getattr(torch, parts[0]))
    if kind == "dict":
        return {key: read_extra(part) for key, part in parts.items()}
    if kind == "bytes":
        return bytes.fromhex(parts)
    return (tuple if kind == "tuple" else list)(read_extra(part) for part in parts)


WRITERS: dict[str, Callable[[Preprocessed, Tensor, str], bytes]] = {
    ".onnx": _onnx,
    ".pt2": _pt2,
    ".safetensors": _safetensors,
}
