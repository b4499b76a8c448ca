"""Write a trained model as one file that runs, or can be read, without its Python code."""

from __future__ import annotations

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
from kdlab.datasets import Data
from kdlab.files import atomic_write
from kdlab.models import count_parameters
from kdlab.models.modes import device_of, evaluating
from kdlab.words import check_known

FACTS = "kdlab"  # the name under which a file keeps what is known of its model
SEAL = "kdlab sha256 "  # stands before the digest of a file, inside that file
OPEN = "0" * 64  # in the digest's place while it is computed
SEALED = re.compile(SEAL.encode() + b"[0-9a-f]{64}")
MOST = 2**16  # samples in one batch


class Preprocessed(nn.Module):
    """A model together with what its inputs must go through first.

    `forward` takes images `[B, c, h, w]` with values in [0, 1] (of texts token numbers `[B, L]`,
    which stay as they are) and gives logits `[B, C]`.

    Args:
        model: takes normalised inputs.
        mean: one number per channel that is subtracted; empty for texts.
        std: one number per channel by which is divided.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, model: nn.Module, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        super().__init__()
        self.model = model
        self.normalises = len(mean) > 0
        for name, value in (("mean", mean), ("std", std)):
            self.register_buffer(name, torch.tensor(value).view(1, -1, 1, 1), persistent=False)

    def forward(self, inputs: Tensor) -> Tensor:
        """Logits `[B, C]`."""
        if self.normalises:
            inputs = (inputs - self.mean) / self.std
        return self.model(inputs)


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
        model: gives logits ``[B, C]``; stays as it was. Exported as it answers in eval mode, on
            the CPU.
        path: ends in .onnx, .pt2 or .safetensors.
        data: what it was trained on: shape, normalisation and class names are taken from it. The
            file's model takes images with values in [0, 1], not normalised; of texts it takes
            token numbers, and the tokens stand in the file beside it.
        card: plain facts to keep in the file, such as scores; anything that JSON can hold.

    Returns:
        The path.

    Raises:
        ValueError: an argument of another kind; another ending; a card that JSON cannot hold; a
            model that gives other logits than ``[B, C]`` for this data.
        ImportError: for .onnx, the packages onnx and onnxscript are missing.
        OSError: the folder cannot be written.
    """
    check_kinds(model=model, path=path, data=data)
    path = Path(path)
    check_known("ending", path.suffix, WRITERS, f" of the path {path.name!r}")
    inputs = data.train.x[:2]
    inputs = torch.cat([inputs, inputs])[:2].cpu()  # a batch of 1 would be taken for a constant
    whole = Preprocessed(model, data.mean, data.std)
    home = device_of(model)
    try:
        model.cpu()
        with evaluating(whole), torch.no_grad():
            _check_logits(model(inputs), data)
            facts = _facts(model, data, card)
            content = WRITERS[path.suffix](whole, inputs, facts)
    finally:
        model.to(home)
    with atomic_write(path) as temporary:
        temporary.write_bytes(content)
    return path


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


def _check_logits(logits: Tensor, data: Data) -> None:
    if logits.dim() != 2 or logits.shape[1] != data.num_classes:
        raise ValueError(
            f"model: it answers two samples of {data.name!r} with shape {list(logits.shape)}, "
            f"expected logits [2, {data.num_classes}]; export it with the data it was trained on"
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
            f"model: ONNX cannot express {what}, expected operators of PyTorch's own; replace it, "
            "or write .safetensors"
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
        found = (untrusted.strange_program(archive.read(name)) for name in archive.namelist()
                 if name.endswith("models/model.json"))  # fmt: skip
        if strange := "".join(found):
            raise ValueError(
                f"model: it uses {strange[:80]!r}, expected operators of PyTorch's own; what else "
                "stands in a .pt2 could run code, so that nobody may load it; write .safetensors"
            )
    return buffer.getvalue()


def _safetensors(whole: Preprocessed, inputs: Tensor, facts: str) -> bytes:
    # clones: two names of one tensor are two entries, which the format wants
    weights = {n: t.contiguous().clone() for n, t in whole.model.state_dict().items()}
    return seal(save(weights, metadata={FACTS: facts, "digest": SEAL + OPEN}))


WRITERS: dict[str, Callable[[Preprocessed, Tensor, str], bytes]] = {
    ".onnx": _onnx,
    ".pt2": _pt2,
    ".safetensors": _safetensors,
}
