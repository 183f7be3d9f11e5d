"""AltCLIP (Chen et al. 2022): CLIP's vision tower beside a text tower of many languages."""

from __future__ import annotations

from typing import Any

from hooked_vit.architectures.base import Texts, register
from hooked_vit.architectures.image_text.clip import TOWERS, clip_family


def _length(theirs: Any) -> int:
    """XLM-R's text tower counts its positions from behind the number of the pad token."""
    text = theirs.config.text_config
    return text.max_position_embeddings - text.pad_token_id - 1


register(
    clip_family(
        "altclip",
        "AltCLIP",
        TOWERS,
        texts=Texts(classes=("AltCLIPModel",), padding=True, inputs=("input_ids", "attention_mask"), length=_length),
        examples={"AltCLIPModel": "BAAI/AltCLIP"},
    )
)
