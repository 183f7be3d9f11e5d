"""Choosing what the readout may read."""

from __future__ import annotations

import torch
from torch import Tensor

from hooked_vit import HookedViT
from interventions.core import Hooks, intervention

FULL = "full"


@intervention
def readout(model: HookedViT, source: str = FULL) -> Hooks:
    """Read the logits from one source alone: "cls", "dist", "patches", or "full" for all the family reads.

    >>> readout("cls")
    readout(source='cls')

    A head that reads several sources gets zeros for the others; of several heads only those that read this source
    are averaged. Where a family reads nothing else, this changes nothing. methods: lab note 1, green curve.
    Raises ValueError where the family's readout never reads that source, so that there is no such readout to show.
    """
    sources = model.cfg.sources
    if source == FULL:
        return [("hook_pooled", lambda pooled, hook: pooled)]
    if source not in sources:
        raise ValueError(
            f"the readout of this model ({model.cfg.hf_class or model.cfg.architecture}) reads {' and '.join(sources)}, never "
            f"{source!r}: a {source}-only readout does not exist for it; fit one with model.set_readout_ and a probe"
        )
    kept = sources.index(source)
    reading = [i for i, (_, read) in enumerate(model.cfg.heads) if kept in read]

    def only_source(pooled: Tensor, hook: object) -> Tensor:
        parts = pooled.unflatten(1, (len(sources), -1))
        here = torch.arange(len(sources), device=pooled.device)[:, None] == kept
        return torch.where(here, parts, torch.zeros_like(parts)).flatten(1)

    def only_heads(logits: Tensor, hook: object) -> Tensor:
        return logits[:, reading].mean(1, keepdim=True).expand_as(logits)

    heads: Hooks = [("hook_head_logits", only_heads)] if 0 < len(reading) < len(model.cfg.heads) else []
    return [("hook_pooled", only_source), *heads]
