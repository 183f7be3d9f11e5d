"""CLIP's vision tower (Radford et al. 2021): a norm in front of the first block, quick-GELU, no patch bias.

Natively CLS is read, after the final norm, and projected beside the text; transformers' image classifier instead
averages the patches without any norm.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from hooked_vit.architectures.base import (
    FEATURES,
    TRAINING_ONLY,
    Architecture,
    ConfigReader,
    Texts,
    classifier,
    linears,
    register,
    vit_sizes,
)
from hooked_vit.config import ViTConfig

ENCODER_BLOCK = {
    "blocks.{l}.ln1": "encoder.layers.{l}.layer_norm1",
    "blocks.{l}.ln2": "encoder.layers.{l}.layer_norm2",
    "blocks.{l}.attn.q": "encoder.layers.{l}.self_attn.q_proj",
    "blocks.{l}.attn.k": "encoder.layers.{l}.self_attn.k_proj",
    "blocks.{l}.attn.v": "encoder.layers.{l}.self_attn.v_proj",
    "blocks.{l}.attn.o": "encoder.layers.{l}.self_attn.out_proj",
    "blocks.{l}.mlp.fc_in": "encoder.layers.{l}.mlp.fc1",
    "blocks.{l}.mlp.fc_out": "encoder.layers.{l}.mlp.fc2",
}
"""The block of the towers of CLIP and its successors."""

UNNORMED_MEAN = {"sources": ("patches",), "final_norm": "none"}


def _vision(hf: ConfigReader, **readout: Any) -> ViTConfig:
    return ViTConfig(
        **vit_sizes(hf), d_mlp=hf.intermediate_size, act_fn=hf.hidden_act, patch_bias=False, ln_pre=True, **readout
    )


def vision_config(hf: ConfigReader, hf_class: str) -> ViTConfig:
    """CLIPVisionModel (pooled features) or CLIPVisionModelWithProjection (image embeddings)."""
    if hf_class.endswith("VisionModel"):
        return _vision(hf, **FEATURES)
    return _vision(hf, n_classes=hf.projection_dim, outputs="embedding", head_bias=False)


def full_config(hf: ConfigReader, hf_class: str) -> ViTConfig:
    """CLIPModel (its vision tower, projected) or CLIPForImageClassification."""
    vision = hf.sub("vision_config")
    vision_cfg = (
        _vision(vision, **classifier(hf), **UNNORMED_MEAN)
        if hf_class.endswith("ForImageClassification")
        else _vision(vision, n_classes=hf.projection_dim, outputs="embedding", head_bias=False)
    )
    vision.refuse_unread((*TRAINING_ONLY, "projection_dim"))
    return vision_cfg


# what follows the family's name in the classes of transformers; not every family has the second pair
TOWERS = {"VisionModel": vision_config, "Model": full_config}
MORE = {"VisionModelWithProjection": vision_config, "ForImageClassification": full_config}


def clip_family(
    name: str, stem: str, kinds: Mapping[str, Callable[[ConfigReader, str], ViTConfig]], **details: Any
) -> Architecture:
    """A family of towers like CLIP's, for the classes of transformers whose names are `stem` and one of `kinds`."""
    return Architecture(
        name=name,
        classes={stem + kind: read for kind, read in kinds.items()},
        keys=linears(
            {
                "ln_pre": "pre_layrnorm",
                **ENCODER_BLOCK,
                "ln_final": "post_layernorm",
                "head": "classifier|visual_projection",
            }
        )
        | {
            "embed.cls": "embeddings.class_embedding",
            "embed.patch.weight": "embeddings.patch_embedding.weight",
            "pos_embed.weight": "embeddings.position_embedding.weight",
        },
        roots=("vision_model.", ""),
        class_readout=UNNORMED_MEAN,
        # LLaVA's configs say the size of a vocabulary of its tower too
        irrelevant_config=(*TRAINING_ONLY, "projection_dim", "text_config", "logit_scale_init_value", "vocab_size"),
        # the text tower, and the final norm that the image classifier holds but never applies
        irrelevant_tensors=("text_model.*", "text_projection.*", "logit_scale", "post_layernorm.*"),
        foreign_size_flags={"interpolate_pos_encoding": True},
        unnormed_tokens=True,
        **details,
    )


register(
    clip_family(
        "clip",
        "CLIP",
        TOWERS | MORE,
        examples={"CLIPModel": "openai/clip-vit-base-patch32"},
        texts=Texts(
            classes=("CLIPModel",),
            padding=True,
            inputs=("input_ids", "attention_mask"),
            # older configs say 2, which means the largest id
            end=lambda theirs: None if (end := theirs.config.text_config.eos_token_id) == 2 else end,
        ),
    )
)
