"""Dictionaries that nobody trained: principal components, random directions, one vector for everything."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from interventions import Sae


def principal_components(mean: Float[Tensor, "d"], covariance: Float[Tensor, "d d"], k: int) -> Sae:
    """The principal components and their opposites; of a token the k that reach furthest are kept.

    >>> principal_components(torch.zeros(2), torch.diag(torch.tensor([1.0, 4.0])), 1).n_features
    4
    """
    _, axes = torch.linalg.eigh(covariance.double().cpu())
    axes = axes.T.flip(0)
    return _along(torch.cat([axes, -axes]), mean, k, "principal components")


def random_directions(like: Sae, tokens: Float[Tensor, "n d"], l0: float, seed: int) -> Sae:
    """As many random directions as a dictionary has, as many of a token kept as it keeps on average.

    They start from the mean of these tokens, and share one factor that fits their reconstruction to them best: what is
    left to explain is the choice of the directions.
    """
    tokens = tokens.double().cpu()
    draw = torch.Generator("cpu").manual_seed(seed)
    axes = torch.nn.functional.normalize(
        torch.randn(like.n_features, like.width, generator=draw, dtype=torch.float64, device="cpu"), dim=-1
    )
    mean = tokens.mean(0)
    made = _along(axes, mean, max(1, min(round(l0), like.n_features)), "random directions")
    centred, told = tokens - mean, made.to(torch.float64).encode(tokens) @ axes
    size = float((told * told).sum())
    factor = float((centred * told).sum()) / size if size else 1.0
    return made.replace(W_dec=made.W_dec * factor)


def turned(sae: Sae, seed: int) -> Sae:
    """The same activations, each feature along a random direction as long as its own."""
    draw = torch.Generator("cpu").manual_seed(seed)
    axes = torch.nn.functional.normalize(torch.randn(sae.W_dec.shape, generator=draw, device="cpu"), dim=-1)
    return sae.replace(W_dec=axes.to(sae.W_dec) * sae.W_dec.norm(dim=-1, keepdim=True))


def constant(value: Float[Tensor, "d"]) -> Sae:
    """What reconstructs everything as one vector: zero or mean ablation, at whatever site.

    >>> constant(torch.tensor([1.0, 2.0])).decode(torch.zeros(1, 1), torch.zeros(1, 2)).tolist()
    [[1.0, 2.0]]
    """
    value = value.float()
    nothing = torch.zeros(1, len(value))
    return Sae(nothing.T.clone(), torch.zeros(1), nothing, value)


def _along(axes: Tensor, mean: Tensor, k: int, source: str) -> Sae:
    directions = axes.float()
    return Sae(
        W_enc=directions.T.contiguous(),
        b_enc=torch.zeros(len(directions)),
        W_dec=directions,
        b_dec=mean.flatten().float().cpu(),
        activation="topk",
        k=min(k, len(directions)),
        source=source,
    )
