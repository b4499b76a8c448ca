"""The nonlinearities: one table of names, how to swap them, and where a part ends in one."""

from torch import Tensor, nn

from kdlab.models.taps import check_path, last_outputs
from kdlab.words import check_known

ACTIVATIONS = {
    "relu": nn.ReLU,
    "leaky_relu": nn.LeakyReLU,
    "elu": nn.ELU,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "softplus": nn.Softplus,
    "tanh": nn.Tanh,
}

# What is recognised as an activation in any model: elementwise and without a part of its own.
KINDS = (
    *ACTIVATIONS.values(),
    nn.CELU,
    nn.Hardsigmoid,
    nn.Hardswish,
    nn.Hardtanh,  # ReLU6 is one
    nn.LogSigmoid,
    nn.Mish,
    nn.PReLU,
    nn.RReLU,
    nn.SELU,
    nn.Sigmoid,
    nn.Softsign,
)


def make_activation(name: str) -> nn.Module:
    """A new activation module by its name in `ACTIVATIONS`.

    Raises:
        ValueError: an unknown name, with the nearest one.
    """
    check_known("activation", name, ACTIVATIONS)
    return ACTIVATIONS[name]()


def swap_activations(model: nn.Module, name: str) -> int:
    """Replace, in place, every activation module of `model` by the one called `name`; say how many.

    A module that is used in several places stays one module. What a `forward` calls as a function
    (`torch.relu`) cannot be seen, so it stays.

    Raises:
        ValueError: an unknown name.
    """
    fresh: dict[nn.Module, nn.Module] = {}
    modules: dict[str, nn.Module] = dict(model.named_modules(remove_duplicate=False))
    for path, module in modules.items():
        if path and isinstance(module, KINDS):
            new = fresh.setdefault(module, make_activation(name))
            model.set_submodule(path, new.train(module.training))
    return len(fresh)


def before_activation(model: nn.Module, path: str, example: Tensor | None = None) -> str:
    """The tap path that reads the part `path` before its last activation.

    That is the input of the activation in which the part ends, such as "stage2.3:input", or `path`
    itself where the part does not end in one (the linear bottlenecks of MobileNetV2, the stages of
    a wide residual network). Before a ReLU the negative half of the features can still be seen.

    Which module is the last to run can only be known from a run. With `example` one is made, and
    the part ends in that activation whose output is the part's output. Without it the last leaf
    module *in the order of definition* counts. That is the same for all models of `available()`
    and for every `Sequential`. It is not for a block that defines one ReLU and uses it twice, or
    defines its layers in another order than it calls them: give an example there. An activation
    that is called as a function (`torch.relu`) is never seen: make it a module.

    Args:
        model: any module; it is not changed.
        path: a dotted module path, as in `paths(model)`.
        example: inputs `[B, ...]` for one forward in eval mode without gradients.

    Raises:
        ValueError: a path that the model does not have (with the nearest match), one that already
            ends in ":input", or a part that `example` does not reach.
    """
    part = check_path(model, path, inputs=False)
    leaves = {
        f"{path}.{name}" if name else path: leaf
        for name, leaf in part.named_modules()
        if next(leaf.children(), None) is None
    }
    if example is None:
        last = next(reversed(leaves))
        return f"{last}:input" if isinstance(leaves[last], KINDS) else path
    activations = [name for name, leaf in leaves.items() if isinstance(leaf, KINDS)]
    outputs = last_outputs(model, [path, *activations], example)
    if path not in outputs:
        raise ValueError(
            f"path: no forward of {path!r} when the model ran on the example, so its last "
            "activation is unknown; name a part that the model's forward calls."
        )
    ends = [name for name in activations if outputs.get(name) is outputs[path] is not None]
    return f"{ends[-1]}:input" if ends else path
