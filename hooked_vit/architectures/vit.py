"""ViT (Dosovitskiy et al. 2021): CLS is read, after the final norm. Non-distilled DeiT checkpoints and DINO (Caron et
al. 2021) are ViTs too."""

from __future__ import annotations

from hooked_vit.architectures.base import (
    FEATURES,
    TRAINING_ONLY,
    VIT_BLOCK,
    VIT_EMBEDDING,
    Architecture,
    ConfigReader,
    classifier,
    linears,
    plain_vit,
    register,
)
from hooked_vit.config import ViTConfig


def config_from(hf: ConfigReader, hf_class: str) -> ViTConfig:
    """ViTModel or ViTForImageClassification."""
    return plain_vit(hf, **(classifier(hf) if hf_class == "ViTForImageClassification" else FEATURES))


register(
    Architecture(
        name="vit",
        classes=dict.fromkeys(("ViTModel", "ViTForImageClassification"), config_from),
        keys=VIT_EMBEDDING | VIT_BLOCK | linears({"ln_final": "layernorm", "head": "classifier"}),
        roots=("vit.", ""),
        class_readout={"sources": ("cls",)},
        irrelevant_config=(*TRAINING_ONLY, "pooler_output_size", "pooler_act"),
        # ViTModel's tanh pooler is read by no classifier
        irrelevant_tensors=("pooler.dense.weight", "pooler.dense.bias", "embeddings.mask_token"),
        foreign_size_flags={"interpolate_pos_encoding": True},
        examples={
            "ViTModel": "facebook/dino-vitb16",
            "ViTForImageClassification": "google/vit-base-patch16-224",
        },
    )
)
