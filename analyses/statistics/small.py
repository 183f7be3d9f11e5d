"""What is too small to be quoted without saying so, and why: said in the terminal, the report and every figure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import pandas as pd

from analyses.statistics.intervals import wilson
from analyses.statistics.moments import FEW
from analyses.statistics.significance import MODERATE
from hooked_vit.config.showing import counted

WIDE = 0.1
"""An interval that reaches further than this on either side does not tell a tenth of all images from none.

Published differences between layers and models are of that size, so below 93 images a share says it is small."""
COUNTS = {
    "n": ("image, pair or class", "images, pairs or classes"),
    "n_right": ("image answered rightly", "images answered rightly"),
    "n_wrong": ("image answered wrongly", "images answered wrongly"),
    "n_groups": ("group of images", "groups of images"),
}


def said_small(frame: pd.DataFrame, meta: Mapping[str, Any]) -> list[str]:
    """Sentences on how little the numbers of a result rest on; none where that is enough.

    >>> said_small(pd.DataFrame({"value": [0.5], "n": [20]}), {"data": {"n": 20}})[0][:25]
    'Small: 20 images. A share'

    Small are images whose shares have an interval wider than ±.1 (`WIDE`), and any count that so few stand behind that
    intervals and tests are made wider (docs/coverage.md).
    """
    n = _images(frame, meta)
    return [] if n is None else [*_of_images(n), *_of_parts(frame, n)]


def half_width(n: int) -> float:
    """How far the interval of a share of `n` images reaches to either side at most, which is that of one half.

    >>> round(half_width(100), 3)
    0.096
    """
    half = wilson(n // 2, n)
    return (half.high - half.low) / 2


def _images(frame: pd.DataFrame, meta: Mapping[str, Any]) -> int | None:
    about = meta.get("data")
    known = about.get("n") if isinstance(about, Mapping) else None
    if isinstance(known, int) and known > 0:
        return known
    counts = _counts(frame, "n")
    return int(counts.max()) if len(counts) else None


def _of_images(n: int) -> Iterator[str]:
    if (reach := half_width(n)) > WIDE:
        also = "".join(f" {sentence}" for sentence in _widened(n))
        yield f"Small: {counted(n, 'image')}. A share of them, as an accuracy, is known to ±{reach:.2f} at best.{also}"


def _of_parts(frame: pd.DataFrame, n: int) -> Iterator[str]:
    """Numbers that rest on fewer images, pairs or classes than there are images."""
    for column, names in COUNTS.items():
        counts = _counts(frame, column)
        least = int(counts.min()) if len(counts) else n
        if least < n and least <= MODERATE:
            on = counted(least, *names)
            yield f"Small: some numbers rest on {on} (column {column}). {' '.join(_widened(least))}"


def _counts(frame: pd.DataFrame, column: str) -> pd.Series:
    """How many stand behind each number that has an interval or should have one."""
    if column not in frame or not pd.api.types.is_numeric_dtype(frame[column]):
        return pd.Series(dtype=float)
    rows = frame[frame["low"].notna()] if column == "n" and "low" in frame else frame
    return rows[column].dropna().loc[lambda x: x > 0]


def _widened(n: int) -> Iterator[str]:
    if n <= FEW:
        yield (
            f"With {FEW} or fewer, 95 % intervals of means are wider than usual and p-values five times as large, as "
            "nobody can see how skewed the values are."
        )
    elif n <= MODERATE:
        yield f"With {MODERATE} or fewer, p-values are doubled, as nobody can see how skewed the values are."
