"""Choosing what the readout may read, and what reads it."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from hooked_vit import HookedViT
from interventions.activation_stats import POOLED, Stats
from interventions.core import Hooks, intervention
from interventions.editing import Value, among, moved, weights
from interventions.vocabulary import Where, check_where

FULL = "full"


@intervention(idempotent=True)
def readout(model: HookedViT, source: str = FULL, where: Where = True) -> Hooks:
    """Read the logits from one source alone: "cls", "dist", "patches", or "full" for all the family reads.

    >>> readout("cls")
    readout(source='cls')

    A head that reads several sources gets zeros for the others; of several heads only those that read this source
    are averaged. Where a family reads nothing else, this changes nothing. methods: lab note 1, green curve.
    Raises ValueError where the family's readout never reads that source, so that there is no such readout to show.
    """
    share = check_where(where)
    if source == FULL:
        return [("hook_pooled", lambda pooled, hook: pooled)]
    kept = _source(model, source, "a readout of it alone does not exist")
    reading = [i for i, (_, read) in enumerate(model.cfg.heads) if kept in read]
    others = ~among([kept], model.cfg.n_pooled)
    hooks = [("hook_pooled", _edit_sources(model, others, torch.zeros_like, share))]
    if not 0 < len(reading) < len(model.cfg.heads):
        return hooks

    def only_heads(logits: Tensor, hook: object) -> Tensor:
        all_heads = torch.ones(1, dtype=torch.bool, device="cpu")
        mean = logits[:, reading].mean(1, keepdim=True).expand_as(logits)
        return moved(logits, lambda _: mean, all_heads, weights(share, logits, model.tokens, "all"))

    return [*hooks, ("hook_head_logits", only_heads)]


def _mean_of_stats(**params: Any) -> dict[str, Any]:
    stats = params["stats"]
    if stats is not None and params["mean"] is not None:
        raise TypeError("give a mean or the stats that hold it, not both")
    return params if stats is None else params | {"stats": None, "mean": stats.mean(POOLED, None, params["source"])}


@intervention(canonical=_mean_of_stats, idempotent=True)
def drop_source(
    model: HookedViT,
    source: str,
    mean: Float[Tensor, "d"] | None = None,
    stats: Stats | None = None,
    where: Where = True,
) -> Hooks:
    """Take one source out of what the readout pools: zeros, or its mean over a data set, in its place.

    >>> drop_source("patches")
    drop_source(source='patches')

    The mean keeps the logits calibrated; `collect_stats(model, images, [("pooled", None, "patches")])` gathers it. All
    heads stay, so that of two averaged heads the one that read this source gives a constant. methods: lab note 1.
    Raises ValueError where the family's readout never reads that source.
    """
    share = check_where(where)
    gone = _source(model, source, "so it cannot be dropped")
    if mean is not None and mean.shape != (model.cfg.d_model,):
        raise ValueError(f"the mean of a source is [{model.cfg.d_model}], got {tuple(mean.shape)}")
    value: Value = torch.zeros_like if mean is None else lambda parts: mean.to(parts).expand_as(parts)
    here = among([gone], model.cfg.n_pooled)
    return [("hook_pooled", _edit_sources(model, here, value, share))]


@intervention(idempotent=True)
def new_head(
    model: HookedViT, weight: Float[Tensor, "c p"], bias: Float[Tensor, "c"] | None = None, where: Where = True
) -> Hooks:
    """Read the logits with another linear head over everything the readout pools, fitted anew for instance.

    >>> readout("cls") + new_head(probe.weight, probe.bias)  # doctest: +SKIP

    The head sees what interventions written before it left of the pooled vector, and may know other classes.
    Raises ValueError for a weight of another width, and for a partial `where` with other classes.
    """
    width = model.cfg.d_pooled
    share = check_where(where)
    if weight.ndim != 2 or weight.shape[1] != width or (bias is not None and bias.shape != weight.shape[:1]):
        raise ValueError(
            f"this readout pools {model.cfg.sources}, so a head is [classes, {width}] with a bias of [classes]; "
            f"got {tuple(weight.shape)} and {None if bias is None else tuple(bias.shape)}"
        )
    whole = share.ndim == 0 and bool(share == 1)
    if not whole and share.any() and len(weight) != model.cfg.d_out:
        raise ValueError(f"where mixes two heads, which must both know {model.cfg.d_out} classes; got {len(weight)}")
    seen: list[Tensor] = []

    def see(pooled: Tensor, hook: object) -> Tensor:
        seen[:] = [pooled]
        return pooled

    def read(logits: Tensor, hook: object) -> Tensor:
        pooled = seen.pop()
        new = F.linear(pooled, weight.to(pooled), None if bias is None else bias.to(pooled)).to(logits)
        if whole:
            return new
        everything = torch.ones(1, dtype=torch.bool, device="cpu")
        return moved(logits, lambda _: new, everything, weights(share, logits, model.tokens, "all"))

    return [("hook_pooled", see), ("hook_logits", read)]


def _source(model: HookedViT, source: str, so: str) -> int:
    sources = model.cfg.sources
    if source in sources and source not in model.cfg.pooled_roles:
        raise ValueError(
            f"one probe reads the {' and '.join(sources)} of this model together, so no part of what is pooled is of "
            f"{source!r} alone: {so}; an edit of hook_pool_scores says what the probe attends to"
        )
    if source not in sources:
        raise ValueError(
            f"the readout of this model ({model.cfg.hf_class or model.cfg.architecture}) reads "
            f"{' and '.join(sources)}, never {source!r}: {so}; fit one with model.set_readout_ and a probe"
        )
    return sources.index(source)


def _edit_sources(model: HookedViT, here: Bool[Tensor, "s"], value: Value, share: Tensor) -> Any:
    """An edit of some of the sources in the pooled vector."""

    def edit(pooled: Tensor, hook: object) -> Tensor:
        parts = pooled.unflatten(1, (len(here), -1))
        new = moved(parts, value, here[:, None], weights(share, parts, model.tokens, "all"))
        return pooled if new is parts else new.flatten(1)

    return edit
