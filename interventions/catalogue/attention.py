"""Edits of the attention graph: edges cut or scaled, rows replaced, patterns taken from another run."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor

from hooked_vit import ActivationCache, HookedViT
from hooked_vit.tokens import TokenLayout, Tokens
from interventions.core import Hooks, intervention
from interventions.editing import Value, among, moved, weights
from interventions.sources import run_pixels
from interventions.vocabulary import (
    EDGES,
    Heads,
    Layers,
    Number,
    Where,
    check_number,
    check_tokens,
    check_where,
    heads_of,
    layers_of,
    layout_with,
    per_image,
    site_hook,
)


@intervention(idempotent=True)
def zero_attention(
    model: HookedViT,
    queries: Tokens,
    keys: Tokens,
    layers: Layers = None,
    heads: Heads = None,
    renormalise: bool = False,
    keep_self: bool = False,
    where: Where = True,
) -> Hooks:
    """Stop `queries` from attending to `keys`, in the chosen layers and heads (all by default).

    >>> zero_attention("patches", "cls", layers=[0, 1])
    zero_attention(queries='patches', keys='cls', layers=(0, 1))

    The weight is set to zero after the softmax, or with `renormalise` before it, so that the other keys share it.
    `keep_self` spares a token's attention to itself. methods: Vilas et al. 2023, section 4.3; Geva et al. 2023.
    Raises ValueError where renormalising would leave a query nothing to attend to.
    """
    return _scaled(model, 0.0, queries, keys, layers, heads, renormalise, keep_self, where)


@intervention
def scale_attention(
    model: HookedViT,
    queries: Tokens,
    keys: Tokens,
    factor: Number,
    layers: Layers = None,
    heads: Heads = None,
    renormalise: bool = False,
    keep_self: bool = False,
    where: Where = True,
) -> Hooks:
    """Multiply the attention of `queries` to `keys`, in the chosen layers and heads (all by default).

    >>> scale_attention("cls", "patches", factor=2.0, layers=11, renormalise=True)
    scale_attention(queries='cls', keys='patches', factor=2.0, layers=11, renormalise=True)

    Weights are multiplied after the softmax, or with `renormalise` before it, so that rows still sum to one. A factor
    of 0 is `zero_attention`.
    """
    check_number(factor, "factor", least=0)
    return _scaled(model, factor, queries, keys, layers, heads, renormalise, keep_self, where)


@intervention(idempotent=True)
def self_only(
    model: HookedViT, queries: Tokens = "patches", layers: Layers = None, heads: Heads = None, where: Where = True
) -> Hooks:
    """Make tokens attend to themselves alone, with weight one.

    >>> self_only("patches", layers=[0, 1])
    self_only(layers=(0, 1))

    methods: Vilas et al. 2023, section 4.3, as in its code: CLS is cut off too.
    """
    return edit_rows(
        model, queries, lambda pattern: torch.eye(pattern.shape[-1], device=pattern.device), layers, heads, where
    )


@intervention(idempotent=True)
def uniform_attention(
    model: HookedViT,
    queries: Tokens = "all",
    keys: Tokens = "all",
    layers: Layers = None,
    heads: Heads = None,
    where: Where = True,
) -> Hooks:
    """Make `queries` attend to `keys` alone, and to all of them alike.

    >>> uniform_attention("cls", "patches", layers=11)
    uniform_attention(queries='cls', keys='patches', layers=11)

    What is left is what a head does without choosing where to look.
    """
    check_tokens(model, keys)

    def alike(pattern: Tensor) -> Tensor:
        chosen = model.tokens.mask(keys).to(pattern)
        chosen = chosen.reshape(-1, 1, 1, chosen.shape[-1])
        return chosen / chosen.sum(-1, keepdim=True)

    return edit_rows(model, queries, alike, layers, heads, where)


def _pattern_of_cache(**params: Any) -> dict[str, Any]:
    """A cache becomes the patterns it holds of the layers named, [layers, b, h, t, t]."""
    value, layers = params["value"], params["layers"]
    if not isinstance(value, ActivationCache):
        return params
    layers = range(value.model.cfg.n_layers) if layers is None else [layers] if isinstance(layers, int) else layers
    return params | {"value": torch.stack([value["pattern", layer] for layer in layers])}


@intervention(canonical=_pattern_of_cache, idempotent=True)
def freeze_attention(
    model: HookedViT,
    value: Tensor,
    layers: Layers = None,
    heads: Heads = None,
    queries: Tokens = "all",
    keys: Tokens = "all",
    where: Where = True,
) -> Hooks:
    """Use the attention pattern of another run, whatever queries and keys would make of this one.

    >>> freeze_attention(clean_cache, layers=[4, 5])  # doctest: +SKIP

    `value` is a cache that holds `pattern` of these layers, the patterns themselves [layers, b, head, query, key] or of
    one layer [b, head, query, key], or the pixels [b, c, h, w] of other images (one extra run). With `queries` and
    `keys` only those edges are replaced. What still changes is what is moved, not where from: the split of Elhage et
    al. 2021 into OV and QK.
    Raises ValueError for another number of layers, heads, tokens or images.
    """
    chosen = layers_of(model, layers)
    check_tokens(model, keys)
    edit_rows(model, queries, lambda act: act, chosen, heads, where)  # so that a mistake is found before pixels are run
    n = model.cfg.n_heads
    if _are_patterns(value, n):
        value = value[None]
    if value.ndim == 4:
        names = [site_hook(model, "pattern", layer, EDGES) for layer in chosen]
        kept = run_pixels(model, value, names, stop_at_layer=max(chosen) + 1)
        value = torch.stack([kept[name] for name in names])
    if value.ndim != 5 or value.shape[::2][:2] != (len(chosen), n) or value.shape[3] != value.shape[4]:
        raise ValueError(f"patterns are [{len(chosen)} layers, images, {n}, tokens, tokens]; got {tuple(value.shape)}")

    def frozen(pattern: Tensor) -> Value:
        def put(act: Tensor) -> Tensor:
            if pattern.shape[-1] != act.shape[-1]:
                raise ValueError(f"the pattern is between {pattern.shape[-1]} tokens, here are {act.shape[-1]}")
            return per_image(pattern, len(act), "patterns are given").to(act)

        return put

    return [
        hook
        for layer, pattern in zip(chosen, value, strict=True)
        for hook in edit_rows(model, queries, frozen(pattern), layer, heads, where, keys=keys)
    ]


def _are_patterns(value: Tensor, n_heads: int) -> bool:
    """Whether four axes are patterns of one layer and not pixels: between how many tokens depends on the image."""
    if value.ndim != 4 or value.shape[1] != n_heads or value.shape[2] != value.shape[3]:
        return False
    return bool((value >= 0).all()) and torch.allclose(value.sum(-1), torch.ones_like(value[..., 0]), atol=1e-2)


def edit_rows(
    model: HookedViT,
    queries: Tokens,
    value: Value,
    layers: Layers,
    heads: Heads,
    where: Where,
    *,
    keys: Tokens = "all",
) -> Hooks:
    """Hooks that put `value(pattern)` in the place of attention patterns, at the edges from queries to keys."""
    _check_kernel(model)
    check_tokens(model, queries)
    chosen, share = heads_of(model, heads), check_where(where)

    def edit(pattern: Tensor, hook: object) -> Tensor:
        here = edges(model.tokens, queries, keys)[:, None] & among(chosen, model.cfg.n_heads)[:, None, None]
        return moved(pattern, value, here, weights(share, pattern, model.tokens, queries))

    return [(site_hook(model, "pattern", layer, EDGES), edit) for layer in layers_of(model, layers)]


def edges(layout: TokenLayout, queries: Tokens, keys: Tokens, *, keep_self: bool = False) -> Bool[Tensor, "#b t t"]:
    """True at [#b, query, key] for the edges from one group of tokens to another."""
    n = layout.n_tokens
    cut = layout.mask(queries).reshape(-1, n, 1) & layout.mask(keys).reshape(-1, 1, n)
    return cut & ~torch.eye(n, dtype=torch.bool, device="cpu") if keep_self else cut


def _scaled(
    model: HookedViT,
    factor: Number,
    queries: Tokens,
    keys: Tokens,
    layers: Layers,
    heads: Heads,
    renormalise: bool,
    keep_self: bool,
    where: Where,
) -> Hooks:
    """Weights times 1 + where * (factor - 1): after the softmax, or before it as an addition to the scores."""
    _check_kernel(model)
    check_tokens(model, queries)
    check_tokens(model, keys)
    chosen, share = heads_of(model, heads), check_where(where)
    cuts = renormalise and factor == 0
    if renormalise and (1 + share * (factor - 1) < 0).any():
        raise ValueError("where goes from 0 to 1 here: beyond that the weights to renormalise would be negative")
    known = "inserted" not in (queries, keys)
    if cuts and known and edges(layout_with(model, queries, keys), queries, keys, keep_self=keep_self).all(-1).any():
        raise ValueError(_nothing_left(queries, keys))

    def edit(act: Tensor, hook: object) -> Tensor:
        layout = model.tokens
        here = (
            edges(layout, queries, keys, keep_self=keep_self)[:, None] & among(chosen, model.cfg.n_heads)[:, None, None]
        )
        part = weights(share, act, layout, queries)
        if part.dtype == torch.bool:
            here, part = here & part.to(here.device), torch.ones((), device="cpu")
        elif not part.requires_grad:
            here = here & (part != 0).to(here.device)
        if not here.any():
            return act
        times = 1 + part.to(act) * (factor - 1)
        here = here.to(act.device)
        if not renormalise:
            return torch.where(here, act * times, act)
        scores = torch.where(here, act + times.log(), act)
        if cuts:
            _check_left(scores, queries, keys)
        return scores

    site = "attn_scores" if renormalise else "pattern"
    return [(site_hook(model, site, layer, EDGES), edit) for layer in layers_of(model, layers)]


def _check_kernel(model: HookedViT) -> None:
    if model.run.attention == "sdpa":
        raise ValueError('the fused kernel never forms a pattern to edit; call model.set_attention("auto")')


def _check_left(scores: Tensor, queries: Any, keys: Any) -> None:
    """Raises ValueError where a query is left with no key; on a GPU, where nobody waits, torch raises its own error."""
    bare = scores.isneginf().all(-1).any()
    if scores.device.type == "cpu":
        if bare:
            raise ValueError(_nothing_left(queries, keys))
    else:
        torch._assert_async(~bare, _nothing_left(queries, keys))


def _nothing_left(queries: Tokens, keys: Tokens) -> str:
    return (
        f"{queries!r} tokens would have nothing left to attend to without {keys!r}, so there is nothing to "
        "renormalise; use renormalise=False or keep_self=True"
    )
