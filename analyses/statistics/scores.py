"""Score intervals of rates and of what two runs of the same images differ by: they do not shrink to nothing."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
from scipy.optimize import brentq
from scipy.stats import chi2, norm

NEAR_EDGE = 3.5


def wilson_ends(share: Any, n: Any, confidence: float = 0.95) -> tuple[Any, Any]:
    """Wilson's interval of shares of `n` images each, 0 to 1, put right where fewer than four images are on one side.

    There Wilson's own end covers .83 of rates near .18/n; it is that of Poisson's distribution instead. Of a mean of
    values from 0 to 1 the interval is too wide rather than too narrow: nothing varies more than right or wrong.
    Source: Wilson 1927; Brown, Cai & DasGupta 2001, Statistical Science 16, p. 112.
    """
    z = norm.ppf(0.5 + confidence / 2)
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * np.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return _near_edge(share, n, centre - half, confidence), 1 - _near_edge(1 - share, n, 1 - centre - half, confidence)


def _near_edge(share: Any, n: Any, low: Any, confidence: float) -> np.ndarray:
    # At 0 the interval touches the edge exactly; rounding may put it a hair beyond.
    count = np.maximum(share * n, 1e-300)
    rare = np.minimum(low, chi2.ppf(1 - confidence, 2 * count) / 2 / n)
    return np.where(share * n < 1e-9, 0.0, np.where(count < NEAR_EDGE, rare, low))


@cache
def tango(gained: int, lost: int, n: int, confidence: float = 0.95) -> tuple[float, float, float]:
    """(gained − lost) / n and its score interval: images right in the one run alone, and in the other.

    >>> [round(x, 4) for x in tango(1, 1, 44)]
    [0.0, -0.099, 0.099]

    Where the runs never disagree it reaches as far as rates that would have been overlooked.
    Source: Tango 1998, Statistics in Medicine 17, p. 891.
    """
    z = float(norm.ppf(0.5 + confidence / 2))
    estimate = (gained - lost) / n

    def statistic(delta: float) -> float:
        # the share `lost` has, most likely, if the difference is delta
        b = -gained - lost + (2 * n - gained + lost) * delta
        c = -lost * delta * (1 - delta)
        q = (np.sqrt(max(0.0, b * b - 8 * n * c)) - b) / (4 * n)
        spread = n * (2 * q + delta * (1 - delta))
        above = gained - lost - n * delta
        return 0.0 if above == 0 else float(above / np.sqrt(max(spread, 1e-300)))

    edge = 1 - 1e-12
    low = -1.0 if statistic(-edge) <= z else brentq(lambda d: statistic(d) - z, -edge, estimate)
    high = 1.0 if statistic(edge) >= -z else brentq(lambda d: statistic(d) + z, estimate, edge)
    return estimate, float(low), float(high)
