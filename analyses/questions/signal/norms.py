"""Norms of tokens, and which of them are outliers."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Bool, Float, Float64
from torch import Tensor

GAUSSIAN = 1.4826
"""Median absolute deviations in a standard deviation of a normal distribution."""


def token_norms(resid: Float[Tensor, "b t d"]) -> Float64[Tensor, "b t"]:
    """Euclidean norm of every token.

    >>> token_norms(torch.tensor([[[3.0, 4.0]]])).tolist()
    [[5.0]]
    """
    return resid.detach().cpu().double().norm(dim=-1)


class NormRule:
    """Which norms are outliers at each block: above `cutoff`, or a robust z above `z`.

    >>> rule = NormRule(torch.tensor([[1.0, 2.0, 3.0, 4.0, 5.0]], dtype=torch.float64), z=5.0)
    >>> rule.median.item(), round(rule.threshold.item(), 4)
    (3.0, 10.413)

    `norms` is [blocks, tokens]: those of the image tokens of the images the rule is set by, behind the blocks that
    `layers` names, or all of them. z is (norm − median) /
    (1.4826 · MAD), of one block of one model; 1.4826 makes it a z-score for normally distributed norms. Where more than
    half of the norms are equal up to float32 (MAD 0) z is not defined: no token is an outlier, and `undefined` is true.
    """

    def __init__(
        self,
        norms: Float64[Tensor, "l n"],
        z: float = 5.0,
        cutoff: float | None = None,
        layers: Sequence[int] | None = None,
    ) -> None:
        self.layers = list(range(len(norms)) if layers is None else layers)
        values = norms.numpy()  # NumPy's median takes the middle of two, torch's the lower
        self.median = torch.from_numpy(np.median(values, axis=1))
        mad = torch.from_numpy(np.median(np.abs(values - self.median.numpy()[:, None]), axis=1))
        self.undefined = mad <= torch.finfo(torch.float32).eps * self.median
        self.scale = torch.where(self.undefined, torch.nan, GAUSSIAN * mad)
        robust = torch.where(self.undefined, torch.inf, self.median + z * self.scale)
        self.threshold = robust if cutoff is None else torch.full_like(robust, cutoff)

    def z(self, norms: Float64[Tensor, "*b"], layer: int) -> Float64[Tensor, "*b"]:
        """Robust z-scores of norms at a block; NaN where undefined."""
        row = self.layers.index(layer)
        return (norms - self.median[row]) / self.scale[row]

    def outliers(self, norms: Float64[Tensor, "*b"], layer: int) -> Bool[Tensor, "*b"]:
        """Which of these norms are outliers at a block."""
        return norms > self.threshold[self.layers.index(layer)]
