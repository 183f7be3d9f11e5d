"""MSN (Assran et al. 2022): a plain ViT trained to know its own masked views; CLS is read, after the final norm."""

from __future__ import annotations

from hooked_vit.architectures.base import TRAINING_ONLY, plain_family, register

register(
    plain_family(
        "msn",
        "ViTMSNModel",
        "ViTMSNForImageClassification",
        root="vit.",
        irrelevant_config=TRAINING_ONLY,
        irrelevant_tensors=("embeddings.mask_token",),
        examples={"ViTMSNModel": "facebook/vit-msn-base"},
    )
)
