"""Exported files give the model's own logits, carry their facts, and are refused when damaged."""

import copy
import io
import json
import pickle
import zipfile
from dataclasses import replace

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from kdlab import datasets
from kdlab.compression import export, load
from kdlab.datasets import Data, Split
from kdlab.datasets.tokens import Tokenizer
from kdlab.distillers import Hints, Labels, SoftTargets
from kdlab.models import build_for, count_parameters
from kdlab.training import fit, load_teacher

TOLERANCE = 1e-4  # of the largest logit
MEAN, STD = (0.4,), (0.25,)
CLASSES = ("a", "b", "c")
VISION = ("mlp", "cnn_tiny", "resnet8", "wrn_16_1", "vgg8", "mobilenetv2", "vit")
TEXTS = ("transformer", "lstm", "gru")
OPTIONS = {"vit": {"depth": 1}, "transformer": {"depth": 1}}


def images(n: int = 5) -> torch.Tensor:
    return torch.rand(n, 1, 12, 12, generator=torch.Generator().manual_seed(3))


def pictures() -> Data:
    x = (images() - MEAN[0]) / STD[0]
    split = Split(x, torch.arange(5) % 3)
    return Data("pictures", split, split, split, CLASSES, MEAN, STD, {})


def texts() -> Data:
    x = torch.randint(1, 40, (5, 10), generator=torch.Generator().manual_seed(3))
    x[:, 7:] = 0
    split = Split(x, torch.arange(5) % 3)
    return Data("texts", split, split, split, CLASSES, (), (), {})


def model_for(name: str, data: Data) -> nn.Module:
    options = OPTIONS.get(name, {}) | ({"vocabulary": 40} if len(data.shape) == 1 else {})
    model = build_for(name, data.shape, 3, seed=0, **options)
    for layer in model.modules():  # statistics that an untrained batch norm has not
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.uniform_(layer.running_mean, -0.2, 0.2)
            nn.init.uniform_(layer.running_var, 0.5, 2.0)
    return model.eval()


def same_logits(deployed, model, data) -> None:
    """For one sample and for several, of inputs that are not normalised."""
    with torch.no_grad():
        wanted = model(data.test.x)
    raw = images() if data.mean else data.test.x
    for n in (1, 5):
        got = deployed(raw[:n])
        assert got.shape == (n, 3) and got.dtype == torch.float32
        assert (got - wanted[:n]).abs().max() <= TOLERANCE * wanted.abs().max()


@pytest.mark.parametrize("name", [*VISION, *TEXTS])
def test_onnx_answers_like_the_model(name, tmp_path):
    data = texts() if name in TEXTS else pictures()
    model = model_for(name, data)
    deployed = load(export(model, tmp_path / "model.onnx", data))
    same_logits(deployed, model, data)
    onnx.checker.check_model(tmp_path / "model.onnx", full_check=True)


@pytest.mark.parametrize("name", ["digits", "glyphs", "docstrings"])
def test_the_shipped_teachers_answer_alike_from_a_file(name, tmp_path):
    data = datasets.load(name)
    teacher, _ = load_teacher(data)
    deployed = load(export(teacher, tmp_path / "teacher.onnx", data))
    x = data.test.x[:50]
    with torch.no_grad():
        wanted = teacher(x)
    mean, std = (torch.tensor(v).view(1, -1, 1, 1) for v in (data.mean, data.std))
    raw = x * std + mean if data.mean else x
    assert (deployed(raw) - wanted).abs().max() <= TOLERANCE * wanted.abs().max()
    assert deployed.predict(raw) == [data.classes[k] for k in wanted.argmax(1)]


@pytest.mark.parametrize("name", ["cnn_tiny", "transformer"])
def test_an_exported_program_answers_like_the_model(name, tmp_path):
    data = texts() if name in TEXTS else pictures()
    model = model_for(name, data)
    same_logits(load(export(model, tmp_path / "model.pt2", data)), model, data)


@pytest.mark.parametrize("name", ["mobilenetv2", "lstm"])
def test_weights_answer_like_the_model(name, tmp_path):
    data = texts() if name in TEXTS else pictures()
    model = model_for(name, data)
    path = export(model, tmp_path / "model.safetensors", data)
    options = {"vocabulary": 40} if name in TEXTS else {}
    other = build_for(name, data.shape, 3, seed=1, **options)
    same_logits(load(path, model=other), model, data)


@pytest.fixture(scope="module")
def shipped(tmp_path_factory):
    """One small model in all three forms."""
    folder, data = tmp_path_factory.mktemp("shipped"), pictures()
    model = model_for("mlp", data).train()
    paths = {
        ending: export(model, folder / f"m.{ending}", data, card={"accuracy": 0.5, "by": "Ada"})
        for ending in ("onnx", "pt2", "safetensors")
    }
    assert model.training
    return model.eval(), paths


def again(path, model):
    return load(path, model=build_like(model) if path.suffix == ".safetensors" else None)


def build_like(model: nn.Module) -> nn.Module:
    return build_for("mlp", (1, 12, 12), 3, seed=7)


@pytest.mark.parametrize("ending", ["onnx", "pt2", "safetensors"])
def test_a_file_tells_what_it_holds(shipped, ending):
    model, paths = shipped
    deployed = again(paths[ending], model)
    assert deployed.card == {"accuracy": 0.5, "by": "Ada"}
    assert (deployed.classes, deployed.shape) == (CLASSES, (1, 12, 12))
    assert deployed.parameters == count_parameters(model)
    with torch.no_grad():
        numbers = model(pictures().test.x).argmax(1)
    assert deployed.predict(images().numpy()) == [CLASSES[n] for n in numbers]
    with pytest.raises(
        ValueError, match=r"inputs: shape \[5, 1, 12, 11\], expected \[B, 1, 12, 12"
    ):
        deployed(images()[..., 1:])


@pytest.mark.parametrize("ending", ["onnx", "pt2", "safetensors"])
def test_a_model_of_texts_reads_texts_from_its_file_alone(ending, tmp_path):
    said = ["the cat sat on the mat", "a dog ran off", "unbelievable cats", "Ünknown, words!", ""]
    tokenizer = Tokenizer(said * 3, vocabulary=400, length=10)
    split = Split(tokenizer.encode(said), torch.arange(5) % 3)
    data = replace(texts(), train=split, val=split, test=split, tokenizer=tokenizer)
    model = build_for("lstm", data.shape, 3, seed=0, vocabulary=tokenizer.vocabulary).eval()
    other = copy.deepcopy(model) if ending == "safetensors" else None
    deployed = load(export(model, tmp_path / f"model.{ending}", data), model=other)
    assert torch.equal(deployed.tokenizer.encode(said), split.x)
    assert torch.equal(deployed(said), deployed(split.x))
    assert deployed.predict(said) == [CLASSES[n] for n in deployed(split.x).argmax(1)]


def test_a_model_of_images_reads_no_texts(shipped):
    with pytest.raises(ValueError, match="inputs: list came, expected an array"):
        load(shipped[1]["onnx"]).predict(["a cat"])


def test_threads_of_a_session(shipped):
    assert load(shipped[1]["onnx"], threads=2).threads == 2
    assert load(shipped[1]["onnx"]).threads == torch.get_num_threads()


@pytest.mark.parametrize("ending", ["onnx", "pt2", "safetensors"])
@pytest.mark.parametrize("damage", ["cut", "flipped", "empty", "text", "appended"])
def test_a_damaged_file_is_refused(shipped, ending, damage, tmp_path):
    model, paths = shipped
    whole = paths[ending].read_bytes()
    middle = len(whole) // 2  # among the weights
    broken = {
        "cut": whole[:-40],
        "flipped": whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :],
        "empty": b"",
        "text": b"these are no weights\n" * 50,
        "appended": whole + whole,
    }[damage]
    path = tmp_path / f"broken.{ending}"
    path.write_bytes(broken)
    with pytest.raises(ValueError, match=rf"path: broken\.{ending} .*Nothing was loaded"):
        again(path, model)


def test_files_of_others_are_refused(tmp_path):
    data, model = pictures(), model_for("mlp", pictures())
    proto = onnx.load(export(model, tmp_path / "ours.onnx", data))
    del proto.metadata_props[:]
    onnx.save(proto, tmp_path / "theirs.onnx")
    with pytest.raises(ValueError, match=r"theirs\.onnx .*was not written by kdlab"):
        load(tmp_path / "theirs.onnx")
    program = torch.export.export(model, (data.test.x,))
    program.example_inputs = None
    torch.export.save(program, tmp_path / "theirs.pt2")
    with pytest.raises(ValueError, match=r"theirs\.pt2 was not written by kdlab"):
        load(tmp_path / "theirs.pt2")


class Bomb:
    """Unpickling it leaves a trace."""

    def __reduce__(self):
        return (exec, ("import kdlab; kdlab.exploded = True",))


def planted(path, change) -> bytes:
    """The archive with each entry changed by a function of its name and content."""
    out = io.BytesIO()
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(out, "w") as new:
        for name in old.namelist():
            new.writestr(name, change(name, old.read(name)))
    return out.getvalue()


def pickled_inputs(name, content):
    return pickle.dumps(Bomb()) if "sample_inputs" in name else content


def pickled_weight(name, content):
    if name.endswith("weights_config.json"):
        config = json.loads(content)
        next(iter(config["config"].values()))["use_pickle"] = True
        return json.dumps(config)
    return pickle.dumps(Bomb()) if name.endswith("weight_0") else content


def pickled_constant(name, content):
    if name.endswith("constants_config.json"):
        config = json.loads(content)
        weight = {"path_name": "opaque_obj_0", "is_param": False, "use_pickle": False}
        config["config"]["x"] = weight | {"tensor_meta": None}
        return json.dumps(config)
    return content


@pytest.mark.parametrize("change", [pickled_inputs, pickled_weight, pickled_constant])
def test_nothing_is_unpickled(shipped, change, tmp_path):
    path = tmp_path / "bomb.pt2"
    path.write_bytes(planted(shipped[1]["pt2"], change))
    with pytest.raises(ValueError, match=r"bomb\.pt2 holds .*pickled object"):
        load(path)
    import kdlab

    assert not hasattr(kdlab, "exploded")


def test_what_does_not_fit_is_said(shipped, tmp_path):
    model, paths = shipped
    with pytest.raises(ValueError, match=r"unknown ending '\.pt' of the path 'm\.pt'"):
        export(model, tmp_path / "m.pt", pictures())
    with pytest.raises(ValueError, match=r"unknown ending '\.pkl'"):
        load(tmp_path / "m.pkl")
    with pytest.raises(FileNotFoundError):
        load(tmp_path / "absent.onnx")
    with pytest.raises(ValueError, match="model: none came, expected one"):
        load(paths["safetensors"])
    with pytest.raises(ValueError, match="model: one came, expected none"):
        load(paths["onnx"], model=model)
    with pytest.raises(ValueError, match=r"card: .*JSON"):
        export(model, tmp_path / "m.onnx", pictures(), card={"x": np.zeros(2)})
    more = replace(pictures(), classes=("a", "b", "c", "d"))
    with pytest.raises(ValueError, match=r"shape \[2, 3\], expected logits \[2, 4\]"):
        export(model, tmp_path / "m.onnx", more)
    assert not (tmp_path / "m.onnx").exists()
    with pytest.raises(ValueError, match=r"model: the file has no head\.bias \(\d+ such names\)"):
        load(paths["safetensors"], model=build_for("cnn_tiny", (1, 12, 12), 3))
    with pytest.raises(ValueError, match=r"layers\.0\.weight is \[8, 144\], but \[32, 144\] came"):
        load(paths["safetensors"], model=build_for("mlp", (1, 12, 12), 3, hidden=(8,)))
    with pytest.raises(ImportError, match=r"kdlab_nowhere cannot be imported .*\[compression\]"):
        from kdlab.compression.extras import need

        need("kdlab_nowhere")


@pytest.mark.parametrize("ending", ["onnx", "pt2"])
def test_a_file_teaches_as_the_model_that_it_holds(tmp_path, ending):
    data, teacher = pictures(), model_for("cnn_tiny", pictures())
    wanted, student = (build_for("mlp", data.shape, 3, seed=1) for _ in range(2))
    file = load(export(teacher, tmp_path / f"teacher.{ending}", data))
    options = {"epochs": 4, "batch_size": 5, "lr": 0.05}
    fit(wanted, data, SoftTargets(), teacher=teacher, **options)
    fit(student, data, SoftTargets(), teacher=file, checkpoint=tmp_path / "run.pt", **options)
    torch.testing.assert_close(student.state_dict(), wanted.state_dict(), rtol=1e-3, atol=1e-4)
    with pytest.raises(ValueError, match=r"^teacher: got a Deployed, a function without layers"):
        fit(student, data, Labels() + Hints("layers.0"), teacher=file, **options)
    turned = replace(data, classes=data.classes[::-1])
    with pytest.raises(ValueError, match=r"^teacher: got teacher\..* the order of the data"):
        fit(student, turned, SoftTargets(), teacher=file, **options)
