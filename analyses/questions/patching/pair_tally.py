"""Values of patched runs pair by pair, gathered batch by batch, and their means with intervals."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from analyses.questions.patching.patching_metrics import EPS, Metric, Reference, measure
from analyses.statistics.intervals import RATE, mean_intervals
from hooked_vit.config.showing import counted


def check_eps(eps: float) -> None:
    """Raises ValueError for a smallest denominator that is not above 0, or no number."""
    if not 0 < eps < float("inf"):
        raise ValueError(f"a denominator is refused below eps, which is above 0; got {eps}")


class Tally:
    """Values per pair and key, gathered batch by batch; `rows` has their means over pairs.

    Keys are whatever describes a patch; `excluded` pairs count as neither value nor dropped denominator.
    """

    PASSING = ("metrics", "_last")

    def __init__(self, metrics: Sequence[Metric], eps: float = EPS) -> None:
        check_eps(eps)
        self.metrics, self.eps = list(metrics), eps
        self._values: dict[tuple[Hashable, str], list[Tensor]] = defaultdict(list)
        self._ends: dict[tuple[Hashable, str], list[Tensor]] = defaultdict(list)
        self._excluded: dict[Hashable, int] = defaultdict(int)
        self._last: tuple[Reference, Metric, Tensor] | None = None

    def add(
        self, key: Hashable, logits: Float[Tensor, "n c"], reference: Reference, excluded: Tensor | None = None
    ) -> None:
        """The patched logits of a batch of pairs."""
        for metric in self.metrics:
            self.add_values(key, metric, measure(metric, logits, reference, self.eps), reference, excluded)

    def add_values(
        self,
        key: Hashable,
        metric: Metric,
        values: Float[Tensor, "n"],
        reference: Reference,
        excluded: Tensor | None = None,
    ) -> None:
        """Values of one metric that are known already; NaN for a dropped denominator."""
        kept = torch.ones(len(values), dtype=torch.bool) if excluded is None else ~excluded.cpu()
        ends = self._both_ends(metric, reference)
        self._values[key, metric.name].append(values.detach().cpu()[kept])
        self._ends[key, metric.name].append(ends.detach().cpu()[kept])
        if metric is self.metrics[0]:
            self._excluded[key] += int((~kept).sum())

    def _both_ends(self, metric: Metric, reference: Reference) -> Float[Tensor, "n 2"]:
        """The metric in the base and in the donor run; of a normalised one that is 0 and 1."""
        if metric.normalised:
            return torch.tensor([0.0, 1.0], dtype=torch.float64).expand(len(reference.base), 2)
        # thousands of estimates may share one reference
        if self._last is None or self._last[0] is not reference or self._last[1] is not metric:
            ends = torch.stack([metric(run, reference) for run in (reference.base, reference.donor)], dim=1)
            self._last = reference, metric, ends
        return self._last[2]

    def values(self, key: Hashable, metric: str) -> Float[Tensor, "n"]:
        """All values of one key so far, in the order of the pairs, NaN where the denominator was too small."""
        return torch.cat(self._values[key, metric])

    def rows(self) -> Iterator[tuple[Any, dict[str, Any]]]:
        """(key, measurement) for every key and metric.

        `value` is the mean over the `n` pairs that have one, `low` and `high` its 95 % interval (Wilson's for a rate),
        `base` and `donor` the metric's mean in the two runs themselves, `n_dropped` the pairs whose denominator was
        below eps and `n_excluded` those left out by the caller.
        """
        rates = {metric.name: metric.rate for metric in self.metrics}
        columns = {key: torch.cat(parts).numpy() for key, parts in self._values.items()}
        intervals = {
            key: ends
            for rate, bounds in ((True, RATE), (False, None))
            for key, ends in mean_intervals(
                {key: x for key, x in columns.items() if rates[key[1]] == rate}, bounds=bounds
            ).items()
        }
        for (key, name), values in columns.items():
            known = np.isfinite(values)
            n = int(known.sum())
            ends = torch.cat(self._ends[key, name]).numpy()[known]
            low, high = intervals[key, name]
            yield (
                key,
                {
                    "metric": name,
                    "value": float(values[known].mean()) if n else float("nan"),
                    "low": low,
                    "high": high,
                    "base": float(ends[:, 0].mean()) if n else float("nan"),
                    "donor": float(ends[:, 1].mean()) if n else float("nan"),
                    "n": n,
                    "n_dropped": int(len(values) - n),
                    "n_excluded": self._excluded[key],
                },
            )


def dropped_notes(frame: pd.DataFrame) -> list[str]:
    """A sentence per metric whose denominator was too small for some pairs."""
    notes = []
    for name, rows in frame.groupby("metric", sort=False):
        if worst := int(rows.n_dropped.max()):
            total = int((rows.n + rows.n_dropped).max())
            notes.append(
                f"{name}: for {worst} of {counted(total, 'pair')} both runs have the same value, so that there is "
                "nothing to recover; they are left out."
            )
    return notes
