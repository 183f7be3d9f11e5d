"""What a cache holds, in which form, and which tokens each activation had."""

from __future__ import annotations

import pytest
import torch

from hooked_vit import ActivationCache
from tests.tiny import GRAPHS, attention, distance, make, pixels, tiny

WITHOUT_POSITIONS = ("hook_pixels", "embed.hook_patch", "hook_pooled", "hook_head_logits", "hook_logits")


@pytest.mark.parametrize("family", GRAPHS)
def test_everything_but_the_results_of_heads_is_kept(family):
    model = tiny(family)[1]
    _, cache = model.run_with_cache(pixels(model))
    assert isinstance(cache, ActivationCache)
    assert set(cache) == {name for name in model.hook_dict if not name.endswith("hook_result")}
    assert not any(value.requires_grad for value in cache.values())


@pytest.mark.parametrize(
    ("names", "kept"),
    [
        ("hook_logits", {"hook_logits"}),
        (["hook_embed", "blocks.1.attn.hook_result"], {"hook_embed", "blocks.1.attn.hook_result"}),
        (("hook_embed",), {"hook_embed"}),
        (lambda name: name.endswith("resid_post"), {"blocks.0.hook_resid_post", "blocks.1.hook_resid_post"}),
        ([], set()),
    ],
)
def test_filters(names, kept):
    model = tiny("vit")[1]
    with attention(model, "eager"):
        _, whole = model.run_with_cache(pixels(model), names_filter=lambda name: True)
        logits, cache = model.run_with_cache(pixels(model), names_filter=names)
    assert set(cache) == kept
    assert all(torch.equal(cache[name], whole[name]) for name in kept)
    assert torch.equal(logits, whole["hook_logits"])


def test_short_names_and_negative_layers():
    model = tiny("vit")[1]
    _, cache = model.run_with_cache(pixels(model))
    assert cache["resid_post", -1] is cache["blocks.1.hook_resid_post"]
    assert cache["q", 0] is cache["blocks.0.attn.hook_q"]
    assert cache["scale", 0, "ln2"] is cache["blocks.0.ln2.hook_scale"]
    assert torch.equal(cache.stack_activation("pattern"), torch.stack([cache["pattern", 0], cache["pattern", 1]]))


@pytest.mark.parametrize("family", GRAPHS)
def test_without_a_batch_axis(family):
    model = make(family)
    x = pixels(model, n=1)
    _, batched = model.run_with_cache(x)
    _, cache = model.run_with_cache(x, remove_batch_dim=True)
    _, later = model.run_with_cache(x)
    later = later.remove_batch_dim()
    for bare in (cache, later):
        assert all(torch.equal(bare[name], batched[name][0]) for name in batched)
        assert torch.equal(bare.at("resid_post", 1, tokens="patches"), batched.at("resid_post", 1, tokens="patches")[0])
        assert torch.equal(bare.decompose_resid(), batched.decompose_resid()[:, 0])
        if not model.cfg.is_feature_model:
            if model.cfg.is_linear_readout:
                flat = bare.logit_attrs(bare.decompose_resid(), 1, has_batch_dim=False)
                assert distance(flat, batched.logit_attrs(batched.decompose_resid(), 1)[:, 0]) <= 1e-12
            role = model.cfg.sources[0]
            assert distance(bare.logit_lens(role), batched.logit_lens(role)[:, 0]) <= 1e-12


@pytest.mark.parametrize("family", GRAPHS)
def test_a_part_of_the_batch(family):
    model = make(family)
    x = pixels(model)
    _, whole = model.run_with_cache(x)
    part = whole.apply_slice_to_batch_dim((1, 3))
    _, alone = model.run_with_cache(x[1:])
    assert max(distance(part[name], alone[name]) for name in alone) <= 1e-12
    assert torch.equal(part.at("resid_post", 1, tokens=[2]), whole["resid_post", 1][1:, [2]])
    assert whole.apply_slice_to_batch_dim(0)["resid_post", 1].shape == (model.tokens.n_tokens, 32)


@pytest.mark.parametrize("family", GRAPHS)
def test_a_part_of_the_positions(family):
    """Only positions are cut: what has none keeps its batch."""
    model = tiny(family)[1]
    x = pixels(model)
    _, whole = model.run_with_cache(x)
    _, cache = model.run_with_cache(x, pos_slice=(1, 4))
    for name, act in whole.items():
        per_head = name.endswith(("hook_q", "hook_k", "hook_v", "hook_rot_q", "hook_rot_k", "attn.hook_mid", "hook_z"))
        pooled = name.startswith("ln_final") and model.cfg.final_norm == "pooled"
        if name in ("hook_pool_k", "hook_pool_v"):
            assert torch.equal(cache[name], act[:, 1:4])
        elif "pool_" in name or pooled or name in WITHOUT_POSITIONS or name.startswith("embed."):
            assert torch.equal(cache[name], act)
        else:
            assert torch.equal(cache[name], act[:, 1:4] if per_head else act[..., 1:4, :]), name
    with pytest.raises(ValueError, match=r"does not hold \d+ tokens"):
        cache.at("resid_post", 1)


@pytest.mark.parametrize("family", GRAPHS)
def test_gradients_beside_activations(family):
    """incl_bwd wants one number: the gradient of every activation lies beside it, and is autograd's."""
    model = make(family)
    model.set_head_(torch.randn(1, model.cfg.d_pooled).double(), torch.zeros(1).double())
    x = pixels(model, n=1).requires_grad_()
    logits, cache = model.run_with_cache(x, incl_bwd=True)
    acts = {}
    names = set(cache) - {name for name in cache if name.endswith("_grad")}

    def keep(act, hook):
        acts[hook.name] = act

    again = model.run_with_hooks(x, fwd_hooks=[(lambda name: name in names, keep)])
    assert distance(again, logits) <= 1e-12
    assert {f"{name}_grad" for name in names} == set(cache) - names
    for name, grad in zip(acts, torch.autograd.grad(again.sum(), list(acts.values())), strict=True):
        assert distance(cache[f"{name}_grad"], grad) <= 1e-10, name


@pytest.mark.parametrize("family", GRAPHS)
def test_tokens_are_found_wherever_they_were(family):
    model = tiny(family)[1]
    x = pixels(model)
    n, p = model.tokens.n_tokens, len(model.cfg.prefix)
    hooks = [
        ("blocks.0.hook_resid_post", lambda act, hook: model.insert_tokens(act, 0, torch.full((2, 32), 7.0))),
        ("blocks.1.hook_resid_mid", lambda act, hook: model.keep_tokens(act, torch.arange(n + 1, 0, -1))),
    ]
    with model.hooks(hooks), attention(model, "eager"):
        _, cache = model.run_with_cache(x)
    assert [cache.tokens("resid_pre", layer).n_tokens for layer in (0, 1)] == [n, n + 2]
    assert cache.tokens("resid_post", -1).n_tokens == n + 1
    assert torch.equal(cache.at("resid_post", 0, tokens="inserted"), torch.full((3, 2, 32), 7.0))
    assert cache.at("resid_post", 1, tokens="inserted").shape[1] == 1
    order = cache.tokens("resid_post", 1).ids
    assert torch.equal(order[:-1], torch.arange(n).flip(0))
    for role in model.cfg.prefix[:1]:
        assert torch.equal(cache.at("resid_post", 1, tokens=role), cache["resid_post", 1][:, [n - 1]])
    assert torch.equal(cache.at("resid_pre", 1, tokens=[p + 3]), cache["resid_pre", 1][:, [p + 5]])
    assert model.tokens.n_tokens == n


def test_at_refuses_what_is_no_list_of_tokens():
    model = tiny("vit")[1]
    _, cache = model.run_with_cache(pixels(model))
    for name, shape in (
        ("hook_pooled", "3, 32"),
        ("embed.hook_patch", "3, 16, 32"),
        ("blocks.0.attn.hook_pattern", "3, 4"),
    ):
        with pytest.raises(ValueError, match=rf"'{name}' has the shape \({shape}.*17 tokens"):
            cache.at(name)
    with pytest.raises(ValueError, match="there is no 'dist' token here; this model has cls, patches"):
        cache.at("resid_post", 0, tokens="dist")


def test_images_with_different_numbers_of_tokens():
    model = tiny("vit")[1]
    ragged = torch.tensor([[0, 1, 2], [0, 5, -1], [0, 7, 8]])
    with model.hooks([("blocks.0.hook_resid_post", lambda act, hook: model.keep_tokens(act, ragged))]):
        _, cache = model.run_with_cache(pixels(model))
    assert torch.equal(cache.at("resid_post", 1), cache["resid_post", 1][:, :1])
    with pytest.raises(ValueError, match=r"images hold \[1, 2\] such tokens"):
        cache.at("resid_post", 1, tokens="patches")
    with pytest.raises(ValueError, match="cannot be sliced"):
        cache.apply_slice_to_batch_dim(0)


@pytest.mark.parametrize("family", ["vit", "deit", "registers", "siglip"])
def test_attention_is_cut_by_query_and_by_key(family):
    model = tiny(family)[1]
    _, cache = model.run_with_cache(pixels(model))
    pattern, layout = cache["pattern", 1], model.tokens
    for query in layout.roles:
        q, k = layout.mask(query), layout.mask("patches")
        assert torch.equal(cache.at("pattern", 1, queries=query, keys="patches"), pattern[:, :, q][..., k])
        assert torch.equal(cache.at("attn_scores", 1, keys=query), cache["attn_scores", 1][..., q])
        assert torch.equal(cache.at("pattern", 1, queries=[1], keys=[0, 2]), pattern[:, :, [1]][..., [0, 2]])
        bare = model.run_with_cache(pixels(model)[:1], remove_batch_dim=True)[1]
        assert torch.equal(bare.at("pattern", 1, queries=query), bare["pattern", 1][:, q])
    with pytest.raises(ValueError, match="got both"):
        cache.at("pattern", 1, tokens="patches", queries="patches")
    with pytest.raises(ValueError, match="queries= and keys= are for attention"):
        cache.at("pattern", 1, tokens="patches")
    with pytest.raises(ValueError, match="tokens= is for a stream"):
        cache.at("resid_post", 1, keys="patches")


def test_what_stands_for_itself_is_short():
    model = tiny("vit")[1]
    _, cache = model.run_with_cache(pixels(model))
    assert (
        repr(cache)
        == f"ActivationCache({len(cache)} activations of {len(pixels(model))} images: hook_pixels to hook_logits)"
    )
    assert "2 layers, 4 heads, d_model 32" in repr(model)
    assert len(repr(model)) < 250
    assert (model.device.type, model.dtype) == ("cpu", torch.float32)
    assert model.cfg.n_patches == model.tokens.n_patches == 16
    assert model.layout_for(64, 32).n_patches == 32
