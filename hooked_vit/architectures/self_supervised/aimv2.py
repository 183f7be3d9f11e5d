"""AIMv2 (Fini et al. 2025): RMS norms, gated MLPs without biases, no CLS; patches are normalised, then placed.

Positions are learned for one image size, or sines and cosines for any (the checkpoints called native). Patches are
averaged behind the final norm. In transformers the tokens lie in memory as the convolution left them, and sums over
such a token round otherwise in the last bit; to compare bits, its tokens are copied into the usual order first.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor

from hooked_vit.architectures.base import (
    FEATURES,
    TRAINING_ONLY,
    Architecture,
    Asked,
    ConfigReader,
    linears,
    register,
)
from hooked_vit.config import ViTConfig
from hooked_vit.errors import UnsupportedModelError


def config_from(hf: ConfigReader, hf_class: str) -> ViTConfig:
    """Aimv2VisionModel without its attention-pooling head."""
    if hf.use_head:
        raise UnsupportedModelError(
            f"no hook graph for the attention-pooling head of {hf_class}; checkpoints without it say use_head=False"
        )
    bias, size = hf.qkv_bias, hf.image_size
    return ViTConfig(
        d_model=hf.hidden_size,
        n_layers=hf.num_hidden_layers,
        n_heads=hf.num_attention_heads,
        d_mlp=hf.intermediate_size,
        image_size=(size, size) if isinstance(size, int) else (size[0], size[1]),
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
        **FEATURES,
    )


@contextmanager
def in_the_usual_order(theirs: Any, _: Tensor) -> Iterator[Asked]:
    """Their model, its tokens copied into rows before block 0: the same numbers."""
    copied = theirs.embeddings.register_forward_hook(lambda _module, _args, tokens: tokens.contiguous())
    try:
        yield theirs, {}
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
}

register(
    Architecture(
        name="aimv2",
        classes={"Aimv2VisionModel": config_from},
        keys=linears(WEIGHTS),
        roots=("",),
        irrelevant_config=TRAINING_ONLY,
        as_read=in_the_usual_order,
        examples={"Aimv2VisionModel": "apple/aimv2-large-patch14-224"},
    )
)
