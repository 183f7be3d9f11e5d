"""Native sizes that are no multiple of the patch: the last pixels belong to no token, here as in transformers.

SigLIP so400m at 384 pixels with patches of 14 is the one that everybody loads.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from analyses.activations.token_groups import aligned_masks, object_groups
from hooked_vit import HookedViT, architectures
from hooked_vit.loading.verify import foreign_size, verify
from interventions import apply, shuffle_patches
from tests.tiny import LOADED, RELATIVES, TINY, assert_parity, distance, make_hf, pixels, processor_of, tiny

SIDE, SEEN = 30, 24
# of every family the first variant that is not another one's under other names
ONES = {tiny(name)[1].cfg.architecture: name for name in reversed(LOADED) if name not in RELATIVES}


def odd(name: str) -> nn.Module:
    """Its original, native at 30 pixels with patches of 8."""
    return make_hf(name, **{"img_size" if "timm" in name else "image_size": SIDE})


@pytest.fixture(scope="module")
def model() -> HookedViT:
    return HookedViT.from_hf(odd("vit"), processor=processor_of((SIDE, SIDE)))


@pytest.mark.parametrize("name", [*ONES.values(), "siglip-full", "timm-map", "timm-dinov3", "mae"])
def test_bit_identical_at_the_native_size_and_at_those_that_patches_cover(name):
    hf = odd(name)
    model = HookedViT.from_hf(hf)
    assert (model.cfg.image_size, model.cfg.grid) == ((SIDE, SIDE), (3, 3))
    native_only = TINY[name].is_native_only
    for size in ((SIDE, SIDE), *(() if native_only else ((SEEN, SEEN), (40, 48)))):
        assert_parity(hf, model, pixels(model, size), at_most=3e-6 if name == "data2vec" else 0.0)
    for size in ((SIDE, 38), (28, 28), (31, 31)):
        with pytest.raises(ValueError, match=f"patch size 8, or the native 30 x 30, got {size[0]} x {size[1]}"):
            model(pixels(model, size))


def test_every_family_was_asked():
    unasked = set(architectures.registered()) - set(ONES)
    assert unasked == {tiny(name)[1].cfg.architecture for name in RELATIVES} - set(ONES)


def test_a_checkpoint_is_verified(tmp_path):
    odd("siglip-full").save_pretrained(tmp_path)
    assert foreign_size(HookedViT.from_pretrained(tmp_path)) == (32, 40)
    assert all(row.ok for row in verify(tmp_path))


def test_the_pixels_that_no_patch_sees_stay_in_the_picture_and_change_nothing(model):
    x = pixels(model).requires_grad_()
    logits, acts = model.run_with_cache(x, names_filter="hook_pixels")
    assert acts["hook_pixels"].shape == x.shape
    (gradient,) = torch.autograd.grad(logits.square().sum(), x)
    assert gradient[..., SEEN:, :].eq(0).all()
    assert gradient[..., SEEN:].eq(0).all()
    assert model.covered(gradient).ne(0).all()
    assert model.covered(x).shape == (3, 3, SEEN, SEEN)
    assert model.covered(torch.zeros(16, 40)).shape == (16, 40)
    assert model.describe_hooks()[0][1] == "[batch, channel=3, height=30, width=30]"


@torch.no_grad()
def test_patches_are_shuffled_where_they_are(model):
    x = pixels(model)
    for given in ({}, {"patch_size": 12}):
        with apply(model, shuffle_patches(**given)):
            _, acts = model.run_with_cache(x)
        mixed = acts["hook_pixels"]
        assert torch.equal(mixed[..., SEEN:, :], x[..., SEEN:, :])
        assert torch.equal(mixed[..., SEEN:], x[..., SEEN:])
        inside = [model.covered(one).flatten(1).sort().values for one in (mixed, x)]
        assert torch.equal(*inside)
        assert distance(mixed, x) > 0.1
    with pytest.raises(ValueError, match="patches of 10 pixels do not cover"):
        shuffle_patches(patch_size=10).hooks(model)


def test_masks_show_what_patches_cover(model):
    """An object on the pixels of patch (1, 2) is on that patch; one on the rim beyond the last patch is on none."""
    inside, rim = np.zeros((SIDE, SIDE), np.uint8), np.zeros((SIDE, SIDE), np.uint8)
    inside[8:16, 16:24], rim[25:, :] = 1, 1
    objects = aligned_masks(model, [Image.fromarray(inside), Image.fromarray(rim)])
    assert objects.shape == (2, SEEN, SEEN)
    groups = object_groups(objects, torch.tensor([1, 1]), model.tokens)
    assert groups["removed"].nonzero().tolist() == [[0, 1 + 3 * 1 + 2]]
