"""The native size belongs to the checkpoint, another one to the processor, and a third may be what a run is given."""

from __future__ import annotations

import pytest
import torch
import transformers

from analyses.activations.sites import SiteReader, check_roles
from analyses.probes.role_probes import read_role
from hooked_vit import TokenLayout
from hooked_vit.errors import token_indices
from interventions import apply, freeze_attention, insert_token, shuffle_tokens, zero_tokens
from tests.tiny import make, pixels, processor_of, tiny

NATIVE, USED = (32, 32), (48, 64)
GRID = (6, 8)


@pytest.fixture
def model():
    model = make("registers", torch.float32)
    model.processor = processor_of(USED)
    return model


def test_outside_a_run_the_tokens_are_those_of_the_processors_images(model):
    assert (model.processor_size, model.usual_size, model.cfg.image_size) == (USED, USED, NATIVE)
    assert model.tokens.grid == GRID
    seen = []
    model.run_with_hooks(pixels(model), fwd_hooks=[("hook_embed", lambda x, hook: seen.append(model.tokens.grid))])
    assert seen == [(4, 4)]
    assert model.tokens.grid == GRID
    directions = model.tokens_to_residual_directions(0)
    assert directions.shape[1] == model.tokens.n_tokens


def test_another_processor_is_asked_anew(model):
    assert model.shared_copy().tokens.grid == GRID
    model.processor = processor_of((64, 64))
    assert model.tokens.grid == (8, 8)
    model.processor.size = {"height": 24, "width": 16}
    assert model.tokens.grid == (3, 2)


@pytest.mark.parametrize(
    "processor",
    [
        None,
        transformers.BitImageProcessorPil(size={"shortest_edge": 48}, do_center_crop=False),  # keeps the shape
        processor_of((50, 50)),  # which patches do not cover
        lambda pictures, **kw: {"pixel_values": [[0.0]]},
    ],
)
def test_without_a_size_of_the_processors_the_native_one_counts(model, processor):
    model.processor = processor
    assert (model.usual_size, model.tokens.grid) == (NATIVE, (4, 4))


def test_the_layout_of_pixels(model):
    x = torch.zeros(2, 3, 16, 24)
    assert model.layout_for(x).grid == model.layout_for(16, 24).grid == (2, 3)
    with pytest.raises(ValueError, match=r"pixels are \[batch, 3, height, width\], got \(3, 16, 24\)"):
        model.layout_for(x[0])
    with pytest.raises(ValueError, match="must be multiples of the patch size 8, or the native 32 x 32, got 16 x None"):
        model.layout_for(16)


def test_a_cache_says_which_tokens_a_run_of_another_size_held(model):
    """What `model.tokens` says outside a run is of other images, and its places are not taken for the run's."""
    _, cache = model.run_with_cache(pixels(model))
    assert (cache.tokens("resid_post", 1).grid, model.tokens.grid) == ((4, 4), GRID)
    for role in model.tokens.roles:
        whole = cache["resid_post", 1]
        assert torch.equal(cache.at("resid_post", 1, tokens=role), whole[:, cache.tokens("resid_post", 1).where(role)])
    mask = model.tokens.mask("patches")
    for places in (model.tokens.patches, mask, mask.tolist(), 1.0, True):
        with pytest.raises(TypeError, match="tokens are a role such as 'patches', 'all', or the indices they have"):
            token_indices(places)
        for asked in (
            lambda places: cache.at("resid_post", 1, tokens=places),
            lambda places: cache.at("pattern", 1, queries=places),
            lambda places: cache.at("pattern", 1, keys=places),
            lambda places: zero_tokens(layer=0, tokens=places).hooks(model),
        ):
            with pytest.raises((TypeError, ValueError)):
                asked(places)
    read = read_role(model, "patches")
    with pytest.raises(ValueError, match="this stream holds 20 tokens"):
        read(cache["resid_post", 1])
    with model.running(cache.tokens("resid_post", 1)):
        assert torch.equal(read(cache["resid_post", 1]), cache.at("resid_post", 1, tokens="patches").mean(1))


def test_hooks_are_described_at_the_processors_size(model):
    def shapes(*size):
        return {name: shape for name, shape, _ in model.describe_hooks(*size)}

    n = 1 + 3 + 48
    assert shapes()["hook_pixels"] == "[batch, channel=3, height=48, width=64]"
    assert shapes()["embed.hook_patch"] == "[batch, patch=48, d_model=32]"
    assert shapes()["blocks.0.attn.hook_pattern"] == f"[batch, head=4, query={n}, key={n}]"
    assert shapes(32)["embed.hook_patch"] == shapes(*NATIVE)["embed.hook_patch"] == "[batch, patch=16, d_model=32]"
    with pytest.raises(ValueError, match="multiples of the patch size 8, or the native 32 x 32, got 20 x 20"):
        model.describe_hooks(20)


def test_probes_read_the_patches_of_the_run(model):
    assert len(check_roles(model, ("each_patch",))) == 48
    with pytest.raises(ValueError, match="patch_48"):
        check_roles(model, ("patch_48",))


def test_a_random_patch_may_be_any_of_the_run(model):
    """Drawn among the native ones, those beyond their number would never be read, or the last always."""
    drawn = []
    reader = SiteReader(model, ("random_patch",), layers=[0])
    x = pixels(model, USED, n=500)

    def numbered(resid, hook):
        return torch.arange(resid.shape[1]).float()[None, :, None].expand_as(resid)

    with model.hooks([("blocks.0.hook_resid_post", numbered)]):
        drawn = reader.read(x, torch.arange(500))[1]["random_patch@0"][:, 0] - 4
    counts = torch.bincount(drawn.long(), minlength=48)
    assert counts.min() > 0
    assert counts.max() < 40


def test_tokens_named_by_index_may_be_the_processors_or_the_native_ones(model):
    large = make("registers", torch.float32)  # native 4 x 4
    for used, index in ((USED, 51), ((16, 16), 19)):
        large.processor = processor_of(used)
        shuffle_tokens(0, [index]).hooks(large)
        with pytest.raises(ValueError, match=r"out of range.*with model.running\(model.layout_for\(pixels\)\)"):
            shuffle_tokens(0, [52]).hooks(large)
    huge = pixels(large, (64, 64))
    with large.running(large.layout_for(huge)), apply(large, zero_tokens(0, [67])) as run:
        large(huge)
    assert all(run.fired.values())


def test_patterns_of_one_layer_are_no_pixels_at_any_size(model):
    x = pixels(model, (24, 40))
    _, cache = model.run_with_cache(x)
    pattern = cache["pattern", 0].roll(1, 0)
    with apply(model, freeze_attention(pattern, layers=0)):
        _, edited = model.run_with_cache(x)
    assert torch.equal(edited["pattern", 0], pattern)


@pytest.mark.parametrize("index", [6, -7])
def test_a_place_this_run_has_not(index):
    model = tiny("vit")[1]
    with (
        pytest.raises(ValueError, match=f"cannot be put in at {index}: there are 5 tokens"),
        apply(model, insert_token(layer=0, vector="random", index=index)),
    ):
        model(pixels(model, (16, 16)))


def test_a_layout_by_hand_is_the_one_that_counts(model):
    with model.running(TokenLayout.native(model.cfg.prefix, (1, 1))):
        assert model.tokens.n_tokens == 5
