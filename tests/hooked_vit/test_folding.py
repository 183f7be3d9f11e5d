"""Weights under TransformerLens' names are the weights themselves, and folding leaves every logit where it was."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from hooked_vit import HookedViT
from hooked_vit.components.norms import LayerNorm
from tests.tiny import CORE, distance, make, pixels, sizes

EXACT = 1e-12
FOLDINGS = {
    "scale": ("fold_layer_scale_",),
    "norm": ("fold_layer_norm_",),
    "both": ("fold_layer_scale_", "fold_layer_norm_"),
    "both-other-order": ("fold_layer_norm_", "fold_layer_scale_"),
    "twice": ("fold_layer_norm_", "fold_layer_scale_") * 2,
}


def final_norm_folds(model: HookedViT) -> bool:
    """Into the probe's keys and values; else into a head, where there is one that reads a single role."""
    if model.cfg.attention_pool:
        return True
    reads = [read for _, read in model.cfg.heads]
    return isinstance(model.ln_final, LayerNorm) and bool(reads) and all(len(read) == 1 for read in reads)


@pytest.mark.parametrize("folding", FOLDINGS)
@pytest.mark.parametrize("name", CORE)
def test_folding_changes_nothing_but_the_weights(name, folding):
    model = make(name)
    x = pixels(model, sizes(name)[-1])
    kept = ("hook_attn_out", "hook_mlp_out", "resid_post", "hook_pattern", "hook_pooled")

    def run():
        with torch.no_grad():
            return model.run_with_cache(x, names_filter=lambda hook: hook.endswith(kept))

    before, acts = run()
    projected = None if model.cfg.is_feature_model else model.project(acts["resid_post", 0])
    for fold in FOLDINGS[folding]:
        getattr(model, fold)()
    after, moved = run()
    assert distance(after, before) <= EXACT
    # the pooled vector changes where the head took over the norm's gain and offset; all else is as it was
    for hook in acts:
        if hook != "hook_pooled" or model.cfg.attention_pool or not final_norm_folds(model):
            assert distance(moved[hook], acts[hook]) <= EXACT, hook
    if projected is not None:
        assert distance(model.project(acts["resid_post", 0]), projected) <= EXACT


@pytest.mark.parametrize("name", CORE)
def test_nothing_is_left_to_fold(name):
    model = make(name)
    model.fold_layer_scale_()
    model.fold_layer_norm_()
    assert not any("ls" in key.split(".") for key in model.state_dict())
    assert not model.cfg.layer_scale
    kept = [norm for norm in (model.ln_pre, model.embed.norm) if norm is not None]
    kept += [] if final_norm_folds(model) else [model.ln_final]
    if model.cfg.post_norm:  # which nothing reads but the stream
        behind = [norm for block in model.blocks for norm in (block.ln1, block.ln2)]
        assert not any((norm.w == 1).all() or (norm.b == 0).all() for norm in behind)
        kept += behind
    for norm in model.modules():
        if isinstance(norm, LayerNorm):
            plain = bool((norm.w == 1).all() and (norm.b == 0).all())
            assert plain == all(norm is not k for k in kept)


@pytest.mark.parametrize("name", CORE)
def test_a_folded_model_is_described_by_its_config(name):
    """A new model of the folded config takes the folded weights, all of them."""
    model = make(name)
    model.fold_layer_scale_()
    model.fold_layer_norm_()
    twin = type(model)(model.cfg).double()
    twin.load_state_dict(model.state_dict(), strict=True)
    x = pixels(model)
    assert torch.equal(twin(x), model(x))


@pytest.mark.parametrize("name", CORE)
def test_weights_mean_what_the_hooks_show(name):
    """Activations follow from the normalised stream and the weights by the formulas of the literature."""
    model = make(name)
    with torch.no_grad():
        logits, acts = model.run_with_cache(pixels(model), names_filter=lambda _: True)
    for layer, block in enumerate(model.blocks):
        attn, mlp, post = block.attn, block.mlp, model.cfg.post_norm
        norms = {"ln1": block.ln1, "ln2": block.ln2}
        normed = [acts[f"blocks.{layer}.{n}.hook_normalized"] * norm.w + norm.b for n, norm in norms.items()]
        x = acts["resid_pre", layer] if post else normed[0]
        for letter in "QKV":
            weight, bias = getattr(attn, f"W_{letter}"), getattr(attn, f"b_{letter}")
            assert distance(torch.einsum("btd,hde->bthe", x, weight) + bias, acts[letter.lower(), layer]) <= EXACT
            assert torch.equal(getattr(model, f"W_{letter}")[layer], weight)
            assert torch.equal(getattr(model, f"b_{letter}")[layer], bias)
        out = torch.einsum("bthe,hed->btd", acts["z", layer], attn.W_O) + attn.b_O
        assert distance(block.ln1(out) if post else out, acts["attn_out", layer]) <= EXACT
        x = acts["resid_mid", layer] if post else normed[1]
        linear = acts["pre", layer] if mlp.W_gate is None else acts[f"blocks.{layer}.mlp.hook_pre_linear"]
        assert distance(x @ mlp.W_in + mlp.b_in, linear) <= EXACT
        out = acts["post", layer] @ mlp.W_out + mlp.b_out
        assert distance(block.ln2(out) if post else out, acts["mlp_out", layer]) <= EXACT
        if post:
            assert (
                distance(torch.stack(normed), torch.stack([acts["attn_out", layer], acts["mlp_out", layer]])) <= EXACT
            )
        for stacked, part in ((model.W_O, attn.W_O), (model.b_O, attn.b_O), (model.W_in, mlp.W_in)):
            assert torch.equal(stacked[layer], part)
        for stacked, part in ((model.b_in, mlp.b_in), (model.W_out, mlp.W_out), (model.b_out, mlp.b_out)):
            assert torch.equal(stacked[layer], part)
    patch = F.unfold(acts["hook_pixels"], model.cfg.patch_size, stride=model.cfg.patch_size).mT @ model.W_E
    bias = model.embed.patch.bias
    assert distance(patch if bias is None else patch + bias, acts["embed.hook_patch"]) <= EXACT
    if not model.cfg.is_feature_model:
        assert distance(acts["hook_pooled"] @ model.W_U + model.b_U, logits) <= EXACT


@pytest.mark.parametrize("name", CORE)
def test_weights_are_views_that_write_through(name):
    model = make(name)
    model.fold_layer_scale_()
    for block in model.blocks:
        attn, mlp = block.attn, block.mlp
        for view, home in (
            *((getattr(attn, f"W_{letter.upper()}"), getattr(attn, letter)) for letter in "qkvo"),
            (mlp.W_in, mlp.fc_in),
            (mlp.W_out, mlp.fc_out),
            *([(mlp.W_gate, mlp.fc_gate)] if mlp.fc_gate is not None else []),
        ):
            assert view.untyped_storage().data_ptr() == home.weight.untyped_storage().data_ptr()
            assert view.numel() == home.weight.numel()
    assert model.W_E.untyped_storage().data_ptr() == model.embed.patch.weight.untyped_storage().data_ptr()
    if model.pos_embed is not None:
        assert model.W_pos.untyped_storage().data_ptr() == model.pos_embed.weight.untyped_storage().data_ptr()
    x, before = pixels(model), model(pixels(model))
    with torch.no_grad():
        model.blocks[1].attn.W_V[1] = 0
        _, acts = model.run_with_cache(x, names_filter="blocks.1.attn.hook_v")
        assert torch.equal(acts["v", 1][:, :, 1], model.blocks[1].attn.b_V[1].expand(3, model.tokens.n_tokens, -1))
    assert not torch.equal(model(x), before)
    if len(model.cfg.heads) == 1:
        with torch.no_grad():
            model.W_U[:, 0] = 0
        assert distance(model(x)[:, 0], model.b_U[0].expand(3)) == 0


def test_scaled_output_weights_say_what_a_head_adds():
    """Before folding W_O and W_out carry LayerScale, as copies; W_Q and the like stay views."""
    model = make("dinov2")
    attn = model.blocks[0].attn
    assert torch.equal(attn.W_O, (attn.o.weight * attn.ls[:, None]).unflatten(1, (4, 8)).permute(1, 2, 0))
    unscaled = attn.o.weight.unflatten(1, (4, 8)).permute(1, 2, 0)
    assert distance(attn.W_O, unscaled) > 1e-2
    model.fold_layer_scale_()
    assert distance(attn.W_O, unscaled) == 0


def test_positions_that_are_not_there():
    with pytest.raises(AttributeError):
        make("beit-mean-both").W_pos  # noqa: B018
