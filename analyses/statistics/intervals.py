"""Intervals whose unit is the image: pure functions on one value per image.

Tokens of one image are not independent, so that a test over tokens calls everything significant; average each image
first (methods §28).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from statistics import NormalDist
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from analyses.statistics.draws import parts

RESAMPLES = 1000


class Interval(NamedTuple):
    """An estimate and the interval around it, in the estimate's own unit."""

    estimate: float
    low: float
    high: float


def wilson(successes: int, n: int, *, confidence: float = 0.95) -> Interval:
    """Wilson score interval of a rate: `successes` out of `n` independent images, as shares from 0 to 1.

    >>> [round(x, 3) for x in wilson(8, 10)]
    [0.8, 0.49, 0.943]

    Raises ValueError for n = 0, for counts outside 0..n and for a confidence outside (0, 1).
    Source: Wilson 1927, JASA 22, p. 209; methods §28.
    """
    _check_confidence(confidence)
    if n < 1 or not 0 <= successes <= n:
        raise ValueError(f"a rate is successes out of n ≥ 1 images; got {successes} of {n}")
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    p = successes / n
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * (p * (1 - p) / n + z * z / (4 * n * n)) ** 0.5
    # At 0 and n the interval touches the edge exactly; rounding may put it a hair beyond.
    low = 0.0 if successes == 0 else centre - half
    high = 1.0 if successes == n else centre + half
    return Interval(p, low, high)


def paired_bootstrap(
    a: ArrayLike, b: ArrayLike, *, n_resamples: int = 2000, confidence: float = 0.95, seed: int = 0
) -> Interval:
    """Mean of a − b over images and its percentile bootstrap interval; a[i] and b[i] belong to the same image.

    >>> paired_bootstrap([1, 1, 1], [0, 0, 0])
    Interval(estimate=1.0, low=1.0, high=1.0)

    `a` and `b` are [n] values per image (0/1 for right and wrong, or any measure); the unit is theirs.
    Raises ValueError for different lengths, no images, values that are not finite, fewer than one resample.
    Source: Efron & Tibshirani 1993, chapter 13; methods §28.
    """
    _check_confidence(confidence)
    first, second = np.asarray(a, np.float64), np.asarray(b, np.float64)
    if first.shape != second.shape or first.ndim != 1 or first.size == 0:
        raise ValueError(f"a paired difference needs two lists of n ≥ 1 values; got {first.shape} and {second.shape}")
    difference = first - second
    if not np.isfinite(difference).all():
        raise ValueError(f"a bootstrap needs finite values; {np.sum(~np.isfinite(difference))} of them are not")
    if n_resamples < 1:
        raise ValueError(f"a bootstrap needs at least one resample; got n_resamples={n_resamples}")
    # Drawing how often each distinct value occurs is the same experiment as drawing images, and right-or-wrong
    # differences have three values however many images there are.
    values, counts = np.unique(difference, return_counts=True)
    n, rng = len(difference), np.random.default_rng(seed)
    means = np.array([rng.multinomial(n, counts / n) @ values / n for _ in range(n_resamples)])
    low, high = np.quantile(means, [0.5 - confidence / 2, 0.5 + confidence / 2])
    return Interval(float(difference.mean()), float(low), float(high))


def bootstrap(
    columns: Mapping[Any, np.ndarray], *, n_resamples: int = RESAMPLES, seed: int = 0
) -> dict[Any, tuple[float, float]]:
    """95 % percentile bootstrap intervals of the means of many columns, NaN left out; pairs are what is drawn.

    Columns of one length share their draws, so that thousands of them cost one matrix product.
    """
    intervals: dict[Any, tuple[float, float]] = {}
    by_length: dict[int, list[Any]] = defaultdict(list)
    for key, values in columns.items():
        by_length[len(values)].append(key)
    for n, keys in by_length.items():
        table = np.stack([columns[key] for key in keys], axis=1)
        known = np.isfinite(table)
        if n < 2:
            low = high = np.where(known, table, np.nan).reshape(n, -1)[0] if n else np.full(len(keys), np.nan)
        else:
            rng, filled, there = np.random.default_rng(seed), np.where(known, table, 0.0), known.astype(float)
            means = np.concatenate([_drawn_means(rng, filled, there, k) for k in parts(n_resamples, n)])
            low, high = _quantiles(means)
        intervals |= {key: (float(a), float(b)) for key, a, b in zip(keys, low, high, strict=True)}
    return intervals


def _drawn_means(rng: np.random.Generator, filled: np.ndarray, there: np.ndarray, n_draws: int) -> np.ndarray:
    """Mean of each column over images drawn with replacement, `n_draws` times."""
    n = len(filled)
    drawn = rng.multinomial(n, np.full(n, 1 / n), size=n_draws).astype(float)
    with np.errstate(invalid="ignore"):
        return (drawn @ filled) / (drawn @ there)


def _quantiles(means: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """2.5 % and 97.5 % of each column; NaN where no pair of the column has a value."""
    low, high = np.full(means.shape[1], np.nan), np.full(means.shape[1], np.nan)
    some = np.isfinite(means).any(0)
    if some.any():
        low[some], high[some] = np.nanquantile(means[:, some], [0.025, 0.975], axis=0)
    return low, high


def _check_confidence(confidence: float) -> None:
    if not 0 < confidence < 1:
        raise ValueError(f"confidence lies between 0 and 1, such as 0.95; got {confidence}")


def rate_row(hits: int, n: int) -> dict[str, Any]:
    """`value`, its 95 % Wilson interval `low` to `high`, and `n`: the columns of a rate over images.

    >>> {key: round(value, 3) for key, value in rate_row(8, 10).items()}
    {'value': 0.8, 'low': 0.49, 'high': 0.943, 'n': 10}
    """
    value, low, high = wilson(hits, n)
    return {"value": value, "low": low, "high": high, "n": n}
