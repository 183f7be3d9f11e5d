"""Distributions that stream: ranks are whole or half numbers, so counting them loses nothing."""

from __future__ import annotations

from statistics import NormalDist
from typing import NamedTuple

import numpy as np
from jaxtyping import Float64, Int64
from numpy.typing import NDArray
from torch import Tensor


class Box(NamedTuple):
    """A box plot without outliers: quartiles, and the outermost values within 1.5 interquartile ranges of the box."""

    whisker_low: float
    quartile_low: float
    median: float
    quartile_high: float
    whisker_high: float


class RankCounts:
    """How often each rank from 0 to `n_classes` − 1, in steps of one half, occurred.

    >>> counts = RankCounts(10)
    >>> counts.add(np.array([0.0, 0.0, 4.5]))
    >>> counts.n, counts.mean
    (3, 1.5)
    """

    def __init__(self, n_classes: int) -> None:
        self.counts: Int64[np.ndarray, "r"] = np.zeros(2 * n_classes - 1, np.int64)

    def add(self, pos: Float64[Tensor, "..."] | NDArray[np.float64]) -> None:
        """More ranks."""
        index = np.rint(2 * np.asarray(pos, np.float64)).astype(np.int64).ravel()
        self.counts += np.bincount(index, minlength=len(self.counts))

    @property
    def n(self) -> int:
        """Ranks counted."""
        return int(self.counts.sum())

    @property
    def mean(self) -> float:
        """Mean rank; NaN for none."""
        return float(self.counts @ self._values / self.n) if self.n else float("nan")

    @property
    def _values(self) -> Float64[np.ndarray, "r"]:
        return np.arange(len(self.counts)) / 2

    def quantile(self, q: int | float) -> float:
        """The quantile of all ranks, between neighbours by their distance, as NumPy's default; NaN for none.

        Raises ValueError for q outside 0 to 1.
        """
        if not 0 <= q <= 1:
            raise ValueError(f"a quantile is asked for between 0 and 1; got {q}")
        if not self.n:
            return float("nan")
        at, below = np.modf(q * (self.n - 1))
        upto = self.counts.cumsum()
        low, high = np.searchsorted(upto, [below, min(below + 1, self.n - 1)], side="right") / 2
        return float(low + at * (high - low))

    def box(self, scale: int) -> Box:
        """The box plot of 1 − rank / `scale`."""
        if not self.n:
            return Box(*[float("nan")] * 5)
        upper, middle, lower = (1 - self.quantile(q) / scale for q in (0.25, 0.5, 0.75))
        seen = 1 - self._values[self.counts > 0] / scale
        reach = 1.5 * (upper - lower) + 1e-12
        inside = seen[(seen >= lower - reach) & (seen <= upper + reach)]
        return Box(float(inside.min()), lower, middle, upper, float(inside.max()))


class SignedRankCounts:
    """Paired differences of two ranks, counted for Wilcoxon's signed-rank test over very many pairs.

    >>> counts = SignedRankCounts(10)
    >>> counts.add(np.array([3.0, 1.0, 2.0]), np.array([0.0, 0.0, 0.5]))
    >>> round(counts.p_greater(), 3)
    0.054
    """

    def __init__(self, n_classes: int) -> None:
        self._zero = 2 * n_classes - 2
        self.counts: Int64[np.ndarray, "r"] = np.zeros(2 * self._zero + 1, np.int64)

    def add(self, a: NDArray[np.float64] | Tensor, b: NDArray[np.float64] | Tensor) -> None:
        """More pairs; a[i] and b[i] belong together."""
        difference = np.rint(2 * (np.asarray(a, np.float64) - np.asarray(b, np.float64))).astype(np.int64).ravel()
        self.counts += np.bincount(difference + self._zero, minlength=len(self.counts))

    def p_greater(self) -> float:
        """One-sided p that `a` tends to be greater than `b`: normal approximation with ties, pairs of equals left out.

        NaN where all pairs are equal. Source: Wilcoxon 1945; methods §9 (uncorrected, over tokens, as published).
        """
        greater, less = self.counts[self._zero + 1 :], self.counts[: self._zero][::-1]
        tied = (greater + less).astype(np.float64)
        n = tied.sum()
        if not n:
            return float("nan")
        middle = tied.cumsum() - (tied - 1) / 2
        statistic = float(greater @ middle)
        mean = n * (n + 1) / 4
        variance = n * (n + 1) * (2 * n + 1) / 24 - float((tied**3 - tied).sum()) / 48
        return 1 - NormalDist().cdf((statistic - mean) / variance**0.5)
