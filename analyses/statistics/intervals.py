"""Intervals whose unit is the image: pure functions of one value per image.

Tokens of one image are not independent, so that a test over tokens calls everything significant; average each image
first (methods §28). What each interval covers is tried in `analyses.statistics.coverage`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from analyses.statistics.moments import BEARING, SAME, differing, from_moments, moments_of
from analyses.statistics.scores import tango, wilson_ends

Bounds = tuple[float, float]
RATE: Bounds = (0.0, 1.0)
"""Bounds of values that are shares: right or wrong, or part of an image's tokens."""
CHANGE: Bounds = (-1.0, 1.0)
"""Bounds of differences of two shares of one image."""


class Interval(NamedTuple):
    """An estimate and the interval around it, in the estimate's own unit; NaN ends where there is none to be had."""

    estimate: float
    low: float
    high: float


def wilson(successes: int, n: int, *, confidence: float = 0.95) -> Interval:
    """Wilson score interval of a rate: `successes` out of `n` independent images, as shares from 0 to 1.

    >>> [round(x, 3) for x in wilson(8, 10)]
    [0.8, 0.49, 0.964]

    The end next to fewer than four images is Poisson's (`wilson_ends`).
    Raises ValueError for n = 0, for counts outside 0..n and for a confidence outside (0, 1).
    Source: Wilson 1927, JASA 22, p. 209; methods §28.
    """
    check_confidence(confidence)
    if n < 1 or not 0 <= successes <= n:
        raise ValueError(f"a rate is successes out of n ≥ 1 images; got {successes} of {n}")
    low, high = wilson_ends(successes / n, n, confidence)
    return Interval(successes / n, float(low), float(high))


def rate_row(hits: int, n: int) -> dict[str, Any]:
    """`value`, its 95 % Wilson interval `low` to `high`, and `n`: the columns of a rate over images.

    >>> {key: round(value, 3) for key, value in rate_row(8, 10).items()}
    {'value': 0.8, 'low': 0.49, 'high': 0.964, 'n': 10}
    """
    value, low, high = wilson(hits, n)
    return {"value": value, "low": low, "high": high, "n": n}


def mean_interval(values: ArrayLike, *, bounds: Bounds | None = None, confidence: float = 0.95) -> Interval:
    """The mean of one value per image and its interval; NaN values are left out.

    >>> [round(x, 2) for x in mean_interval([1.0, 2.0, 3.0, 4.0, 5.0, 6.0] * 2)]
    [3.5, 1.9, 5.1]

    `bounds` are those of a single value, RATE or CHANGE, where it has any. See `mean_intervals` for the method.
    """
    column = np.asarray(values, np.float64)
    low, high = mean_intervals({0: column}, bounds=bounds, confidence=confidence)[0]
    known = column[np.isfinite(column)]
    return Interval(float(known.mean()) if len(known) else float("nan"), low, high)


def mean_intervals(
    columns: Mapping[Any, np.ndarray], *, bounds: Bounds | None = None, confidence: float = 0.95
) -> dict[Any, tuple[float, float]]:
    """Intervals of the means of many columns of one value per image, NaN left out.

    The hull of Student's interval and Hall's, which follows the skewness (`from_moments`). Where fewer than ten
    images differ from what most of them say, neither knows how far the others may go. With `bounds` the score
    interval then is part of the hull (Wilson's of RATE, Tango's of CHANGE; they alone where every value lies on a
    bound or is 0), so that no change at all has a width too. Without bounds there is no interval (NaN) for two values,
    for equal ones, and where fewer than five differ. Source: methods §28.
    """
    check_confidence(confidence)
    if bounds not in (None, RATE, CHANGE):
        raise ValueError(f"bounds of single values are RATE {RATE}, CHANGE {CHANGE} or none; got {bounds}")
    intervals: dict[Any, tuple[float, float]] = {}
    by_length: dict[int, list[Any]] = defaultdict(list)
    for key, values in columns.items():
        by_length[len(values)].append(key)
    for length, keys in by_length.items():
        table = np.stack([np.asarray(columns[key], np.float64) for key in keys], axis=1)
        low, high = _ends(table, bounds, confidence) if length else np.full((2, len(keys)), np.nan)
        intervals |= {key: (float(a), float(b)) for key, a, b in zip(keys, low, high, strict=True)}
    return intervals


def paired_difference(
    a: ArrayLike, b: ArrayLike, *, bounds: Bounds | None = None, confidence: float = 0.95
) -> Interval:
    """Mean of a − b over images and its interval; a[i] and b[i] belong to the same image.

    >>> [round(x, 2) for x in paired_difference([1, 1, 1, 1], [0, 0, 1, 1])]
    [0.5, -0.23, 0.85]

    `a` and `b` are [n] values per image; of two lists of right and wrong (0 and 1) the interval is Tango's, and their
    bounds are known. Raises ValueError for different lengths, no images, values that are not finite.
    Source: Tango 1998, Statistics in Medicine 17, p. 891; methods §28.
    """
    check_confidence(confidence)
    first, second = np.asarray(a, np.float64), np.asarray(b, np.float64)
    if first.shape != second.shape or first.ndim != 1 or first.size == 0:
        raise ValueError(f"a paired difference needs two lists of n ≥ 1 values; got {first.shape} and {second.shape}")
    difference = first - second
    if not np.isfinite(difference).all():
        raise ValueError(f"an interval needs finite values; {np.sum(~np.isfinite(difference))} of them are not")
    if bounds is None and np.isin([first, second], [0, 1]).all():
        bounds = CHANGE
    return mean_interval(difference, bounds=bounds, confidence=confidence)


def mean_row(total: float, squares: float, cubes: float, n: int, *, bounds: Bounds | None = None) -> dict[str, Any]:
    """`value`, `low`, `high` and `n` of a mean whose values were not kept: their sum and those of squares and cubes.

    >>> {key: round(value, 2) for key, value in mean_row(42.0, 182.0, 882.0, 12).items()}
    {'value': 3.5, 'low': 1.9, 'high': 5.1, 'n': 12}

    See `ends_of_sums`.
    """
    one, two, three = (np.array([x], float) for x in (total, squares, cubes))
    low, high = ends_of_sums(one, two, three, n, bounds=bounds)
    return {"value": float(total / n), "low": float(low[0]), "high": float(high[0]), "n": n}


def ends_of_sums(
    total: np.ndarray, squares: np.ndarray, cubes: np.ndarray, n: int, *, bounds: Bounds | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Both ends of the interval of each mean, from sums of values, their squares and their cubes over `n` images.

    How many images differ from the rest is told by the skewness alone: where k of n do, it is near √(n/k). Values
    without bounds have to vary from image to image therefore, as logits do; equal ones have no interval (NaN).
    """
    mean = total / n
    variance = np.maximum(0.0, squares / n - mean**2)
    third = cubes / n - 3 * mean * squares / n + 2 * mean**3
    low, high = from_moments(np.full(mean.shape, n), mean, variance, third)
    equal = variance <= SAME * (squares / n)
    if bounds is None:
        none = equal | (n < 3)
        return np.where(none, np.nan, low), np.where(none, np.nan, high)
    differ = np.where(equal, 0.0, n * np.minimum(1.0, variance**3 / np.maximum(third**2, 1e-300)))
    few = (differ < BEARING) | (n < 3)
    around = wilson_ends(np.clip(mean, *RATE), np.full(mean.shape, n))
    low, high = np.where(few, np.fmin(low, around[0]), low), np.where(few, np.fmax(high, around[1]), high)
    return np.clip(low, *bounds), np.clip(high, *bounds)


def check_confidence(confidence: float) -> None:
    """Raises ValueError for what is no share between 0 and 1."""
    if not 0 < confidence < 1:
        raise ValueError(f"confidence lies between 0 and 1, such as 0.95; got {confidence}")


def _ends(table: np.ndarray, bounds: Bounds | None, confidence: float) -> tuple[np.ndarray, np.ndarray]:
    """Both ends for every column of a table [images, columns]."""
    n, mean, variance, third = moments_of(table)
    low, high = from_moments(n, mean, variance, third, confidence)
    differ = differing(table)
    if bounds is None:
        none = (n < 3) | (differ < np.minimum(BEARING / 2, n / 2))
        return np.where(none, np.nan, low), np.where(none, np.nan, high)
    exact = (np.isin(table, [*bounds, 0.0]) | ~np.isfinite(table)).all(0)
    few = (n < 3) | (differ < np.minimum(BEARING, n / 2))
    for i in np.flatnonzero((exact | few) & (n > 0)):
        ends = _score(table[:, i], bounds, confidence)
        if exact[i]:
            low[i], high[i] = ends
        else:
            low[i], high[i] = np.fmin(low[i], ends[0]), np.fmax(high[i], ends[1])
    return _inside(low, bounds), _inside(high, bounds)


def _score(column: np.ndarray, bounds: Bounds, confidence: float) -> tuple[float, float]:
    """The score interval that the number of images on either side of 0 gives, or of RATE the mean alone."""
    known = column[np.isfinite(column)]
    if bounds == RATE:
        low, high = wilson_ends(known.mean(), len(known), confidence)
        return float(low), float(high)
    return tango(int((known > SAME).sum()), int((known < -SAME).sum()), len(known), confidence)[1:]


def _inside(ends: np.ndarray, bounds: Bounds | None) -> np.ndarray:
    return ends if bounds is None else np.clip(ends, *bounds)
