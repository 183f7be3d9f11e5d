"""Means and covariances of activations, from a store where the analysis that runs was given one."""

from __future__ import annotations

from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor

from analyses.activations.store.serving import in_use
from analyses.data import ImageData
from analyses.data.batches import batch_sizes
from analyses.running.notes import progress_batches
from hooked_vit import HookedViT
from interventions import Stats, collect_stats
from interventions.activation_stats import Moments
from interventions.sources import mean_over_images, run_pixels
from interventions.sweep import depth_of
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


def means_over(
    model: HookedViT, data: ImageData, hooks: Sequence[str], *, batch_size: int, what: str
) -> dict[str, Float[Tensor, "1 t ..."]]:
    """What stands at hooks of blocks on average over images, at every token, by the name of the hook.

    >>> means_over(model, photographs, ["blocks.8.attn.hook_z"], batch_size=32, what="means")  # doctest: +SKIP

    Nothing runs where every token is stored there; the model runs no further than to the last of the layers.
    Raises ValueError for a store of these images without that, and for no images.
    """
    used = in_use()
    if used is None or (serving := used.serving(model, data)) is None:
        stop = max(depth_of(model, hook) for hook in hooks) + 1
        pixels = (model.preprocess(batch.images) for batch in progress_batches(data, batch_size, what))
        means = mean_over_images(run_pixels(model, x, hooks, stop_at_layer=stop) for x in pixels)
    else:
        serving.note()
        names = {hook: serving.whole(hook)[0] for hook in hooks}
        shapes = {hook: site_shape(model, hook.rpartition("hook_")[2]) for hook in hooks}
        batches = serving.rows.split(batch_sizes(len(serving.rows), batch_size))
        held = (serving.store.read(list(names.values()), rows) for rows in batches)
        means = mean_over_images(
            {hook: x[name].unflatten(-1, shapes[hook]) for hook, name in names.items()} for x in held
        )
    return {hook: means[hook].to(model.device, model.dtype) for hook in hooks}
