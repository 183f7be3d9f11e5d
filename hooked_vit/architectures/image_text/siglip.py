"""SigLIP (Zhai et al. 2023) and SigLIP 2 of fixed size: no CLS; a probe pools the patches behind the final norm.

transformers' image classifier reads the mean of the patches instead, behind the same norm. SigLIP 2 checkpoints of a
fixed size are saved under SigLIP's classes; those under Siglip2 classes are NaFlex, which is another graph.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

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
from hooked_vit.architectures.image_text.clip import ENCODER_BLOCK
from hooked_vit.config import ProbePooling, ViTConfig

ROOT = "vision_model."
MEAN: dict[str, Any] = {"sources": ("patches",), "attention_pool": None}


def _vision(hf: ConfigReader, **readout: Any) -> ViTConfig:
    # without its pooling head a tower gives tokens only; their mean is what transformers' classifier would read
    pool = ProbePooling(n_heads=hf.num_attention_heads, d_mlp=hf.intermediate_size) if hf.vision_use_head else None
    return ViTConfig(
        **vit_sizes(hf),
        d_mlp=hf.intermediate_size,
        act_fn=hf.hidden_act,
        has_cls=False,
        **MEAN | {"attention_pool": pool} | readout,
    )


def vision_config(hf: ConfigReader, hf_class: str) -> ViTConfig:
    """SiglipVisionModel: what the probe gathers, or the mean of the patches of a tower without its pooling head."""
    return _vision(hf, **FEATURES)


def full_config(hf: ConfigReader, hf_class: str) -> ViTConfig:
    """SiglipModel (its vision tower) or SiglipForImageClassification (the mean of the patches)."""
    vision = hf.sub("vision_config")
    cfg = _vision(vision, **(FEATURES if hf_class == "SiglipModel" else classifier(hf) | MEAN))
    vision.refuse_unread(TRAINING_ONLY)
    return cfg


def prepare(cfg: ViTConfig, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The probe's queries, keys and values taken apart; a pooling head that nothing reads left out."""
    split: dict[str, Tensor] = {}
    for key, tensor in tensors.items():
        if not key.removeprefix(ROOT).startswith("head."):
            split[key] = tensor
        elif cfg.attention_pool and ".in_proj_" in key:
            for letter, part in zip("qkv", tensor.chunk(3), strict=True):
                split[key.replace(".in_proj_", f".{letter}.")] = part
        elif cfg.attention_pool:
            split[key] = tensor
    return split


register(
    Architecture(
        name="siglip",
        classes={
            "SiglipVisionModel": vision_config,
            **dict.fromkeys(("SiglipModel", "SiglipForImageClassification"), full_config),
        },
        keys=linears(
            {
                "embed.patch": "embeddings.patch_embedding",
                **ENCODER_BLOCK,
                "ln_final": "post_layernorm",
                "pool_q": "head.attention.q",
                "pool_k": "head.attention.k",
                "pool_v": "head.attention.v",
                "pool_o": "head.attention.out_proj",
                "pool_ln": "head.layernorm",
                "pool_mlp.fc_in": "head.mlp.fc1",
                "pool_mlp.fc_out": "head.mlp.fc2",
                "head": "classifier",
            }
        )
        | {"pos_embed.weight": "embeddings.position_embedding.weight", "pool_probe": "head.probe"},
        roots=(ROOT, ""),
        class_readout={"sources": ("patches",)},
        irrelevant_config=(*TRAINING_ONLY, "text_config"),
        irrelevant_tensors=("text_model.*", "logit_scale", "logit_bias"),
        foreign_size_flags={"interpolate_pos_encoding": True},
        prepare=prepare,
        examples={"SiglipModel": "google/siglip-so400m-patch14-384"},
        # pads were read in training, so they are part of every caption
        texts=Texts(classes=("SiglipModel",), padding="max_length", inputs=("input_ids",)),
    )
)
