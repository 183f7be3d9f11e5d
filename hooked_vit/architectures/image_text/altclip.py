"""AltCLIP (Chen et al. 2022): CLIP's vision tower beside a text tower of many languages."""

from __future__ import annotations

from hooked_vit.architectures.base import register
from hooked_vit.architectures.image_text.clip import TOWERS, clip_family

register(
    clip_family(
        "altclip",
        "AltCLIP",
        TOWERS,
        examples={"AltCLIPModel": "BAAI/AltCLIP"},
    )
)
