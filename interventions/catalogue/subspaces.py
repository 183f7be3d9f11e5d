"""Editing what tokens have in a subspace: putting another run's there, or taking it out."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from hooked_vit import HookedViT
from hooked_vit.tokens import Tokens
from interventions.core import Hooks, intervention
from interventions.editing import Value, edit_site, given
from interventions.sources import from_cache, source_value
from interventions.vocabulary import STREAM, Where, check_tokens, check_width, layer_of, site_hook


def orthonormal(model: HookedViT, rows: Float[Tensor, "*k d"], *, least: int = 1) -> Float[Tensor, "r d"]:
    """An orthonormal basis [r, d] of the span of some directions, in float64 on the CPU; gradients reach them.

    Raises ValueError for another width, for directions that span nothing and, with a gradient, dependent ones.
    """
    rows = rows.reshape(1, -1) if rows.ndim == 1 else rows
    d = model.cfg.d_model
    if rows.ndim != 2 or rows.shape[1] != d or not rows.isfinite().all():
        raise ValueError(f"directions are [{d}] or [k, {d}]; got {tuple(rows.shape)}")
    wide = rows.double().cpu()
    _, sizes, basis = torch.linalg.svd(wide.detach(), full_matrices=False)
    basis = basis[sizes > sizes.max() * 1e-6]
    if len(basis) < least:
        raise ValueError(f"directions span {len(basis)} of {d} dimensions: nothing to edit")
    if not rows.requires_grad:
        return basis
    if len(basis) < len(rows):
        raise ValueError(f"directions that are learned are independent; these {len(rows)} span {len(basis)} dimensions")
    return torch.linalg.qr(wide.T)[0].T


def _cached(**params: Any) -> dict[str, Any]:
    """A cache given as the value becomes what it holds of the site, so that the intervention can be stored."""
    return params | {"value": from_cache(params["value"], params["site"], params["layer"], params["tokens"])}


@intervention(canonical=_cached, idempotent=True)
def patch_subspace(
    model: HookedViT,
    layer: int,
    tokens: Tokens,
    basis: Float[Tensor, "*k d"],
    value: Tensor,
    site: str = "resid_post",
    where: Where = True,
) -> Hooks:
    """Give tokens what another run has in the span of some directions, after block `layer` or at another site of it.

    >>> patch_subspace(layer=8, tokens="cls", basis=basis_of(result, 4), value=other_images)  # doctest: +SKIP

    `basis` is [d] or [k, d], neither orthogonal nor of length 1 by need; what lies across it stays. `value` is as in
    `patch_tokens`. A basis of everything is `patch_tokens`. Geiger et al. 2024 (interchange in a learned subspace).
    Raises ValueError for another width, and for directions that span nothing.
    """
    layer = layer_of(model, layer)
    site_hook(model, site, layer, STREAM)
    check_tokens(model, tokens)
    axes = orthonormal(model, basis)

    def patched(act: Tensor) -> Tensor:
        mine = axes.to(act)
        return act + (place(act) - act) @ mine.T @ mine

    # made before the source is, so that a mistake in the rest is found before pixels are run
    hooks = edit_site(model, site, layer, patched, tokens=tokens, where=where, sites=STREAM)
    place: Value = given(model, site, source_value(model, value, site, layer, tokens), tokens)
    return hooks


@intervention(idempotent=True)
def remove_subspace(
    model: HookedViT,
    layer: int,
    tokens: Tokens,
    projection: Float[Tensor, "d d"],
    mean: Float[Tensor, "d"] | None = None,
    site: str = "resid_post",
    where: Where = True,
) -> Hooks:
    """Take out of tokens what a projection finds of their distance from a mean: x − P (x − mean).

    >>> eraser = leace(ridge.moments("8"))  # of our own probes  # doctest: +SKIP
    >>> remove_subspace(layer=8, tokens="cls", projection=eraser.projection, mean=eraser.mean)  # doctest: +SKIP

    `projection` [d, d] acts on columns and may be oblique, as LEACE's is (Belrose et al. 2023); without `mean` that
    is zero. With an orthogonal one and no mean it is `project_out`.
    Raises ValueError for another width, a matrix that is no projection (P P ≠ P), and for nothing or everything.
    """
    d = model.cfg.d_model
    if projection.shape != (d, d) or not projection.isfinite().all():
        raise ValueError(f"a projection is [{d}, {d}]; got {tuple(projection.shape)}")
    wide = projection.detach().double().cpu()
    slack = 1e-4 * max(1.0, float(wide.abs().max()))
    if (wide @ wide - wide).abs().max() > slack:
        raise ValueError("this matrix is no projection: applied twice it does something else than once")
    if not 0 < round(float(wide.trace())) < d:
        raise ValueError(
            f"the projection removes {round(float(wide.trace()))} of {d} dimensions: nothing to do or keep"
        )
    if mean is not None:
        check_width(model, mean)
        if mean.ndim != 1:
            raise ValueError(f"the mean of a projection is [{d}]; got {tuple(mean.shape)}")

    def without(act: Tensor) -> Tensor:
        centred = act if mean is None else act - mean.to(act)
        return act - centred @ projection.to(act).T

    return edit_site(model, site, layer, without, tokens=tokens, where=where, sites=STREAM)
