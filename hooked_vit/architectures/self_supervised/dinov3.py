"""DINOv3 (Siméoni et al. 2025): rotary positions on the patches and no others, registers, LayerScale, no key bias."""

from __future__ import annotations

from typing import Any

from hooked_vit.architectures.base import (
    FEATURES,
    TRAINING_ONLY,
    Architecture,
    ConfigReader,
    linears,
    register,
    vit_sizes,
)
from hooked_vit.config import RotaryPositions, ViTConfig
from hooked_vit.errors import CheckpointError, UnsupportedModelError

BACKBONE = "DINOv3ViTBackbone"


def config_from(hf: ConfigReader, hf_class: str) -> ViTConfig:
    """DINOv3ViTModel (CLS), or DINOv3ViTBackbone (the patches, its map of features) where that has one output."""
    if missing := [name for name in ("proj_bias", "mlp_bias") if not getattr(hf, name)]:
        raise CheckpointError(f"{hf_class} with {', '.join(f'{name}=False' for name in missing)} is not known here")
    return ViTConfig(
        **vit_sizes(hf),
        d_mlp=hf.intermediate_size,
        act_fn=hf.hidden_act,
        gated_mlp=hf.use_gated_mlp,
        q_bias=hf.query_bias,
        k_bias=hf.key_bias,
        v_bias=hf.value_bias,
        layer_scale=True,
        n_registers=hf.num_register_tokens,
        absolute_positions=False,
        rotary=RotaryPositions(base=hf.rope_theta),
        **FEATURES,
        **(_backbone(hf) if hf_class == BACKBONE else {}),
    )


def _backbone(hf: ConfigReader) -> dict[str, Any]:
    """A backbone gives feature maps, which are of the patches.

    Raises UnsupportedModelError where it gives another one than that of the last layer, or several.
    """
    last = hf.stage_names[-1]
    if list(hf.out_features) != [last]:
        raise UnsupportedModelError(
            f"{BACKBONE} gives the feature maps {', '.join(hf.out_features)}, and a graph has one output, that of the "
            f'last layer: set out_features=["{last}"]; the stream behind every block is in the cache'
        )
    return {"sources": ("patches",)}


# transformers 4 had no `model.` in front of the layers
LAYER = {
    "ln1": "norm1",
    "ln2": "norm2",
    "attn.q": "attention.q_proj",
    "attn.k": "attention.k_proj",
    "attn.v": "attention.v_proj",
    "attn.o": "attention.o_proj",
    "mlp.fc_in": "mlp.up_proj",
    "mlp.fc_gate": "mlp.gate_proj",
    "mlp.fc_out": "mlp.down_proj",
}
register(
    Architecture(
        name="dinov3",
        classes=dict.fromkeys(("DINOv3ViTModel", BACKBONE), config_from),
        keys={
            "embed.cls": "embeddings.cls_token",
            "embed.registers": "embeddings.register_tokens",
            "blocks.{l}.attn.ls": "model.layer.{l}.layer_scale1.lambda1|layer.{l}.layer_scale1.lambda1",
            "blocks.{l}.mlp.ls": "model.layer.{l}.layer_scale2.lambda1|layer.{l}.layer_scale2.lambda1",
            **linears({"embed.patch": "embeddings.patch_embeddings", "ln_final": "norm"}),
            **linears(
                {f"blocks.{{l}}.{our}": f"model.layer.{{l}}.{its}|layer.{{l}}.{its}" for our, its in LAYER.items()}
            ),
        },
        roots=("",),
        class_readout={"sources": ("cls", "patches")},
        irrelevant_config=(
            *TRAINING_ONLY,
            "layerscale_value",
            "pos_embed_shift",
            "pos_embed_jitter",
            "pos_embed_rescale",
            "out_features",
            "out_indices",
            "stage_names",
            "apply_layernorm",
            "reshape_hidden_states",
        ),
        irrelevant_tensors=("embeddings.mask_token",),
        # a model without registers holds a tensor of none
        prepare=lambda cfg, tensors: {key: tensor for key, tensor in tensors.items() if tensor.numel()},
        examples={"DINOv3ViTModel": "facebook/dinov3-vitb16-pretrain-lvd1689m"},
    )
)
