"""Controls for knockouts of attention: as much of it taken away, at edges that mean nothing."""

from __future__ import annotations

import torch
from torch import Tensor

from hooked_vit import HookedViT
from hooked_vit.tokens import Tokens
from interventions.apply import note
from interventions.catalogue.attention import edges, edit_rows
from interventions.core import Hooks, intervention
from interventions.editing import Value
from interventions.vocabulary import Heads, Layers, Where, check_tokens, generator_of, layers_of


@intervention
def zero_random_attention(
    model: HookedViT,
    queries: Tokens,
    keys: Tokens,
    layers: Layers = None,
    heads: Heads = None,
    renormalise: bool = False,
    keep_self: bool = False,
    seed: int = 0,
    where: Where = True,
) -> Hooks:
    """Take from each query as much attention as `zero_attention` to these keys would, but from keys drawn at random.

    >>> zero_random_attention("patches", "cls", layers=0, seed=1)
    zero_random_attention(queries='patches', keys='cls', layers=0, seed=1)

    Every row of every head draws its own order of all keys and loses the first of them, the last one in part, until
    the sum of what is lost is what attention to `keys` was; with `renormalise` rows then sum to one again. Every
    forward pass draws anew from a generator seeded by `seed` and the layer; its state before each draw is in
    `run.record`, layer by layer, as the orders would be larger than the patterns. The control of a knockout that says
    whether it matters where attention goes, or only how much of it is left.
    """
    check_tokens(model, queries)
    check_tokens(model, keys)
    generator_of(seed)

    def taken(layer: int) -> Value:
        generator = generator_of(seed * 65_537 + layer)

        def value(pattern: Tensor) -> Tensor:
            cut = edges(model.tokens, queries, keys, keep_self=keep_self)[:, None].to(pattern.device)
            lost = (pattern * cut).sum(-1, keepdim=True)
            note("zero_random_attention", generator.get_state())
            order = torch.rand(pattern.shape, generator=generator, device="cpu").argsort(-1).to(pattern.device)
            weights = pattern.gather(-1, order)
            kept = (weights.cumsum(-1) - lost).clamp(min=0).minimum(weights)
            if renormalise:
                # what rounding may leave of a row that lost everything is its last key
                kept[..., -1:] = torch.where(kept.sum(-1, keepdim=True) > 0, kept[..., -1:], 1.0)
                kept = torch.where(lost > 0, kept / kept.sum(-1, keepdim=True), weights)
            return torch.zeros_like(pattern).scatter(-1, order, kept)

        return value

    return [
        hook
        for layer in layers_of(model, layers)
        for hook in edit_rows(model, queries, taken(layer), layer, heads, where)
    ]
