"""DINOv2 with registers (Darcet et al. 2024): tokens without a position behind CLS, read by no head."""

from __future__ import annotations

from hooked_vit.architectures.base import (
    FEATURES,
    VIT_EMBEDDING,
    Architecture,
    ConfigReader,
    classifier,
    linears,
    register,
)
from hooked_vit.architectures.self_supervised.dinov2 import CONCATENATED, DINO_BLOCK, DINO_IRRELEVANT, body
from hooked_vit.config import ViTConfig


def config_from(hf: ConfigReader, hf_class: str) -> ViTConfig:
    """Dinov2WithRegistersModel (CLS) or Dinov2WithRegistersForImageClassification ([CLS ; mean patches])."""
    classifies = hf_class == "Dinov2WithRegistersForImageClassification"
    return ViTConfig(
        **body(hf),
        n_registers=hf.num_register_tokens,
        position_antialias=True,
        **(classifier(hf) | CONCATENATED if classifies else FEATURES),
    )


register(
    Architecture(
        name="dinov2_with_registers",
        classes=dict.fromkeys(("Dinov2WithRegistersModel", "Dinov2WithRegistersForImageClassification"), config_from),
        keys=VIT_EMBEDDING
        | DINO_BLOCK
        | {"embed.registers": "embeddings.register_tokens"}
        | linears({"ln_final": "layernorm", "head": "classifier"}),
        roots=("dinov2_with_registers.", ""),
        class_readout={"sources": ("cls", "patches")},
        irrelevant_config=DINO_IRRELEVANT,
        irrelevant_tensors=("embeddings.mask_token",),
        examples={
            "Dinov2WithRegistersModel": "facebook/dinov2-with-registers-base",
            "Dinov2WithRegistersForImageClassification": "facebook/dinov2-with-registers-base-imagenet1k-1-layer",
        },
    )
)
