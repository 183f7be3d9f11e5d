"""What a patched run is judged by: numbers per pair of images, and their averages with intervals.

A metric sees the patched logits and, beside them, what it may compare with: the run that was patched (`base`), the run
the patches came from (`donor`), and the two classes the pair is about.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from analyses.metrics import wilson
from hooked_vit.errors import nearest

EPS = 1e-3
RESAMPLES = 1000


@dataclass(frozen=True, eq=False)
class Reference:
    """What a metric may compare patched logits [n c] with; every field has one row per pair.

    `base` are the logits of the run that is patched, `donor` those of the run the activations come from. `clean` and
    `corrupt` are the classes the pair is about, and `target` is the donor's: what patching everything would give.
    """

    base: Float[Tensor, "n c"]
    donor: Float[Tensor, "n c"]
    clean: Int[Tensor, "n"]
    corrupt: Int[Tensor, "n"]
    target: Int[Tensor, "n"]


def check_classes(classes: tuple[Tensor, Tensor] | None, n: int) -> None:
    """Raise ValueError for classes that are not two lists of one number per pair."""
    if classes is not None and any(c.shape != (n,) or c.is_floating_point() for c in classes):
        shapes = ", ".join(str(tuple(c.shape)) for c in classes)
        raise ValueError(f"classes are two lists of class numbers, one per pair: {n} pairs, got shapes {shapes}")


def reference(
    direction: str,
    base: Float[Tensor, "n c"],
    donor: Float[Tensor, "n c"],
    classes: tuple[Int[Tensor, "n"], Int[Tensor, "n"]] | None = None,
) -> Reference:
    """What metrics compare with, for a direction; without classes, those the two runs predict."""
    ends = (donor, base) if direction == "denoise" else (base, donor)  # clean, corrupt
    clean, corrupt = (c.to(base.device) for c in classes) if classes is not None else (e.argmax(-1) for e in ends)
    return Reference(base, donor, clean, corrupt, clean if direction == "denoise" else corrupt)


MetricFunction = Callable[[Tensor, Reference], Tensor]


@dataclass(frozen=True)
class Metric:
    """A named function (logits [n c], Reference) -> [n].

    `normalised` reports it as the share of the way from the base run to the donor run, `rate` says that it is 0 or 1,
    `smooth` that it has a gradient.
    """

    name: str
    function: MetricFunction
    normalised: bool = False
    rate: bool = False
    smooth: bool = True

    def __call__(self, logits: Float[Tensor, "n c"], reference: Reference) -> Float[Tensor, "n"]:
        """One number per pair, not normalised.

        Raises ValueError where the function does not return one number per pair.
        """
        # no float64 on Apple's GPUs
        value = self.function((logits.cpu() if logits.device.type == "mps" else logits).double(), reference)
        if not isinstance(value, Tensor) or value.shape != logits.shape[:1]:
            got = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise ValueError(f"a metric gives one number per pair, shape ({len(logits)},); {self.name} gave {got}")
        return value.double()


def logit_diff(logits: Float[Tensor, "n c"], reference: Reference) -> Float[Tensor, "n"]:
    """D: the logit of the clean class minus that of the corrupt class.

    Raises ValueError for a class the logits do not have.
    """
    both = torch.stack([reference.clean, reference.corrupt], dim=1).to(logits.device)
    if not ((both >= 0) & (both < logits.shape[1])).all():
        raise ValueError(f"classes are 0 to {logits.shape[1] - 1}; got {sorted(set(both.flatten().tolist()))[:8]}")
    picked = logits.gather(1, both)
    return picked[:, 0] - picked[:, 1]


def flipped(logits: Float[Tensor, "n c"], reference: Reference) -> Float[Tensor, "n"]:
    """1 where the prediction is the donor's class."""
    return (logits.argmax(-1) == reference.target.to(logits.device)).to(logits.dtype)


def expected_value(logits: Float[Tensor, "n c"], reference: Reference) -> Float[Tensor, "n"]:
    """The mean class number under the softmax: for classes that are numbers, such as counts."""
    return logits.softmax(-1) @ torch.arange(logits.shape[1], dtype=logits.dtype, device=logits.device)


def kl(logits: Float[Tensor, "n c"], reference: Reference) -> Float[Tensor, "n"]:
    """KL divergence from the donor's output to the patched one, in nats: 0 where the patch gives all of it."""
    donor = reference.donor.to(logits).log_softmax(-1)
    return (donor.exp() * (donor - logits.log_softmax(-1))).sum(-1)


METRICS = {
    "logit_diff": Metric("logit_diff", logit_diff),
    "recovery": Metric("recovery", logit_diff, normalised=True),
    "flip_rate": Metric("flip_rate", flipped, rate=True, smooth=False),
    "expected_value": Metric("expected_value", expected_value),
    "kl": Metric("kl", kl),
}
MetricLike = str | Metric | MetricFunction


def recovery(metric: MetricLike) -> Metric:
    """Any metric as the share of the way from the base run to the donor run: 0 as unpatched, 1 as the donor.

    >>> recovery("expected_value").name
    'recovery of expected_value'
    """
    of = as_metric(metric)
    if of.normalised:
        return of
    return Metric(f"recovery of {of.name}", of.function, normalised=True, smooth=of.smooth)


def as_metric(metric: MetricLike) -> Metric:
    """A metric by name, or from a function (logits [n c], Reference) -> [n].

    Raises ValueError for an unknown name.
    """
    if isinstance(metric, Metric):
        return metric
    if isinstance(metric, str):
        if metric not in METRICS:
            raise ValueError(
                f"no metric is called {metric!r}{nearest(metric, METRICS)} There are {', '.join(METRICS)}; a function "
                "(logits, reference) -> [n] is one too"
            )
        return METRICS[metric]
    if not callable(metric):
        raise TypeError(f"a metric is a name or a function (logits, reference) -> [n]; got {type(metric).__name__}")
    return Metric(getattr(metric, "__name__", type(metric).__name__), metric)


def as_metrics(metric: MetricLike | Sequence[MetricLike]) -> list[Metric]:
    """One metric or several.

    Raises ValueError for none at all and for two of one name.
    """
    single = isinstance(metric, (str, Metric)) or callable(metric)
    metrics = [as_metric(m) for m in ([metric] if single else metric)]  # type: ignore[list-item, union-attr]
    names = [m.name for m in metrics]
    if not names or len(set(names)) < len(names):
        raise ValueError(f"metrics are one or more, each once; got {names}")
    return metrics


def share(
    value: Float[Tensor, "n"], start: Float[Tensor, "n"], end: Float[Tensor, "n"], eps: float = EPS
) -> Float[Tensor, "n"]:
    """(value − start) / (end − start) per pair; NaN where start and end are less than `eps` apart.

    >>> share(torch.tensor([1.0, 1.0]), torch.tensor([0.0, 1.0]), torch.tensor([2.0, 1.0])).tolist()
    [0.5, nan]
    """
    gap = end - start
    known = gap.abs() >= eps
    return torch.where(known, (value - start) / torch.where(known, gap, torch.ones_like(gap)), torch.nan)


def measure(metric: Metric, logits: Float[Tensor, "n c"], reference: Reference, eps: float = EPS) -> Float[Tensor, "n"]:
    """The metric per pair; a normalised one is NaN where base and donor are less than `eps` apart."""
    value = metric(logits, reference)
    if not metric.normalised:
        return value
    return share(value, metric(reference.base, reference), metric(reference.donor, reference), eps)


class Tally:
    """Values per pair and key, gathered batch by batch; `rows` has their means over pairs.

    Keys are whatever describes a patch; `excluded` pairs count as neither value nor dropped denominator.
    """

    def __init__(self, metrics: Sequence[Metric], eps: float = EPS) -> None:
        if not eps > 0:
            raise ValueError(f"a denominator is refused below eps, which is above 0; got {eps}")
        self.metrics, self.eps = list(metrics), eps
        self._values: dict[tuple[Hashable, str], list[Tensor]] = defaultdict(list)
        self._ends: dict[tuple[Hashable, str], list[Tensor]] = defaultdict(list)
        self._excluded: dict[Hashable, int] = defaultdict(int)

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
        ends = torch.stack([metric(reference.base, reference), metric(reference.donor, reference)], dim=1)
        if metric.normalised:
            ends = torch.tensor([0.0, 1.0], dtype=ends.dtype).expand_as(ends)
        self._values[key, metric.name].append(values.detach().cpu()[kept])
        self._ends[key, metric.name].append(ends.detach().cpu()[kept])
        if metric is self.metrics[0]:
            self._excluded[key] += int((~kept).sum())

    def values(self, key: Hashable, metric: str) -> Float[Tensor, "n"]:
        """All values of one key so far, in the order of the pairs, NaN where the denominator was too small."""
        return torch.cat(self._values[key, metric])

    def rows(self, seed: int = 0) -> Iterator[tuple[Any, dict[str, Any]]]:
        """(key, measurement) for every key and metric.

        `value` is the mean over the `n` pairs that have one, `low` and `high` its 95 % interval (Wilson's for a rate,
        a percentile bootstrap over pairs otherwise), `base` and `donor` the metric's mean in the two runs themselves,
        `n_dropped` the pairs whose denominator was below eps and `n_excluded` those left out by the caller.
        """
        rates = {metric.name: metric.rate for metric in self.metrics}
        columns = {key: torch.cat(parts).numpy() for key, parts in self._values.items()}
        intervals = bootstrap(columns, seed=seed)
        for (key, name), values in columns.items():
            known = np.isfinite(values)
            n = int(known.sum())
            ends = torch.cat(self._ends[key, name]).numpy()[known]
            low, high = intervals[key, name]
            if rates[name] and n:
                _, low, high = wilson(int(values[known].sum()), n)
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


def bootstrap(
    columns: Mapping[Any, np.ndarray], *, n_resamples: int = RESAMPLES, seed: int = 0
) -> dict[Any, tuple[float, float]]:
    """95 % percentile bootstrap intervals of the means of many columns, NaN left out; pairs are what is drawn.

    Columns of one length share their draws, so that thousands of them cost one matrix product.
    """
    intervals: dict[Any, tuple[float, float]] = {}
    by_length: dict[int, list[Any]] = defaultdict(list)
    for key, values in columns.items():
        by_length[len(values)].append(key)
    for n, keys in by_length.items():
        table = np.stack([columns[key] for key in keys], axis=1)
        known = np.isfinite(table)
        if n < 2:
            low = high = np.where(known, table, np.nan).reshape(n, -1)[0] if n else np.full(len(keys), np.nan)
        else:
            drawn = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=n_resamples).astype(float)
            with np.errstate(invalid="ignore"):
                means = (drawn @ np.where(known, table, 0.0)) / (drawn @ known.astype(float))
            low, high = _quantiles(means)
        intervals |= {key: (float(a), float(b)) for key, a, b in zip(keys, low, high, strict=True)}
    return intervals


def _quantiles(means: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """2.5 % and 97.5 % of each column; NaN where no pair of the column has a value."""
    low, high = np.full(means.shape[1], np.nan), np.full(means.shape[1], np.nan)
    some = np.isfinite(means).any(0)
    if some.any():
        low[some], high[some] = np.nanquantile(means[:, some], [0.025, 0.975], axis=0)
    return low, high


def dropped_notes(frame: pd.DataFrame) -> list[str]:
    """A sentence per metric whose denominator was too small for some pairs."""
    notes = []
    for name, rows in frame.groupby("metric", sort=False):
        if worst := int(rows.n_dropped.max()):
            total = int((rows.n + rows.n_dropped).max())
            notes.append(
                f"{name}: for {worst} of {total} pairs both runs have the same value, so that there is nothing to "
                "recover; they are left out."
            )
    return notes
