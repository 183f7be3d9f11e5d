"""What cannot be an image, or a model, is refused before anything runs."""

from __future__ import annotations

import pytest
import torch

from hooked_vit import HookedViT, ViTConfig
from tests.tiny import pixels, tiny


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda x: x[0], r"pixels are \[batch, 3, height, width\], got \(3, 32, 32\); use model.preprocess"),
        (lambda x: x[:, :1], r"got \(3, 1, 32, 32\)"),
        (lambda x: x.movedim(1, -1), r"got \(3, 32, 32, 3\)"),
        (lambda x: x.to(torch.uint8), r"must be normalised floats, got torch.uint8; use model.preprocess"),
        (lambda x: x[..., :31], "multiples of the patch size 8, got 32 x 31"),
        (lambda x: x[..., :0], "got 32 x 0"),
        (lambda x: x.index_fill(0, torch.tensor([0, 2]), float("nan")), r"NaN or infinity in images \[0, 2\]"),
        (lambda x: x.index_fill(0, torch.tensor([1]), float("-inf")), r"NaN or infinity in images \[1\]"),
    ],
)
def test_pixels_that_are_none(spoil, says):
    model = tiny("vit")[1]
    for run in (model, model.run_with_cache, model.run_with_hooks):
        with pytest.raises(ValueError, match=says):
            run(spoil(pixels(model)))


def test_another_size_where_positions_cannot_be_resampled():
    model = tiny("vit-wide")[1]
    with pytest.raises(ValueError, match=r"square native grids only; this model's grid is \(4, 6\)"):
        model(pixels(model, (48, 32)))


SIZES = {
    "d_model": 32,
    "n_layers": 1,
    "n_heads": 4,
    "d_mlp": 8,
    "image_size": (16, 16),
    "patch_size": 8,
    "n_classes": 2,
}


@pytest.mark.parametrize(
    ("setting", "says"),
    [
        ({"n_heads": 5}, "d_model 32 must be a multiple of n_heads 5"),
        ({"patch_size": 7}, r"image_size \(16, 16\) must be a multiple of patch_size 7"),
        ({"rel_pos_shared": True, "image_size": (16, 24)}, "needs a square native image"),
        ({"rel_pos_per_layer": True, "n_registers": 1}, r"got the prefix \('cls', 'registers'\)"),
        ({"sources": ()}, "at least one source"),
        ({"sources": ("dist",)}, r"reads \('dist',\), the tokens are \('cls', 'patches'\)"),
        ({"has_cls": False}, r"reads \('cls',\), the tokens are \('patches',\)"),
        ({"n_classes": None}, "must come together"),
        ({"heads": ()}, "must come together"),
        ({"heads": (("head", (1,)),)}, "read sources that do not exist"),
        ({"class_names": ("a",)}, "1 class names for 2 classes"),
    ],
)
def test_a_description_no_graph_has(setting, says):
    HookedViT(ViTConfig(**SIZES))
    with pytest.raises(ValueError, match=says):
        ViTConfig(**(SIZES | setting))
