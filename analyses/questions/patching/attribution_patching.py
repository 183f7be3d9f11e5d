"""What would patching each activation do? An estimate for all of them from one backward pass.

To first order the effect of a patch is (donor − base) · gradient of the metric, with the gradient taken in the run that
is patched: Nanda 2023 (attribution patching), Syed et al. 2023. Where the network is curved between the two runs, an
average of gradients along the way is better: integrated gradients (Sundararajan et al. 2017; Hanna et al. 2024 along
the embedding). Some patches are also made in earnest, so that the estimate comes with its correlation to them.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from analyses.activations.token_groups import token_masks
from analyses.questions.patching.figures import patching_map
from analyses.questions.patching.pair_tally import Tally, dropped_notes
from analyses.questions.patching.patch_sites import INNER, STREAM, Patch, axes, list_patches, pair_pixels
from analyses.questions.patching.patched_runs import patched_runs, refuse_hooks
from analyses.questions.patching.patching_metrics import (
    EPS,
    Metric,
    MetricLike,
    Reference,
    as_metric,
    check_answers,
    check_classes,
    reference,
)
from analyses.running.registry import analysis
from analyses.running.results import Result
from hooked_vit import HookedViT
from hooked_vit.config.showing import counted
from hooked_vit.loading.progress import tqdm
from interventions import Intervention, resolve

ALONG = ("embedding", "site")
Place = tuple[str, int]
POOR = 0.8


@analysis(figure=patching_map)
def attribution_patching(
    model: HookedViT, clean: Float[Tensor, "b c h w"] | Sequence[Any],
    corrupt: Float[Tensor, "_ _ _ _"] | Sequence[Any], *,
    sites: str | Sequence[str] = ("resid_post",), layers: int | Sequence[int] | None = None, tokens: Any = "each",
    heads: Any = None, direction: str = "denoise", metric: MetricLike = "recovery",
    classes: tuple[Int[Tensor, "_"], Int[Tensor, "_"]] | None = None, steps: int = 0, along: str = "embedding",
    check: int = 64, eps: float = EPS, seed: int = 0, under: Intervention | None = None, batch_size: int = 32,
) -> Result:  # fmt: skip
    """What would patching each of these activations do, to first order?

    >>> result = attribution_patching(model, clean, corrupt)  # every layer and token  # doctest: +SKIP
    >>> result.meta["agreement"]  # with exact patching, on 64 cells drawn at random  # doctest: +SKIP
    {'pearson': 0.93, 'spearman': 0.90, 'n_cells': 64}

    Arguments and the frame are those of `activation_patching`: `value` is the estimate of what it would report, and
    `exact`, for `check` cells, what it does report (NaN for the others). The metric must have a gradient.

    A saturated model has small gradients where a patch would change a lot, so look at the agreement; with `steps` above
    0 gradients are averaged over as many midpoints between the two runs: `along="embedding"` moves
    the stream in front of block 0 and serves all sites at once, `along="site"` moves each site of each layer by
    itself, so that the estimates of all tokens at one depth of the stream add up to the whole difference.
    Raises ValueError for a metric without a gradient, and what `activation_patching` raises.
    """
    clean, corrupt = pair_pixels(model, clean, corrupt)
    check_answers(model, [as_metric(metric)])
    check_classes(classes, len(clean))
    refuse_hooks(model)
    judged = as_metric(metric)
    _check_options(judged, direction, along, steps)
    groups = token_masks(model.layout_for(*clean.shape[2:]), len(clean), tokens)
    patches = list_patches(model, sites, layers, groups, heads)
    sample = _sample(patches, check, seed)
    estimates, exact = Tally([judged], eps), Tally([judged], eps)
    ways = ["denoise", "noise"] if direction == "both" else [direction]
    for way in ways:
        base, donor = (corrupt, clean) if way == "denoise" else (clean, corrupt)
        starts = range(0, len(base), batch_size)
        for images in tqdm(
            [slice(i, i + batch_size) for i in starts], desc=f"attribution, {way}", delay=2, leave=False
        ):
            part = None if classes is None else (classes[0][images], classes[1][images])
            with _running_under(model, patches, under):
                effects, ref = _effects(model, base[images], donor[images], patches, judged, (way, part), steps, along)
            start, end = judged(ref.base, ref), judged(ref.donor, ref)
            for patch in patches:
                effect = _in_group(effects[patch.site, patch.layer], groups[patch.group][images], patch.heads)
                gap = torch.where((end - start).abs() < eps, torch.nan, end - start)
                estimates.add_values((way, patch), judged, effect / gap if judged.normalised else start + effect, ref)
        for run in patched_runs(model, base, donor, sample, groups, under=under, desc=f"exact patches, {way}"):
            part = None if classes is None else (classes[0][run.images], classes[1][run.images])
            exact.add((way, run.patch), run.logits, reference(way, run.base, run.donor, part))
    known = {key: row["value"] for key, row in exact.rows()}
    rows = [
        {
            **{"site": patch.site, "layer": patch.layer, "group": patch.group, "head": patch.head, "direction": way},
            **measured,
            "exact": known.get((way, patch), np.nan),
        }
        for (way, patch), measured in estimates.rows()
    ]
    frame = pd.DataFrame(rows).astype({"head": "Int64"})
    agreed = agreement(frame)
    meta = {
        "model": model.cfg.name or model.cfg.architecture,
        "n_pairs": len(clean),
        "method": f"integrated gradients along the {along}, {counted(steps, 'step')}" if steps else "first order",
        "agreement": agreed,
        "classes": "the model's predictions" if classes is None else "given",
        "eps": eps,
        "seed": seed,
        "notes": [*dropped_notes(frame), *_distrust(agreed, steps)],
    }
    return Result(frame, meta)


def agreement(frame: pd.DataFrame) -> dict[str, float | int]:
    """Pearson's and Spearman's correlation between estimated and exact effects, over the cells that have both.

    >>> agreement(pd.DataFrame({"value": [0.1, 0.2, 0.9], "exact": [0.0, 0.3, 0.5]}))["spearman"]
    1.0
    """
    both = frame[["value", "exact"]].dropna()
    # a constant column has no correlation
    varied = len(both) > 1 and bool((both.max() > both.min()).all())
    found = {kind: float(both.corr(method=kind).iloc[0, 1]) if varied else np.nan for kind in ("pearson", "spearman")}
    return {**found, "mean_error": float((both.value - both.exact).abs().mean()), "n_cells": len(both)}


def _distrust(agreed: dict[str, float | int], steps: int) -> list[str]:
    """A sentence where the estimate does not even order the patches as they are."""
    if not agreed["spearman"] < POOR:
        return []
    advice = "more steps may help" if steps else "steps=8 averages gradients between the two runs"
    return [f"the estimate agrees poorly with exact patches (rank correlation {agreed['spearman']:.2f}): {advice}."]


def _check_options(metric: Metric, direction: str, along: str, steps: int) -> None:
    if not metric.smooth:
        raise ValueError(
            f"attribution needs a metric with a gradient, and {metric.name} has none; use activation_patching"
        )
    if direction not in ("denoise", "noise", "both"):
        raise ValueError(f"direction is denoise, noise, both; got {direction!r}")
    if along not in ALONG:
        raise ValueError(f"gradients are averaged along {' or '.join(ALONG)}; got {along!r}")
    if steps < 0:
        raise ValueError(f"steps are 0 (first order) or more; got {steps}")


def _sample(patches: list[Patch], n: int, seed: int) -> list[Patch]:
    """`n` patches drawn at random, all of them where there are fewer."""
    chosen = np.random.default_rng(seed).permutation(len(patches))[: max(0, n)]
    return [patches[i] for i in sorted(chosen)]


def _effects(
    model: HookedViT,
    base: Tensor,
    donor: Tensor,
    patches: list[Patch],
    metric: Metric,
    asked: tuple[str, tuple[Tensor, Tensor] | None],
    steps: int,
    along: str,
) -> tuple[dict[Place, Tensor], Reference]:
    """(donor − base) · gradient at every place: [b t], or [b t h] where there are heads."""
    places = sorted({(patch.site, patch.layer) for patch in patches})
    with torch.no_grad():
        h0, donor_h0 = (_embed(model, pixels) for pixels in (base, donor))
        base_logits, base_acts = _activations(model, base, h0, places)
        donor_logits, donor_acts = _activations(model, donor, donor_h0, places)
    ref = reference(asked[0], base_logits, donor_logits, asked[1])
    if steps and along == "site":
        ends = base_acts, donor_acts
        gradients = {place: _along_site(model, base, place, ends, h0, metric, ref, steps) for place in places}
    else:
        gradients = _along_embedding(model, base, places, h0, donor_h0, metric, ref, steps)
    products = {place: (donor_acts[place] - base_acts[place]) * gradients[place] for place in places}
    return {place: _reduced(place[0], product) for place, product in products.items()}, ref


def _along_embedding(
    model: HookedViT,
    pixels: Tensor,
    places: list[Place],
    h0: Tensor,
    donor_h0: Tensor,
    metric: Metric,
    ref: Reference,
    steps: int,
) -> dict[Place, Tensor]:
    """Gradients at all places from one backward pass per step; without steps, those of the base run."""
    total: dict[Place, Tensor] = defaultdict(lambda: torch.zeros(()))
    shares = [(i + 0.5) / steps for i in range(steps)] or [0.0]
    for alpha in shares:
        start = (h0 + alpha * (donor_h0 - h0)).requires_grad_()
        with torch.enable_grad():
            logits, acts = _activations(model, pixels, start, places)
            gradients = torch.autograd.grad(metric(logits, ref).sum(), list(acts.values()), allow_unused=True)
        for place, act, gradient in zip(acts, acts.values(), gradients, strict=True):
            # an activation nothing reads, such as patches behind the last block of a CLS readout
            total[place] = total[place] + (torch.zeros_like(act) if gradient is None else gradient) / len(shares)
    return total


def _along_site(
    model: HookedViT,
    pixels: Tensor,
    place: Place,
    ends: tuple[dict[Place, Tensor], dict[Place, Tensor]],
    h0: Tensor,
    metric: Metric,
    ref: Reference,
    steps: int,
) -> Tensor:
    """The gradient at one place, averaged while all of its tokens move from base to donor together."""
    name, total = hook_name(model, place), torch.zeros(())
    for i in range(steps):
        act = torch.lerp(ends[0][place], ends[1][place], (i + 0.5) / steps).requires_grad_()
        with torch.enable_grad(), model.hooks(fwd_hooks=[(name, lambda _, hook, act=act: act)]):
            logits = model(h0, start_at_layer=0, tokens=model.layout_for(*pixels.shape[2:]))
            gradient = torch.autograd.grad(metric(logits, ref).sum(), act, allow_unused=True)[0]
        total = total + (torch.zeros_like(act) if gradient is None else gradient) / steps
    return total


def _embed(model: HookedViT, pixels: Tensor) -> Tensor:
    with model.running(model.layout_for(*pixels.shape[2:])):
        return model.embed_pixels(pixels)


def _activations(
    model: HookedViT, pixels: Tensor, h0: Tensor, places: list[Place]
) -> tuple[Tensor, dict[Place, Tensor]]:
    """Logits and activations of a run from a stream in front of block 0."""
    seen: dict[Place, Tensor] = {}

    def keep(place: Place) -> Any:
        def hook_fn(act: Tensor, hook: object) -> None:
            seen[place] = act

        return hook_fn

    hooks = [(hook_name(model, place), keep(place)) for place in places]
    with model.hooks(fwd_hooks=hooks):
        logits = model(h0, start_at_layer=0, tokens=model.layout_for(*pixels.shape[2:]))
    return logits, seen


def hook_name(model: HookedViT, place: Place) -> str:
    """The hook point of a site at a layer; of the stream at a depth, the one in front of the block there."""
    site, layer = place
    if site in INNER:
        return f"blocks.{layer}.{INNER[site][0]}"
    depth = layer + STREAM[site]
    last = model.cfg.n_layers
    return f"blocks.{last - 1}.hook_resid_post" if depth == last else f"blocks.{depth}.hook_resid_pre"


@contextmanager
def _running_under(model: HookedViT, patches: Sequence[Patch], under: Intervention | None) -> Iterator[None]:
    """The kernel and the intervention that exact patching would run with."""
    before = model.run.attention
    if before == "auto" and any(axes(patch.site) == "scores" for patch in patches):
        model.set_attention("eager")
    try:
        with model.hooks(fwd_hooks=resolve(model, under) if under is not None else []):
            yield
    finally:
        model.set_attention(before)


def _reduced(site: str, products: Tensor) -> Tensor:
    """Summed over everything but pairs, tokens and heads."""
    products = products.detach().double()
    return products.sum(-1).transpose(1, 2) if axes(site) == "scores" else products.sum(-1)


def _in_group(effect: Tensor, mask: Tensor, heads: tuple[int, ...] | None) -> Float[Tensor, "b"]:
    """The effects of a token group added up."""
    if effect.ndim == 3:
        effect = effect[..., list(heads) if heads is not None else slice(None)].sum(-1)
    return (effect * mask.to(effect.device)).sum(1)
