"""Intervals and tests whose unit is the image: pure functions on one value per image.

Tokens of one image are not independent, so that a test over tokens calls everything significant; average each image
first (methods §28).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from statistics import NormalDist
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import binomtest

Alternative = Literal["greater", "less", "two-sided"]
N_DRAWS = 9999
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
            means = np.concatenate([_drawn_means(rng, filled, there, k) for k in _parts(n_resamples, n)])
            low, high = _quantiles(means)
        intervals |= {key: (float(a), float(b)) for key, a, b in zip(keys, low, high, strict=True)}
    return intervals


def permutation_p(observed: float, null: ArrayLike) -> float:
    """p-value of `observed` among draws under the null hypothesis, large values counting against it.

    >>> permutation_p(3.0, [0.0, 1.0, 2.0])
    0.25

    (1 + #{null ≥ observed}) / (1 + K), which is never 0: the observed value is one of the possible draws.
    Raises ValueError for no draws and for values that are not finite. Source: Phipson & Smyth 2010; methods §28.
    """
    draws = _finite(null, "a permutation test")
    if not np.isfinite(observed):
        raise ValueError(f"a permutation test needs a finite statistic; got {observed}")
    return float((1 + (draws >= observed - _slack(observed)).sum()) / (1 + len(draws)))


def sign_flip_test(
    differences: ArrayLike, *, n_draws: int = N_DRAWS, seed: int = 0, alternative: Alternative = "greater"
) -> float:
    """p-value of a mean difference above 0, from flipping the signs of paired differences, one per image.

    >>> sign_flip_test([1.0, 2.0, 1.5, 0.5], n_draws=999) < 0.1
    True

    Raises ValueError for no images, values that are not finite, fewer than one draw. Source: methods §28.
    """
    d = _finite(differences, "a sign-flip test")
    rng = np.random.default_rng(seed)
    null = np.concatenate([
        (rng.integers(0, 2, (k, len(d)), dtype=np.int8) * 2 - 1) @ d / len(d) for k in _parts(n_draws, len(d))
    ])  # fmt: skip
    return _tail(float(d.mean()), null, alternative)


def permutation_test(
    values: ArrayLike,
    group: ArrayLike,
    *,
    n_draws: int = N_DRAWS,
    seed: int = 0,
    alternative: Alternative = "greater",
) -> float:
    """p-value of mean(values of the group) − mean(other values), from dealing out the group's labels anew.

    >>> permutation_test([5.0, 6.0, 7.0, 1.0, 2.0, 3.0], [True, True, True, False, False, False], n_draws=999) < 0.1
    True

    `values` [n] and `group` [n] (true or false) are one per image. Raises ValueError for different lengths, a group
    that is empty or everything, values that are not finite, fewer than one draw. Source: methods §28.
    """
    v, g = _finite(values, "a permutation test"), np.asarray(group, bool)
    if v.shape != g.shape or not 0 < g.sum() < len(g):
        raise ValueError(f"two groups of images are compared; got {int(g.sum())} in the group of {len(v)} values")
    k, rng = int(g.sum()), np.random.default_rng(seed)

    def difference(total: Any) -> Any:
        return total / k - (v.sum() - total) / (len(v) - k)

    null = np.concatenate([
        difference(v[rng.random((part, len(v))).argpartition(k - 1, axis=1)[:, :k]].sum(1))
        for part in _parts(n_draws, len(v))
    ])  # fmt: skip
    return _tail(float(difference(v[g].sum())), null, alternative)


def mcnemar(a: ArrayLike, b: ArrayLike) -> float:
    """Two-sided exact p-value that two runs on the same images are right equally often.

    >>> mcnemar([1, 1, 1, 1, 1, 0], [0, 0, 0, 0, 0, 0])
    0.0625

    `a` and `b` are [n], right or wrong per image. Only images on which they disagree count.
    Raises ValueError for different lengths and for no images. Source: McNemar 1947, exact binomial form; methods §28.
    """
    first, second = np.asarray(a, bool), np.asarray(b, bool)
    if first.shape != second.shape or first.ndim != 1 or first.size == 0:
        raise ValueError(f"a paired test needs two lists of n ≥ 1 outcomes; got {first.shape} and {second.shape}")
    gained, lost = int((first & ~second).sum()), int((second & ~first).sum())
    return float(binomtest(gained, gained + lost).pvalue) if gained + lost else 1.0


def holm(p: Sequence[float]) -> list[float]:
    """p-values adjusted so that the chance of any false discovery among them stays below the level (Holm 1979).

    >>> [round(x, 3) for x in holm([0.01, 0.04, 0.03])]
    [0.03, 0.06, 0.06]

    Raises ValueError for values outside 0 to 1. Source: methods §28.
    """
    values = _probabilities(p)
    order = np.argsort(values)
    steps = (len(values) - np.arange(len(values))) * values[order]
    return _back(np.maximum.accumulate(steps), order)


def benjamini_hochberg(p: Sequence[float]) -> list[float]:
    """p-values adjusted so that the expected share of false discoveries stays below the level (BH 1995).

    >>> [round(x, 3) for x in benjamini_hochberg([0.01, 0.04, 0.03])]
    [0.03, 0.04, 0.04]

    Raises ValueError for values outside 0 to 1. Source: methods §28.
    """
    values = _probabilities(p)
    order = np.argsort(values)
    steps = values[order] * len(values) / (np.arange(len(values)) + 1)
    return _back(np.minimum.accumulate(steps[::-1])[::-1], order)


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


def _finite(values: ArrayLike, what: str) -> np.ndarray:
    numbers = np.asarray(values, np.float64)
    if numbers.ndim != 1 or numbers.size == 0 or not np.isfinite(numbers).all():
        raise ValueError(f"{what} needs a list of n ≥ 1 finite values; got shape {numbers.shape}")
    return numbers


def _slack(observed: float) -> float:
    # The observed arrangement, drawn again, sums in another order: it must still count as equal.
    return 1e-12 * max(1.0, abs(observed))


def _tail(observed: float, null: np.ndarray, alternative: Alternative) -> float:
    if alternative == "greater":
        return permutation_p(observed, null)
    if alternative == "less":
        return permutation_p(-observed, -null)
    if alternative == "two-sided":
        return permutation_p(abs(observed), np.abs(null))
    raise ValueError(f"alternative is greater, less or two-sided; got {alternative!r}")


def _parts(n_draws: int, n: int) -> list[int]:
    """Draws split so that a table of draws by images stays small."""
    if n_draws < 1:
        raise ValueError(f"a test needs at least one draw; got n_draws={n_draws}")
    size = max(1, 2**22 // n)
    return [min(size, n_draws - first) for first in range(0, n_draws, size)]


def _probabilities(p: Sequence[float]) -> np.ndarray:
    values = np.asarray(p, np.float64)
    if values.ndim != 1 or not ((values >= 0) & (values <= 1)).all():
        raise ValueError(f"p-values lie between 0 and 1; got {list(p)}")
    return values


def _back(adjusted: np.ndarray, order: np.ndarray) -> list[float]:
    out = np.empty_like(adjusted)
    out[order] = np.minimum(adjusted, 1.0)
    return [float(x) for x in out]


def _check_confidence(confidence: float) -> None:
    if not 0 < confidence < 1:
        raise ValueError(f"confidence lies between 0 and 1, such as 0.95; got {confidence}")
