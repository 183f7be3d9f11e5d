"""Small models with heads, and images and labels for them, as the tests of class-space analyses use them."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers import ViTImageProcessorPil

from analyses.data import ImageData, as_data
from hooked_vit import HookedViT
from tests.analyses.questions.class_space.reference import ReferenceViT
from tests.tiny import CLASSES, GRAPHS, IMAGE, make, make_hf, pixels

HEADED = tuple(
    name for name in GRAPHS if name not in ("clip-projection", "dinov3", "aimv2-head", "siglip", "timm-pe-core")
)
"""One of each kind that answers with classes, each a sum over tokens."""


def labelled(model: HookedViT, n: int = 6, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Random images and random classes of the head."""
    labels = torch.randint(0, model.cfg.d_out, (n,), generator=torch.Generator().manual_seed(seed))
    return pixels(model, n=n, seed=seed), labels


def beside_reference(n: int = 6) -> tuple[HookedViT, ReferenceViT, Tensor, Tensor]:
    """The product's ViT and the plain NumPy one with the same weights, images and labels."""
    model = make("vit")
    return model, ReferenceViT(make_hf("vit").to(torch.float64)), *labelled(model, n)


def with_processor(name: str) -> HookedViT:
    """A model that takes pictures, of one's own."""
    model = make(name, torch.float32)
    model.processor = ViTImageProcessorPil(size={"height": IMAGE, "width": IMAGE})
    return model


def noisy(n: int, seed: int = 0) -> ImageData:
    """Noise with random labels."""
    rng = np.random.default_rng(seed)
    pictures = [Image.fromarray(x) for x in rng.integers(0, 255, (n, IMAGE, IMAGE, 3), np.uint8)]
    return as_data((pictures, rng.integers(0, CLASSES, n).tolist()))


def by(rows: list[dict], **keys) -> list[dict]:
    """The rows with these entries."""
    return [row for row in rows if all(row.get(key) == value for key, value in keys.items())]


def only(rows: list[dict], **keys) -> dict:
    """The one row with these entries."""
    (row,) = by(rows, **keys)
    return row
