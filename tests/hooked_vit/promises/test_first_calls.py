"""Calls that people make first, TransformerLens' habits among them: right, or a sentence that says what to do."""

from __future__ import annotations

import pytest
import torch
from PIL import Image
from torch import nn
from transformer_lens import SVDInterpreter, patching

from hooked_vit.errors import UnknownHookError
from tests.tiny import GRAPHS, distance, make, pixels, tiny


@pytest.fixture(scope="module")
def run():
    model = tiny("vit")[1]
    x = pixels(model)
    with torch.no_grad():
        return model, x, model.run_with_cache(x)[1]


def test_images_are_not_pixels():
    model = tiny("vit")[1]
    for images in (pixels(model).numpy(), None):
        with pytest.raises(TypeError, match=r"a model runs pixels, got a .*model.preprocess\(images\)"):
            model(images)
        with pytest.raises(TypeError, match="a model runs pixels"):
            model.run_with_cache(images)
    with pytest.raises(ValueError, match="came without an image processor"):
        model(Image.new("RGB", (32, 32)))
    with pytest.raises(ValueError, match=r"a resumed stream is \[batch, tokens, 32\], got list"):
        model([pixels(model)], start_at_layer=1)


@pytest.mark.parametrize(
    ("key", "said"),
    [
        (("patern", 1), "no activation is called 'patern'; did you mean 'pattern'?"),
        (("pattern", 11), "layers are 0 to 1, or negative from the end; got 11"),
        (("resid_post", -3), "layers are 0 to 1"),
        ("blocks.0.hook_resid_prr", "did you mean 'blocks.0.hook_resid_pre'?"),
        (("result", 0), "the cache does not hold 'blocks.0.attn.hook_result'; see names_filter"),
        ("hook_logits_grad", "the cache does not hold 'hook_logits_grad'; see names_filter, and incl_bwd"),
        (3, "no activation is called 3"),
    ],
)
def test_what_a_cache_does_not_hold(run, key, said):
    with pytest.raises(UnknownHookError) as error:
        run[2][key]
    assert said in str(error.value)


@pytest.mark.parametrize("family", GRAPHS)
def test_no_images_give_nothing(family):
    model = tiny(family)[1]
    x = pixels(model)
    with torch.no_grad():
        logits, cache = model.run_with_cache(x[:0])
        assert logits.shape == (0, *model(x).shape[1:])
        assert model(model(x[:0], stop_at_layer=1), start_at_layer=1).shape == logits.shape
    n = model.tokens.n_tokens - model.tokens.n_prefix
    assert cache.at("resid_post", 0, tokens="patches").shape == (0, n, 32)
    assert cache.at("resid_post", 0, tokens=[0]).shape == (0, 1, 32)


def test_gradients_are_those_of_a_metric():
    model = make("vit")
    x = pixels(model)
    acts, grads = {}, ["blocks.0.hook_resid_post", "hook_logits"]
    model.zero_grad()
    logits, cache = model.run_with_cache(x, names_filter=grads, incl_bwd=True, metric=lambda out: out[:, 2].sum())
    assert torch.equal(cache["hook_logits_grad"].sum(0), 3.0 * nn.functional.one_hot(torch.tensor(2), 5))
    out = model.run_with_hooks(x, fwd_hooks=[(grads[0], lambda act, hook: acts.update({hook.name: act}))])
    (want,) = torch.autograd.grad(out[:, 2].sum(), [acts[grads[0]]])
    assert distance(cache[f"{grads[0]}_grad"], want) <= 1e-12
    with pytest.raises(ValueError, match=r"one number, and the output is \[3, 5\]; give metric=lambda logits"):
        model.run_with_cache(x, incl_bwd=True)
    with pytest.raises(ValueError, match=r"one number, and the metric is \[3\]"):
        model.run_with_cache(x, incl_bwd=True, metric=lambda out: out.sum(-1))
    with pytest.raises(ValueError, match="goes with incl_bwd=True"):
        model.run_with_cache(x, metric=torch.sum)
    with torch.no_grad(), pytest.raises(ValueError, match="no gradients to keep"):
        model.run_with_cache(x, incl_bwd=True, metric=torch.sum)


def test_classes_of_attributions_are_one_or_one_per_image(run):
    _, _, cache = run
    stack, labels = cache.decompose_resid(), torch.tensor([0, 1, 2])
    pairs = cache.logit_attrs(stack, labels, incorrect_tokens=labels.flip(0))
    one = cache.logit_attrs(stack, labels, incorrect_tokens=4)
    assert pairs.shape == one.shape == stack.shape[:3]
    for wrong in (labels[:, None], labels[:2]):
        with pytest.raises(ValueError, match=r"compared one with one.*got \[3\] and \["):
            cache.logit_attrs(stack, labels, incorrect_tokens=wrong)
    with pytest.raises(ValueError, match=r"one for each of 3 images of the stack; got 5"):
        cache.logit_attrs(stack, torch.arange(5))
    alone = cache.logit_attrs(stack[:, 0], 2, has_batch_dim=False, batch_slice=0)
    assert alone.shape == stack.shape[:1] + stack.shape[2:3]


@pytest.mark.parametrize("swap", [False, True])
def test_stacks_over_a_change_of_tokens_are_refused(swap):
    """Of as many tokens afterwards too: they are not the same ones."""
    model = make("vit", torch.float32)

    def edit(act, hook):
        longer = model.insert_tokens(act, 1, torch.ones(1, 32))
        return model.keep_tokens(longer, torch.arange(17)) if swap else longer

    with torch.no_grad(), model.hooks([("blocks.1.hook_resid_pre", edit)]):
        _, cache = model.run_with_cache(pixels(model))
    stacks = [cache.decompose_resid, cache.accumulated_resid, cache.get_full_resid_decomposition]
    for stack in (*stacks, lambda: cache.stack_neuron_results(-1)):
        with pytest.raises(ValueError, match=r"between blocks.0.hook_resid_post and blocks.1.hook_resid_pre"):
            stack()
    assert cache.decompose_resid(1).shape[0] == 4


def test_weights_by_transformer_lens_names():
    for name in ("vit", "dinov2-swiglu"):
        model = make(name)
        assert distance(model.OV.AB, model.W_V @ model.W_O) <= 1e-12
        assert distance(model.QK.AB, model.W_Q @ model.W_K.transpose(-2, -1)) <= 1e-12
    assert torch.equal(model.W_gate[1], model.blocks[1].mlp.W_gate)
    assert make("vit").W_gate is None
    for stacked in ("W_Q", "W_K", "W_V", "W_O", "W_in", "W_out"):
        assert "view" not in getattr(type(model), stacked).__doc__


def test_tools_for_text_are_refused_by_name(run):
    model, x, cache = run
    with pytest.raises(NotImplementedError, match=r"use model.OV\[layer, head\].svd\(\)"):
        SVDInterpreter(model)
    for partial in (patching.get_act_patch_resid_pre, patching.get_act_patch_attn_head_out_all_pos):
        with pytest.raises(AttributeError, match=r"interventions.patch_tokens.*activation_patching"):
            partial(model, x, cache, lambda logits: logits[:, 0].sum())
    with pytest.raises(AttributeError, match=r"next\(model.parameters\(\)\).device"):
        _ = model.cfg.device
    with pytest.raises(AttributeError, match="says nothing of 'colour'"):
        _ = model.cfg.colour
