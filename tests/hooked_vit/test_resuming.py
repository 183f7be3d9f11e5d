"""Stopping at a layer and resuming there is the whole run, wherever one stops and whatever happened to the tokens."""

from __future__ import annotations

import pytest
import torch

from tests.tiny import CORE, GRAPHS, attention, make, pixels, sizes, tiny

DEPTHS = range(-2, 3)


@pytest.mark.parametrize("name", CORE)
def test_stop_then_start_is_the_run(name):
    model = tiny(name)[1]
    for size in sizes(name)[:3]:
        x = pixels(model, size)
        whole = model(x)
        for k in DEPTHS:
            assert torch.equal(model(model(x, stop_at_layer=k), start_at_layer=k), whole), (size, k)


@pytest.mark.parametrize("family", GRAPHS)
def test_a_stop_is_the_stream_entering_the_block(family):
    model = tiny(family)[1]
    x = pixels(model)
    with attention(model, "eager"):
        _, cache = model.run_with_cache(x)
        for k in DEPTHS[:-1]:
            assert torch.equal(model(x, stop_at_layer=k), cache["resid_pre", k])
        assert torch.equal(model(x, stop_at_layer=2), cache["resid_post", -1])
        assert torch.equal(model.readout(cache["resid_post", -1]), cache["hook_logits"])


@pytest.mark.parametrize("family", GRAPHS)
def test_a_run_may_be_cut_in_many_pieces(family):
    model = tiny(family)[1]
    x = pixels(model, (48, 40))
    stream = model(x, stop_at_layer=0)
    for k in range(model.cfg.n_layers):
        stream = model(stream, start_at_layer=k, stop_at_layer=k + 1)
    assert torch.equal(model(stream, start_at_layer=model.cfg.n_layers), model(x))


@pytest.mark.parametrize("family", GRAPHS)
def test_inserted_and_removed_tokens_are_remembered(family):
    model = tiny(family)[1]
    x = pixels(model, (48, 40))
    n = model.layout_for(48, 40).n_tokens
    extra = torch.randn(2, model.cfg.d_model, generator=torch.Generator().manual_seed(3))
    ragged = torch.stack(
        [torch.arange(n - 1), torch.arange(1, n) - (torch.arange(1, n) > 5).int(), torch.arange(n - 1)]
    )
    ragged[1, 0] = 0

    def edit(act, hook):
        return model.keep_tokens(model.insert_tokens(act, 1, extra), ragged)

    hooks = [("blocks.0.hook_resid_pre", edit)]
    whole = model.run_with_hooks(x, fwd_hooks=hooks)
    assert not torch.equal(whole, model(x))
    for k in (1, 2):
        with model.hooks(hooks):
            stream = model(x, stop_at_layer=k)
        assert torch.equal(model(stream, start_at_layer=k), whole)
    assert torch.equal(model.run_with_hooks(model(x, stop_at_layer=0), start_at_layer=0, fwd_hooks=hooks), whole)


def test_a_stream_made_by_hand_is_told_its_tokens():
    model = tiny("beit-mean-both")[1]
    x = pixels(model, (16, 64))
    stream = model(x, stop_at_layer=1) * 1.0
    layout = model.layout_for(16, 64)
    assert torch.equal(model(stream, start_at_layer=1, tokens=layout), model(x))
    _, cache = model.run_with_cache(x, names_filter="blocks.1.hook_resid_pre")
    at_rest = cache.tokens("resid_pre", 1)
    assert torch.equal(model(cache["resid_pre", 1], start_at_layer=1, tokens=at_rest), model(x))
    with pytest.raises(ValueError, match=r"31 tokens and the model's native layout 17.*layout_for"):
        model(model(pixels(model, (48, 40)), stop_at_layer=1) * 1.0, start_at_layer=1)


@pytest.mark.parametrize("asked", [{"stop_at_layer": 3}, {"stop_at_layer": -3}, {"start_at_layer": 3}])
def test_layers_out_of_range_are_refused(asked):
    model = tiny("vit")[1]
    x = pixels(model) if "stop_at_layer" in asked else model(pixels(model), stop_at_layer=0)
    with pytest.raises(ValueError, match=r"at_layer is 0 to 2.*the model has 2 layers, got -?3"):
        model(x, **asked)


def test_what_cannot_be_resumed_is_refused():
    model = tiny("vit")[1]
    stream = model(pixels(model), stop_at_layer=1)
    with pytest.raises(ValueError, match="enters block 1, so it cannot stop in front of block 0"):
        model(stream, start_at_layer=1, stop_at_layer=0)
    with pytest.raises(ValueError, match=r"a resumed stream is \[batch, tokens, 32\], got \(3, 17, 31\)"):
        model(stream[..., 1:], start_at_layer=1)
    with pytest.raises(ValueError, match=r"a resumed stream is \[batch, tokens, 32\]"):
        model(pixels(model), start_at_layer=1)


FORGETFUL = {
    "clone": lambda stream: stream.clone(),
    "arithmetic": lambda stream: stream * 1.0,
    "to": lambda stream: stream.to(torch.float64).to(stream.dtype),
    "slice": lambda stream: stream[:2],
    "detach": lambda stream: stream.detach(),
    "numpy": lambda stream: torch.from_numpy(stream.detach().numpy().copy()),
}


@pytest.mark.parametrize("how", FORGETFUL)
def test_a_stream_that_forgot_its_tokens_is_not_taken_for_a_native_one(how):
    """As many tokens are not the same tokens: one came and one went, and CLS stands elsewhere."""
    model = make("beit-mean-both", torch.float32)
    forget, x = FORGETFUL[how], pixels(model)

    def swap(act, hook):
        longer = model.insert_tokens(act, 0, torch.ones(1, 32))
        return model.keep_tokens(longer, torch.arange(17))

    native = model(forget(model(x, stop_at_layer=1)), start_at_layer=1)  # nothing was changed so far
    with model.hooks([("blocks.0.hook_resid_pre", swap)]):
        whole = model(x)
        stream = model(x, stop_at_layer=1)
    _, cache = model.run_with_cache(stream, start_at_layer=1, names_filter="blocks.1.hook_resid_pre")
    layout = cache.tokens("resid_pre", 1)
    assert torch.equal(model(stream, start_at_layer=1), whole)
    for forgetful in (forget(stream), forget(cache["resid_pre", 1])):
        with pytest.raises(ValueError, match=r"forget which tokens it holds.*17 native ones and 17 others, "):
            model(forgetful, start_at_layer=1)
        with pytest.raises(ValueError, match="forget which tokens it holds"):
            model.shared_copy()(forgetful, start_at_layer=1)
        assert torch.equal(model(forgetful, start_at_layer=1, tokens=layout), whole[: len(forgetful)])
    again = model(forget(model(x, stop_at_layer=1)), start_at_layer=1, tokens=model.layout_for(32, 32))
    assert torch.equal(again, native)


def test_another_grid_of_as_many_patches_is_another_layout():
    model = make("beit-mean-both", torch.float32)
    stream = model(pixels(model, (16, 64)), stop_at_layer=1)
    with pytest.raises(ValueError, match="forget which tokens it holds"):
        model(stream.clone(), start_at_layer=1)
    layout = model.layout_for(16, 64)
    assert torch.equal(model(stream.clone(), start_at_layer=1, tokens=layout), model(stream, start_at_layer=1))
    ragged = layout.keep(torch.arange(17).repeat(3, 1).where(torch.tensor([[1], [0], [0]]).bool(), 0))
    with pytest.raises(ValueError, match="holds 2 images, and its layout the tokens of 3"):
        model(stream[:2], start_at_layer=1, tokens=ragged)
