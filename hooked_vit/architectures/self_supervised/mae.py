"""MAE (He et al. 2022): the encoder, run on every patch in raster order; its CLS was never trained to say anything.

transformers hides three patches in four and shuffles the rest, even when it is asked for features. Here no patch is
hidden, as when the encoder is finetuned. The decoder predicts pixels and is no part of the graph.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from hooked_vit.architectures.base import (
    FEATURES,
    TRAINING_ONLY,
    VIT_BLOCK,
    VIT_EMBEDDING,
    Architecture,
    Asked,
    ConfigReader,
    linears,
    plain_vit,
    register,
)
from hooked_vit.config import ViTConfig


def config_from(hf: ConfigReader, _: str) -> ViTConfig:
    """ViTMAEModel or the encoder of ViTMAEForPreTraining: CLS, as features."""
    return plain_vit(hf, **FEATURES)


@contextmanager
def unmasked(theirs: Any, pixels: Float[Tensor, "b c h w"]) -> Iterator[Asked]:
    """Their encoder with nothing hidden, and a noise that leaves patches in order when they are sorted by it."""
    before, theirs.config.mask_ratio = theirs.config.mask_ratio, 0.0
    b, _, height, width = pixels.shape
    try:
        n = (height // theirs.config.patch_size) * (width // theirs.config.patch_size)
        yield theirs.base_model, {"noise": torch.arange(n, device=pixels.device).expand(b, -1)}
    finally:
        theirs.config.mask_ratio = before


register(
    Architecture(
        name="mae",
        classes=dict.fromkeys(("ViTMAEModel", "ViTMAEForPreTraining"), config_from),
        keys=VIT_EMBEDDING | VIT_BLOCK | linears({"ln_final": "layernorm"}),
        roots=("vit.", ""),
        irrelevant_config=(
            *TRAINING_ONLY,
            "mask_ratio",
            "norm_pix_loss",
            "decoder_hidden_size",
            "decoder_intermediate_size",
            "decoder_num_attention_heads",
            "decoder_num_hidden_layers",
        ),
        irrelevant_tensors=("decoder.*",),
        foreign_size_flags={"interpolate_pos_encoding": True},
        as_read=unmasked,
        examples={"ViTMAEForPreTraining": "facebook/vit-mae-base"},
    )
)
