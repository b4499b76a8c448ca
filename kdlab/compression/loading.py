"""Read an exported file: check that it is whole and ours, then answer; nothing is unpickled."""

from __future__ import annotations

import hashlib
import io
import json
import os
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from torch import Tensor, nn

from kdlab.compression import untrusted
from kdlab.compression.export import FACTS, SEAL, SEALED, Preprocessed, read_extra, unsealed
from kdlab.compression.extras import need
from kdlab.compression.shapes import fit_weights
from kdlab.datasets import Data
from kdlab.datasets.tokens import Tokenizer
from kdlab.models.modes import check_initialised, to_eval, unwrapped
from kdlab.words import check_known


@dataclass(frozen=True)
class Deployed:
    """An exported model as `load` gives it back: called with inputs, it gives logits `[B, C]`.

    Images have values in [0, 1], texts are strings or token numbers: all that stands between them
    and the model is in the file.

    Attributes:
        path: of the file.
        classes: their names, C of them.
        shape: of one sample: (c, h, w) of images with values in [0, 1], (L,) of token numbers.
        parameters: how many numbers were learned.
        threads: with which it computes.
        card: whatever facts were written with it.
        tokenizer: of a model of texts, else None.
        task: what the outputs are, as in `kdlab.datasets.Data`.
    """

    path: Path
    classes: tuple[str, ...]
    shape: tuple[int, ...]
    parameters: int
    threads: int
    card: dict[str, Any]
    answer: Callable[[Tensor], Tensor] = field(repr=False)
    tokenizer: Tokenizer | None = None
    task: str = "classes"

    def __call__(self, inputs: Tensor | NDArray | Sequence[str]) -> Tensor:
        """Logits `[B, C]` float32 of inputs `[B, ...]`, or of B texts.

        Raises:
            ValueError: inputs of another shape, or texts for a model of images.
        """
        given = self._numbers(inputs)
        if given.dim() == 0 or tuple(given.shape[1:]) != self.shape or len(given) == 0:
            sides = ", ".join(map(str, self.shape))
            raise ValueError(f"inputs: shape {list(given.shape)}, expected [B, {sides}] with B ≥ 1")
        kind = torch.int64 if len(self.shape) == 1 else torch.float32
        with torch.no_grad():
            return self.answer(given.to(kind))

    def predict(self, inputs: Tensor | NDArray | Sequence[str]) -> list[str]:
        """The name of the likeliest class of each sample.

        Raises:
            ValueError: as a call; a model whose outputs are no classes.
        """
        if self.task != "classes":
            raise ValueError(
                f"predict: got a model of the task {self.task!r}, expected one of classes; call "
                "it, for its outputs"
            )
        return [self.classes[number] for number in self(inputs).argmax(1).tolist()]

    def for_data(self, data: Data) -> Callable[[Tensor], Tensor]:
        """The logits for inputs that are normalised as those of ``data``: a teacher for `fit`.

        `fit` and `study` call this for themselves.

        Raises:
            ValueError: samples of another shape, or the same classes in another order.
        """
        if self.shape != data.shape:
            raise ValueError(
                f"teacher: got {self.path.name} for samples of shape {list(self.shape)}, expected "
                f"{list(data.shape)} as in data {data.name!r}"
            )
        names = tuple(map(str, data.classes))
        if self.classes != names and sorted(self.classes) == sorted(names):
            raise ValueError(
                f"teacher: got {self.path.name} with the classes {', '.join(self.classes)}, "
                f"expected the order of the data, {', '.join(names)}; map them with "
                "kdlab.distillers.ClassMapping, or name the data's classes in that order"
            )
        return partial(_answer_normalised, self, data.mean, data.std)

    def _numbers(self, inputs: Tensor | NDArray | Sequence[str]) -> Tensor:
        if isinstance(inputs, Tensor | np.ndarray):
            given = torch.as_tensor(inputs)
            return _pixels(given) if len(self.shape) == 3 else given
        if self.tokenizer is None:
            raise ValueError(
                f"inputs: {type(inputs).__name__} came, expected an array: this model does not "
                "read texts"
            )
        return self.tokenizer.encode(inputs)


def _pixels(given: Tensor) -> Tensor:
    """Images as numbers in [0, 1]: uint8 is divided by 255, as `kdlab.datasets` does.

    Raises ValueError for whole numbers of which nobody knows what white is.
    """
    if given.is_floating_point() or given.dtype == torch.bool or not given.numel():
        return given
    if given.dtype == torch.uint8 and int(given.max()) != 1:
        return given / 255
    raise ValueError(
        f"inputs: got {given.dtype} from {int(given.long().min())} to {int(given.long().max())}, "
        "expected images with values in [0, 1], or uint8 up to 255; divide by the largest "
        "value, or use inputs.float() if they are 0 and 1"
    )


def _answer_normalised(
    deployed: Deployed, mean: Sequence[float], std: Sequence[float], inputs: Tensor
) -> Tensor:
    pixels = inputs
    if mean:
        center, width = (torch.tensor(v).to(inputs).view(-1, 1, 1) for v in (mean, std))
        pixels = inputs * width + center
        if any(mean) or any(value != 1 for value in std):  # else nobody said what the range is
            pixels = pixels.clamp(0, 1)
    return deployed(pixels.cpu()).to(inputs.device)


def load(
    path: str | os.PathLike[str], *, model: nn.Module | None = None, threads: int | None = None
) -> Deployed:
    """Read a file that `export` wrote.

    Args:
        path: ends in .onnx, .pt2 or .safetensors.
        model: for .safetensors, and only there: a model of the same kind, such as
            ``build("resnet20", 10)``; its weights are replaced. One that was built wider than the
            file's, as a pruned model was before, is cut to the file's shapes.
        threads: for .onnx; None takes as many as PyTorch has.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a damaged or foreign file, another ending, weights that do not fit the model.
        ImportError: for .onnx, the package onnxruntime is missing.

    A digest finds damage, not malice: it says that a file is as it was written, not who wrote it.
    """
    path = Path(path)
    check_known("ending", path.suffix, READERS, f" of the path {path.name!r}")
    if (model is None) == (path.suffix == ".safetensors"):
        wanted = "none" if model is not None else 'one, such as build("resnet20", 10)'
        raise ValueError(
            f"model: {'one came' if model is not None else 'none came'}, expected {wanted}: "
            "only a .safetensors file, which has weights alone, needs it"
        )
    content = path.read_bytes()
    own = torch.get_num_threads()
    count = (threads or own) if path.suffix == ".onnx" else own
    facts, answer = READERS[path.suffix](path, content, count, model)
    if missing := [name for name in NEEDED if name not in facts]:
        _refuse(path, f"lacks the facts {', '.join(missing)} of its model")
    tokens, shape = facts.get("tokens"), tuple(facts["shape"])
    return Deployed(
        path,
        tuple(facts["classes"]),
        shape,
        facts["parameters"],
        count,
        facts["card"],
        answer,
        Tokenizer.of_tokens(tokens, shape[0]) if tokens else None,
        facts.get("task", "classes"),
    )


NEEDED = ("shape", "classes", "parameters", "card")
Found = tuple[dict[str, Any], Callable[[Tensor], Tensor]]


def _refuse(path: Path, why: str) -> NoReturn:
    raise ValueError(
        f"path: {path.name} {why}. Nothing was loaded; write it anew with kdlab.compression.export"
    )


def _check_seal(path: Path, content: bytes) -> None:
    found = SEALED.findall(content)
    if len(found) != 1:
        _refuse(path, "is damaged, or was not written by kdlab: it has no digest of itself")
    digest = hashlib.sha256(unsealed(content)).hexdigest()
    if found[0].decode() != SEAL + digest:
        _refuse(path, "is damaged: it is not what its digest was made from")


def _onnx(path: Path, content: bytes, threads: int, model: nn.Module | None) -> Found:
    _check_seal(path, content)
    runtime, proto = need("onnxruntime"), need("onnx").ModelProto()
    options = runtime.SessionOptions()
    options.intra_op_num_threads = threads
    try:
        proto.ParseFromString(content)
        if not (strange := untrusted.strange_model(proto)):
            session = runtime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # each package has errors of its own
        _refuse(path, f"cannot be run by onnxruntime ({error})")
    if strange:
        _refuse(path, f"needs {strange}")
    sides = [[one.name for one in side] for side in (session.get_inputs(), session.get_outputs())]
    if sides[0] != ["inputs"] or len(sides[1]) != 1:
        _refuse(path, f"has the inputs and outputs {sides}, expected 'inputs' and one output")
    facts = json.loads(session.get_modelmeta().custom_metadata_map.get(FACTS, "{}"))

    def answer(inputs: Tensor) -> Tensor:
        (logits,) = session.run(None, {"inputs": np.ascontiguousarray(inputs.cpu().numpy())})
        return torch.from_numpy(logits)

    return facts, answer


def _pt2(path: Path, content: bytes, threads: int, model: nn.Module | None) -> Found:
    facts = _check_archive(path, content)
    program = torch.export.load(io.BytesIO(content))
    return facts, program.module()


def _check_archive(path: Path, content: bytes) -> dict[str, Any]:
    """Refuse a damaged archive, and one of which PyTorch would unpickle anything."""
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            if broken := archive.testzip():
                _refuse(path, f"is damaged in {broken}")
            facts = {}
            for number, entry in enumerate(archive.infolist()):
                if number == 0 and entry.header_offset:
                    _refuse(path, "is damaged: something stands before its beginning")
                parts = entry.filename.split("/")
                if untrusted.strange_member(entry.filename):
                    _refuse(path, f"holds {entry.filename}, which kdlab does not write")
                if parts[-2:] == ["models", "model.json"] and (
                    strange := untrusted.strange_program(archive.read(entry))
                ):
                    _refuse(path, f"holds {strange[:80]!r}, which could run code")
                if parts[-2:] == ["extra", FACTS]:
                    facts = json.loads(archive.read(entry))
                if entry.filename.endswith(".pt") and entry.file_size:
                    _refuse(path, f"holds pickled objects in {entry.filename}")
                if entry.filename.endswith("_config.json"):
                    for name, item in json.loads(archive.read(entry))["config"].items():
                        plain = item["path_name"].startswith(("weight_", "tensor_"))
                        if item["use_pickle"] or not plain:
                            _refuse(path, f"holds {name} as a pickled object")
    except (
        zipfile.BadZipFile, KeyError, TypeError, AttributeError, RecursionError,
        json.JSONDecodeError,
    ):  # fmt: skip
        _refuse(path, "is damaged, or no program that kdlab exported")
    if not facts:
        _refuse(path, "was not written by kdlab")
    return facts


def _safetensors(path: Path, content: bytes, threads: int, model: nn.Module | None) -> Found:
    assert model is not None
    check_initialised(model)
    model = unwrapped(model)
    _check_seal(path, content)
    try:
        tensors = load_tensors(content)
        header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    except (SafetensorError, json.JSONDecodeError):
        _refuse(path, "is no safetensors file")
    facts = json.loads(header.get("__metadata__", {}).get(FACTS, "{}"))
    if not {"mean", "std"} <= facts.keys():
        _refuse(path, "lacks the facts mean and std of its model")
    fit_weights(model, tensors)
    layers = {n.replace("_orig_mod.", ""): unwrapped(m) for n, m in model.named_modules()}
    for name, written in facts.get("extra", {}).items():
        layers[name.rpartition(".")[0]].set_extra_state(read_extra(written))
    whole = Preprocessed(model, tuple(facts["mean"]), tuple(facts["std"]))
    to_eval(whole)
    return facts, whole


READERS: dict[str, Callable[[Path, bytes, int, nn.Module | None], Found]] = {
    ".onnx": _onnx,
    ".pt2": _pt2,
    ".safetensors": _safetensors,
}
