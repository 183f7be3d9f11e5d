"""MetaCLIP 2 (Chuang et al. 2025): CLIP's vision tower, trained on captions of the whole world."""

from __future__ import annotations

from hooked_vit.architectures.base import register
from hooked_vit.architectures.image_text.clip import MORE, TOWERS, clip_family

register(
    clip_family(
        "metaclip_2",
        "MetaClip2",
        TOWERS | MORE,
        examples={"MetaClip2Model": "facebook/metaclip-2-worldwide-huge-quickgelu"},
    )
)
