"""MSN (Assran et al. 2022): a plain ViT trained to know its own masked views; CLS is read, after the final norm."""

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
    """ViTMSNModel or ViTMSNForImageClassification."""
    return plain_vit(hf, **(classifier(hf) if hf_class == "ViTMSNForImageClassification" else FEATURES))


register(
    Architecture(
        name="msn",
        classes=dict.fromkeys(("ViTMSNModel", "ViTMSNForImageClassification"), config_from),
        keys=VIT_EMBEDDING | VIT_BLOCK | linears({"ln_final": "layernorm", "head": "classifier"}),
        roots=("vit.", ""),
        class_readout={"sources": ("cls",)},
        irrelevant_config=TRAINING_ONLY,
        irrelevant_tensors=("embeddings.mask_token",),
        foreign_size_flags={"interpolate_pos_encoding": True},
        examples={"ViTMSNModel": "facebook/vit-msn-base"},
    )
)
