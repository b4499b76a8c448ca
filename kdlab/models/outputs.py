"""What a model returns, in the forms in which people return it, and where the logits are in it."""

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn

Output = Callable[[Any], Tensor]
"""A reader's own function: what the model returned → logits ``[B, C]``."""


def logits_of(returned: Any, who: str = "model") -> Tensor:
    """The logits among what a model returned.

    A tensor is taken as it is, of an object its ``.logits``, of a mapping its entry "logits", of a
    tuple or list the first element (what comes after it are auxiliary heads or features).

    Args:
        returned: by one call of the model.
        who: the argument that an error names.

    Raises:
        ValueError: nothing of that kind.
    """
    found = returned
    while not isinstance(found, Tensor):
        if getattr(found, "logits", None) is not None:
            found = found.logits
        elif isinstance(found, Mapping) and "logits" in found:
            found = found["logits"]
        elif isinstance(found, tuple | list) and len(found):
            found = found[0]
        else:
            names = ", ".join(map(repr, found)) if isinstance(found, Mapping) else ""
            held = f" with {names or 'no entry'}" if isinstance(found, Mapping) else ""
            raise ValueError(
                f"{who}: it returns a {type(returned).__name__}{held}, expected logits: a tensor, "
                "a tuple whose first element is one, a dict with 'logits' or an object with "
                ".logits; else wrap it in kdlab.models.WithOutput(model, output) with a function "
                "that takes the logits out of what the model returns"
            )
    return found


class WithOutput(nn.Module):
    """A model, or any function of a batch, as a module that returns logits.

    ``WithOutput(model, lambda returned: returned["scores"])`` has the layers, parameters and modes
    of ``model`` under ``model.``; a function or a loaded file (``kdlab.compression.load``) has
    none of them and can be a teacher of whom only logits are asked.

    Args:
        model: a module, or what can be called with a batch ``[B, ...]``.
        output: takes the logits ``[B, C]`` out of what ``model`` returned; None takes what
            `logits_of` finds.
    """

    def __init__(self, model: Callable[..., Any], output: Output | None = None) -> None:
        super().__init__()
        self.model = model
        self.output = output

    def forward(self, *inputs: Any, **options: Any) -> Tensor:
        """Return the logits of a batch."""
        returned = self.model(*inputs, **options)
        return logits_of(returned if self.output is None else self.output(returned))
