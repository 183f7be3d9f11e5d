"""Cutting edges of the attention graph."""

from __future__ import annotations

import torch
from torch import Tensor

from hooked_vit import HookedViT
from hooked_vit.tokens import Tokens
from interventions.core import Hooks, intervention
from interventions.vocabulary import Heads, Layers, check_tokens, heads_of, layers_of


@intervention
def zero_attention(
    model: HookedViT,
    queries: Tokens,
    keys: Tokens,
    layers: Layers = None,
    heads: Heads = None,
    renormalise: bool = False,
    keep_self: bool = False,
) -> Hooks:
    """Stop `queries` from attending to `keys`, in the chosen layers and heads (all by default).

    >>> zero_attention("patches", "cls", layers=[0, 1])
    zero_attention(queries='patches', keys='cls', layers=(0, 1))

    The weight is set to zero after the softmax, or with `renormalise` before it, so that the other keys share it.
    `keep_self` spares a token's attention to itself. methods: Vilas et al. 2023, section 4.3.
    Raises ValueError where renormalising would leave a query nothing to attend to.
    """
    check_tokens(model, queries)
    check_tokens(model, keys)
    chosen = heads_of(model, heads)
    site = "hook_attn_scores" if renormalise else "hook_pattern"

    def edit(scores: Tensor, hook: object) -> Tensor:
        cut = edges(model, queries, keys, keep_self=keep_self).to(scores.device)[:, None]
        of_heads = torch.zeros(scores.shape[1], dtype=torch.bool, device=scores.device)
        of_heads[chosen] = True
        cut = cut & of_heads[:, None, None]
        if not renormalise:
            return scores.masked_fill(cut, 0.0)
        cut_scores = scores.masked_fill(cut, float("-inf"))
        if cut_scores.isneginf().all(-1).any():
            raise ValueError(
                f"{queries!r} tokens would have nothing left to attend to without {keys!r}, so there is nothing to "
                "renormalise; use renormalise=False or keep_self=True"
            )
        return cut_scores

    return [(f"blocks.{layer}.attn.{site}", edit) for layer in layers_of(model, layers)]


def edges(model: HookedViT, queries: Tokens, keys: Tokens, *, keep_self: bool = False) -> Tensor:
    """True at [#b, query, key] for the edges from one group of tokens to another, as they are at this point."""
    tokens = model.tokens
    n = tokens.n_tokens
    cut = tokens.mask(queries).reshape(-1, n, 1) & tokens.mask(keys).reshape(-1, 1, n)
    return cut & ~torch.eye(n, dtype=torch.bool) if keep_self else cut
