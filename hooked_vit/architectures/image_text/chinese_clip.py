"""Chinese-CLIP (Yang et al. 2022): CLIP's vision tower beside a Chinese text tower."""

from __future__ import annotations

from hooked_vit.architectures.base import Texts, register
from hooked_vit.architectures.image_text.clip import TOWERS, clip_family

register(
    clip_family(
        "chinese_clip",
        "ChineseCLIP",
        TOWERS,
        # read at its first token; BERT's tokenizer says which sentence a token is of, and there is one
        texts=Texts(
            classes=("ChineseCLIPModel",), padding=True, inputs=("input_ids", "attention_mask", "token_type_ids")
        ),
        examples={"ChineseCLIPModel": "OFA-Sys/chinese-clip-vit-base-patch16"},
    )
)
