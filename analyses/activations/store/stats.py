"""Means and covariances of activations, from a store where the analysis that runs was given one."""

from __future__ import annotations

from collections.abc import Sequence

from analyses.activations.store.serving import in_use
from analyses.data import ImageData
from hooked_vit import HookedViT
from interventions import Stats, collect_stats
from interventions.activation_stats import Moments
from interventions.vocabulary import site_hook, site_shape


def stats_over(
    model: HookedViT,
    data: ImageData,
    sites: Sequence[tuple[str, int, str]],
    *,
    covariance: bool = True,
    batch_size: int = 32,
) -> Stats:
    """`collect_stats` of sites in layers at roles; nothing runs where every token is stored there.

    >>> stats_over(model, photographs, [("resid_post", 8, "all")]).mean("resid_post", 8, "all")  # doctest: +SKIP

    Raises ValueError for a store of these images without that, and what `collect_stats` raises.
    """
    used = in_use()
    if used is None or (serving := used.serving(model, data)) is None:
        return collect_stats(model, data, sites, covariance=covariance, batch_size=batch_size)
    serving.note()
    found = {(site, layer): serving.whole(site_hook(model, site, layer)) for site, layer, _ in sites}
    moments = {key: Moments.none(site_shape(model, key[0]), covariance=covariance) for key in sites}
    for rows in serving.rows.split(batch_size):
        held = serving.store.read([name for name, _ in found.values()], rows)
        for (site, layer, role), gathered in moments.items():
            name, layout = found[site, layer]
            act = held[name].unflatten(-1, site_shape(model, site))
            gathered.add(act[layout.mask(role).expand(act.shape[:2])])
    return Stats(model.cfg.n_layers, {(site, layer, role): moments[site, layer, role] for site, layer, role in sites})
