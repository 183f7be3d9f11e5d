"""Data of which the truth is known, in the situations in which intervals and tests go wrong."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from hooked_vit.config.showing import counted

Draw = Callable[[np.random.Generator, tuple[int, int]], np.ndarray]


class Kind(NamedTuple):
    """A distribution of one value per image, by the words a reader knows it by: how to draw it, and its mean."""

    name: str
    draw: Draw
    mean: float


NORMAL = Kind("symmetric", lambda rng, size: rng.normal(1.0, 1.0, size), 1.0)
SKEWED = Kind("skewed (exponential)", lambda rng, size: rng.exponential(size=size), 1.0)
LONG = Kind("very skewed (log-normal)", lambda rng, size: rng.lognormal(size=size), float(np.exp(0.5)))
APART = Kind(
    "one in ten far off", lambda rng, size: np.where(rng.random(size) < 0.1, 5.0, 0.0) + rng.normal(size=size), 0.5
)
ANY = (NORMAL, SKEWED, LONG, APART)

HIGH = Kind("shares near 1", lambda rng, size: rng.beta(5, 0.5, size), 5 / 5.5)
ENDS = Kind("shares near 0 or 1", lambda rng, size: rng.beta(0.3, 0.3, size), 0.5)
RARE_SHARE = Kind("shares, 1 in 20 above 0", lambda rng, size: (rng.random(size) < 0.05) * rng.random(size), 0.025)
SHARES = (HIGH, ENDS, RARE_SHARE)


def _changes(gained: float, lost: float) -> Draw:
    return lambda rng, size: np.select([(u := rng.random(size)) < gained, u > 1 - lost], [1.0, -1.0], 0.0)


ONE_SIDED = Kind("right → wrong, 1 in 50, never back", _changes(0.0, 0.02), -0.02)
MORE = Kind("right → wrong, 1 in 5, never back", _changes(0.0, 0.2), -0.2)
BOTH_WAYS = Kind("changes both ways, 1 in 5", _changes(0.1, 0.1), 0.0)
NEVER = Kind("next to no change, 1 in 1000", _changes(0.001, 0.0), 0.001)
PART = Kind("share changes by a third, 1 in 20", lambda rng, size: (rng.random(size) < 0.05) / -3.0, -1 / 60)
ANSWERS = (ONE_SIDED, MORE, BOTH_WAYS, NEVER)


class Groups(NamedTuple):
    """Two groups of images of these sizes and kinds, whose means are the same."""

    name: str
    sizes: tuple[int, int]
    kinds: tuple[Kind, Kind]


def _rate(p: float) -> Kind:
    return Kind(f"rate {p:g}", lambda rng, size: (rng.random(size) < p) * 1.0, p)


_WIDE = Kind("", lambda rng, size: rng.beta(0.5, 0.5, size), 0.5)
_NARROW = Kind("", lambda rng, size: rng.beta(10, 10, size), 0.5)
GROUPS = tuple(
    Groups(f"{name}, {a} right and {counted(b, 'wrong image')}", (a, b), kinds)
    for name, kinds in (
        ("rate .05", (_rate(0.05),) * 2),
        ("rate .5", (_rate(0.5),) * 2),
        ("shares of other spread", (_NARROW, _WIDE)),
        ("shares near 1", (HIGH, HIGH)),
    )
    for a, b in ((50, 1), (50, 3), (100, 10), (60, 60))
)


def images_of_classes(rng: np.random.Generator, k: int, per_class: int) -> tuple[np.ndarray, np.ndarray]:
    """Values and labels of images whose classes have means of their own; the mean over all classes is 0.5."""
    of_class = rng.beta(2, 2, k)
    sizes = rng.integers(1, 2 * per_class, k) if per_class > 1 else np.ones(k, int)
    labels = np.repeat(np.arange(k), sizes)
    return (rng.random(len(labels)) < of_class[labels]) * 1.0, labels


def numerator_and_denominator(rng: np.random.Generator, n: int, kind: str) -> tuple[np.ndarray, np.ndarray]:
    """Pairs of values per image whose means are as 1 to 2."""
    if kind == "right or wrong":
        under = (rng.random(n) < 0.25) * 1.0
        return under * (rng.random(n) < 0.5), under
    if kind == "skewed":
        under = rng.chisquare(1, n)
        return under / 2 + (rng.chisquare(1, n) - 1) / 2, under
    under = rng.normal(0.3, 1.0, n)
    return under / 2 + rng.normal(0, 0.5, n), under
