"""I-JEPA (Assran et al. 2023): a ViT without CLS, trained to predict the features of hidden patches; patches are
averaged after the final norm."""

from __future__ import annotations

from hooked_vit.architectures.base import TRAINING_ONLY, plain_family, register

register(
    plain_family(
        "ijepa",
        "IJepaModel",  # its patches averaged, as its classifier does
        "IJepaForImageClassification",
        root="ijepa.",
        reads={"has_cls": False, "sources": ("patches",)},
        irrelevant_config=(*TRAINING_ONLY, "pooler_output_size", "pooler_act"),
        # the tanh pooler reads the first patch, and no classifier reads it
        irrelevant_tensors=("pooler.dense.weight", "pooler.dense.bias", "embeddings.mask_token"),
        examples={"IJepaModel": "facebook/ijepa_vith14_1k"},
    )
)
