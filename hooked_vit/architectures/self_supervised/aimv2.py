"""AIMv2 (Fini et al. 2025): RMS norms, gated MLPs without biases, no CLS; patches are normalised, then placed.

Positions are learned for one image size, or sines and cosines for any (the checkpoints called native). Patches are
averaged behind the final norm, or a probe gathers them (the checkpoints called lit, beside a text tower). In
transformers the tokens lie in memory as the convolution left them, and sums over such a token round otherwise in the
last bit; to compare bits, its tokens are copied into the usual order first.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from operator import attrgetter
from typing import Any

from torch import Tensor

from hooked_vit.architectures.base import (
    FEATURES,
    TRAINING_ONLY,
    Architecture,
    Asked,
    ConfigReader,
    Texts,
    image_side,
    linears,
    register,
)
from hooked_vit.config import ProbePooling, ViTConfig
from hooked_vit.errors import UnsupportedModelError


def _vision(hf: ConfigReader, **readout: Any) -> ViTConfig:
    bias, heads = hf.qkv_bias, hf.num_attention_heads
    # the probe is its own query; without the head the tokens' mean is what a classifier would read
    pool = ProbePooling(n_heads=heads, d_mlp=None, query=False, bias=bias) if hf.use_head else None
    return ViTConfig(
        d_model=hf.hidden_size,
        n_layers=hf.num_hidden_layers,
        n_heads=heads,
        d_mlp=hf.intermediate_size,
        image_size=hf.pair("image_size"),
        patch_size=hf.square("patch_size"),
        n_channels=hf.num_channels,
        act_fn=hf.hidden_act,
        gated_mlp=True,
        norm="rms",
        eps=hf.rms_norm_eps,
        q_bias=bias,
        k_bias=bias,
        v_bias=bias,
        o_bias=bias,
        mlp_bias=hf.mlp_bias,
        patch_norm=True,
        has_cls=False,
        positions="sincos" if hf.is_native else "native",
        sources=("patches",),
        attention_pool=pool,
        **readout,
    )


def vision_config(hf: ConfigReader, hf_class: str) -> ViTConfig:
    """Aimv2VisionModel: what the probe of its head gathers, or the mean of the patches of a tower without it."""
    return _vision(hf, **FEATURES)


def full_config(hf: ConfigReader, hf_class: str) -> ViTConfig:
    """Aimv2Model: its vision tower, projected."""
    vision = hf.sub("vision_config")
    if not vision.use_head:
        raise UnsupportedModelError(
            f"{hf_class} projects what its vision tower pools, and use_head=False pools nothing"
        )
    cfg = _vision(vision, n_classes=hf.projection_dim, outputs="embedding", head_bias=False)
    vision.refuse_unread(TRAINING_ONLY)
    return cfg


@contextmanager
def in_the_usual_order(theirs: Any, pixels: Tensor) -> Iterator[Asked]:
    """The image side of their model, its tokens copied into rows before block 0: the same numbers."""
    tower = getattr(theirs, "vision_model", theirs)
    copied = tower.embeddings.register_forward_hook(lambda _module, _args, tokens: tokens.contiguous())
    try:
        with image_side(theirs, pixels) as asked:
            yield asked
    finally:
        copied.remove()


WEIGHTS = {
    "embed.patch": "embeddings.patch_embed",
    "embed.norm": "embeddings.rms_norm",
    "pos_embed": "embeddings.position_embedding",
    "blocks.{l}.ln1": "encoder.layers.{l}.rms_norm1",
    "blocks.{l}.ln2": "encoder.layers.{l}.rms_norm2",
    "blocks.{l}.attn.q": "encoder.layers.{l}.attention.q_proj",
    "blocks.{l}.attn.k": "encoder.layers.{l}.attention.k_proj",
    "blocks.{l}.attn.v": "encoder.layers.{l}.attention.v_proj",
    "blocks.{l}.attn.o": "encoder.layers.{l}.attention.out_proj",
    "blocks.{l}.mlp.fc_in": "encoder.layers.{l}.ffn.up_proj",
    "blocks.{l}.mlp.fc_gate": "encoder.layers.{l}.ffn.gate_proj",
    "blocks.{l}.mlp.fc_out": "encoder.layers.{l}.ffn.down_proj",
    "ln_final": "rms_norm",
    "pool_k": "head.k_proj",
    "pool_v": "head.v_proj",
    "pool_o": "head.output_proj",
    "head": "visual_projection",
}

register(
    Architecture(
        name="aimv2",
        classes={"Aimv2VisionModel": vision_config, "Aimv2Model": full_config},
        keys=linears(WEIGHTS) | {"pool_probe": "head.cls_token"},
        roots=("vision_model.", ""),
        irrelevant_config=(*TRAINING_ONLY, "text_config", "logit_scale_init_value", "max_logit_scale"),
        irrelevant_tensors=("text_model.*", "text_projection.*", "logit_scale"),
        as_read=in_the_usual_order,
        # their pool has the fused kernel alone
        eager_bound=lambda cfg: 3e-6 if cfg.attention_pool is not None else 0.0,
        examples={
            "Aimv2VisionModel": "apple/aimv2-large-patch14-224",
            "Aimv2Model": "apple/aimv2-large-patch14-224-lit",
        },
        texts=Texts(
            classes=("Aimv2Model",),
            padding=True,
            inputs=("input_ids", "attention_mask"),
            end=attrgetter("config.text_config.eos_token_id"),
            scale=lambda theirs: theirs.logit_scale.clamp(0.0, theirs.max_log_logit_scale).exp(),
        ),
    )
)
