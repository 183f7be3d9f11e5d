"""The transformers models that benchmarks compare themselves on: random weights, full size or tiny."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import ViTConfig, ViTForImageClassification

TINY = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 64}


def vit(quick: bool) -> ViTForImageClassification:
    """ViT-B/16 with 1000 classes, or with `quick` something that takes no time."""
    torch.manual_seed(0)
    size = {**TINY, "image_size": 32, "patch_size": 8} if quick else {}
    config = ViTConfig(num_labels=1000, architectures=["ViTForImageClassification"], **size)
    model = ViTForImageClassification(config).eval()
    model.set_attn_implementation("sdpa")
    return model


def images(model: ViTForImageClassification, n: int) -> Tensor:
    """Random pixels of the model's native size."""
    size = model.config.image_size
    return torch.randn(n, 3, size, size, generator=torch.Generator().manual_seed(0))
