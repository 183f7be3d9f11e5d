"""The pairs a circuit is found on: what a cut edge carries, and the two ends between which the metric moves."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from analyses.controls.shuffle_floors import batch_order
from analyses.questions.patching.circuits.edge_scores import cut_logits
from analyses.questions.patching.patching_metrics import Metric, Reference
from hooked_vit import HookedViT
from interventions.circuits import Graph
from interventions.wiring import Outputs, mean_outputs, outputs_of

ABLATIONS = ("counterfactual", "resample", "mean", "zero")


class Pairs(NamedTuple):
    """Clean images, where cut edges take what they carry from, and what the metric compares with.

    `source` are other images, one per clean one, the same outputs for all, or None for zeros. The base run of the
    reference has all edges cut, the donor run none.
    """

    clean: Float[Tensor, "b c h w"]
    source: Tensor | Outputs | None
    reference: Reference

    def take(self, rows: Any) -> Pairs:
        """Some of the pairs."""
        ref = self.reference
        chosen = (part[rows] for part in (ref.base, ref.donor, ref.clean, ref.corrupt, ref.target))
        source = self.source[rows] if isinstance(self.source, Tensor) else self.source
        return Pairs(self.clean[rows], source, Reference(*chosen))

    def values(self, model: HookedViT) -> Outputs | None:
        """What cut edges carry."""
        return outputs_of(model, self.source) if isinstance(self.source, Tensor) else self.source


@torch.no_grad()
def make_pairs(
    model: HookedViT,
    clean: Tensor,
    corrupt: Tensor,
    metric: Metric,
    ablation: str,
    classes: tuple[Tensor, Tensor] | None,
    *,
    eps: float,
    seed: int,
    batch_size: int,
) -> Pairs:
    """The pairs in which cutting every edge moves the metric by at least `eps`, and both ends of that way.

    Raises ValueError for fewer than two.
    """
    parts = [slice(i, i + batch_size) for i in range(0, len(clean), batch_size)]
    whole = torch.cat([model(clean[part]) for part in parts])
    if classes is None:
        classes = whole.argmax(-1), torch.cat([model(corrupt[part]) for part in parts]).argmax(-1)
    source = _source(model, clean, corrupt, ablation, seed, parts)
    every = Graph.of(model).exists.float()
    first, second = (c.to(whole.device) for c in classes)
    pairs = Pairs(clean, source, Reference(whole, whole, first, second, first))
    cut = torch.cat([cut_logits(model, clean[part], every, pairs.take(part).values(model)) for part in parts])
    pairs = pairs._replace(reference=Reference(cut, whole, first, second, first))
    ends = [metric(run, pairs.reference) for run in (cut, whole)]
    kept = ((ends[1] - ends[0]).abs() >= eps).nonzero().flatten()
    if len(kept) < 2:
        raise ValueError(
            f"cutting every edge changes {metric.name} by at least {eps:g} in {len(kept)} of {len(clean)} pairs; a "
            "circuit needs two: other pairs, classes, or another ablation"
        )
    return pairs.take(kept)


def _source(
    model: HookedViT, clean: Tensor, corrupt: Tensor, ablation: str, seed: int, parts: list[slice]
) -> Tensor | Outputs | None:
    if ablation == "zero":
        return None
    if ablation == "counterfactual":
        return corrupt
    if ablation == "resample":
        return clean[batch_order(seed, 0, "others", torch.zeros(len(clean), dtype=torch.long))]
    return mean_outputs(model, (corrupt[part] for part in parts))
