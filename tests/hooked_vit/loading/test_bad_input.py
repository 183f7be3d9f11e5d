"""What cannot be an image, or a model, is refused before anything runs."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from hooked_vit import HookedViT, ViTConfig
from hooked_vit.config.checks import RANGES
from tests.interventions.cases import unchecked_types
from tests.tiny import TINY, make, pixels, tiny


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda x: x[0], r"pixels are \[batch, 3, height, width\], got \(3, 32, 32\); use model.preprocess"),
        (lambda x: x[:, :1], r"got \(3, 1, 32, 32\)"),
        (lambda x: x.movedim(1, -1), r"got \(3, 32, 32, 3\)"),
        (lambda x: x.to(torch.uint8), r"must be normalised floats, got torch.uint8; use model.preprocess"),
        (lambda x: x[..., :31], "multiples of the patch size 8, or the native 32 x 32, got 32 x 31"),
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
        ({"patch_size": 17}, r"an image of \(16, 16\) pixels holds no patch of 17"),
        ({"rel_pos_shared": True, "image_size": (16, 24)}, "needs a square native image"),
        ({"rel_pos_per_layer": True, "n_registers": 1}, r"got the prefix \('cls', 'registers'\)"),
        ({"sources": ()}, "at least one source"),
        ({"sources": ("dist",)}, r"reads \('dist',\), the tokens are \('cls', 'patches'\)"),
        ({"has_cls": False}, r"reads \('cls',\), the tokens are \('patches',\)"),
        ({"n_classes": None}, "must come together"),
        ({"heads": ()}, "must come together"),
        ({"heads": (("head", (1,)),)}, "read sources that do not exist"),
        ({"class_names": ("a",)}, "class_names holds 1, n_classes is 2"),
    ],
)
def test_a_description_no_graph_has(setting, says):
    HookedViT(ViTConfig(**SIZES))
    with pytest.raises(ValueError, match=says):
        ViTConfig(**(SIZES | setting))


NAN, INFINITY = float("nan"), float("inf")
WRONG: dict[str, tuple] = {
    name: (-1, most + 1, 1.5, True, "x", None, NAN, INFINITY, [2], *([0] if least else []))
    for name, (least, most) in RANGES.items()
}
WRONG |= {name: tuple(v for v in WRONG[name] if v is not None) for name in ("n_classes", "d_embed")}
WRONG["image_size"] += (8, (8,), (8, 0), (8, 8, 8), (8.0, 8.0))
WRONG["eps"] = (-1e-6, 0.2, NAN, INFINITY, -INFINITY, True, None, "1e-6", 1j)
WRONG |= {f.name: (None, 1, "yes") for f in dataclasses.fields(ViTConfig) if f.type == "bool"}
WRONG |= {name: (None, 3, ["gelu"]) for name in ("act_fn", "architecture")}
WRONG |= {name: (None, "cls", ("nobody",), ["cls"]) for name in ("sources", "positionless")}
WRONG |= dict.fromkeys(("final_norm", "outputs"), (None, "some", 3))
WRONG |= {"class_names": (["a", "b"], "ab", (1, 2))}


def test_every_number_and_every_switch_is_tried():
    plain = {f.name for f in dataclasses.fields(ViTConfig) if f.type in ("int", "int | None", "float", "bool", "str")}
    assert plain <= set(WRONG)


@pytest.mark.parametrize("name", WRONG)
def test_a_value_no_field_has(name):
    with unchecked_types():
        for value in WRONG[name]:
            with pytest.raises(ValueError, match=rf"^{name} (is|are) .*, got|{name} is one of"):
                ViTConfig(**(SIZES | {name: value}))


def test_a_model_larger_than_any():
    giant = {"d_model": 2**17, "d_mlp": 2**20, "n_layers": 1000, "n_heads": 4}
    with pytest.raises(ValueError, match=r"at most 100,000,000,000 parameters, this config describes [\d,]{15,}"):
        ViTConfig(**(SIZES | giant))
    # the largest that is in use
    vit_22b = {"d_model": 6144, "d_mlp": 24576, "n_layers": 48, "n_heads": 48, "image_size": (224, 224)}
    assert 21e9 < ViTConfig(**(SIZES | vit_22b)).n_parameters < 23e9


@pytest.mark.parametrize("name", TINY)
def test_parameters_are_counted_before_there_are_any(name):
    model = tiny(name)[1]
    there_are = sum(p.numel() for p in model.parameters())
    assert 0.7 * there_are < model.cfg.n_parameters <= there_are


def test_a_name_two_classes_share():
    """ImageNet has two cranes, a bird and a machine."""
    model = make("vit")
    model.cfg = model.cfg.replace(class_names=("crane", "ant", "bee", "crane", "eel"))
    assert model.to_single_token("bee") == 2
    with pytest.raises(ValueError, match="2 classes are called 'crane', 0, 3; give the class id"):
        model.to_single_token("crane")
