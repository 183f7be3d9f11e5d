"""Classes of transformers that compute something else than the one graph here, and in a sentence what."""

from __future__ import annotations

from fnmatch import fnmatchcase

WINDOWS = "its blocks attend inside windows, which are shifted or merged from stage to stage, not among all tokens"
STAGES = "it is a pyramid: tokens are merged from stage to stage, so there is no one residual stream"
NAFLEX = (
    "it takes images of any shape as padded lists of patches (NaFlex); the SigLIP 2 checkpoints of a fixed size are "
    "saved as SiglipModel"
)
VIDEO = "it reads videos: its tokens are pieces of space and time"
TEXT = "it reads text and has no vision tower; load the model of images and text that it belongs to"
DECODER = "it predicts the pixels of hidden patches from what an encoder made of the others; only encoders have a graph"
SEVERAL = "a backbone returns several maps of several depths; load the model without it, its hooks show every depth"
LANGUAGE = (
    "it is a language model around a vision tower; load it with transformers and give the tower alone: "
    "HookedViT.from_hf(vlm.model.vision_tower)"
)

# The first pattern that fits a class decides.
WHY: tuple[tuple[str, str], ...] = (
    *((f"*{name}*", WINDOWS) for name in ("Qwen2VisionTransformer", "Qwen2VL", "Qwen2_5_VL", "Qwen2_5_Vision")),
    *((f"{name}*", WINDOWS) for name in ("Swin", "DonutSwin", "MaskFormerSwin", "Maxvit", "Sam", "VitDet")),
    *((f"{name}*", STAGES) for name in ("Hiera", "Pvt", "Cvt", "Segformer", "Levit", "MobileViT", "Efficient")),
    *((f"{name}*", VIDEO) for name in ("VJEPA", "VideoMAE", "Vivit", "Timesformer")),
    ("Siglip2*", NAFLEX),
    *((f"*{name}*", TEXT) for name in ("TextModel", "TextEncoder", "TextTransformer")),
    ("*MAEDecoder", DECODER),
    ("*Backbone", SEVERAL),
    ("*ForConditionalGeneration", LANGUAGE),
)


def why_not(hf_class: str) -> str | None:
    """What a class computes instead, None where nothing is known of it.

    >>> why_not("SwinModel")
    'its blocks attend inside windows, which are shifted or merged from stage to stage, not among all tokens'
    """
    return next((why for pattern, why in WHY if fnmatchcase(hf_class, pattern)), None)
