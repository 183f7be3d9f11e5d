"""What a patched run is judged by: numbers per pair of images, and their averages with intervals.

A metric sees the patched logits and, beside them, what it may compare with: the run that was patched (`base`), the run
the patches came from (`donor`), and the two classes the pair is about.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from hooked_vit import HookedViT
from hooked_vit.errors import NoHeadError, nearest

EPS = 1e-3


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


def check_answers(model: HookedViT, metrics: Sequence[Metric]) -> None:
    """Raise NoHeadError where metrics compare classes and the model gives features; a function may read those."""
    ours = [m.function for m in METRICS.values()]
    if model.cfg.is_feature_model and (named := [m.name for m in metrics if m.function in ours]):
        raise NoHeadError(
            f"{' and '.join(named)} compares class scores, and {model.cfg.hf_class or 'this model'} has no classifier: "
            "give it one, analyses.with_ridge_head(model, images), or a metric of its features"
        )


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
                f"no metric is called {metric!r} (there are {', '.join(METRICS)}; a function (logits, reference) -> [n]"
                f" is one too){nearest(metric, METRICS)}"
            )
        return METRICS[metric]
    if not callable(metric):
        raise TypeError(f"a metric is a name or a function (logits, reference) -> [n]; got {type(metric).__name__}")
    return Metric(getattr(metric, "__name__", type(metric).__name__), metric)


def as_metrics(metric: MetricLike | Sequence[MetricLike]) -> list[Metric]:
    """One metric or several.

    Raises ValueError for none at all and for two of one name.
    """
    listed = [metric] if isinstance(metric, (str, Metric)) or callable(metric) else metric
    metrics = [as_metric(m) for m in listed]
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
