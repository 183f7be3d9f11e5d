"""What the attention of one token over the patches looks like, as numbers: pure functions of its weights per head.

Weights [images, heads, patches] sum to 1 over the patches. methods §26.
"""

from __future__ import annotations

from itertools import combinations
from math import log

import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor

from analyses.activations.class_masks import CLASS, CONTEXT


def over_patches(attention: Float[Tensor, "b h n"]) -> tuple[Float64[Tensor, "b h n"], Float64[Tensor, "b"]]:
    """The weights on the patches made to sum to 1 per head, and their share of all weights, the mean over heads.

    >>> weights, share = over_patches(torch.tensor([[[0.1, 0.3]]]))
    >>> weights.round(decimals=3).tolist(), share.round(decimals=3).tolist()
    ([[[0.25, 0.75]]], [0.4])

    A head that gives the patches nothing has weights NaN.
    """
    exact = attention.detach().cpu().double()
    total = exact.sum(-1)
    return exact / total[..., None], total.mean(-1)


def normalised_entropy(weights: Float64[Tensor, "b h n"]) -> Float64[Tensor, "b"]:
    """Entropy over its maximum ln n, the mean over heads: 1 of equal weights, 0 of all on one patch.

    >>> normalised_entropy(torch.tensor([[[0.5, 0.5], [1.0, 0.0]]]).double()).tolist()
    [0.5]

    NaN where there is one patch, whose entropy has no maximum above 0.
    """
    n = weights.shape[-1]
    if n < 2:
        return torch.full((len(weights),), torch.nan, dtype=torch.float64)
    # rounding puts equal weights a hair above the most there is
    return (_entropy(weights) / log(n)).clamp(max=1.0).mean(-1)


def spread(weights: Float64[Tensor, "b h n"], grid: tuple[int, int]) -> Float64[Tensor, "b"]:
    """Mean distance of two patches drawn by a head's weights, over that by equal weights, the mean over heads.

    >>> spread(torch.tensor([[[0.25, 0.25, 0.25, 0.25], [0.0, 1.0, 0.0, 0.0]]]).double(), (2, 2)).tolist()
    [0.5]

    CLS has no place of its own to measure a distance from; this is how far apart what it looks at lies. It is above 1
    where opposite corners are looked at, and NaN where there is one patch.
    """
    places = _places(grid)
    distance = torch.cdist(places, places)
    return ((weights @ distance) * weights).sum(-1).mean(-1) / distance.mean()


def centre_distance(weights: Float64[Tensor, "b h n"], grid: tuple[int, int]) -> Float64[Tensor, "b"]:
    """Mean distance, in patches, of what is looked at from the centre of the image; the mean over heads.

    >>> centre_distance(torch.tensor([[[1.0, 0.0, 0.0]]]).double(), (1, 3)).tolist()
    [1.0]
    """
    places = _places(grid)
    return (weights.mean(1) * (places - places.mean(0)).norm(dim=-1)).sum(-1)


def head_diversity(weights: Float64[Tensor, "b h n"]) -> Float64[Tensor, "b"]:
    """Jensen-Shannon divergence of two heads in bits, the mean over all pairs: 0 where all look alike, at most 1.

    >>> head_diversity(torch.tensor([[[1.0, 0.0], [0.0, 1.0]]]).double()).tolist()
    [1.0]

    NaN of a single head.
    """
    pairs = [*combinations(range(weights.shape[1]), 2)]
    if not pairs:
        return torch.full((len(weights),), torch.nan, dtype=torch.float64)
    own = _entropy(weights)
    found = [
        _entropy((weights[:, one] + weights[:, other]) / 2) - (own[:, one] + own[:, other]) / 2 for one, other in pairs
    ]
    return (torch.stack(found).mean(0) / log(2)).clamp(0.0, 1.0)


def object_shares(
    weights: Float64[Tensor, "b h n"], labels: Int[Tensor, "b n"]
) -> tuple[Float64[Tensor, "b"], Float64[Tensor, "b"]]:
    """The share of the weights on the object, the mean over heads, and the object's share of the patches.

    >>> mass, area = object_shares(torch.tensor([[[0.75, 0.25]]]).double(), torch.tensor([[1, 0]]))
    >>> mass.tolist(), area.tolist()
    ([0.75], [0.5])

    `labels` as of `label_cells`; patches of neither kind are left out of both. NaN for an image that has not patches
    of both kinds: nothing can look elsewhere there.
    """
    on, off = labels == CLASS, labels == CONTEXT
    mean = weights.mean(1)
    on_object, beside = (torch.where(where, mean, 0.0).sum(-1) for where in (on, off))
    both = on.any(-1) & off.any(-1)
    area = on.sum(-1).double() / (on | off).sum(-1)
    return (
        torch.where(both, on_object / (on_object + beside), torch.nan),
        torch.where(both, area, torch.nan),
    )


def _entropy(weights: Float64[Tensor, "*b n"]) -> Float64[Tensor, "*b"]:
    return torch.special.entr(weights).sum(-1)


def _places(grid: tuple[int, int]) -> Float64[Tensor, "n 2"]:
    """Row and column of every patch, in patches."""
    rows, columns = (torch.arange(size, dtype=torch.float64) for size in grid)
    return torch.cartesian_prod(rows, columns)
