"""Which layer of a teacher stands where a layer of the student stands."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import nn

Fits = Callable[[str, str], bool]


def _spread(s: int, t: int) -> list[int]:
    return [0] if s == 1 else [(2 * i * (t - 1) + s - 1) // (2 * (s - 1)) for i in range(s)]


# Which of t teacher blocks the s < t student blocks take.
BLOCKS: dict[str, Callable[[int, int], Sequence[int]]] = {
    "spread": _spread,
    "every": lambda s, t: [i * t // s for i in range(s)],
    "first": lambda s, t: range(s),
    "last": lambda s, t: range(t - s, t),
}


def pair_layers(
    student: nn.Module,
    teacher: nn.Module,
    rule: str,
    fits: Fits,
    path: str = "",
    source: str = "",
) -> dict[str, str]:
    """The path in the teacher for each path in the student that has one.

    Parts go together by their names, blocks in a row by a rule.

    Args:
        student: the smaller model, or a part of it.
        teacher: the larger one, or the part in the same place.
        rule: a name in ``BLOCKS``.
        fits: says of a path in the student and one in the teacher whether all shapes fit.
        path: of the student's part.
        source: of the teacher's part.
    """
    pairs = {path: source}
    mine, theirs = parts_of(student), parts_of(teacher)
    if all(name.isdigit() for name in (*mine, *theirs)):
        same_place = _pair_rows(
            mine, theirs, rule, lambda a, b: fits(join(path, a), join(source, b))
        )
    else:
        same_place = {name: name for name in mine if name in theirs}
    for a, b in same_place.items():
        pairs |= pair_layers(mine[a], theirs[b], rule, fits, join(path, a), join(source, b))
    return pairs


def _pair_rows(
    mine: dict[str, nn.Module], theirs: dict[str, nn.Module], rule: str, fits: Fits
) -> dict[str, str]:
    (before, *small), (source, *large) = _units(mine), _units(theirs)
    rows = [(before, source)]
    if len(small) >= len(large):
        rows += zip(small, large, strict=False)
    else:
        for unit, wanted in zip(small, BLOCKS[rule](len(small), len(large)), strict=True):
            for other in sorted(large, key=lambda other: abs(large.index(other) - wanted)):
                alike = _kind(unit, mine) == _kind(other, theirs)
                if alike and all(map(fits, unit, other)):
                    break
            else:
                other = large[wanted]
            rows.append((unit, other))
    return {a: b for row in rows for a, b in zip(*row, strict=False)}


def _units(parts: dict[str, nn.Module]) -> list[list[str]]:
    """The blocks in a row of layers: each begins with a layer that has weights.

    What has none, such as a batch norm, goes with the layer before it. First comes what stands
    before all blocks.
    """
    units: list[list[str]] = [[]]
    for name, part in parts.items():
        if any(parameter.dim() > 1 for parameter in part.parameters()):
            units.append([])
        units[-1].append(name)
    return units


def _kind(unit: list[str], parts: dict[str, nn.Module]) -> list[list[tuple[str, int]]]:
    return [[(name, p.dim()) for name, p in parts[part].named_parameters()] for part in unit]


def parts_of(model: nn.Module) -> dict[str, nn.Module]:
    """A module's parts that hold weights or statistics."""
    # Not named_children, which shows a layer that is used twice only once.
    return {
        name: part
        for name, part in model._modules.items()
        if part is not None and part.state_dict()
    }


def join(path: str, name: str) -> str:
    """The dotted path of a part."""
    return f"{path}.{name}" if path else name
