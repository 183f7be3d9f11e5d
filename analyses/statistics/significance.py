"""Tests whose unit is the image, and what their p-values are worth when there are many: pure functions of one value per
image (methods §28)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import binom, binomtest
from scipy.stats import t as student

from analyses.statistics.draws import finite, parts
from analyses.statistics.intervals import Bounds
from analyses.statistics.moments import BEARING, FEW, SAME, differing

Alternative = Literal["greater", "less", "two-sided"]
ALTERNATIVES: tuple[Alternative, ...] = ("greater", "less", "two-sided")
N_DRAWS = 9999
MODERATE = 30
"""Up to so many images sign flips of skewed differences reject too often even with the skewness taken out."""


def permutation_p(observed: float, null: ArrayLike) -> float:
    """p-value of `observed` among draws under the null hypothesis, large values counting against it.

    >>> permutation_p(3.0, [0.0, 1.0, 2.0])
    0.25

    (1 + #{null ≥ observed}) / (1 + K), which is never 0: the observed value is one of the possible draws.
    Raises ValueError for no draws and for values that are not finite. Source: Phipson & Smyth 2010; methods §28.
    """
    draws = finite(null, "a permutation test")
    if not np.isfinite(observed):
        raise ValueError(f"a permutation test needs a finite statistic; got {observed}")
    return float((1 + (draws >= observed - _slack(observed)).sum()) / (1 + len(draws)))


def sign_flip_test(
    differences: ArrayLike,
    *,
    n_draws: int = N_DRAWS,
    seed: int = 0,
    alternative: Alternative = "greater",
    bounds: Bounds | None = None,
) -> float:
    """p-value of a mean difference above 0, from flipping the signs of paired differences, one per image.

    >>> sign_flip_test([1.0, 2.0, 1.5, 0.5, 1.2, 0.8, 1.1, 0.9], n_draws=999) < 0.05
    True

    Flipped signs suppose that differences are symmetric. Where they are skewed the mean and Student's t reject too
    often, which are one and the same here; so the statistic is also Hall's function of t, which takes the skewness
    out, and the p-value the largest of both and of Student's distribution of the latter. It is doubled for 30 images
    or fewer and five times as large for fifteen, whose skewness nobody knows. Where fewer than ten differ from a
    value other than 0 that the rest share, it is no smaller than the chance of having missed such as would balance
    it, as far away as `bounds` allow; 1 where those are not known and fewer than five differ.
    Raises ValueError for no images, values that are not finite, fewer than one draw. Source: methods §28.
    """
    d = finite(differences, "a sign-flip test")
    return float(sign_flip_tests(d[:, None], n_draws=n_draws, seed=seed, alternative=alternative, bounds=bounds)[0])


def sign_flip_tests(
    table: np.ndarray,
    *,
    n_draws: int = N_DRAWS,
    seed: int = 0,
    alternative: Alternative = "greater",
    bounds: Bounds | None = None,
) -> np.ndarray:
    """`sign_flip_test` of every column of a table [images, columns], all with the same flips.

    >>> sign_flip_tests(np.zeros((4, 2))).tolist()
    [1.0, 1.0]
    """
    n, rng, powers = len(table), np.random.default_rng(seed), np.concatenate([table, table**3], axis=1)
    squares = np.maximum((table**2).sum(0), 1e-100)
    sums = np.concatenate([
        (rng.integers(0, 2, (k, n), dtype=np.int8) * 2.0 - 1) @ powers for k in parts(n_draws, n + 2 * table.shape[1])
    ])  # fmt: skip
    observed, null = (_statistics(*np.split(x, 2, axis=-1), squares=squares, n=n) for x in (powers.sum(0), sums))
    p = np.array([
        *(_tails(one, drawn, alternative) for one, drawn in zip(observed, null, strict=True)),
        _student(observed[1] * np.sqrt(n - 1), n - 1, alternative),
        _overlooked(table, bounds),
    ])  # fmt: skip
    return np.where(table.any(0), np.minimum(1.0, p.max(0) * _care(n)), 1.0)


def permutation_test(
    values: ArrayLike,
    group: ArrayLike,
    *,
    n_draws: int = N_DRAWS,
    seed: int = 0,
    alternative: Alternative = "greater",
) -> float:
    """p-value of mean(values of the group) − mean(other values), from dealing out the group's labels anew.

    >>> permutation_test([5.0, 6.0, 7.0, 8.0, 1.0, 2.0, 3.0, 4.0], [True] * 4 + [False] * 4, n_draws=999) < 0.2
    True

    `values` [n] and `group` [n] (true or false) are one per image. The larger of two p-values: of the difference, and
    of the difference divided by its own standard error (Welch), which groups of other size and spread do not mislead;
    twice as large where the smaller group has 30 images or fewer, five times for fifteen, and 1 for fewer than three,
    which do not say how far they vary.
    Raises ValueError for different lengths, a group that is empty or everything, values that are not finite, fewer
    than one draw. Source: Janssen 1997, Statistics & Probability Letters 36, p. 9; methods §28.
    """
    v, g = finite(values, "a permutation test"), np.asarray(group, bool)
    if v.shape != g.shape or not 0 < g.sum() < len(g):
        raise ValueError(f"two groups of images are compared; got {int(g.sum())} in the group of {len(v)} values")
    k, rng = int(g.sum()), np.random.default_rng(seed)
    # about the middle of all, or the spread of a group would be a small difference of large sums
    table = np.stack([v - v.mean(), (v - v.mean()) ** 2], axis=1)
    sums = np.concatenate([
        table[rng.random((part, len(v))).argpartition(k - 1, axis=1)[:, :k]].sum(1)
        for part in parts(n_draws, len(v))
    ])  # fmt: skip
    null = _welch(sums, table.sum(0), k, len(v))
    observed = _welch(table[g].sum(0)[None], table.sum(0), k, len(v))
    p = max(_tail(float(o[0]), d, alternative) for o, d in zip(observed, null, strict=True))
    few = min(k, len(v) - k)
    return 1.0 if few < 3 else min(1.0, p * _care(few))


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


def above_chance(hits: int, n: int, chance: float) -> float:
    """Exact one-sided p-value that `hits` of `n` independent images come of a rate no higher than `chance`.

    >>> round(above_chance(4, 5, 0.1), 5)
    0.00046

    Raises ValueError for counts outside 0..n, no images, and a chance outside 0 to 1. Source: Clopper & Pearson 1934.
    """
    if n < 1 or not 0 <= hits <= n or not 0 <= chance <= 1:
        raise ValueError(f"a rate above chance is hits of n ≥ 1 images, chance 0 to 1; got {hits} of {n} and {chance}")
    return float(binomtest(hits, n, chance, alternative="greater").pvalue)


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


def _slack(observed: float) -> float:
    # The observed arrangement, drawn again, sums in another order: it must still count as equal.
    return 1e-12 * max(1.0, abs(observed))


def corrected(of: str, method: str, over: str) -> str:
    """What a result says of the p-values of one kind: how they are corrected, and over which family of tests.

    >>> corrected("rate_change", "Holm", "places of one variant")
    'p of rate_change: Holm over places of one variant.'
    """
    return f"p of {of}: {method} over {over}."


def uncorrected(what: str, over: str) -> str:
    """What a result says of statements that single 95 % intervals make, such as that they lie above 0.

    >>> uncorrected("better and worse", "layers")
    'better and worse: by single 95 % intervals, not corrected over layers.'
    """
    return f"{what}: by single 95 % intervals, not corrected over {over}."


def _care(n: int) -> int:
    """How many times larger a p-value is said to be, as `n` values do not show how skewed they are."""
    return 5 if n <= FEW else 2 if n <= MODERATE else 1


def _statistics(total: Any, cubes: Any, *, squares: Any, n: int) -> tuple[Any, Any]:
    """t / √(n − 1) of means of `n` values, and Hall's function of it, from sums of values, cubes and squares."""
    mean = total / n
    variance = np.maximum(squares / n - mean**2, SAME * squares / n)
    third = cubes / n - 3 * mean * squares / n + 2 * mean**3
    t = mean / np.sqrt(variance)
    skewness = np.clip(third / variance**1.5, -np.sqrt(n), np.sqrt(n))
    return t, t + skewness / 3 * t**2 + skewness**2 / 27 * t**3 + skewness / (6 * n)


def _student(t: np.ndarray, degrees: int, alternative: Alternative) -> np.ndarray:
    if degrees < 1:
        return np.ones_like(t)
    if alternative == "two-sided":
        return np.asarray(2 * student.sf(np.abs(t), degrees))
    return np.asarray(student.sf(t if alternative == "greater" else -t, degrees))


def _overlooked(table: np.ndarray, bounds: Bounds | None) -> np.ndarray:
    """The chance that so few images differ, where as many as would balance the rest do."""
    n, differ, middle = len(table), differing(table), np.abs(np.median(table, axis=0))
    few = (middle > 0) & (differ < min(BEARING, n / 2))
    if bounds is None:
        return np.where(few & (differ < BEARING / 2), 1.0, 0.0)
    return np.where(few, binom.cdf(differ, n, middle / (middle + max(map(abs, bounds)))), 0.0)


def _tails(observed: np.ndarray, null: np.ndarray, alternative: Alternative) -> np.ndarray:
    """`_tail` of every column of draws [draws, columns]."""
    if alternative not in ALTERNATIVES:
        raise ValueError(f"alternative is greater, less or two-sided; got {alternative!r}")
    if alternative == "two-sided":
        observed, null = np.abs(observed), np.abs(null)
    sign = -1 if alternative == "less" else 1
    slack = SAME * np.maximum(1.0, np.abs(observed))
    return np.asarray((1 + (sign * null >= sign * observed - slack).sum(0)) / (1 + len(null)))


def _welch(sums: np.ndarray, total: np.ndarray, k: int, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Difference of means, and divided by its standard error, for sums of values and squares of the group [m, 2]."""
    of_group, rest = sums / k, (total - sums) / (n - k)
    spread = [np.maximum(x[:, 1] - x[:, 0] ** 2, 0.0) / max(size - 1, 1) for x, size in ((of_group, k), (rest, n - k))]
    difference = of_group[:, 0] - rest[:, 0]
    least = SAME * max(float(total[1]) / n, 1e-300)
    return difference, difference / np.sqrt(spread[0] + spread[1] + least)


def _tail(observed: float, null: np.ndarray, alternative: Alternative) -> float:
    if alternative == "greater":
        return permutation_p(observed, null)
    if alternative == "less":
        return permutation_p(-observed, -null)
    if alternative == "two-sided":
        return permutation_p(abs(observed), np.abs(null))
    raise ValueError(f"alternative is greater, less or two-sided; got {alternative!r}")


def _probabilities(p: Sequence[float]) -> np.ndarray:
    values = np.asarray(p, np.float64)
    if values.ndim != 1 or not ((values >= 0) & (values <= 1)).all():
        raise ValueError(f"p-values lie between 0 and 1; got {list(p)}")
    return values


def _back(adjusted: np.ndarray, order: np.ndarray) -> list[float]:
    out = np.empty_like(adjusted)
    out[order] = np.minimum(adjusted, 1.0)
    return [float(x) for x in out]
