"""Putting one run's activations into another: the token that carries an effect, and the component that makes it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from hooked_vit import HookedViT
from hooked_vit.tokens import Tokens
from interventions.core import Hooks, intervention
from interventions.editing import edit_site, given
from interventions.sources import from_cache, source_value
from interventions.vocabulary import Heads, Where, check_choice, check_tokens, layer_of, site_hook

BRANCHES = {"attn": "attn_out", "mlp": "mlp_out"}


def _cached(site_of: Callable[[dict[str, Any]], str]) -> Callable[..., dict[str, Any]]:
    """A cache given as the value becomes what it holds of the site, so that the intervention can be stored."""

    def canonical(**params: Any) -> dict[str, Any]:
        value = from_cache(params["value"], site_of(params), params["layer"], params.get("tokens", "cls"))
        return params | {"value": value}

    return canonical


@intervention(canonical=_cached(lambda p: "resid_post"), idempotent=True)
def patch_cls(model: HookedViT, layer: int, value: Tensor, where: Where = True) -> Hooks:
    """Put given CLS tokens in place after block `layer`.

    >>> patch_cls(layer=3, value=cache)  # doctest: +SKIP

    `value` is a cache that holds `resid_post` of that layer, a vector [d], one per image [b, d], or the pixels
    [b, c, h, w] of other images, whose CLS tokens after that block are taken (one extra run).
    Raises ValueError for another width or number of images.
    """
    return _patched(model, "resid_post", layer, value, tokens="cls", where=where)


@intervention(canonical=_cached(lambda p: p["site"]), idempotent=True)
def patch_tokens(
    model: HookedViT,
    layer: int,
    tokens: Tokens,
    value: Tensor,
    site: str = "resid_post",
    heads: Heads = None,
    where: Where = True,
) -> Hooks:
    """Put another run's activation in the place of tokens after block `layer`, or at another site of it.

    >>> patch_tokens(layer=3, tokens="patches", value=clean_cache)  # doctest: +SKIP
    >>> patch_tokens(layer=3, tokens="all", value=clean_cache, where=object_mask)  # doctest: +SKIP

    `value` is a cache that holds the site, the activation of the tokens named [b, k, ...] or of all [b, t, ...], one
    per image [b, ...] or for all [...], or the pixels [b, c, h, w] of other images (one extra run). `heads` chooses
    among the heads of q, k, v, z and result. Activation patching: Vig et al. 2020, Meng et al. 2022.
    Raises ValueError for another shape or number of images.
    """
    return _patched(model, site, layer, value, tokens=tokens, heads=heads, where=where)


@intervention(canonical=_cached(lambda p: p["site"]), idempotent=True)
def patch_heads(
    model: HookedViT,
    layer: int,
    heads: Heads,
    value: Tensor,
    tokens: Tokens = "all",
    site: str = "z",
    where: Where = True,
) -> Hooks:
    """Put another run's output of attention heads in the place of theirs, at the tokens named.

    >>> patch_heads(layer=3, heads=[0, 5], value=clean_cache, tokens="cls")  # doctest: +SKIP

    `site` is "z" (the mixed values) or "result" (what each head adds to the stream; slower, the same up to rounding).
    `value` is as in `patch_tokens`, with all heads.
    """
    check_choice(site, ("z", "result"), "site")
    return _patched(model, site, layer, value, tokens=tokens, heads=heads, where=where)


@intervention(canonical=_cached(lambda p: "post"), idempotent=True)
def patch_neurons(
    model: HookedViT, layer: int, neurons: Heads, value: Tensor, tokens: Tokens = "all", where: Where = True
) -> Hooks:
    """Put another run's MLP neurons, behind their nonlinearity, in the place of theirs, at the tokens named.

    >>> patch_neurons(layer=3, neurons=[17, 1024], value=clean_cache)  # doctest: +SKIP

    `value` is as in `patch_tokens`, with all neurons; `neurons=None` means all of them.
    """
    return _patched(model, "post", layer, value, tokens=tokens, neurons=neurons, where=where)


@intervention(canonical=_cached(lambda p: branch_site(p["branch"])), idempotent=True)
def patch_branch(
    model: HookedViT, layer: int, branch: str, value: Tensor, tokens: Tokens = "all", where: Where = True
) -> Hooks:
    """Put what another run's attention ("attn") or MLP ("mlp") adds to the stream in the place of this run's.

    >>> patch_branch(layer=3, branch="mlp", value=clean_cache, tokens="cls")  # doctest: +SKIP

    `value` is as in `patch_tokens`, LayerScale included.
    """
    return _patched(model, branch_site(branch), layer, value, tokens=tokens, where=where)


def branch_site(branch: str) -> str:
    """The site where a branch of the block joins the stream.

    Raises ValueError for a branch there is not.
    """
    check_choice(branch, tuple(BRANCHES), "branch")
    return BRANCHES[branch]


def _patched(
    model: HookedViT,
    site: str,
    layer: int,
    value: Tensor,
    *,
    tokens: Tokens,
    heads: Heads = None,
    neurons: Heads = None,
    where: Where = True,
) -> Hooks:
    layer = layer_of(model, layer)
    site_hook(model, site, layer)
    check_tokens(model, tokens)
    # made before the source is, so that a mistake in the rest is found before pixels are run
    hooks = edit_site(
        model, site, layer, lambda act: place(act), tokens=tokens, heads=heads, neurons=neurons, where=where
    )
    place = given(model, site, source_value(model, value, site, layer, tokens), tokens)
    return hooks
