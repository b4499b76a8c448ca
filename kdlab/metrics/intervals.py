"""How sure a mean over seeds is: Student's t intervals, for one setting and for a difference."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from scipy.special import stdtrit


@dataclass(frozen=True)
class Interval:
    """A mean with its confidence interval.

    Attributes:
        mean: mean of the values.
        low, high: bounds of the interval; NaN when there is one value only.
        n: number of values.
    """

    mean: float
    low: float
    high: float
    n: int

    @property
    def half_width(self) -> float:
        """Distance from the mean to either bound."""
        return (self.high - self.low) / 2

    def excludes(self, value: float) -> bool:
        """Whether ``value`` lies outside the interval; never so with NaN bounds."""
        return value < self.low or value > self.high

    def __str__(self) -> str:
        return f"{self.mean:.4g} ± {self.half_width:.2g} (n = {self.n})"


def mean_interval(values: Iterable[float], confidence: float = 0.95) -> Interval:
    """Mean of independent values (one per seed) with Student's t interval.

    Args:
        values: one number per seed. A NaN (a run that diverged) makes everything NaN: no seed is
            dropped in silence.
        confidence: between 0 and 1, both excluded.

    Raises:
        ValueError: no values, values that are not a flat list, or an impossible confidence.
    """
    if not 0 < confidence < 1:
        raise ValueError(f"confidence: {confidence!r}, expected a number between 0 and 1")
    x = _flat("values", values)
    mean = float(x.mean())
    if len(x) == 1:
        return Interval(mean, math.nan, math.nan, 1)
    error = float(x.std(ddof=1)) / math.sqrt(len(x))
    reach = float(stdtrit(len(x) - 1, 0.5 + confidence / 2)) * error
    return Interval(mean, mean - reach, mean + reach, len(x))


def paired_difference(a: Iterable[float], b: Iterable[float], confidence: float = 0.95) -> Interval:
    """Interval of the mean of a − b, where a[i] and b[i] come from the same seed.

    Pairing removes what the seed does to both (data order, initial weights), so it sees smaller
    differences than two separate intervals do.

    Args:
        a, b: one number per seed, in the same order of seeds.
        confidence: between 0 and 1, both excluded.

    Raises:
        ValueError: as `mean_interval`, or lengths that differ.
    """
    first, second = _flat("a", a), _flat("b", b)
    if len(first) != len(second):
        raise ValueError(
            f"b: {len(second)} values, expected as many as in a ({len(first)}): "
            "pairs need the same seeds in the same order"
        )
    return mean_interval(first - second, confidence)


def _flat(name: str, values: Iterable[float]) -> np.ndarray:
    x = np.asarray(values if hasattr(values, "__array__") else list(values), dtype=np.float64)
    if x.ndim != 1 or len(x) == 0:
        raise ValueError(f"{name}: shape {list(x.shape)}, expected a flat list of at least one")
    return x
