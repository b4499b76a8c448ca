"""Published teachers: checkpoints of RepDistiller and mdistiller, in the package's own models."""

import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from kdlab.models.mobilenet import mobilenetv2
from kdlab.models.registry import MODELS, build, known_name
from kdlab.models.resnet import resnet, resnet50
from kdlab.models.shufflenet import shufflenetv1, shufflenetv2
from kdlab.models.vgg import GROUPS, vgg
from kdlab.models.wide_resnet import wide_resnet

Rule = tuple[str, str | Callable[[re.Match[str]], str]]
HOLDERS = ("model", "state_dict", "model_state_dict", "net")  # where files keep the weights
COUNTERS = "num_batches_tracked"  # of batch norms, not in files of PyTorch before 0.4.1
NAMED = 4  # how many layers an error names
# A group of MobileNetV2's blocks as published: the stage that holds it, and its first block there.
MOBILE = {0: (1, 0), 1: (1, 1), 2: (2, 0), 3: (3, 0), 4: (3, 4), 5: (4, 0), 6: (4, 3)}


def _vgg_layer(match: re.Match[str]) -> str:
    group, layer = int(match[1]), int(match[2])
    name, (_, pooled) = list(GROUPS.items())[min(group, len(GROUPS) - 1)]
    return f"{name}.{layer + pooled}."  # the max-pool is the first layer of a group here


def _mobile_block(match: re.Match[str]) -> str:
    stage, first = MOBILE.get(int(match[1]), (0, 0))
    return f"stage{stage}.{first + int(match[2])}.layers."


STEM: tuple[Rule, ...] = ((r"^conv1\.", "stem.0."), (r"^bn1\.", "stem.1."))
STAGES: tuple[Rule, ...] = ((r"^layer(\d)\.", r"stage\1."), (r"^(fc|linear)\.", "head."))
# Names as published, to names here; the first of a pair is a regular expression.
RULES: dict[Callable[..., nn.Module], tuple[Rule, ...]] = {
    resnet: (*STEM, *STAGES, (r"\.downsample\.", ".shortcut.")),
    resnet50: (*STEM, *STAGES),
    shufflenetv1: (*STEM, *STAGES),
    shufflenetv2: (*STEM, *STAGES, (r"^conv2\.", "mix.0."), (r"^bn2\.", "mix.1.")),
    wide_resnet: (
        (r"^conv1\.", "stem."),
        (r"^block(\d)\.layer\.", r"stage\1."),
        (r"\.convShortcut\.", ".shortcut."),
        (r"^bn1\.", "norm.0."),
        (r"^fc\.", "head."),
    ),
    vgg: ((r"^block(\d)\.(\d+)\.", _vgg_layer), (r"^classifier\.", "head.")),
    mobilenetv2: (
        (r"^conv1\.", "stem."),
        (r"^blocks\.(\d)\.(\d+)\.conv\.", _mobile_block),
        (r"^conv2\.", "mix."),
        (r"^classifier\.0\.", "head."),
    ),
}
PUBLISHED = tuple(name for name, (builder, _) in MODELS.items() if builder in RULES)


def load_published(
    name: str, path: str | os.PathLike[str], num_classes: int = 100, **options: Any
) -> nn.Module:
    """A model with the weights of a checkpoint of RepDistiller or mdistiller, in eval mode.

    Every weight goes to its layer by the layer's published name, and its shape must fit. The file
    is read with `weights_only=True`, so that nothing in it is run, and the model has made one
    forward before it is returned. The images of these models are normalised by
    (x − mean) / deviation with CIFAR-100's (0.5071, 0.4867, 0.4408) and (0.2675, 0.2565, 0.2761).
    docs/published.md has an example and tells how to bring any other checkpoint.

    Args:
        name: a name of `build`, or what the repositories call it: resnet32x4, wrn_40_2, vgg13,
            ResNet50, ShuffleV1, ...
        path: a file by `torch.save`: the state dict, or a dict that has it as "model" or
            "state_dict". A prefix "module." (DataParallel) is taken off; of mdistiller's file with
            student and teacher the student is taken.
        num_classes: C that the file was trained for.
        options: of the model, as in `build`: width=1.0 for what RepDistiller calls mobile_full.

    Raises:
        ValueError: an unknown name or option, or one that is not published; no such file, a
            truncated one or one that holds Python objects; weights of another architecture, width
            or number of classes; a forward that gives NaN or infinite logits.

    Sources: Tian, Krishnan, Isola, Contrastive representation distillation, 2020, arXiv 1910.10699
    (RepDistiller); Zhao, Cui, Song, Qiu, Liang, Decoupled knowledge distillation, 2022,
    arXiv 2203.08679 (mdistiller).
    """
    name = known_name(name)
    builder, _ = MODELS[name]
    if builder not in RULES:
        raise ValueError(
            f"name: got {name!r}, expected a model with published weights: {', '.join(PUBLISHED)}; "
            "build it and load a file of its own with model.load_state_dict"
        )
    model = build(name, num_classes, **options)
    found = _weights(path, _read(path))
    wanted = model.state_dict()
    if found.keys() != wanted.keys():
        found = {_renamed(layer, RULES[builder]): weight for layer, weight in found.items()}
    _check_fit(name, path, found, wanted)
    model.load_state_dict({**wanted, **found})
    _check_forward(model.eval(), path, num_classes)
    return model


def _read(path: str | os.PathLike[str]) -> object:
    if not Path(path).is_file():
        raise ValueError(f"path: got {str(path)!r}, expected a checkpoint; there is no such file")
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a file of any content raises anything
        reason = str(error).strip().split("\n")[0][:200] or type(error).__name__
        raise ValueError(
            f"path: got {str(path)!r}, which cannot be read as plain tensors ({reason}); expected "
            "a whole file by torch.save that holds tensors only. Where you trust the file, take "
            "the state dict out of it yourself: docs/published.md"
        ) from error


def _weights(path: str | os.PathLike[str], content: object) -> dict[str, Tensor]:
    """The state dict in a file's content, without prefixes."""
    for holder in HOLDERS:
        if isinstance(content, Mapping) and isinstance(content.get(holder), Mapping):
            content = content[holder]
            break
    tensors = isinstance(content, Mapping) and {
        layer: weight
        for layer, weight in content.items()
        if isinstance(layer, str) and isinstance(weight, Tensor)
    }
    if not tensors or len(tensors) < len(content):  # type: ignore[arg-type]
        inside = list(content)[:NAMED] if isinstance(content, Mapping) else type(content).__name__
        raise ValueError(
            f"path: got {str(path)!r}, in which {inside} was found; expected a state dict, or a "
            f"dict with one as {', '.join(map(repr, HOLDERS))}"
        )
    for prefix in ("module.", "student."):
        part = {
            layer.removeprefix(prefix): weight
            for layer, weight in tensors.items()
            if layer.startswith(prefix)
        }
        tensors = part or tensors
    return tensors


def _renamed(layer: str, rules: tuple[Rule, ...]) -> str:
    for pattern, new in rules:
        layer = re.sub(pattern, new, layer)
    return layer


def _check_fit(
    name: str,
    path: str | os.PathLike[str],
    found: Mapping[str, Tensor],
    wanted: Mapping[str, Tensor],
) -> None:
    """Raise ValueError unless the file has a weight of the right shape for every layer, no more."""
    missing = [layer for layer in wanted if layer not in found and COUNTERS not in layer]
    foreign = [layer for layer in found if layer not in wanted]
    if missing or foreign:
        raise ValueError(
            f"path: got {str(path)!r}, whose layers are not those of {name!r}: "
            f"{len(missing)} are missing{_some(missing)}, {len(foreign)} are too "
            f"many{_some(foreign)}; expected a checkpoint of {name!r}, give the name of the "
            "architecture that the file is of"
        )
    shapes = {
        layer: f"{layer} {list(weight.shape)} instead of {list(wanted[layer].shape)}"
        for layer, weight in found.items()
        if weight.shape != wanted[layer].shape
    }
    if shapes.keys() == {"head.weight", "head.bias"}:
        raise ValueError(
            f"num_classes: got {len(wanted['head.bias'])}, expected {len(found['head.bias'])}, the "
            f"classes of {str(path)!r}; give num_classes={len(found['head.bias'])}"
        )
    if shapes:
        raise ValueError(
            f"path: got {str(path)!r} with other shapes than {name!r} has"
            f"{_some(list(shapes.values()))}; expected a checkpoint of {name!r}, give the name of "
            "the architecture that the file is of"
        )


def _some(names: list[str]) -> str:
    more = ", ..." if len(names) > NAMED else ""
    return f" ({', '.join(names[:NAMED])}{more})" if names else ""


def _check_forward(model: nn.Module, path: str | os.PathLike[str], num_classes: int) -> None:
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        logits = model(images)
    if logits.shape != (2, num_classes) or not bool(torch.isfinite(logits).all()):
        raise ValueError(
            f"path: got {str(path)!r}, with which the model gives NaN or infinite logits for two "
            "images; expected the finite weights of a trained model"
        )
