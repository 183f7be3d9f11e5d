"""Moving tokens: along a direction, out of a subspace, or at random."""

from __future__ import annotations

import torch
from torch import Tensor

from hooked_vit import HookedViT
from hooked_vit.tokens import Tokens
from interventions.apply import note
from interventions.catalogue.subspaces import orthonormal
from interventions.core import Hooks, intervention
from interventions.editing import edit_site, given, n_named, placed
from interventions.vocabulary import STREAM, Number, Where, check_number, generator_of, layer_of


@intervention
def steer(
    model: HookedViT,
    layer: int,
    tokens: Tokens,
    vector: Tensor,
    scale: Number = 1.0,
    site: str = "resid_post",
    where: Where = True,
) -> Hooks:
    """Add a vector, times `scale`, to tokens after block `layer`, or at another site of it.

    >>> steer(layer=8, tokens="cls", vector=cats - dogs, scale=2.0)  # doctest: +SKIP

    `vector` is [d], one per image [b, d], or one per token [b, k, d]. Turner et al. 2023 (activation addition).
    """
    step = given(model, site, vector, tokens)
    check_number(scale, "scale")
    return edit_site(model, site, layer, lambda act: act + scale * step(act), tokens=tokens, where=where, sites=STREAM)


@intervention(idempotent=True)
def project_out(
    model: HookedViT, layer: int, tokens: Tokens, directions: Tensor, site: str = "resid_post", where: Where = True
) -> Hooks:
    """Remove what tokens have in the span of some directions after block `layer`, or at another site of it.

    >>> project_out(layer=8, tokens="cls", directions=probe.weight)  # doctest: +SKIP

    `directions` is [d] or [k, d]; they need be neither orthogonal nor independent. Ravfogel et al. 2020 (INLP).
    Raises ValueError where they span nothing, or everything.
    """
    basis = orthonormal(model, directions.detach(), least=0)
    if not 0 < len(basis) < model.cfg.d_model:
        raise ValueError(f"directions span {len(basis)} of {model.cfg.d_model} dimensions: nothing to remove or keep")

    def without(act: Tensor) -> Tensor:
        axes = basis.to(act)
        return act - act @ axes.T @ axes

    return edit_site(model, site, layer, without, tokens=tokens, where=where, sites=STREAM)


@intervention
def noise_tokens(
    model: HookedViT,
    layer: int,
    tokens: Tokens,
    std: Number,
    seed: int = 0,
    site: str = "resid_post",
    where: Where = True,
) -> Hooks:
    """Add normal noise of a standard deviation to tokens after block `layer`, or at another site of it.

    >>> noise_tokens(layer=3, tokens="patches", std=0.5)
    noise_tokens(layer=3, tokens='patches', std=0.5)

    Every image and token gets its own draw, every forward pass new ones; `run.record` has them [b, k, d]. Meng et al.
    2022 (ROME) corrupt runs this way.
    """
    check_number(std, "std", least=0)
    layer = layer_of(model, layer)
    generator = generator_of(seed)

    def noisy(act: Tensor) -> Tensor:
        shape = len(act), n_named(model.tokens, tokens), act.shape[-1]
        noise = torch.randn(shape, generator=generator, device="cpu") * std
        note("noise_tokens", noise)
        return act + placed(noise.to(act), model.tokens, tokens)

    return edit_site(model, site, layer, noisy, tokens=tokens, where=where, sites=STREAM)
