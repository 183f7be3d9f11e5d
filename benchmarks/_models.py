"""The models that benchmarks compare, all with the same random weights: transformers' own, and peers that wrap it."""

from __future__ import annotations

import tempfile
import warnings
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor
from transformers import ViTConfig, ViTForImageClassification

TINY = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 64}
SMALL = {"hidden_size": 384, "num_attention_heads": 6, "intermediate_size": 1536}
PEERS = {"transformer-lens": "transformer_lens", "nnsight": "nnsight", "ViT-Prisma": "vit_prisma"}
"""Tools that are compared where they are installed, and the package each is."""


def vit(quick: bool, attention: str = "sdpa") -> ViTForImageClassification:
    """ViT-S/16 with 1000 classes, or with `quick` something that takes no time."""
    torch.manual_seed(0)
    size = {**TINY, "image_size": 32, "patch_size": 8} if quick else SMALL
    config = ViTConfig(num_labels=1000, architectures=["ViTForImageClassification"], **size)
    model = ViTForImageClassification(config).eval()
    model.set_attn_implementation(attention)
    return model


def images(model: ViTForImageClassification, n: int) -> Tensor:
    """Random pixels of the model's native size."""
    size = model.config.image_size
    return torch.randn(n, 3, size, size, generator=torch.Generator().manual_seed(0))


def installed(peer: str) -> bool:
    """Whether a peer is there to be compared."""
    return find_spec(PEERS[peer]) is not None


def bridged(hf: ViTForImageClassification) -> Any:
    """transformer-lens' bridge; it wants a name to read a config from, so the config is written down for it."""
    from transformer_lens.model_bridge import TransformerBridge

    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        hf.config.save_pretrained(folder)
        return TransformerBridge.boot_transformers(folder, hf_model=hf)
