"""What the code of each page finds there when it is run: names, files, and stand-ins for what only the hub has."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from PIL import Image

from hooked_vit import HookedViT, ViTConfig, zoo


def readme() -> dict[str, Any]:
    """A picture to look at, photographs, and a small model for the one from the hub."""
    _picture(0).save("cat.jpg")
    _photographs(Path("photos"))
    _from_the_hub(zoo.load("dinov2"))
    return {}


def dictionaries() -> dict[str, Any]:
    """A model of twelve blocks, a dictionary for it in a folder, photographs, and what is used of Overcomplete."""
    from tests.interventions.cases import sae_of
    from tests.interventions.test_dictionary_layouts import saelens

    model = zoo.load("vit")
    size = {"d_model": 32, "n_layers": 12, "n_heads": 4, "d_mlp": 64, "image_size": (48, 48), "patch_size": 8}
    deep = HookedViT(ViTConfig(**size, n_classes=4))
    deep.processor = model.processor
    found = sae_of(32, features=64)
    tensors = {name: getattr(found, name) for name in ("W_enc", "b_enc", "W_dec", "b_dec")}
    tensors = {name: tensor.contiguous() for name, tensor in tensors.items()}
    about = {"hook_name": "blocks.8.hook_resid_post", "model_name": "tiny", "sae_lens_version": "6.54.12"}
    saelens(Path("folder"), tensors, d_in=32, d_sae=64, architecture="standard", metadata=about)
    _photographs(Path("photographs"))
    _from_the_hub(deep)
    _stand_in_for_overcomplete()
    pixels = model.preprocess([_picture(i) for i in range(2)])
    return {"model": deep, "pixels": pixels}


def _photographs(folder: Path) -> None:
    for i in range(40):
        place = folder / ("cats", "dogs")[i % 2]
        place.mkdir(parents=True, exist_ok=True)
        _picture(i).save(place / f"{i}.png")


def _from_the_hub(model: HookedViT) -> None:
    HookedViT.from_pretrained = classmethod(lambda cls, place: model)  # type: ignore[assignment]


def _picture(seed: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (48, 64, 3), np.uint8))


def _stand_in_for_overcomplete() -> None:
    """Its names, and the layout of its state; it trains nothing, as that is not what is ours."""

    class TopKSAE(torch.nn.Module):
        def __init__(self, width: int, nb_concepts: int, top_k: int) -> None:
            super().__init__()
            self.encoder = torch.nn.Module()
            self.encoder.final_block = torch.nn.ModuleList([torch.nn.Linear(width, nb_concepts)])
            self.dictionary = torch.nn.Module()
            self.dictionary._weights = torch.nn.Parameter(torch.randn(nb_concepts, width))
            self.dictionary.register_buffer("multiplier", torch.tensor(0.0))

    package, sae = ModuleType("overcomplete"), ModuleType("overcomplete.sae")
    sae.TopKSAE, sae.train_sae = TopKSAE, lambda *args, **kw: None  # type: ignore[attr-defined]
    sys.modules |= {"overcomplete": package, "overcomplete.sae": sae}
