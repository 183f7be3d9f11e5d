"""Ridge regression of several numbers per image on features at many sites, from one pass over the data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Float64
from numpy.typing import NDArray
from torch import Tensor

from analyses.questions.signal.similarity import CrossMoments
from analyses.statistics.comparisons import ratio_interval

PENALTIES = tuple(10.0**k for k in range(-10, 3))
"""Tried by default, in units of the features' mean variance per direction: the same for features of any scale."""


@dataclass(frozen=True, eq=False)
class LinearMap:
    """A fitted regression: row k of `weight` predicts target k. `penalties` are the absolute ones chosen."""

    weight: Float64[Tensor, "k d"]
    bias: Float64[Tensor, "k"]
    penalties: Float64[Tensor, "k"]
    n: int

    def predict(self, x: Float[Tensor, "b d"]) -> Float64[Tensor, "b k"]:
        """One number per target, in its unit."""
        return x.to(self.weight) @ self.weight.T + self.bias


class GramRegression:
    """Gathers what ridge regressions of the same targets need, for any number of sites at once.

    >>> fit = GramRegression()
    >>> x = torch.tensor([[0.0], [1.0], [2.0], [3.0]])
    >>> fit.update({"site": x}, 2 * x + 1)
    >>> fit.fit()["site"].predict(torch.tensor([[10.0]])).round(decimals=3).tolist()
    [[21.0]]

    A site holds d² + k·d numbers of 8 bytes. Every update brings all sites.
    """

    def __init__(self) -> None:
        self._features: dict[str, CrossMoments] = {}
        self._joint: dict[str, CrossMoments] = {}
        self._squares: Float64[Tensor, "k"] | None = None
        self._first: Float64[Tensor, "k"] | None = None

    def update(self, features: Mapping[str, Float[Tensor, "b _"]], targets: Float[Tensor, "b k"]) -> None:
        """Take in a batch: `features[site]` is [b, d], `targets` [b, k].

        Raises ValueError for sites other than before, and for what `CrossMoments.update` refuses.
        """
        if self._features and self._features.keys() != features.keys():
            raise ValueError(
                f"every update brings the sites of the first, {list(self._features)}; got {list(features)}"
            )
        if not len(targets):
            return
        exact = targets.double()
        if self._first is None or self._squares is None:
            self._first = exact.mean(0)
            self._squares = torch.zeros_like(self._first)
        for site, x in features.items():
            self._features.setdefault(site, CrossMoments()).update(x, x)
            self._joint.setdefault(site, CrossMoments()).update(x, exact.to(x.device))
        self._squares = self._squares + (exact - self._first).square().sum(0)

    def fresh(self) -> GramRegression:
        """One that has seen no image."""
        return GramRegression()

    def merge(self, other: GramRegression) -> GramRegression:
        """What one would hold that had seen the images of both; neither is changed."""
        if self._first is None or other._first is None:
            return deepcopy(other if self._first is None else self)
        merged = GramRegression()
        for name in ("_features", "_joint"):
            mine, theirs = getattr(self, name), getattr(other, name)
            setattr(merged, name, {site: mine[site].merge(theirs[site]) for site in mine})
        joint = next(iter(other._joint.values()))
        step = other._first - self._first
        targets = joint.n * (joint.means[1].to(step) - other._first)  # summed about the other's first mean
        merged._first = self._first
        assert self._squares is not None
        assert other._squares is not None
        merged._squares = self._squares + other._squares + 2 * step * targets + joint.n * step.square()
        return merged

    def fit(self, penalties: float | Sequence[float] = PENALTIES) -> dict[str, LinearMap]:
        """One map per site; of several penalties, for each target the one with the least generalised cross-validation.

        Minimises ‖Xw + b − y‖² + α‖w‖², the intercept not penalised; α is a penalty times the mean eigenvalue of the
        scatter XᵀX, so that sites of any scale are treated alike. Golub, Heath & Wahba 1979, as in `GramRidge`.
        Raises ValueError before any images and for a penalty not above 0.
        """
        grid = torch.tensor(
            [penalties] if isinstance(penalties, (int, float)) else list(penalties), dtype=torch.float64
        )
        if grid.numel() == 0 or not bool((torch.isfinite(grid) & (grid > 0)).all()):
            raise ValueError(f"a ridge penalty is a number above 0; got {grid.tolist()}")
        if self._squares is None or self._first is None:
            raise ValueError("a regression needs images; none were given to update()")
        first, squares = self._first, self._squares
        return {site: self._fit_one(site, grid, first, squares) for site in self._features}

    def _fit_one(
        self, site: str, grid: Float64[Tensor, "a"], first: Float64[Tensor, "k"], squares: Float64[Tensor, "k"]
    ) -> LinearMap:
        own, joint = self._features[site], self._joint[site]
        mean, target_mean = joint.means
        n, products = joint.n, joint.scatter
        if own.is_constant:
            return LinearMap(torch.zeros_like(products.T), target_mean, torch.zeros_like(target_mean), n)
        values, vectors = torch.linalg.eigh(own.scatter)
        # directions the data does not have come out as rounding noise
        real = values > values[-1] * max(n, len(values)) * torch.finfo(torch.float64).eps
        values, vectors = values[real], vectors[:, real]
        alphas = grid.to(values) * values.sum() / own.scatter.shape[0]
        projected = vectors.T @ products
        explained = projected.square() / values[:, None]
        total = squares.to(values) - n * (target_mean - first.to(values)).square()
        spare = n - 1 - len(values)
        left_over = (total - explained.sum(0)).clamp(min=0) if spare > 0 else torch.zeros_like(total)
        shrunk = alphas[:, None] / (values + alphas[:, None])
        criterion = (left_over + shrunk.square() @ explained) / (max(spare, 0) + shrunk.sum(1)).square()[:, None]
        chosen = alphas[criterion.argmin(0)]
        weight = (vectors @ (projected / (values[:, None] + chosen))).T.contiguous()
        return LinearMap(weight, target_mean - weight @ mean, chosen, n)


class Explained(NamedTuple):
    """Share of the variance explained, with its 95 % interval over images; NaN where the target is constant."""

    value: NDArray[np.float64]
    low: NDArray[np.float64]
    high: NDArray[np.float64]


def r_squared(errors: NDArray[np.float64], targets: NDArray[np.float64]) -> Explained:
    """R² of each of k columns, from squared errors [n, k] of images a map was not fitted on, and targets [n, k].

    >>> y = np.array([[0.0], [1.0], [2.0]])
    >>> r_squared((y - 1) ** 2, y).value.tolist()
    [0.0]

    1 − Σ error² / Σ (target − mean)², the mean being that of these images, so that it can be below 0. The interval is
    that of a ratio (`ratio_interval`).
    """
    spread = (targets - targets.mean(0)) ** 2
    found = np.array([ratio_interval(a, b)[:3] for a, b in zip(errors.T, spread.T, strict=True)]).T
    return Explained(1 - found[0], 1 - found[2], 1 - found[1])


def r_squared_gain(errors: NDArray[np.float64], others: NDArray[np.float64], targets: NDArray[np.float64]) -> Explained:
    """By how much R² of the maps with `errors` [n, k] exceeds that of the maps with errors `others`, averaged over k.

    >>> y = np.array([[0.0], [1.0], [2.0]])
    >>> float(r_squared_gain(0 * y, (y - 1) ** 2, y).value)
    1.0

    The interval is paired, as both maps are of the same images: that of a ratio, every column by its own variance.
    """
    spread = (targets - targets.mean(0)) ** 2
    with np.errstate(invalid="ignore", divide="ignore"):
        scale = np.where(spread.any(0), spread.mean(0), np.nan)
        value, low, high, _ = ratio_interval(*(np.nan_to_num((x / scale).mean(1)) for x in (others - errors, spread)))
    return Explained(*(np.asarray(x if np.isfinite(scale).all() else np.nan) for x in (value, low, high)))
