"""Intervals of means from moments alone: Student's, and Hall's, which follows the skewness."""

from __future__ import annotations

import numpy as np
from scipy.stats import t as student

FEW = 15
"""Up to so many values even the hull of both 95 % intervals covers less than .90 of skewed means (docs/coverage.md)."""
BEARING = 10
"""Where fewer values differ from the rest, moments do not know how far the unseen ones go."""


SAME = 1e-12
"""What is left of equal numbers when they were added in another order."""


def moments_of(table: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Number, mean, second and third central moment of each column, NaN left out.

    >>> [x.tolist() for x in moments_of(np.array([[0.0], [2.0], [np.nan]]))]
    [[2], [1.0], [1.0], [0.0]]
    """
    known = np.isfinite(table)
    n = known.sum(0)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = np.where(known, table, 0.0).sum(0) / n
        apart = np.where(known, table - mean, 0.0)
        return n, mean, (apart**2).sum(0) / n, (apart**3).sum(0) / n


def from_moments(
    n: np.ndarray, mean: np.ndarray, variance: np.ndarray, third: np.ndarray, confidence: float = 0.95
) -> tuple[np.ndarray, np.ndarray]:
    """Both ends of the hull of Student's and Hall's interval for each mean; NaN for fewer than two values.

    Hall's is Student's of a cubic function of t that takes the skewness out of it. With fifteen values or fewer neither
    knows the skewness, and both are those of a fifth of the error: 99 % stands for 95 %.
    Source: Hall 1992, J. R. Statist. Soc. B 54, p. 221; methods §28.
    """
    with np.errstate(invalid="ignore", divide="ignore"):
        error = (1 - confidence) / np.where(n <= FEW, 5, 1)
        reach = student.ppf(1 - error / 2, n - 1) / np.sqrt(n)
        deviation = np.sqrt(variance * n / (n - 1))
        skewness = np.where(variance > 0, third / np.maximum(variance, 1e-300) ** 1.5, 0.0)
        t_low, t_high = (_skewed(end, skewness, n) for end in (reach, -reach))
        low, high = (mean - deviation * np.fmax(reach, t_low), mean - deviation * np.fmin(-reach, t_high))
    none = n < 2
    return np.where(none, np.nan, low), np.where(none, np.nan, high)


def differing(table: np.ndarray) -> np.ndarray:
    """How many values of each column are not what the most of them say, where that is more than half; NaN left out.

    >>> differing(np.array([[0.0], [0.0], [0.0], [5.0], [np.nan]])).tolist()
    [1]
    """
    known = np.isfinite(table)
    if not len(table):
        return np.zeros(table.shape[1], int)
    # a value that more than half of them have is in the middle, whichever of two middle ones is taken
    middle = np.take_along_axis(np.sort(table, axis=0), np.maximum(known.sum(0) - 1, 0)[None] // 2, axis=0)
    return np.asarray((known & (np.abs(table - middle) > SAME * np.maximum(1.0, np.abs(middle)))).sum(0))


def _skewed(t: np.ndarray, skewness: np.ndarray, n: np.ndarray) -> np.ndarray:
    """The t of which Hall's function is the given one; both over √n."""
    shift = t - skewness / (6 * n)
    flat = np.abs(skewness) < 1e-6
    third = np.where(flat, 1.0, skewness / 3)
    return np.where(flat, shift, (np.cbrt(1 + 3 * third * shift) - 1) / third)
