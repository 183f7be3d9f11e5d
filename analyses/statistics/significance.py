"""Tests whose unit is the image, and what their p-values are worth when there are many: pure functions of one value per
image (methods §28)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import binomtest

from analyses.statistics.draws import finite, parts

Alternative = Literal["greater", "less", "two-sided"]
N_DRAWS = 9999


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
    differences: ArrayLike, *, n_draws: int = N_DRAWS, seed: int = 0, alternative: Alternative = "greater"
) -> float:
    """p-value of a mean difference above 0, from flipping the signs of paired differences, one per image.

    >>> sign_flip_test([1.0, 2.0, 1.5, 0.5], n_draws=999) < 0.1
    True

    Raises ValueError for no images, values that are not finite, fewer than one draw. Source: methods §28.
    """
    d = finite(differences, "a sign-flip test")
    rng = np.random.default_rng(seed)
    null = np.concatenate([
        (rng.integers(0, 2, (k, len(d)), dtype=np.int8) * 2 - 1) @ d / len(d) for k in parts(n_draws, len(d))
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
    v, g = finite(values, "a permutation test"), np.asarray(group, bool)
    if v.shape != g.shape or not 0 < g.sum() < len(g):
        raise ValueError(f"two groups of images are compared; got {int(g.sum())} in the group of {len(v)} values")
    k, rng = int(g.sum()), np.random.default_rng(seed)

    def difference(total: Any) -> Any:
        return total / k - (v.sum() - total) / (len(v) - k)

    null = np.concatenate([
        difference(v[rng.random((part, len(v))).argpartition(k - 1, axis=1)[:, :k]].sum(1))
        for part in parts(n_draws, len(v))
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


def _probabilities(p: Sequence[float]) -> np.ndarray:
    values = np.asarray(p, np.float64)
    if values.ndim != 1 or not ((values >= 0) & (values <= 1)).all():
        raise ValueError(f"p-values lie between 0 and 1; got {list(p)}")
    return values


def _back(adjusted: np.ndarray, order: np.ndarray) -> list[float]:
    out = np.empty_like(adjusted)
    out[order] = np.minimum(adjusted, 1.0)
    return [float(x) for x in out]
