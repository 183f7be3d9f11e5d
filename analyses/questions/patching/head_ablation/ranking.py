"""Does the order of the heads hold? Between halves of the images, seeds, ways to ablate, and effects."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import combinations
from typing import Any

import numpy as np

from analyses.questions.patching.head_ablation.ablation import EFFECTS, WAYS
from analyses.statistics.ranks import rank_correlation

Tables = Mapping[tuple[str, str, int | None], np.ndarray]
"""(effect, way, seed) -> drop per image and head [n heads]; only "resample" has seeds."""


def half_correlations(drops: np.ndarray, splits: int, seed: int) -> np.ndarray:
    """Rank correlation of the mean drops in two random halves of the images, once for each split."""
    rng, n = np.random.default_rng(seed), len(drops)
    found = []
    for _ in range(splits):
        order = rng.permutation(n)
        found.append(rank_correlation(drops[order[: n // 2]].mean(0), drops[order[n // 2 :]].mean(0)))
    return np.array(found)


def stability_rows(tables: Tables, seeds: int, splits: int, seed: int) -> Iterator[dict[str, Any]]:
    """Rank correlations over heads; `low` and `high` are 2.5 % and 97.5 % of them where there are several.

    `stability` is between halves of the images, `seed_agreement` between other images resampled from, `way_agreement`
    between two ways to ablate, `effect_agreement` between the total and the direct effect.
    """
    means = {key: table.mean(0) for key, table in tables.items()}
    for effect in EFFECTS:
        for way in WAYS:
            first = tables[effect, way, 0 if way == "resample" else None]
            if len(first) > 3:
                yield _row("stability", way, effect, half_correlations(first, splits, seed), len(first))
        pairs = combinations(range(seeds), 2)
        between = [rank_correlation(*(means[effect, "resample", s] for s in pair)) for pair in pairs]
        if between:
            yield _row("seed_agreement", "resample", effect, np.array(between), len(first))
        for a, b in combinations(WAYS, 2):
            both = [means[effect, way, 0 if way == "resample" else None] for way in (a, b)]
            yield _row("way_agreement", f"{a} and {b}", effect, np.array([rank_correlation(*both)]), len(first))
    for way in WAYS:
        key = 0 if way == "resample" else None
        both = [means[effect, way, key] for effect in EFFECTS]
        yield _row("effect_agreement", way, "total and direct", np.array([rank_correlation(*both)]), len(first))


def _row(measure: str, way: str, effect: str, values: np.ndarray, n: int) -> dict[str, Any]:
    low, high = np.quantile(values, [0.025, 0.975]) if len(values) > 1 else (np.nan, np.nan)
    return {
        "measure": measure,
        "way": way,
        "effect": effect,
        "value": float(values.mean()),
        "low": float(low),
        "high": float(high),
        "n": n,
    }


def sizes(n_heads: int) -> list[int]:
    """How many heads are ablated together: 1, 2, 4, … and half of all.

    >>> sizes(12)
    [1, 2, 4, 6]
    """
    half = max(1, n_heads // 2)
    return sorted({*(2**i for i in range(half.bit_length()) if 2**i < half), half})
