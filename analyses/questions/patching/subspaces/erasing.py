"""Projections that take a concept out of tokens, from what our own probes gathered: for `remove_subspace`."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float64
from torch import Tensor

from analyses.probes.class_moments import ClassMoments
from analyses.probes.ridge import RidgeProbe

SMALL = 1e-10  # of the largest eigenvalue: below it the data have no such direction


@dataclass(frozen=True, eq=False)
class Eraser:
    """x − `projection` (x − `mean`), and the dimensions that takes out."""

    projection: Float64[Tensor, "d d"]
    mean: Float64[Tensor, "d"]
    rank: int

    def __call__(self, x: Tensor) -> Tensor:
        """The vectors [.., d] without the concept."""
        return x - (x - self.mean.to(x)) @ self.projection.to(x).T


def leace(moments: ClassMoments) -> Eraser:
    """The least change, by mean squared distance, after which no linear map tells the classes better than a constant.

    >>> eraser = leace(ridge.moments("8"))  # of a GramRidge  # doctest: +SKIP
    >>> remove_subspace(8, "cls", eraser.projection, eraser.mean)  # doctest: +SKIP

    P = W⁺ U Uᵀ W with W the whitening and U a basis of the whitened class means. Belrose et al. 2023, theorem 4.3.
    Raises ValueError for features that do not differ between classes.
    """
    values, vectors = torch.linalg.eigh(moments.scatter)
    real = values > values[-1] * SMALL
    values, vectors = values[real], vectors[:, real]
    whiten = (vectors / values.sqrt()) @ vectors.T
    back = (vectors * values.sqrt()) @ vectors.T
    between, sizes, _ = torch.linalg.svd(whiten @ moments.class_sums.T, full_matrices=False)
    # sums over classes are those of centred features: one of them follows from the others
    found = between[:, sizes > max(float(sizes[0]) * 1e-6, 1e-12)] if len(sizes) else between
    if not found.shape[1]:
        raise ValueError("the classes have the same mean: there is nothing linear to erase")
    return Eraser(back @ found @ found.T @ whiten, moments.mean, found.shape[1])


def nullspace(probe: RidgeProbe) -> Eraser:
    """The orthogonal projection on what a probe's weights span; about 0, as in Ravfogel et al. 2020 (one step of INLP).

    >>> remove_subspace(8, "cls", nullspace(probes[8]).projection)  # doctest: +SKIP

    Raises ValueError for a probe whose weights are zero.
    """
    _, sizes, basis = torch.linalg.svd(probe.weight, full_matrices=False)
    basis = basis[sizes > float(sizes[0]) * 1e-6]
    if not len(basis) or not float(sizes[0]) > 0:
        raise ValueError("a probe without weights reads nothing: there is nothing to erase")
    return Eraser(basis.T @ basis, torch.zeros_like(basis[0]), len(basis))
