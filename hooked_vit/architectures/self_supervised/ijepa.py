"""I-JEPA (Assran et al. 2023): a ViT without CLS, trained to predict the features of hidden patches; patches are
averaged after the final norm."""

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
    plain_vit,
    register,
)
from hooked_vit.config import ViTConfig

PATCHES_ALONE: dict[str, Any] = {"has_cls": False, "sources": ("patches",)}


def config_from(hf: ConfigReader, hf_class: str) -> ViTConfig:
    """IJepaModel (its patches averaged, as its classifier does) or IJepaForImageClassification."""
    readout = classifier(hf) if hf_class == "IJepaForImageClassification" else FEATURES
    return plain_vit(hf, **PATCHES_ALONE, **readout)


register(
    Architecture(
        name="ijepa",
        classes=dict.fromkeys(("IJepaModel", "IJepaForImageClassification"), config_from),
        keys=VIT_EMBEDDING | VIT_BLOCK | linears({"ln_final": "layernorm", "head": "classifier"}),
        roots=("ijepa.", ""),
        class_readout={"sources": ("patches",)},
        irrelevant_config=(*TRAINING_ONLY, "pooler_output_size", "pooler_act"),
        # the tanh pooler reads the first patch, and no classifier reads it
        irrelevant_tensors=("pooler.dense.weight", "pooler.dense.bias", "embeddings.mask_token"),
        foreign_size_flags={"interpolate_pos_encoding": True},
        examples={"IJepaModel": "facebook/ijepa_vith14_1k"},
    )
)
