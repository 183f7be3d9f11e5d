"""What is measured of a dictionary at one place: its reconstruction by role, and how far the answer moves."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from analyses.statistics.comparisons import ratio_interval
from hooked_vit import HookedViT, TokenLayout
from interventions import Sae

LEAST = 1e-12
"""An ablation that moves the answer less than this leaves nothing to recover."""


@dataclass
class Sums:
    """Sums over the tokens of one role, from which everything about their reconstruction follows."""

    n: int = 0
    total: Tensor | float = 0.0
    squares: float = 0.0
    missed: float = 0.0
    active: Tensor | float = 0.0


@dataclass
class Reconstruction:
    """How well a dictionary stands for tokens, by role; batches are taken in one by one."""

    sae: Sae
    by_role: dict[str, Sums] = field(default_factory=lambda: defaultdict(Sums))

    def update(self, x: Float[Tensor, "b t d"], layout: TokenLayout) -> Float[Tensor, "b t f"]:
        """Take in activations; gives those of the features."""
        acts = self.sae.encode(x)
        x, told = x.double(), self.sae.decode(acts, x).double()
        for role in ("all", *layout.roles):
            here = layout.mask(role).to(x.device)
            mine, sums = x[:, here].flatten(0, 1), self.by_role[role]
            sums.n += len(mine)
            sums.total = sums.total + mine.sum(0).cpu()
            sums.squares += float((mine * mine).sum())
            sums.missed += float((mine - told[:, here].flatten(0, 1)).square().sum())
            sums.active = sums.active + (acts[:, here] != 0).flatten(0, 1).sum(0).cpu()
        return acts

    def rows(self) -> Iterator[dict[str, Any]]:
        """Explained variance, mean number of active features, share of dead ones; without tokens there are none."""
        for role, sums in self.by_role.items():
            total, active = torch.as_tensor(sums.total), torch.as_tensor(sums.active)
            variance = sums.squares - float((total * total).sum()) / sums.n
            explained = 1 - sums.missed / variance if variance > LEAST * sums.squares else float("nan")
            yield {"measure": "explained_variance", "role": role, "value": explained, "n": sums.n}
            yield {"measure": "l0", "role": role, "value": float(active.sum()) / sums.n, "n": sums.n}
            yield {"measure": "dead", "role": role, "value": float((active == 0).double().mean()), "n": sums.n}


def answers_with_classes(model: HookedViT) -> bool:
    """Whether the output is scores of classes; else it is features, or an embedding."""
    return model.cfg.outputs == "classes" and not model.cfg.is_feature_model


def divergence(model: HookedViT, clean: Float[Tensor, "b n"], out: Float[Tensor, "b n"]) -> Float[Tensor, "b"]:
    """How far an output is from the clean one, per image: KL(clean ‖ out) of classes in nats, else 1 − cosine."""
    clean, out = clean.detach().double().cpu(), out.detach().double().cpu()
    if not answers_with_classes(model):
        return 1 - F.cosine_similarity(clean, out, dim=-1)
    before, after = clean.log_softmax(-1), out.log_softmax(-1)
    return (before.exp() * (before - after)).sum(-1).clamp(min=0)


def recovered(spliced: np.ndarray, ablated: np.ndarray) -> dict[str, Any]:
    """1 − spliced / ablated, means over images, with its 95 % interval; NaN where ablation moves nothing.

    >>> recovered(np.array([1.0, 1.0]), np.array([4.0, 4.0]))["value"]
    0.75

    Interval: `ratio_interval`; NaN where that refuses.
    """
    n = len(spliced)
    if ablated.mean() < LEAST:
        return {"value": float("nan"), "low": float("nan"), "high": float("nan"), "n": n}
    left = ratio_interval(spliced, ablated)
    return {"value": 1 - left.estimate, "low": 1 - left.high, "high": 1 - left.low, "n": n}
