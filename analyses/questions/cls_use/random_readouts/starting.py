"""Where a training begins: at the model's own tokens, with the decoder's input on one scale; or as published."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from analyses.questions.cls_use.random_readouts.arms import PLACEMENTS
from analyses.questions.cls_use.random_readouts.closed_form import gather
from analyses.questions.cls_use.random_readouts.frozen import FrozenBlock
from analyses.questions.cls_use.random_readouts.looked import LookedStream
from analyses.questions.cls_use.random_readouts.networks import (
    Decoder,
    FixedToken,
    RandomToken,
    Standardise,
    TokenReadout,
    make_decoder,
)
from analyses.questions.cls_use.random_readouts.streams import Stream
from analyses.questions.cls_use.random_readouts.tokens import ClsDistribution
from interventions.vocabulary import generator_of


def begin_as_published(mode: str, block: FrozenBlock, decoder: Decoder, n_classes: int) -> TokenReadout:
    """A generator with batch norms, or a normal token, at whatever scale; a decoder of the block's raw output."""
    d = block.model.cfg.d_model
    read = make_decoder(decoder, d, n_classes)
    token: RandomToken | FixedToken | None = None
    if mode == "deterministic":
        token = FixedToken(d)
    elif PLACEMENTS[mode] != "null":
        token = RandomToken(d, batch_norm=True)
    return TokenReadout(token, read).to(_device(block))


def begin_at_cls(
    mode: str, block: FrozenBlock, decoder: Decoder, n_classes: int, cls: ClsDistribution, fit: LookedStream, seed: int
) -> TokenReadout:
    """Random tokens with the mean and covariance of CLS, a learned one at its mean; the decoder's input standardised.

    What the decoder's input is like is asked of the images of `fit`, before anything is learned.
    """
    d = block.model.cfg.d_model
    read = make_decoder(decoder, d, n_classes)
    token: RandomToken | FixedToken | None = None
    if mode == "deterministic":
        token = FixedToken(d, cls.mean)
    elif PLACEMENTS[mode] != "null":
        token = RandomToken(d).start_at(cls, generator_of(seed))
    generator = generator_of(seed)
    readout = TokenReadout(token, read).to(_device(block))

    def placed(stream: Stream, rows: Int[Tensor, "b"]) -> Float[Tensor, "b d"] | None:
        return None if readout.token is None else readout.token(len(rows), generator)

    seen = gather(block, [fit], placed, n_classes, "looking at what the decoder reads")
    moments = seen.moments("read")
    scale = Standardise(moments.mean, (moments.scatter.diagonal() / seen.n).sqrt())
    return TokenReadout(readout.token, nn.Sequential(scale, readout.decoder)).to(_device(block))


def _device(block: FrozenBlock) -> torch.device:
    return block.model.embed.patch.weight.device
