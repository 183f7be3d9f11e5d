"""Which activations carry what differs between two images? Activation patching, one run's activations in another.

*Denoise*: the corrupt run gets activations of the clean one; what brings the answer back is enough for it. *Noise*: the
clean run gets activations of the corrupt one; what takes the answer away is needed for it. methods section 24;
Heimersheim & Nanda 2024 on how the two differ.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from analyses.activations.token_groups import token_masks
from analyses.questions.patching.figures import patching_map
from analyses.questions.patching.pair_tally import Tally, dropped_notes
from analyses.questions.patching.patch_sites import list_patches, pair_pixels
from analyses.questions.patching.patched_runs import patched_runs
from analyses.questions.patching.patching_metrics import (
    EPS,
    MetricLike,
    as_metrics,
    check_answers,
    check_classes,
    reference,
)
from analyses.running.registry import analysis
from analyses.running.results import Result
from hooked_vit import HookedViT
from interventions import Intervention
from interventions.sweep import FOLD_TOKENS

DIRECTIONS = ("denoise", "noise", "both")


@analysis(figure=patching_map)
@torch.no_grad()
def activation_patching(
    model: HookedViT, clean: Float[Tensor, "b c h w"] | Sequence[Any],
    corrupt: Float[Tensor, "_ _ _ _"] | Sequence[Any], *,
    sites: str | Sequence[str] = ("resid_post",), layers: int | Sequence[int] | None = None, tokens: Any = None,
    heads: Any = None, direction: str = "denoise", cumulative: bool = False,
    metric: MetricLike | Sequence[MetricLike] = "recovery",
    classes: tuple[Int[Tensor, "_"], Int[Tensor, "_"]] | None = None, eps: float = EPS, seed: int = 0,
    under: Intervention | None = None, fold_tokens: int = FOLD_TOKENS, memory_budget: int = 2 * 2**30,
) -> Result:  # fmt: skip
    """How much of the difference between two images does each activation carry?

    >>> result = activation_patching(model, clean, corrupt, tokens=["cls", "patches"])  # doctest: +SKIP
    >>> result.frame.pivot(index="layer", columns="group", values="value")  # doctest: +SKIP
    >>> activation_patching(model, clean, corrupt, sites="z", heads="each", tokens="all")  # doctest: +SKIP

    `clean` and `corrupt` are pixels or images, one pair per row. Sites are "resid" (the stream at depth 0, behind the
    embedding, to n_layers, behind the last block), "resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out",
    "mlp_post" (neurons), "z", "q", "k", "v", "attn_scores", "pattern" (tokens are the queries' there). `tokens` as in
    `token_masks`: roles, indices, "each", masks of one's own per image, or names for several of them. `heads`: None for
    all together, "each", or numbers. With `cumulative` a patch acts at its layer and at all before it.

    Metrics: "recovery" (of the logit difference, (P − base) / (donor − base): 0 as unpatched, 1 as the donor, in either
    direction), "logit_diff", "flip_rate" (the prediction is the donor's class), "expected_value" (classes are numbers),
    "kl" (from the donor's output), a function (logits, `Reference`) -> [b], or `recovery(any of these)`. `classes` are
    the two the logit difference is between; by default what the model predicts for either image.

    One row per site, layer, group, head, direction and metric, with columns as `Tally.rows` explains. Pairs whose
    denominator is below `eps` are left out of a recovery and counted in `n_dropped`: with a constant metric all are,
    and the value is NaN. Raises ValueError for pairs of different shape, and for sites, layers, tokens or heads there
    are not; RuntimeError where hooks are attached (use `under`).
    """
    clean, corrupt = pair_pixels(model, clean, corrupt)
    check_answers(model, as_metrics(metric))
    check_classes(classes, len(clean))
    directions = [direction] if direction in ("denoise", "noise") else ["denoise", "noise"]
    if direction not in DIRECTIONS:
        raise ValueError(f"direction is {', '.join(DIRECTIONS)}; got {direction!r}")
    layout = model.layout_for(*clean.shape[2:])
    groups = token_masks(layout, len(clean), tokens)
    patches = list_patches(model, sites, layers, groups, heads)
    tally = Tally(as_metrics(metric), eps)
    for way in directions:
        base, donor = (corrupt, clean) if way == "denoise" else (clean, corrupt)
        runs = patched_runs(
            model,
            base,
            donor,
            patches,
            groups,
            cumulative=cumulative,
            under=under,
            fold_tokens=fold_tokens,
            memory_budget=memory_budget,
            desc=f"patching, {way}",
        )
        for run in runs:
            part = None if classes is None else (classes[0][run.images], classes[1][run.images])
            tally.add((way, run.patch), run.logits, reference(way, run.base, run.donor, part))
    empty = {name: int((~mask.any(1)).sum()) for name, mask in groups.items()}
    rows = [
        {
            "site": patch.site,
            "layer": patch.layer,
            "group": patch.group,
            "head": patch.head,
            "direction": way,
            "cumulative": cumulative,
            **measured,
            "n_empty": empty[patch.group],
        }
        for (way, patch), measured in tally.rows()
    ]
    frame = pd.DataFrame(rows).astype({"head": "Int64"})
    meta = {
        "model": model.cfg.name or model.cfg.architecture,
        "readout": list(model.cfg.sources),
        "n_pairs": len(clean),
        "sites": [sites] if isinstance(sites, str) else list(sites),
        "groups": {name: float(mask.sum(1).float().mean()) for name, mask in groups.items()},
        "heads": heads if heads is None or isinstance(heads, (str, int)) else list(heads),
        "metrics": [m.name for m in tally.metrics],
        "classes": "the model's predictions" if classes is None else "given",
        "eps": eps,
        "seed": seed,
        "under": None if under is None else under.to_dict(),
    }
    meta["notes"] = dropped_notes(frame)
    return Result(frame, meta)
