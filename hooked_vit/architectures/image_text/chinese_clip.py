"""Chinese-CLIP (Yang et al. 2022): CLIP's vision tower beside a Chinese text tower."""

from __future__ import annotations

from hooked_vit.architectures.base import register
from hooked_vit.architectures.image_text.clip import TOWERS, clip_family

register(
    clip_family(
        "chinese_clip",
        "ChineseCLIP",
        TOWERS,
        examples={"ChineseCLIPModel": "OFA-Sys/chinese-clip-vit-base-patch16"},
    )
)
