"""DINOv2 (Oquab et al. 2023): LayerScale, optionally SwiGLU; its classifier reads [CLS ; mean of the patches]."""

from __future__ import annotations

from hooked_vit.architectures.base import (
    FEATURES,
    TRAINING_ONLY,
    VIT_EMBEDDING,
    Architecture,
    ConfigReader,
    classifier,
    linears,
    register,
    vit_sizes,
)
from hooked_vit.config import ViTConfig

CONCATENATED = {"sources": ("cls", "patches"), "heads": (("head", (0, 1)),)}
DINO_BLOCK = linears(
    {
        "blocks.{l}.ln1": "encoder.layer.{l}.norm1",
        "blocks.{l}.ln2": "encoder.layer.{l}.norm2",
        "blocks.{l}.attn.q": "encoder.layer.{l}.attention.q_proj",
        "blocks.{l}.attn.k": "encoder.layer.{l}.attention.k_proj",
        "blocks.{l}.attn.v": "encoder.layer.{l}.attention.v_proj",
        "blocks.{l}.attn.o": "encoder.layer.{l}.attention.o_proj",
        "blocks.{l}.mlp.fc_in": "encoder.layer.{l}.mlp.fc1|encoder.layer.{l}.mlp.up_proj",
        "blocks.{l}.mlp.fc_gate": "encoder.layer.{l}.mlp.gate_proj",
        "blocks.{l}.mlp.fc_out": "encoder.layer.{l}.mlp.fc2|encoder.layer.{l}.mlp.down_proj",
    }
) | {
    "blocks.{l}.attn.ls": "encoder.layer.{l}.layer_scale1.lambda1",
    "blocks.{l}.mlp.ls": "encoder.layer.{l}.layer_scale2.lambda1",
}
DINO_IRRELEVANT = (
    *TRAINING_ONLY,
    "layerscale_value",
    "out_features",
    "out_indices",
    "stage_names",
    "apply_layernorm",
    "reshape_hidden_states",
)


def mlp(hf: ConfigReader) -> dict:
    """The MLP of the DINOv2 configs: its width follows from a ratio, and SwiGLU ignores `hidden_act`."""
    width, act = int(hf.hidden_size * hf.mlp_ratio), hf.hidden_act
    if not hf.use_swiglu_ffn:
        return {"d_mlp": width, "act_fn": act}
    return {"d_mlp": (int(width * 2 / 3) + 7) // 8 * 8, "act_fn": "silu", "gated_mlp": True}


def body(hf: ConfigReader) -> dict:
    """What checkpoints with and without registers say alike."""
    return {
        **vit_sizes(hf),
        **mlp(hf),
        **dict.fromkeys(("q_bias", "k_bias", "v_bias"), hf.qkv_bias),
        "layer_scale": True,
        "position_float32": True,
    }


def config_from(hf: ConfigReader, hf_class: str) -> ViTConfig:
    """Dinov2Model (CLS) or Dinov2ForImageClassification ([CLS ; mean patches])."""
    classifies = hf_class == "Dinov2ForImageClassification"
    return ViTConfig(**body(hf), **(classifier(hf) | CONCATENATED if classifies else FEATURES))


register(
    Architecture(
        name="dinov2",
        classes=dict.fromkeys(("Dinov2Model", "Dinov2ForImageClassification"), config_from),
        keys=VIT_EMBEDDING | DINO_BLOCK | linears({"ln_final": "layernorm", "head": "classifier"}),
        roots=("dinov2.", ""),
        class_readout={"sources": ("cls", "patches")},
        irrelevant_config=DINO_IRRELEVANT,
        irrelevant_tensors=("embeddings.mask_token",),
        examples={
            "Dinov2Model": "facebook/dinov2-base",
            "Dinov2ForImageClassification": "facebook/dinov2-base-imagenet1k-1-layer",
        },
    )
)
