"""Medians, and how sure one can be of them: the bootstrap over rounds.

Samples of one round share that round's circumstances (where memory lay, who else ran), so ten thousand of them say less
than their number. The rounds are what is resampled. Source: Efron and Tibshirani, An Introduction to the Bootstrap.
"""

from __future__ import annotations

import math
import random
import statistics

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

RESAMPLES = 2000
SEED = 20240607
"""The same data give the same interval."""


def median(values: Sequence[float]) -> float:
    """The middle value, or the mean of the two in the middle. ValueError of nothing."""
    if not values:
        raise ValueError("the median of nothing")
    ordered, half = sorted(values), len(values) // 2
    if len(ordered) % 2:
        return ordered[half]
    return (ordered[half - 1] + ordered[half]) / 2


def spread(values: Sequence[float]) -> float:
    """The median distance from the median, as a share of it: how much rounds differ."""
    middle = median(values)
    return median([abs(value - middle) for value in values]) / middle if middle else 0.0


class Interval:
    """``value`` with the bounds ``low`` and ``high`` that hold it with the confidence asked for."""

    __slots__ = ("high", "low", "value")

    def __init__(self, value: float, low: float, high: float) -> None:
        self.value = value
        self.low = low
        self.high = high

    def __repr__(self) -> str:
        return f"{self.value:.4f} ({self.low:.4f} to {self.high:.4f})"


def interval(value: float, draw: Callable[[random.Random], float], confidence: float) -> Interval:
    """The middle ``confidence`` of what resampling gives, around ``value``."""
    source = random.Random(SEED)
    found = sorted(draw(source) for _ in range(RESAMPLES))
    tail = (1 - confidence) / 2
    low = found[max(int(tail * RESAMPLES), 0)]
    high = found[min(int((1 - tail) * RESAMPLES), RESAMPLES - 1)]
    return Interval(value, min(low, value), max(high, value))


def median_interval(values: Sequence[float], confidence: float = 0.95) -> Interval:
    """The median of ``values``, one of each round, and its interval."""
    return interval(median(values), lambda source: median(source.choices(values, k=len(values))), confidence)


def ratio_interval(after: Sequence[float], before: Sequence[float], confidence: float = 0.95) -> Interval:
    """median(after) / median(before), rounds of each resampled on their own.

    The standard error of the logarithm is the bootstrap's, the tails are Student's: percentiles of the bootstrap itself
    would need too many resamples for the high confidence that many comparisons at once ask for.
    """
    source = random.Random(SEED)

    def draw() -> float:
        return math.log(
            median(source.choices(after, k=len(after))) / median(source.choices(before, k=len(before)))
        )

    found = [draw() for _ in range(RESAMPLES // 4)]
    mean = sum(found) / len(found)
    error = math.sqrt(sum((value - mean) ** 2 for value in found) / (len(found) - 1))
    ratio = median(after) / median(before)
    reach = error * student(1 - (1 - confidence) / 2, min(len(after), len(before)) - 1)
    return Interval(ratio, ratio * math.exp(-reach), ratio * math.exp(reach))


def student(probability: float, freedom: int) -> float:
    """The quantile of Student's t distribution, from the normal one's (Abramowitz and Stegun 26.7.5)."""
    z = statistics.NormalDist().inv_cdf(probability)
    return (
        z
        + (z**3 + z) / (4 * freedom)
        + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)
        + (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * freedom**3)
    )


def each_of_many(confidence: float, count: int) -> float:
    """The confidence each of ``count`` independent statements needs for all of them to hold (Sidak)."""
    return float(confidence ** (1 / max(count, 1)))
