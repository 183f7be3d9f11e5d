"""DeiT (Touvron et al. 2021): ViT with a distillation token; with its teacher head, two heads that are averaged."""

from __future__ import annotations

from typing import Any

from hooked_vit.architectures.base import (
    FEATURES,
    TRAINING_ONLY,
    VIT_BLOCK,
    VIT_EMBEDDING,
    Architecture,
    ConfigReader,
    classifier,
    linears,
    register,
    vit_sizes,
)
from hooked_vit.config import ViTConfig

BOTH_HEADS: dict[str, Any] = {"sources": ("cls", "dist"), "heads": (("head", (0,)), ("head_dist", (1,)))}


def config_from(hf: ConfigReader, hf_class: str) -> ViTConfig:
    """DeiTModel, DeiTForImageClassification (CLS only) or ...WithTeacher (CLS and distillation token)."""
    bias = hf.qkv_bias
    readout = FEATURES if hf_class == "DeiTModel" else classifier(hf)
    return ViTConfig(
        **vit_sizes(hf),
        d_mlp=hf.intermediate_size,
        act_fn=hf.hidden_act,
        q_bias=bias,
        k_bias=bias,
        v_bias=bias,
        has_dist=True,
        **readout,
        **(BOTH_HEADS if hf_class == "DeiTForImageClassificationWithTeacher" else {}),
    )


register(
    Architecture(
        name="deit",
        classes=dict.fromkeys(
            ("DeiTModel", "DeiTForImageClassification", "DeiTForImageClassificationWithTeacher"), config_from
        ),
        keys=VIT_EMBEDDING
        | VIT_BLOCK
        | {"embed.dist": "embeddings.distillation_token"}
        | linears({"ln_final": "layernorm"})
        | linears({"head": "classifier|cls_classifier", "head_dist": "distillation_classifier"}),
        roots=("deit.", ""),
        irrelevant_config=(*TRAINING_ONLY, "pooler_output_size", "pooler_act"),
        irrelevant_tensors=("pooler.dense.weight", "pooler.dense.bias", "embeddings.mask_token"),
        foreign_size_flags={"interpolate_pos_encoding": True},
        examples={"DeiTForImageClassificationWithTeacher": "facebook/deit-base-distilled-patch16-224"},
    )
)
