"""Readouts in closed form: a ridge probe on what a block answers for a token that was chosen, not learned."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from analyses.probes.ridge import GramRidge, RidgeProbe
from analyses.questions.cls_use.random_readouts.frozen import FrozenBlock
from analyses.questions.cls_use.random_readouts.looked import LookedStream
from analyses.questions.cls_use.random_readouts.streams import Stream
from analyses.questions.cls_use.random_readouts.tokens import BATCH, Arm, ClsDistribution, Placed
from analyses.statistics.ranks import correct, rank
from hooked_vit import HookedViT
from hooked_vit.loading.progress import tqdm

Source = Callable[[Stream, Int[Tensor, "b"]], Float[Tensor, "b d"] | None]


class Read(NamedTuple):
    """Which test images the probe of an arm gets right, and the probe."""

    right: Bool[Tensor, "n"]
    probe: RidgeProbe


@torch.no_grad()
def gather(block: FrozenBlock, streams: Sequence[LookedStream], token: Source, n_classes: int, what: str) -> GramRidge:
    """What a ridge probe needs of the block's answers [n d] on all images of the streams, under the site "read"."""
    ridge = GramRidge(n_classes, name=None)  # the arm is named where its probe is noted
    total = sum(len(stream.labels) for stream in streams)
    with block.ready(), tqdm(total=total, desc=what, delay=2, leave=False) as bar:
        for stream in streams:
            for rows in torch.arange(len(stream.labels)).split(BATCH):
                looked, labels = stream.batch(rows)
                ridge.update({"read": block(looked, token(stream.stream, rows))}, labels)
                bar.update(len(rows))
    return ridge


@torch.no_grad()
def read_closed_form(
    model: HookedViT,
    layer: int,
    arm: Arm,
    fit: Sequence[LookedStream],
    test: LookedStream,
    distribution: ClsDistribution,
    n_classes: int,
    *,
    seed: int,
    what: str = "",
) -> Read:
    """Fit the ridge probe of one arm on the images of `fit`, and answer for those of `test`.

    Nothing is learned but the probe, so the numbers are exact: the same for the same streams and seed.
    """
    block = FrozenBlock(model, layer, arm.placement, tokens=test.layout)

    def placed(fitting: bool) -> Placed:
        return Placed(arm.token, distribution, [each.stream for each in fit], seed=seed, fitting=fitting)

    probe = gather(block, fit, placed(True), n_classes, what).fit()["read"]
    right, tokens = [], placed(False)
    with block.ready():
        for rows in torch.arange(len(test.labels)).split(BATCH):
            looked, labels = test.batch(rows)
            scores = probe.scores(block(looked, tokens(test.stream, rows))).cpu()
            right.append(correct(rank(scores, labels)))
    return Read(torch.cat(right), probe)
