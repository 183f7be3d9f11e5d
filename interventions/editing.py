"""The one edit nearly all interventions are: `act + where * (value - act)` at some tokens, heads or edges of a site."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from hooked_vit import HookedViT, TokenLayout
from hooked_vit.tokens import Tokens
from interventions.core import Hooks
from interventions.vocabulary import (
    HEADS,
    TOKEN_SITES,
    Heads,
    Layers,
    Where,
    blend,
    check_tokens,
    check_where,
    heads_of,
    indices,
    layers_of,
    layout_with,
    per_image,
    site_hook,
    site_shape,
)

Value = Callable[[Tensor], Tensor]


def edit_site(
    model: HookedViT,
    site: str,
    layers: Layers,
    value: Value,
    *,
    tokens: Tokens = "all",
    heads: Heads = None,
    neurons: Heads = None,
    where: Where = True,
    sites: tuple[str, ...] = TOKEN_SITES,
) -> Hooks:
    """Hooks that move a site towards `value(act)`: at these tokens, heads and neurons, as far as `where`.

    >>> edit_site(model, "resid_post", 3, torch.zeros_like, tokens="cls")  # doctest: +SKIP

    `where` is a bool, a number, or a tensor of them: one value, one per image [b], or per image and token [b, k], k
    being the tokens named or all native ones. At 0 or False the activation stays bit for bit what it was, at 1 or
    True it is the value exactly, and the gradient of a metric in `where` at 0 is attribution patching.
    Raises ValueError, before any run, for a layer, site, token, head or neuron the model has not.
    """
    names = [site_hook(model, site, layer, sites) for layer in layers_of(model, layers)]
    shape = site_shape(model, site)
    check_tokens(model, tokens)
    weight = check_where(where, per_token=True)
    inside = torch.ones(shape, dtype=torch.bool, device="cpu")
    if heads is not None:
        if len(shape) < 2:
            raise ValueError(f"{site!r} has no heads; heads belong to {', '.join(HEADS)}")
        inside &= among(heads_of(model, heads), shape[0])[:, None]
    if neurons is not None:
        inside &= among(indices(neurons, shape[-1], "neuron"), shape[-1])

    def edit(act: Tensor, hook: object) -> Tensor:
        layout = model.tokens
        here = layout.mask(tokens)
        here = here.reshape(-1, here.shape[-1], *[1] * len(shape)) & inside
        return moved(act, value, here, weights(weight, act, layout, tokens))

    return [(name, edit) for name in names]


def moved(act: Tensor, value: Value, here: Bool[Tensor, "..."], where: Tensor) -> Tensor:
    """The activation moved towards `value(act)` at `here`; the same object where nothing is to be moved."""
    if not where.requires_grad:
        here = here & (where != 0).to(here.device)
    if not here.any():
        return act
    new = value(act).to(act)
    if where.dtype != torch.bool:
        new = blend(act, new, where)
    return torch.where(here.to(act.device), new, act)


def weights(where: Tensor, act: Tensor, layout: TokenLayout, tokens: Tokens) -> Tensor:
    """`where` with the axes of an activation [b t ...]; a token without an entry of its own gets 0."""
    if where.ndim == 0:
        return where
    per_image(where, len(act), "where is given")
    if where.ndim == 2:
        entry = columns(layout, tokens, where.shape[1])
        where = torch.where((entry >= 0).to(where.device), _take(where, entry.clamp(min=0)), where.new_zeros(()))
    return where.reshape(*where.shape, *[1] * (act.ndim - where.ndim))


def given(model: HookedViT, site: str, value: Tensor, tokens: Tokens) -> Value:
    """A tensor as the value of an edit: one for all [*shape], one per image [b, *shape], or per token [b, k, *shape].

    k counts the tokens named, or all native tokens, in the order of the sequence; they are told apart by identity, so
    that removals and insertions in between do no harm. Raises ValueError for another shape, before any run if it can.
    """
    shape = site_shape(model, site)
    lead = value.ndim - len(shape)
    if not 0 <= lead <= 2 or value.shape[lead:] != shape:
        want = ", ".join(map(str, shape))
        raise ValueError(
            f"a value for {site} is [{want}], [images, {want}] or [images, tokens, {want}]; got {tuple(value.shape)}"
        )
    if lead == 2:
        _check_count(model, tokens, value.shape[1])

    def place(act: Tensor) -> Tensor:
        if lead:
            per_image(value, len(act), "the value is")
        if lead == 2:
            return placed(value.to(act), model.tokens, tokens)
        return value.to(act)[:, None] if lead else value.to(act)

    return place


def placed(values: Tensor, layout: TokenLayout, tokens: Tokens) -> Tensor:
    """Values of some tokens [b, k, ...] where those tokens are now, [b, t, ...]; what stands elsewhere means nothing.

    Raises ValueError where k is neither one, nor the tokens named, nor all native ones.
    """
    if values.shape[1] == 1:
        return values
    entry = columns(layout, tokens, values.shape[1])
    if (layout.mask(tokens) & (entry < 0)).any():
        raise ValueError("an inserted token has no place in a value per original token; give one for all tokens")
    return _take(values, entry.clamp(min=0))


def n_named(layout: TokenLayout, tokens: Tokens) -> int:
    """How many original tokens are meant, whether or not they are still there; else how many inserted ones."""
    named = TokenLayout.native(layout.prefix, layout.grid).mask(tokens, missing_ok=True)
    return int(named.sum()) or int(layout.mask(tokens).sum(-1).max())


def columns(layout: TokenLayout, tokens: Tokens, width: int) -> Int[Tensor, "*b t"]:
    """Which entry of an axis over tokens belongs to each token now, by identity; -1 for none.

    Raises ValueError where the axis fits neither the tokens named nor all native tokens.
    """
    native = TokenLayout.native(layout.prefix, layout.grid)
    named = native.mask(tokens, missing_ok=True)
    count = int(named.sum())
    if not count:
        # inserted tokens have no identity, so they are taken as they stand
        now = layout.mask(tokens)
        if int(now.sum(-1).max()) == width:
            return (now.cumsum(-1) - 1).where(now, -1)
    if width not in (count, layout.n_native):
        raise ValueError(
            f"an axis over tokens has {count} entries for {tokens!r}, or {layout.n_native} for all; got {width}"
        )
    entry = torch.arange(width, device="cpu") if width == layout.n_native else (named.cumsum(0) - 1).where(named, -1)
    return entry[layout.ids.clamp(min=0)].where(layout.ids >= 0, -1)


def _check_count(model: HookedViT, tokens: Tokens, count: int) -> None:
    # how many patches there are is known only with the image, so those are counted when the value is used
    if tokens in ("patches", "all", "inserted"):
        return
    named = n_named(layout_with(model, tokens), tokens)
    sizes = {layout.n_native for layout in model.expected_layouts()}
    if count not in (1, named, *sizes):
        raise ValueError(f"there are {named} {tokens!r} tokens, the value is for {count}; name the tokens it is for")


def _take(values: Tensor, entry: Int[Tensor, "*b t"]) -> Tensor:
    """values [b k ...] at entries [t] or [b t]."""
    if entry.ndim == 1:
        return values[:, entry.to(values.device)]
    images = torch.arange(len(entry), device=values.device)[:, None]
    return values.expand(len(entry), *values.shape[1:])[images, entry.to(values.device)]


def among(chosen: list[int], n: int) -> Bool[Tensor, "n"]:
    """True at the chosen of n indices."""
    mask = torch.zeros(n, dtype=torch.bool, device="cpu")
    mask[chosen] = True
    return mask
