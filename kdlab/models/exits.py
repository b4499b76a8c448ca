"""Early exits: small classifiers at inner layers, and a model that can stop at one of them."""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from typing import Any

import torch
from torch import Tensor, nn

from kdlab.models.attention import mean_of_tokens
from kdlab.models.modes import counting_flops, device_of, evaluating, inputs_for, uncompiled
from kdlab.models.outputs import logits_of
from kdlab.models.staged import initialise
from kdlab.models.taps import Taps, channels_first, check_path, paths

PLACES = 4  # a head shrinks a feature map to about 4x4, the last map of Zhang et al.'s ResNet-18
SHRINK = 4  # inside, a head has a quarter of its outer channels


class ExitHead(nn.Module):
    """One early classifier: `head(features)` gives logits `[B, C]`, `head.embed` what they read.

    - Feature maps `[B, c, h, w]`: a bottleneck of convolutions (1x1, one that shrinks the map to
      about 4x4, 1x1, each with norm and ReLU) and the mean over all places.
    - Tokens `[B, N, d]`: layer norm, the mean over the tokens that are no padding, a Linear.
    - Embeddings `[B, d]`: Linear, ReLU.

    Then a Linear to the logits.

    Args:
        shape: of the features, such as `(1, 8, 14, 14)`; the first entry does not matter.
        num_classes: C.
        width: size of the embedding `[B, width]`.
        channels_first: the layer gives `[B, d, N]`, as a Conv1d does; `EarlyExits` then gives the
            head `[B, N, d]`, for which it is made.

    Raises:
        ValueError: features of another rank.

    Source: the bottleneck is that of Zhang, Song, Gao, Chen, Bao, Ma, "Be Your Own Teacher",
    ICCV 2019, arXiv:1905.08094, as in a public reproduction of it. Heads for tokens and embeddings
    are ours. Derived in lesson 04.
    """

    def __init__(
        self,
        shape: Sequence[int],
        num_classes: int,
        width: int,
        *,
        channels_first: bool = False,
    ) -> None:
        super().__init__()
        self.channels_first = channels_first
        build = HEADS.get(len(shape))
        if build is None:
            raise ValueError(
                f"shape: {list(shape)} came, expected features [B, c, h, w], [B, N, d] or [B, d]"
            )
        self.before, self.after = build(shape, width)
        self.classifier = nn.Linear(width, num_classes)
        initialise(self)

    def embed(self, features: Tensor, mask: Tensor | None = None) -> Tensor:
        """The embedding `[B, width]`; `mask` `[B, N]` is True at tokens that are no padding."""
        features = features.to(self.classifier.weight.dtype)
        embedding: Tensor = self.after(mean_over_places(self.before(features), mask))
        return embedding

    def forward(self, features: Tensor, mask: Tensor | None = None) -> Tensor:
        """Logits `[B, C]`."""
        logits: Tensor = self.classifier(self.embed(features, mask))
        return logits


def _for_maps(shape: Sequence[int], width: int) -> tuple[nn.Module, nn.Module]:
    inner = max(SHRINK, width // SHRINK)
    step = (max(1, shape[2] // PLACES), max(1, shape[3] // PLACES))
    sizes = [(shape[1], inner, (1, 1)), (inner, inner, step), (inner, width, (1, 1))]
    layers: list[nn.Module] = []
    for before, after, size in sizes:
        layers += [nn.Conv2d(before, after, size, size, bias=False), nn.BatchNorm2d(after)]
        layers += [nn.ReLU()]
    return nn.Sequential(*layers), nn.Identity()


def _for_tokens(shape: Sequence[int], width: int) -> tuple[nn.Module, nn.Module]:
    return nn.LayerNorm(shape[2]), nn.Linear(shape[2], width)


def _for_embeddings(shape: Sequence[int], width: int) -> tuple[nn.Module, nn.Module]:
    return nn.Sequential(nn.Linear(shape[1], width), nn.ReLU()), nn.Identity()


HEADS = {2: _for_embeddings, 3: _for_tokens, 4: _for_maps}


def mean_over_places(features: Tensor, mask: Tensor | None = None) -> Tensor:
    """Maps `[B, c, h, w]` or tokens `[B, N, d]` as one vector per sample; `[B, d]` stays.

    Only tokens where `mask` `[B, N]` is True count; a row without any gives 0.
    """
    if features.dim() == 4:
        return features.mean((2, 3))
    if features.dim() == 2:
        return features
    return mean_of_tokens(features, None if mask is None else ~mask)


def padding_mask(inputs: Tensor | None) -> Tensor | None:
    """Where token numbers `[B, N]` int64 are no padding (0), bool; None for anything else."""
    return inputs != 0 if inputs is not None and inputs.dtype == torch.int64 else None


def exit_heads(
    model: nn.Module, layers: Sequence[str], example: Tensor, width: int | None = None
) -> nn.ModuleList:
    """New heads for inner layers of a model, on its device, in the order of `layers`.

    Args:
        model: gives logits `[B, C]`; it is run once on `example` and stays as it was.
        layers: dotted module paths; `kdlab.models.paths(model, example)` lists them with shapes.
        example: inputs `[B, ...]`.
        width: of the heads' embeddings; None takes what the model's last Linear reads.

    Raises:
        ValueError: no layer, a path that the model does not have, a layer that gives no tensor or
            one of another rank than maps, tokens or embeddings.
    """
    if not layers:
        raise ValueError('layers: none came, expected at least one, such as "stage1"')
    example = inputs_for(model, example)
    with uncompiled(), evaluating(model), torch.no_grad(), Taps(model, layers) as taps:
        logits = logits_of(model(example))
        found = {path: taps[path] for path in layers}
    first = channels_first(model, layers, example)
    classes, dtype = logits.shape[-1], torch.float64 if logits.dtype == torch.float64 else None
    linear = [module for module in model.modules() if isinstance(module, nn.Linear)]
    if width is None:
        width = linear[-1].in_features if linear else classes
    heads = nn.ModuleList()
    for path, features in found.items():
        shape = features.mT.shape if path in first else features.shape
        try:
            heads.append(ExitHead(shape, classes, width, channels_first=path in first))
        except ValueError as error:
            raise ValueError(f"layers: {path!r}: {error}") from None
    return heads.to(example.device, dtype or torch.float32)


class EarlyExits(nn.Module):
    """A model with classifiers at inner layers; `with_exits` makes it.

    `exits(inputs)` gives the logits of all exits `[B, E, C]`, from shallow to deep, the model's
    own last; `kdlab.training.predict` works with it. `exits.answer` stops early. `exits.model` is
    the model as it was: to drop the heads is to use that.

    Attributes:
        model: the model itself, not a copy.
        layers: the paths of the exits before the last.
        heads: their classifiers.
    """

    def __init__(self, model: nn.Module, layers: Sequence[str], heads: nn.ModuleList) -> None:
        super().__init__()
        self.model = model
        self.layers = tuple(layers)
        self.heads = heads

    def forward(self, inputs: Tensor) -> Tensor:
        """Logits `[B, E, C]`."""
        mask = padding_mask(inputs)
        with uncompiled(), Taps(self.model, self.layers) as taps:
            last = logits_of(self.model(inputs))
            pairs = zip(self.layers, self.heads, strict=True)
            early = [head(_for_head(head, taps[path]), mask) for path, head in pairs]
        return torch.stack([*early, last.to(early[0].dtype)], dim=1)

    @torch.no_grad()
    def answer(self, inputs: Tensor, threshold: float) -> tuple[Tensor, Tensor]:
        """Each sample's logits `[B, C]` and exit `[B]` int64: the first that is confident.

        Confidence is the largest probability; an exit answers if it is at least `threshold`, the
        last one always does. So 0 takes the first exit and more than 1 the last. What lies behind
        the deepest exit that any sample needs is not computed: one sample costs what its exit
        costs, a batch what its hardest sample costs.

        Args:
            inputs: `[B, ...]`.
            threshold: 0 to 1, or above.

        Raises:
            ValueError: a threshold that is no number.

        Source: Teerapittayanon, McDanel, Kung, "BranchyNet: Fast Inference via Early Exiting from
        Deep Neural Networks", ICPR 2016, arXiv:1709.01686, which stops by a low entropy instead.
        """
        if not isinstance(threshold, numbers.Real) or math.isnan(threshold):
            raise ValueError(f"threshold: {threshold!r} came, expected a number such as 0.9")
        logits: list[Tensor] = []
        sure: list[Tensor] = []

        def enough(answer: Tensor) -> bool:
            logits.append(answer)
            sure.append(answer.float().softmax(-1).amax(-1) >= threshold)
            return bool(torch.stack(sure).any(0).all())

        self._run(inputs, enough)
        sure[-1] = torch.ones_like(sure[-1])  # there is no deeper exit, or all are sure by now
        number = torch.stack(sure).int().argmax(0)
        return torch.stack(logits)[number, torch.arange(len(number), device=number.device)], number

    @torch.no_grad()
    def costs(self, inputs: Tensor) -> tuple[int, ...]:
        """FLOPs of one sample up to each exit, counted while they are computed.

        A sample that reaches exit k has asked the heads before it, so these are in its cost. As
        in PyTorch's counter a multiplication and an addition are two; convolutions, matrix
        products and attention count, all else (norms, activations, pooling) does not.

        Args:
            inputs: `[B, ...]`, of which the first sample is used.
        """
        counted: list[int] = []
        with counting_flops() as counter:

            def count(answer: Tensor) -> bool:
                counted.append(counter.get_total_flops())
                return False

            self._run(inputs[:1], count)
        return tuple(counted)

    def _run(self, inputs: Tensor, enough: Callable[[Tensor], bool]) -> None:
        """Show `enough` the logits of one exit after the other, until it has enough."""
        mask = padding_mask(inputs)
        with ExitStack() as stack:
            # Taps come first: a layer's hooks run in the order in which they were registered
            stack.enter_context(uncompiled())
            taps = stack.enter_context(Taps(self.model, self.layers))

            def look(path: str, head: nn.Module) -> Callable[..., None]:
                def hook(*_: Any) -> None:
                    if enough(head(_for_head(head, taps[path]), mask)):
                        raise _Enough

                return hook

            for path, head in zip(self.layers, self.heads, strict=True):
                layer = check_path(self.model, path)
                stack.callback(layer.register_forward_hook(look(path, head)).remove)
            with suppress(_Enough):
                enough(logits_of(self.model(inputs)))


def _for_head(head: nn.Module, features: Tensor) -> Tensor:
    return features.mT if getattr(head, "channels_first", False) else features


class _Enough(Exception):
    """Leaves a model's forward in the middle."""


def with_exits(model: nn.Module, heads: Mapping[str, nn.Module]) -> EarlyExits:
    """A model together with heads at inner layers, as early exits, all in eval mode.

    Args:
        model: gives logits; neither its weights nor its layers are changed.
        heads: path of an inner layer → classifier of its output, such as the `exits` of
            `DeepSupervision` or `SelfDistillation` after training. They are put into the order in
            which the model defines its layers, which must be the order in which these run.

    Raises:
        ValueError: no head, or a path that the model does not have.
    """
    if not heads:
        raise ValueError("heads: none came, expected at least one: {'stage1': head}")
    for path in heads:
        check_path(model, path, inputs=False)
    layers = [layer.path for layer in paths(model) if layer.path in heads]
    exits = EarlyExits(model, layers, nn.ModuleList(heads[path] for path in layers))
    return exits.to(device_of(model)).eval()
