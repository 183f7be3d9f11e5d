"""What intervals and tests have in common: values that are numbers, and draws that fit into memory."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike


def finite(values: ArrayLike, what: str) -> np.ndarray:
    """The values as numbers.

    Raises ValueError, saying `what` needs them, for none, for more than a list, and where one is not finite.
    """
    numbers = np.asarray(values, np.float64)
    if numbers.ndim != 1 or numbers.size == 0 or not np.isfinite(numbers).all():
        raise ValueError(f"{what} needs a list of n ≥ 1 finite values; got shape {numbers.shape}")
    return numbers


def parts(n_draws: int, n: int) -> list[int]:
    """Draws split so that a table of draws by `n` images stays small.

    >>> sum(parts(1000, 50))
    1000

    Raises ValueError for fewer than one draw.
    """
    if n_draws < 1:
        raise ValueError(f"a test needs at least one draw; got n_draws={n_draws}")
    size = max(1, 2**22 // n)
    return [min(size, n_draws - first) for first in range(0, n_draws, size)]
