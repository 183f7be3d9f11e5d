"""One model under other CLS embeddings: what prototypes of each kind of token answer, group by group."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from analyses.controls.random_weights import with_random_weights
from analyses.data import ImageData
from analyses.data.contents import mark_of, pixel_digest
from analyses.probes.store import feature_store
from analyses.questions.signal.cls_parameter import initial_cls, learned_cls
from analyses.questions.signal.few_shot_transfer.episodes import deal, draw, of_groups
from analyses.running.notes import progress_batches
from analyses.statistics.comparisons import difference_of
from analyses.statistics.intervals import CHANGE, RATE, Interval, mean_interval, paired_difference
from hooked_vit import HookedViT
from interventions import Intervention, apply, swap_cls_parameter

LEARNED, NORMAL, ZEROS, MATCHED, UNTRAINED = "learned", "normal", "zeros", "matched", "random weights"
TARGET, SOURCE = "target", "source"
Values = Float[np.ndarray, "g"]


class Variant(NamedTuple):
    """A model to ask: with what in the place of its CLS embedding, and which draw of it."""

    name: str
    seed: int | None
    model: HookedViT
    intervention: Intervention | None = None


class Task(NamedTuple):
    """What an episode is: `ways` classes, of each `shots` images to show and `queries` to ask about."""

    ways: int
    shots: int
    queries: int
    episodes: int
    seed: int


class Measured(NamedTuple):
    """Of one domain the accuracy in every group by variant, seed and token, and which images there were."""

    values: dict[tuple[str, int | None, str], Values]
    n: int
    marks: frozenset[int]
    copies: int
    left_out: list[int]


def matched_cls(learned: Float[Tensor, "d"], drawn: Float[Tensor, "d"], seed: int) -> Float[Tensor, "d"]:
    """The learned embedding, moved as far as `drawn` lies from it, along a random direction.

    >>> learned, drawn = torch.ones(3), torch.zeros(3)
    >>> round(float((matched_cls(learned, drawn, seed=0) - learned).norm() - (drawn - learned).norm()), 5) == 0
    True
    """
    generator = torch.Generator("cpu").manual_seed(seed)
    way = torch.randn(len(learned), generator=generator, device="cpu").to(learned)
    return learned + way / way.norm() * (drawn - learned).norm()


def variants(model: HookedViT, seeds: int, seed: int) -> list[Variant]:
    """The model as it is, with other CLS embeddings at the same position, and with random weights.

    Raises ValueError where it has no CLS token.
    """
    learned = learned_cls(model)
    drawn = {s: initial_cls(learned, s) for s in range(seeds)}
    moved = {s: matched_cls(learned, vector, s + seeds) for s, vector in drawn.items()}
    return [
        Variant(LEARNED, None, model),
        *(Variant(NORMAL, s, model, swap_cls_parameter(vector)) for s, vector in drawn.items()),
        Variant(ZEROS, None, model, swap_cls_parameter(torch.zeros_like(learned))),
        *(Variant(MATCHED, s, model, swap_cls_parameter(vector)) for s, vector in moved.items()),
        Variant(UNTRAINED, None, with_random_weights(model, seed)),
    ]


@torch.no_grad()
def read_tokens(variant: Variant, pixels: Float[Tensor, "b c h w"]) -> dict[str, Float[Tensor, "b d"]]:
    """The mean token of every role behind the last block and the final norm, as the readout would have it."""
    model = variant.model
    with nullcontext() if variant.intervention is None else apply(model, variant.intervention):
        resid = model(pixels, stop_at_layer=model.cfg.n_layers)
    layout, pooled = model.layout_for(*pixels.shape[2:]), model.cfg.final_norm == "pooled"
    x = resid if pooled else model.ln_final.applied(resid)
    means = {role: x[:, layout.where(role)].mean(1) for role in layout.roles}
    return {role: model.ln_final.applied(mean) for role, mean in means.items()} if pooled else means


def measure(name: str, all_variants: list[Variant], data: ImageData, task: Task, batch_size: int) -> Measured:
    """Read every image once under every variant, then draw the episodes: the same for all variants.

    Images with the pixels of one before them are left out, so that no query is among those that are shown. Raises what
    `deal` raises.
    """
    model = all_variants[0].model
    sites = {f"{i} {role}": model.cfg.d_model for i in range(len(all_variants)) for role in model.tokens.roles}
    labels: list[Int64[Tensor, "b"]] = []
    marks: list[int] = []
    with feature_store(sites, len(data)) as store:
        for batch in progress_batches(data, batch_size, f"{name}: tokens under {len(all_variants)} embeddings"):
            pixels = model.preprocess(batch.images)
            read = [read_tokens(variant, pixels) for variant in all_variants]
            store.add({f"{i} {role}": x for i, found in enumerate(read) for role, x in found.items()})
            labels.append(batch.labels)
            marks += [mark_of(pixel_digest(image)) for image in batch.images]
        kept = np.sort(np.unique(np.array(marks, np.uint64), return_index=True)[1])
        dealt = deal(torch.cat(labels)[kept], task.ways, task.shots + task.queries, task.seed)
        drawn = [draw(group, number, **task._asdict()) for number, group in enumerate(dealt.groups)]
        values = {
            (v.name, v.seed, role): of_groups(store.rows(f"{i} {role}", kept), drawn)
            for i, v in enumerate(all_variants)
            for role in model.tokens.roles
        }
    return Measured(values, len(kept), frozenset(marks), len(marks) - len(kept), dealt.left_out)


def rows_of(domain: str, found: Measured) -> Iterator[dict[str, Any]]:
    """Accuracy of every variant, and paired over groups what each gains on the learned embedding.

    Gains of drawn embeddings are means over their draws; so are those over the matched ones.
    """
    for (variant, seed, token), values in found.values.items():
        interval = mean_interval(values, bounds=RATE)
        yield row(domain, "accuracy", token, variant, seed, interval, found.n, len(values))
    for token in dict.fromkeys(token for _, _, token in found.values):
        for variant in (NORMAL, ZEROS, MATCHED):
            gain = gain_of(found, variant, token)
            yield row(domain, "gain", token, variant, None, gain, found.n, groups_of(found))
        beyond = paired_difference(over_draws(found, NORMAL, token), over_draws(found, MATCHED, token), bounds=CHANGE)
        yield row(domain, "gain_over_matched", token, NORMAL, None, beyond, found.n, groups_of(found))


def differences(found: Mapping[str, Measured]) -> Iterator[dict[str, Any]]:
    """Gain on the target domain minus gain on the source domain, whose images are others."""
    target, source = found[TARGET], found[SOURCE]
    for token in dict.fromkeys(token for _, _, token in target.values):
        for variant in (NORMAL, ZEROS, MATCHED):
            apart = difference_of(gain_of(target, variant, token), gain_of(source, variant, token))
            n_groups = min(groups_of(target), groups_of(source))
            yield row(TARGET, "gain_beyond_source", token, variant, None, apart, target.n + source.n, n_groups)


def over_draws(found: Measured, variant: str, token: str) -> Values:
    """The accuracy of every group, the mean over the draws of a variant."""
    return np.mean([x for (name, _, of), x in found.values.items() if (name, of) == (variant, token)], axis=0)


def gain_of(found: Measured, variant: str, token: str) -> Interval:
    """What a variant gains on the learned embedding, paired over groups."""
    return paired_difference(over_draws(found, variant, token), over_draws(found, LEARNED, token), bounds=CHANGE)


def groups_of(found: Measured) -> int:
    """How many groups there are."""
    return len(next(iter(found.values.values())))


def row(
    domain: str, measure: str, token: str | None, variant: str | None, seed: int | None, interval: Interval,
    n: int, n_groups: int,
) -> dict[str, Any]:  # fmt: skip
    """A row of the frame, without the name of its model."""
    numbers = {"value": interval.estimate, "low": interval.low, "high": interval.high, "n": n, "n_groups": n_groups}
    return {"domain": domain, "measure": measure, "token": token, "variant": variant, "seed": seed, **numbers}
