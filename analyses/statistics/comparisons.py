"""Intervals of what two groups of images differ by, of ratios of means, and of means over classes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import t as student

from analyses.statistics.draws import finite
from analyses.statistics.intervals import Bounds, Interval, check_confidence, mean_interval, mean_intervals
from analyses.statistics.moments import BEARING, FEW, differing
from analyses.statistics.scores import wilson_ends


def group_difference(a: ArrayLike, b: ArrayLike, *, bounds: Bounds | None = None, confidence: float = 0.95) -> Interval:
    """mean(a) − mean(b) of two groups of different images, and its interval, from the intervals of both means.

    >>> [round(x, 2) for x in group_difference([1, 1, 1, 1, 0], [0, 0, 1], bounds=(0.0, 1.0))]
    [0.47, -0.23, 0.84]

    The ends are √(distance of one end² + distance of the other²) from the estimate: of rates Newcombe's interval
    (method 10), of other means that of Zou and Donner. NaN ends where one of the groups has no interval.
    Raises ValueError for an empty group and values that are not finite.
    Source: Newcombe 1998, Statistics in Medicine 17, p. 873; Zou & Donner 2008, ibid. 27, p. 1693; methods §28.
    """
    first, second = finite(a, "a difference of groups"), finite(b, "a difference of groups")
    return difference_of(*(mean_interval(x, bounds=bounds, confidence=confidence) for x in (first, second)))


def difference_of(a: Interval, b: Interval) -> Interval:
    """The interval of a − b for two independent estimates with intervals of their own (see `group_difference`).

    >>> difference_of(Interval(0.5, 0.2, 0.8), Interval(0.5, 0.1, 0.9))
    Interval(estimate=0.0, low=-0.5, high=0.5)
    """
    difference = a.estimate - b.estimate
    below = np.hypot(a.estimate - a.low, b.high - b.estimate)
    above = np.hypot(a.high - a.estimate, b.estimate - b.low)
    return Interval(difference, float(difference - below), float(difference + above))


def class_mean_intervals(
    columns: Mapping[Any, np.ndarray], labels: ArrayLike, *, bounds: Bounds | None = None, confidence: float = 0.95
) -> dict[Any, Interval]:
    """Means over classes of class means, with intervals for other classes and other images of them.

    >>> labels = np.repeat(np.arange(20), 3)
    >>> [round(x, 2) for x in class_mean_intervals({"a": labels / 20.0}, labels)["a"]]
    [0.47, 0.34, 0.61]

    A class mean is what is drawn: k of them vary as classes and their images do, and their variance is divided by
    k − 1. One class has no interval, and many images of few classes do not make it narrower.
    Raises ValueError where an image has no value or no label. Source: methods §28.
    """
    known, inverse, counts = np.unique(np.asarray(labels), return_inverse=True, return_counts=True)
    means: dict[Any, np.ndarray] = {}
    for key, values in columns.items():
        column = finite(values, "a mean over classes")
        if column.shape != inverse.shape:
            raise ValueError(f"every image has one value and one label; got {len(column)} and {len(inverse)}")
        means[key] = np.bincount(inverse, column, len(known)) / counts
    # what one class says of another is nothing, whatever bounds its values have
    ends = mean_intervals(means, bounds=bounds, confidence=confidence) if len(known) > 1 else {}
    return {key: Interval(float(x.mean()), *ends.get(key, (float("nan"),) * 2)) for key, x in means.items()}


def another_rate(hits: Sequence[int], n: int, *, confidence: float = 0.95) -> Interval:
    """Mean of the rates of several draws on the same `n` images, and where that of one more draw would fall.

    >>> [round(x, 2) for x in another_rate([10, 12, 8, 11], 100)]
    [0.1, 0.04, 0.19]

    The hull of Student's prediction interval, as far as draws differ, and Wilson's, as far as images do.
    """
    rates, k = np.asarray(hits) / n, len(hits)
    # one more draw differs from the mean of k as the images of both do
    below, above = wilson_ends(rates.mean(), n / (1 + 1 / k), confidence)
    spread = float(rates.std(ddof=1)) * (1 + 1 / k) ** 0.5 if k > 1 else 0.0
    reach = float(student.ppf(0.5 + confidence / 2, k - 1)) * spread if k > 1 else 0.0
    mean = float(rates.mean())
    return Interval(mean, max(0.0, float(min(mean - reach, below))), min(1.0, float(max(mean + reach, above))))


class Ratio(NamedTuple):
    """mean(a) / mean(b) with its interval, and whether the denominator is far enough from 0 to have one."""

    estimate: float
    low: float
    high: float
    settled: bool


def ratio_interval(a: ArrayLike, b: ArrayLike, *, confidence: float = 0.95) -> Ratio:
    """mean(a) / mean(b) over images and its interval; a[i] and b[i] belong to the same image.

    >>> ratio_interval(np.ones(20), np.linspace(1.9, 2.1, 20)).settled
    True

    The hull of Fieller's interval and of that of the mean of what every image adds to the ratio, which follows the
    skewness. Refused (NaN ends) where the denominator may be 0, where fewer than ten images are part of it,
    and where fewer than ten depart from the ratio. Source: Fieller 1954, J. R. Statist. Soc. B 16, p. 175;
    methods §28.
    """
    check_confidence(confidence)
    over, under = finite(a, "a ratio"), finite(b, "a ratio")
    if over.shape != under.shape:
        raise ValueError(f"a ratio needs two lists of n values; got {len(over)} and {len(under)}")
    n, top, bottom = len(over), float(over.mean()), float(under.mean())
    nothing = Ratio(top / bottom if bottom else float("nan"), float("nan"), float("nan"), False)
    reach = _inside_out(over, under, confidence) if n > 2 else None
    if reach is None:
        return nothing
    estimate = top / bottom
    low, high = mean_intervals({0: (over - estimate * under) / bottom}, confidence=confidence)[0]
    return Ratio(estimate, float(min(reach[0], estimate + low)), float(max(reach[1], estimate + high)), True)


def _inside_out(over: np.ndarray, under: np.ndarray, confidence: float) -> tuple[float, float] | None:
    """Fieller's interval, None where it is not one, or where too few images bear on it."""
    n, mean = len(over), under.mean()
    if not mean or np.count_nonzero(under) < min(BEARING, n):
        return None
    left = over - over.mean() / mean * under
    if differing(left[:, None])[0] < min(BEARING, n / 2):
        return None
    error = (1 - confidence) / (5 if n <= FEW else 1)
    t2 = student.ppf(1 - error / 2, n - 1) ** 2 / n
    (aa, ab), (_, bb) = np.cov(over, under, ddof=1)
    x, y, z = mean**2 - t2 * bb, over.mean() * mean - t2 * ab, over.mean() ** 2 - t2 * aa
    if x <= 0:
        return None
    half = np.sqrt(max(0.0, y * y - x * z)) / x
    return float(y / x - half), float(y / x + half)
