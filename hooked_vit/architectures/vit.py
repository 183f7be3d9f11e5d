"""ViT (Dosovitskiy et al. 2021): CLS is read, after the final norm. Non-distilled DeiT checkpoints and DINO (Caron et
al. 2021) are ViTs too."""

from __future__ import annotations

from hooked_vit.architectures.base import TRAINING_ONLY, plain_family, register

register(
    plain_family(
        "vit",
        "ViTModel",
        "ViTForImageClassification",
        root="vit.",
        irrelevant_config=(*TRAINING_ONLY, "pooler_output_size", "pooler_act"),
        # ViTModel's tanh pooler is read by no classifier
        irrelevant_tensors=("pooler.dense.weight", "pooler.dense.bias", "embeddings.mask_token"),
        examples={
            "ViTModel": "facebook/dino-vitb16",
            "ViTForImageClassification": "google/vit-base-patch16-224",
        },
    )
)
