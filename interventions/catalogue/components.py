"""Turning off or scaling the parts of a block: heads, neurons, branches."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from hooked_vit import HookedViT
from hooked_vit.tokens import Tokens
from interventions.activation_stats import Stats
from interventions.catalogue.patching import branch_site
from interventions.core import Hooks, intervention
from interventions.editing import edit_site, given
from interventions.vocabulary import Heads, Layers, Number, Where, check_choice, layers_of, site_hook, site_shape


def _meant(site_of: Callable[[dict[str, Any]], str]) -> Callable[..., dict[str, Any]]:
    """Statistics become the means they hold, one per layer, so that the intervention says what it puts in."""

    def canonical(**params: Any) -> dict[str, Any]:
        stats, layers = params["stats"], params["layers"]
        if stats is None:
            return params
        if params["mean"] is not None:
            raise TypeError("give a mean or the stats that hold it, not both")
        layers = range(stats.n_layers) if layers is None else [layers] if isinstance(layers, int) else layers
        means = [stats.mean(site_of(params), layer, params["tokens"]) for layer in layers]
        return params | {"stats": None, "mean": torch.stack(means)}

    return canonical


@intervention(canonical=_meant(lambda p: p["site"]), idempotent=True)
def ablate_heads(
    model: HookedViT,
    layers: Layers = None,
    heads: Heads = None,
    tokens: Tokens = "all",
    mean: Tensor | None = None,
    stats: Stats | None = None,
    site: str = "z",
    where: Where = True,
) -> Hooks:
    """Set the output of attention heads to zero, or to its mean, at the tokens named.

    >>> ablate_heads(layers=3, heads=[0, 5])
    ablate_heads(layers=3, heads=(0, 5))

    `mean` is [heads, d_head], or [layers, heads, d_head] with one per layer named; `stats` of `collect_stats` at the
    same site hold it. `site` is "z" (the mixed values) or "result" (what each head adds to the stream). Michel et al.
    2019; mean ablation: Wang et al. 2022.
    """
    check_choice(site, ("z", "result"), "site")
    return _ablated(model, site, layers, mean, tokens=tokens, heads=heads, where=where)


@intervention(canonical=_meant(lambda p: "post"), idempotent=True)
def ablate_neurons(
    model: HookedViT,
    layers: Layers,
    neurons: Heads,
    tokens: Tokens = "all",
    mean: Tensor | None = None,
    stats: Stats | None = None,
    where: Where = True,
) -> Hooks:
    """Set MLP neurons, behind their nonlinearity, to zero or to their mean, at the tokens named.

    >>> ablate_neurons(layers=3, neurons=[17, 1024])
    ablate_neurons(layers=3, neurons=(17, 1024))

    `mean` is [d_mlp], or [layers, d_mlp] with one per layer named; `stats` at the site "post" hold it.
    """
    return _ablated(model, "post", layers, mean, tokens=tokens, neurons=neurons, where=where)


@intervention(canonical=_meant(lambda p: branch_site(p["branch"])), idempotent=True)
def ablate_branch(
    model: HookedViT,
    branch: str,
    layers: Layers = None,
    tokens: Tokens = "all",
    mean: Tensor | None = None,
    stats: Stats | None = None,
    where: Where = True,
) -> Hooks:
    """Set what attention ("attn") or the MLP ("mlp") adds to the stream to zero, or to its mean, at the tokens named.

    >>> ablate_branch("mlp", layers=[3, 4], tokens="cls")
    ablate_branch(branch='mlp', layers=(3, 4), tokens='cls')

    `mean` is [d], or [layers, d] with one per layer named; `stats` at the site "attn_out" or "mlp_out" hold it.
    """
    return _ablated(model, branch_site(branch), layers, mean, tokens=tokens, where=where)


@intervention
def scale_branch(
    model: HookedViT,
    branch: str,
    factor: Number | Tensor,
    layers: Layers = None,
    tokens: Tokens = "all",
    where: Where = True,
) -> Hooks:
    """Multiply what attention ("attn") or the MLP ("mlp") adds to the stream, as LayerScale does.

    >>> scale_branch("attn", 0.5, layers=[0, 1])
    scale_branch(branch='attn', factor=0.5, layers=(0, 1))

    `factor` is a number, or [d] with one per dimension; it comes on top of the family's own LayerScale, and divided by
    that replaces it. Touvron et al. 2021 (LayerScale).
    """
    factors = factor if isinstance(factor, Tensor) else torch.tensor(factor, device="cpu")
    d = model.cfg.d_model
    if factors.shape not in ((), (d,)) or not factors.isfinite().all():
        raise ValueError(f"a factor is a finite number or [{d}]; got {tuple(factors.shape)}")
    return edit_site(model, branch_site(branch), layers, lambda act: act * factors.to(act), tokens=tokens, where=where)


def _ablated(
    model: HookedViT,
    site: str,
    layers: Layers,
    mean: Tensor | None,
    *,
    tokens: Tokens,
    heads: Heads = None,
    neurons: Heads = None,
    where: Where,
) -> Hooks:
    edit = partial(edit_site, tokens=tokens, heads=heads, neurons=neurons, where=where)
    if mean is None:
        return edit(model, site, layers, torch.zeros_like)
    chosen, shape = layers_of(model, layers), site_shape(model, site)
    site_hook(model, site, chosen[0])
    if mean.shape not in (shape, (len(chosen), *shape)):
        want = ", ".join(map(str, shape))
        raise ValueError(f"a mean is [{want}], or [{len(chosen)} layers, {want}]; got {tuple(mean.shape)}")
    each = mean.expand(len(chosen), *shape)
    return [
        hook
        for layer, value in zip(chosen, each, strict=True)
        for hook in edit(model, site, layer, given(model, site, value, tokens))
    ]
