"""Putting something else in the place of tokens: nothing, their mean, noise of their kind, a vector."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from hooked_vit import HookedViT
from hooked_vit.tokens import Tokens
from interventions.activation_stats import Stats
from interventions.apply import note
from interventions.core import Hooks, intervention
from interventions.editing import edit_site, given, n_named, placed
from interventions.vocabulary import STREAM, Where, generator_of, layer_of


@intervention(idempotent=True)
def zero_tokens(model: HookedViT, layer: int, tokens: Tokens, site: str = "resid_post", where: Where = True) -> Hooks:
    """Set tokens to zero after block `layer`, or at another site of it.

    >>> zero_tokens(layer=3, tokens="registers")
    zero_tokens(layer=3, tokens='registers')

    Zero is far from anything the model has seen; `mean_tokens` removes as much and surprises it less.
    """
    return edit_site(model, site, layer, torch.zeros_like, tokens=tokens, where=where, sites=STREAM)


def _mean_of_stats(**params: Any) -> dict[str, Any]:
    """Statistics become the mean they hold, so that the intervention says exactly what it puts in."""
    stats, key = params["stats"], (params["site"], params["layer"], params["tokens"])
    if (params["mean"] is None) == (stats is None):
        raise TypeError("mean_tokens takes a mean, or the stats that hold it")
    return params if stats is None else params | {"stats": None, "mean": stats.mean(*key)}


@intervention(canonical=_mean_of_stats, idempotent=True)
def mean_tokens(
    model: HookedViT,
    layer: int,
    tokens: Tokens,
    mean: Tensor | None = None,
    stats: Stats | None = None,
    site: str = "resid_post",
    where: Where = True,
) -> Hooks:
    """Set tokens to their mean over a data set after block `layer`, or at another site of it.

    >>> mean_tokens(layer=3, tokens="cls", stats=collect_stats(model, images, ["resid_post"]))  # doctest: +SKIP

    `stats` come from `collect_stats`; or `mean` is the mean itself, [d], or [1, k, d] with one per token.
    Chan et al. 2022 (causal scrubbing) and Wang et al. 2022 argue for means over zeros.
    """
    assert mean is not None
    value = given(model, site, mean, tokens)
    return edit_site(model, site, layer, value, tokens=tokens, where=where, sites=STREAM)


def _moments_of_stats(**params: Any) -> dict[str, Any]:
    stats, key = params["stats"], (params["site"], params["layer"], params["tokens"])
    if {params["mean"] is None, params["covariance"] is None} != {stats is not None}:
        raise TypeError("gaussian_tokens takes a mean and a covariance, or the stats that hold them")
    return (
        params
        if stats is None
        else params | {"stats": None, "mean": stats.mean(*key), "covariance": stats.covariance(*key)}
    )


@intervention(canonical=_moments_of_stats, idempotent=True)
def gaussian_tokens(
    model: HookedViT,
    layer: int,
    tokens: Tokens,
    mean: Float[Tensor, "d"] | None = None,
    covariance: Float[Tensor, "d d"] | None = None,
    stats: Stats | None = None,
    seed: int = 0,
    site: str = "resid_post",
    where: Where = True,
) -> Hooks:
    """Set tokens to draws from the normal distribution with their mean and covariance over a data set.

    >>> gaussian_tokens(layer=3, tokens="cls", stats=stats, seed=0)  # doctest: +SKIP

    Every image and token gets its own draw, every forward pass new ones; `run.record` has them [b, k, d]. It keeps
    what a linear reader sees on average and nothing of the image. methods: lab note 1, matched Gaussian.
    Raises ValueError for a covariance that is none.
    """
    assert mean is not None
    assert covariance is not None
    layer = layer_of(model, layer)
    given(model, site, mean, tokens)
    root = _root(covariance, mean)
    generator = generator_of(seed)

    def draw(act: Tensor) -> Tensor:
        noise = torch.randn(len(act), n_named(model.tokens, tokens), len(root), generator=generator, device="cpu")
        drawn = (noise.double() @ root.T + mean.double().cpu()).to(act.dtype)
        note("gaussian_tokens", drawn)
        return placed(drawn, model.tokens, tokens)

    return edit_site(model, site, layer, draw, tokens=tokens, where=where, sites=STREAM)


def _root(covariance: Tensor, mean: Tensor) -> Tensor:
    """A matrix whose product with its transpose is the covariance, which may well be of lower rank."""
    d = mean.shape[-1]
    matrix = covariance.detach().double().cpu()
    if mean.ndim != 1 or matrix.shape != (d, d):
        shapes = f"{tuple(mean.shape)} and {tuple(matrix.shape)}"
        raise ValueError(f"a mean [d] and a covariance [d, d] belong together; got {shapes}")
    values, vectors = torch.linalg.eigh(matrix)
    # what rounding makes of a variance of zero
    slack = 10 * torch.finfo(covariance.dtype).eps * values.abs().max()
    if (matrix - matrix.T).abs().max() > 10 * slack or (values < -100 * slack).any():
        raise ValueError("this matrix is no covariance: it must be symmetric, without negative eigenvalues")
    return vectors * torch.where(values > slack, values, 0.0).sqrt()


@intervention(idempotent=True)
def set_tokens(
    model: HookedViT, layer: int, tokens: Tokens, vector: Tensor, site: str = "resid_post", where: Where = True
) -> Hooks:
    """Set tokens to a fixed or learned vector after block `layer`, or at another site of it.

    >>> learned = torch.nn.Parameter(torch.zeros(768))  # doctest: +SKIP
    >>> set_tokens(layer=8, tokens="cls", vector=learned)  # doctest: +SKIP

    `vector` is [d], one per image [b, d], or one per token [b, k, d]; gradients reach it.
    methods: lab note 2, "replace".
    """
    return edit_site(model, site, layer, given(model, site, vector, tokens), tokens=tokens, where=where, sites=STREAM)
