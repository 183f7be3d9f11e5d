"""MetaCLIP 2 (Chuang et al. 2025): CLIP's vision tower, trained on captions of the whole world."""

from __future__ import annotations

from operator import attrgetter

from hooked_vit.architectures.base import Texts, register
from hooked_vit.architectures.image_text.clip import MORE, TOWERS, clip_family

register(
    clip_family(
        "metaclip_2",
        "MetaClip2",
        TOWERS | MORE,
        texts=Texts(
            classes=("MetaClip2Model",),
            padding=True,
            inputs=("input_ids", "attention_mask"),
            end=attrgetter("config.text_config.eos_token_id"),
        ),
        examples={"MetaClip2Model": "facebook/metaclip-2-worldwide-huge-quickgelu"},
    )
)
