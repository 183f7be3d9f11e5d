"""How often every interval covers the truth and every test calls nothing something, by simulation.

`python -m analyses.statistics.coverage_page` writes docs/coverage.md. What is tried is in COVERED and
REJECTING; a test asks that every public function that gives an interval or a p-value is in them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
from scipy.stats import binom

from analyses.statistics import comparisons, intervals, scores, significance
from analyses.statistics.intervals import CHANGE, RATE, Bounds
from analyses.statistics.situations import (
    ANSWERS,
    ANY,
    APART,
    BOTH_WAYS,
    GROUPS,
    HIGH,
    LONG,
    MORE,
    NORMAL,
    ONE_SIDED,
    PART,
    SHARES,
    SKEWED,
    Kind,
    images_of_classes,
    numerator_and_denominator,
)
from hooked_vit.config.showing import counted

NOMINAL, LEAST = 0.95, 0.90
LEVEL, MOST = 0.05, 0.10
SMALL = (3, 5, 8, 15, 16, 20, 50, 200)


class Tried(NamedTuple):
    """One situation: the share of draws in which the truth was covered, or in which nothing was called something.

    `shown` is the share of draws in which there was an interval at all; `draws` counts those; 0 where the share is
    summed over all that can happen.
    """

    of: str
    situation: str
    n: str
    share: float
    draws: int
    shown: float = 1.0

    @property
    def error(self) -> float:
        """Three standard errors of the simulation."""
        return 3 * (max(self.share * (1 - self.share), 0.02) / self.draws) ** 0.5 if self.draws else 0.0


def simulate(draws: int = 400, seed: int = 0, only: str | None = None) -> Iterator[Tried]:
    """Every interval, then every test, in every situation it is tried in; `only` one of them."""
    for of, trial in {**COVERED, **REJECTING}.items():
        if only in (None, of):
            yield from (one._replace(of=of) for one in trial(draws, seed))


def covered(situation: str, n: Any, low: Any, high: Any, truth: float) -> Tried:
    """Of the draws that have an interval, the share in which it covers the truth."""
    low, high = np.asarray(low), np.asarray(high)
    known = np.isfinite(low) & np.isfinite(high)
    inside = (low[known] <= truth + 1e-9) & (truth - 1e-9 <= high[known])
    share = float(inside.mean()) if known.any() else 1.0
    return Tried("", situation, str(n), share, int(known.sum()), float(known.mean()))


def rates(draws: int, seed: int) -> Iterator[Tried]:
    """Rates from rare to even: no draws, but the sum over all counts there can be."""
    for n in (1, 2, 3, 5, 10, 30, 100):
        ends = [intervals.wilson(k, n) for k in range(n + 1)]
        for p in (0.002, 0.018, 0.05, 0.2, 0.5, 0.9):
            share = sum(binom.pmf(k, n, p) for k, end in enumerate(ends) if end.low <= p <= end.high)
            yield Tried("", f"rate {p:g}", str(n), float(share), 0)


def means(bounds: Bounds | None, kinds: tuple[Kind, ...]) -> Callable[[int, int], Iterator[Tried]]:
    """Means of values per image, of each kind and number of images."""

    def trial(draws: int, seed: int) -> Iterator[Tried]:
        rng = np.random.default_rng(seed)
        for kind in kinds:
            for n in SMALL:
                table = kind.draw(rng, (draws, n))
                ends = intervals.mean_intervals(dict(enumerate(table)), bounds=bounds)
                low, high = np.array(list(ends.values())).T
                yield covered(kind.name, n, low, high, kind.mean)

    return trial


def sums(draws: int, seed: int) -> Iterator[Tried]:
    """Means of values that were not kept, as of identifiability."""
    rng = np.random.default_rng(seed)
    for kinds, bounds in ((ANY, None), (SHARES, RATE)):
        for kind in kinds:
            for n in SMALL:
                table = kind.draw(rng, (draws, n))
                powers = [(table**k).sum(1) for k in (1, 2, 3)]
                low, high = intervals.ends_of_sums(powers[0], powers[1], powers[2], n, bounds=bounds)
                yield covered(kind.name, n, low, high, kind.mean)


def differences(draws: int, seed: int) -> Iterator[Tried]:
    """Two runs on the same images, right or wrong in each."""
    rng = np.random.default_rng(seed)
    for kind in ANSWERS:
        for n in (1, 2, *SMALL, 1000):
            known: dict[tuple[float, float], intervals.Interval] = {}
            found = []
            for x in kind.draw(rng, (draws, n)):
                gained, lost = np.maximum(x, 0), np.maximum(-x, 0)
                counts = float(gained.sum()), float(lost.sum())  # all that the interval of right and wrong goes by
                if counts not in known:
                    known[counts] = intervals.paired_difference(gained, lost)
                found.append(known[counts])
            yield covered(kind.name, n, [f.low for f in found], [f.high for f in found], kind.mean)


def groups(draws: int, seed: int) -> Iterator[Tried]:
    """Images that are right against those that are wrong."""
    rng = np.random.default_rng(seed)
    for name, sizes, kinds in GROUPS:
        tables = [kind.draw(rng, (draws, size)) for kind, size in zip(kinds, sizes, strict=True)]
        ends = [intervals.mean_intervals(dict(enumerate(table)), bounds=RATE) for table in tables]
        found = [
            comparisons.difference_of(
                *(intervals.Interval(t[i].mean(), *e[i]) for t, e in zip(tables, ends, strict=True))
            )
            for i in range(draws)
        ]
        yield covered(name, sum(sizes), [f.low for f in found], [f.high for f in found], 0.0)


def classes(draws: int, seed: int) -> Iterator[Tried]:
    """Means over classes that are a draw of all classes."""
    rng = np.random.default_rng(seed)
    for k in (2, 3, 5, 10, 50):
        for per_class in (1, 4, 20):
            found = []
            for _ in range(draws):
                values, labels = images_of_classes(rng, k, per_class)
                found.append(comparisons.class_mean_intervals({0: values}, labels, bounds=RATE)[0])
            where = f"{counted(k, 'class', 'classes')} of about {counted(per_class, 'image')}"
            yield covered(where, k * per_class, [f.low for f in found], [f.high for f in found], 0.5)


def ratios(draws: int, seed: int) -> Iterator[Tried]:
    """Ratios whose denominators are small, rare or skewed."""
    rng = np.random.default_rng(seed)
    for kind in ("right or wrong", "skewed", "small denominator"):
        for n in (5, 12, 20, 50, 200):
            found = [comparisons.ratio_interval(*numerator_and_denominator(rng, n, kind)) for _ in range(draws)]
            yield covered(kind, n, [f.low for f in found], [f.high for f in found], 0.5)


def more_draws(draws: int, seed: int) -> Iterator[Tried]:
    """The rate of one more probe of permuted labels, whose rates are about chance."""
    rng = np.random.default_rng(seed)
    for k in (2, 3, 10):
        for n in (10, 100):
            hits = rng.binomial(n, rng.beta(10, 90, (draws, k + 1)))
            found = [comparisons.another_rate(h[1:].tolist(), n) for h in hits]
            inside = [f.low - 1e-9 <= h[0] / n <= f.high + 1e-9 for f, h in zip(found, hits, strict=True)]
            yield Tried("", f"one more after {counted(k, 'draw')}", str(n), float(np.mean(inside)), draws)


def flips(draws: int, seed: int) -> Iterator[Tried]:
    """Sign flips of differences whose mean is 0, in all directions."""
    rng = np.random.default_rng(seed)
    kinds = [(kind, None) for kind in (NORMAL, SKEWED, LONG, APART)]
    for kind, bounds in [*kinds, *((kind, CHANGE) for kind in (HIGH, ONE_SIDED, MORE, BOTH_WAYS, PART))]:
        for n in (5, 15, 16, 20, 31, 100):
            table = kind.draw(rng, (draws, n)) - kind.mean
            for way in significance.ALTERNATIVES:
                p = significance.sign_flip_tests(table.T, n_draws=399, alternative=way, bounds=bounds)
                yield Tried("", f"{kind.name}, {way}", str(n), float(np.mean(p <= LEVEL)), draws)


def dealt(draws: int, seed: int) -> Iterator[Tried]:
    """Two groups of the same mean, of which one may be small or of other spread."""
    rng = np.random.default_rng(seed)
    for name, sizes, kinds in GROUPS:
        group = np.repeat([True, False], sizes)
        tables = np.concatenate(
            [kind.draw(rng, (draws, size)) for kind, size in zip(kinds, sizes, strict=True)], axis=1
        )
        p = [significance.permutation_test(values, group, n_draws=199) for values in tables]
        yield Tried("", name, str(len(group)), float(np.mean(np.array(p) <= LEVEL)), draws)


def pairs(draws: int, seed: int) -> Iterator[Tried]:
    """Two runs that are right equally often: no draws, but the sum over all there can be."""
    for n in (1, 5, 10, 50, 200):
        p = [significance.mcnemar(np.arange(n) < k, np.arange(n) >= k) for k in range(n + 1)]
        share = sum(binom.pmf(k, n, 0.5) for k in range(n + 1) if p[k] <= LEVEL)
        yield Tried("", "runs that disagree", str(n), float(share), 0)


def chances(draws: int, seed: int) -> Iterator[Tried]:
    """Rates that are those of chance: no draws, but the sum over all counts there can be."""
    for n in (1, 5, 20, 100):
        for p in (0.001, 0.1, 0.9):
            said = [significance.above_chance(k, n, p) for k in range(n + 1)]
            share = sum(binom.pmf(k, n, p) for k in range(n + 1) if said[k] <= LEVEL)
            yield Tried("", f"rate {p:g}", str(n), float(share), 0)


def ranked(draws: int, seed: int) -> Iterator[Tried]:
    """A statistic among draws that are like it."""
    rng = np.random.default_rng(seed)
    for k in (19, 199):
        p = [significance.permutation_p(x[0], x[1:]) for x in rng.normal(size=(4 * draws, k + 1))]
        yield Tried("", "draws like the observed one", str(k), float(np.mean(np.array(p) <= LEVEL)), 4 * draws)


def families(adjust: Callable[[list[float]], list[float]]) -> Callable[[int, int], Iterator[Tried]]:
    """Any rejection at all among many tests of which none has anything to find."""

    def trial(draws: int, seed: int) -> Iterator[Tried]:
        rng = np.random.default_rng(seed)
        for m in (1, 12, 48):
            least = [min(adjust(p)) for p in rng.random((4 * draws, m)).tolist()]
            yield Tried("", f"any of {counted(m, 'test')}", str(m), float(np.mean(np.array(least) <= LEVEL)), 4 * draws)

    return trial


COVERED: dict[str, Callable[[int, int], Iterator[Tried]]] = {
    "wilson": rates,
    "mean_intervals": means(None, ANY),
    "mean_intervals of RATE": means(RATE, SHARES),
    "mean_intervals of CHANGE": means(CHANGE, (*ANSWERS, PART)),
    "ends_of_sums": sums,
    "paired_difference": differences,
    "group_difference": groups,
    "class_mean_intervals": classes,
    "ratio_interval": ratios,
    "another_rate": more_draws,
}
REJECTING: dict[str, Callable[[int, int], Iterator[Tried]]] = {
    "sign_flip_tests": flips,
    "permutation_test": dealt,
    "permutation_p": ranked,
    "mcnemar": pairs,
    "above_chance": chances,
    "holm": families(significance.holm),
    "benjamini_hochberg": families(significance.benjamini_hochberg),
}
SAME_AS = {
    "sign_flip_test": "sign_flip_tests",
    "rate_row": "wilson",
    "mean_row": "ends_of_sums",
    "wilson_ends": "wilson",
    "tango": "paired_difference",
    "mean_interval": "mean_intervals",
    "difference_of": "group_difference",
}
"""Functions that hand on what another one gives."""
NO_INTERVAL = {"check_confidence", "corrected", "uncorrected"}
MODULES = (intervals, comparisons, scores, significance)
