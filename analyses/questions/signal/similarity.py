"""How alike two representations of the same images are: cosine per image, linear CKA over all of them.

Linear CKA needs only sums over images, so memory does not grow with their number (d² numbers a pair).
"""

from __future__ import annotations

from copy import deepcopy

import torch
from jaxtyping import Float, Float64
from torch import Tensor


def cosine(x: Float[Tensor, "*b d"], y: Float[Tensor, "*b d"]) -> Float64[Tensor, "*b"]:
    """Cosine of each row of `x` with the same row of `y`, in float64; NaN where one of them is zero.

    >>> cosine(torch.tensor([[1.0, 0.0]]), torch.tensor([[1.0, 1.0]])).round(decimals=3).tolist()
    [0.707]
    """
    a, b = _exact(x), _exact(y)
    return ((a * b).sum(-1) / (a.norm(dim=-1) * b.norm(dim=-1))).clamp(-1, 1)


class CrossMoments:
    """Gathers what the similarity of two features, [b, d] and [b, e] of the same images, needs.

    >>> pair = CrossMoments()
    >>> pair.update(torch.tensor([[0.0], [1.0]]), torch.tensor([[0.0], [2.0]]))
    >>> pair.update(torch.tensor([[3.0], [1.0]]), torch.tensor([[6.0], [2.0]]))
    >>> pair.covariance.round(decimals=6).tolist()
    [[2.375]]

    Everything is summed in float64 about the first batch's mean: a residual stream has directions whose mean is a
    thousand times their spread, and raw sums would lose the spread to rounding.
    """

    def __init__(self) -> None:
        self.n = 0

    def update(self, x: Float[Tensor, "b d"], y: Float[Tensor, "_ e"]) -> None:
        """Take in a batch. Raises ValueError for different numbers of images and for NaN or infinity."""
        if len(x) != len(y):
            raise ValueError(f"both features are of the same images; got {len(x)} and {len(y)}")
        if not len(x):
            return
        a, b = _exact(x), _exact(y)
        if not (torch.isfinite(a).all() and torch.isfinite(b).all()):
            raise ValueError("a similarity needs numbers; the features hold NaN or infinity")
        if not self.n:
            self.centres = a.mean(0), b.mean(0)
            d, e = a.shape[1], b.shape[1]
            self.products = a.new_zeros(d, e)
            self.sums = a.new_zeros(d), b.new_zeros(e)
            # for the products of an image with itself, which the debiased estimator leaves out
            self.own = a.new_zeros(3)
            self.weighted = a.new_zeros(d), b.new_zeros(e)
        a, b = a - self.centres[0], b - self.centres[1]
        self.n += len(a)
        self.products.addmm_(a.T, b)
        self.sums[0].add_(a.sum(0))
        self.sums[1].add_(b.sum(0))
        own_a, own_b = a.square().sum(1), b.square().sum(1)
        self.own += torch.stack([own_a.sum(), own_b.sum(), own_a @ own_b])
        self.weighted[0].add_(own_b @ a)
        self.weighted[1].add_(own_a @ b)

    def fresh(self) -> CrossMoments:
        """One that has seen no image."""
        return CrossMoments()

    def merge(self, other: CrossMoments) -> CrossMoments:
        """What one would hold that had seen the images of both, about the centres of this one; neither is changed."""
        if not (self.n and other.n):
            return deepcopy(self if self.n else other)
        merged = deepcopy(self)
        merged.n += other.n
        # x − c = (x − c') + (c' − c): sums of the other's images about the centres of these
        a, b = (theirs - mine for mine, theirs in zip(self.centres, other.centres, strict=True))
        (sx, sy), (wx, wy), n = other.sums, other.weighted, other.n
        xx, yy, both = other.own
        x_squared, y_squared = xx + 2 * a @ sx + n * a @ a, yy + 2 * b @ sy + n * b @ b
        # Σ (|x|² + 2ax + |a|²)(|y|² + 2by + |b|²), and so on
        cross = both + 2 * b @ wy + b @ b * xx + 2 * a @ wx + 4 * a @ other.products @ b + 2 * (b @ b) * (a @ sx)
        cross = cross + (a @ a) * y_squared
        merged.products += other.products + torch.outer(sx, b) + torch.outer(a, sy) + n * torch.outer(a, b)
        merged.sums[0].add_(sx + n * a)
        merged.sums[1].add_(sy + n * b)
        merged.own += torch.stack([x_squared, y_squared, cross])
        merged.weighted[0].add_(wx + 2 * other.products @ b + b @ b * sx + a * y_squared)
        merged.weighted[1].add_(wy + 2 * a @ other.products + a @ a * sy + b * x_squared)
        return merged

    @property
    def means(self) -> tuple[Float64[Tensor, "d"], Float64[Tensor, "e"]]:
        """Mean of each feature."""
        return self.centres[0] + self.sums[0] / self.n, self.centres[1] + self.sums[1] / self.n

    @property
    def scatter(self) -> Float64[Tensor, "d e"]:
        """Σ (x − mean)(y − mean)ᵀ over images."""
        return self.products - torch.outer(*self.sums) / self.n

    @property
    def covariance(self) -> Float64[Tensor, "d e"]:
        """The scatter per image."""
        return self.scatter / self.n

    @property
    def is_constant(self) -> bool:
        """Whether the first feature varies by less than float32, in which models run, can tell."""
        resolution = torch.finfo(torch.float32).eps
        spread = (self.own[0] - self.sums[0].square().sum() / self.n) / self.n
        return bool(spread <= resolution**2 * self.means[0].square().sum())

    def hsic(self) -> float:
        """‖XᵀY‖²_F of the centred features: the biased estimator, up to a factor that cancels in CKA."""
        return float(self.scatter.square().sum())

    def debiased_hsic(self) -> float:
        """The unbiased estimator over pairs of different images: 0 on average for features that share nothing.

        Song et al. 2012, eq. 5, with linear kernels. Raises ValueError for fewer than 4 images.
        """
        n = self.n
        if n < 4:
            raise ValueError(f"the debiased estimator needs at least 4 images; got {n}")
        sx, sy = self.sums
        own_x, own_y, own_both = self.own
        pairs = self.products.square().sum() - own_both
        totals = (sx @ sx - own_x) * (sy @ sy - own_y)
        rows = sx @ self.products @ sy - sx @ self.weighted[0] - self.weighted[1] @ sy + own_both
        return float((pairs + totals / ((n - 1) * (n - 2)) - 2 * rows / (n - 2)) / (n * (n - 3)))


def linear_cka(x: CrossMoments, y: CrossMoments, xy: CrossMoments, *, debiased: bool = False) -> float:
    """Linear CKA of two features, from the moments of each with itself and with the other; NaN where one is constant.

    >>> xx, yy, xy = CrossMoments(), CrossMoments(), CrossMoments()
    >>> x = torch.tensor([[0.0, 1.0], [1.0, 3.0], [2.0, 0.0]])
    >>> for moments, pair in ((xx, (x, x)), (yy, (2 * x, 2 * x)), (xy, (x, 2 * x))):
    ...     moments.update(*pair)
    >>> round(linear_cka(xx, yy, xy), 9)
    1.0

    ‖XᵀY‖² / (‖XᵀX‖·‖YᵀY‖), unchanged by rotations and a common scale of either (Kornblith et al. 2019, eq. 4). Of few
    images and many units it is far above 0 even for features that share nothing; `debiased` is not.
    """
    if x.is_constant or y.is_constant:
        return float("nan")
    parts = [m.debiased_hsic() if debiased else m.hsic() for m in (x, y, xy)]
    return parts[2] / (parts[0] * parts[1]) ** 0.5 if parts[0] > 0 and parts[1] > 0 else float("nan")


def _exact(x: Tensor) -> Tensor:
    # no float64 on Apple's GPUs
    return x.detach().to("cpu" if x.device.type == "mps" else x.device).double()
