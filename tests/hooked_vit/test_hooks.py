"""The contract of every hook point of every family: it fires once, and an edit moves what lies behind it, no more."""

from __future__ import annotations

import re
from collections import Counter
from functools import cache

import pytest
import torch

from hooked_vit import ActivationCache, HookedViT
from hooked_vit.hook_table import layer_of, without_layer
from tests.tiny import GRAPHS, distance, make, pixels, tiny

EVERY_HOOK = [
    pytest.param(family, hook, id=f"{family}-{hook}") for family in GRAPHS for hook in tiny(family)[1].hook_dict
]

# what reads what, inside a block
BLOCK = {
    "hook_resid_pre": ["ln1.hook_scale", "ln1.hook_normalized", "hook_resid_mid"],
    "ln1.hook_scale": ["ln1.hook_normalized"],
    "ln1.hook_normalized": ["attn.hook_q", "attn.hook_k", "attn.hook_v"],
    "attn.hook_q": ["attn.hook_rot_q", "attn.hook_attn_scores"],
    "attn.hook_k": ["attn.hook_rot_k", "attn.hook_attn_scores"],
    "attn.hook_rot_q": ["attn.hook_attn_scores"],
    "attn.hook_rot_k": ["attn.hook_attn_scores"],
    "attn.hook_rel_pos_bias": ["attn.hook_attn_scores"],
    "attn.hook_attn_scores": ["attn.hook_pattern"],
    "attn.hook_pattern": ["attn.hook_mid", "attn.hook_z"],
    "attn.hook_v": ["attn.hook_mid", "attn.hook_z"],
    "attn.hook_mid": ["attn.ln.hook_scale", "attn.ln.hook_normalized"],
    "attn.ln.hook_scale": ["attn.ln.hook_normalized"],
    "attn.ln.hook_normalized": ["attn.hook_z"],
    "attn.hook_z": ["attn.hook_result"],
    "attn.hook_result": ["hook_attn_out"],
    "hook_attn_out": ["hook_resid_mid"],
    "hook_resid_mid": ["hook_mlp_in", "hook_resid_post"],
    "hook_mlp_in": ["ln2.hook_scale", "ln2.hook_normalized"],
    "ln2.hook_scale": ["ln2.hook_normalized"],
    "ln2.hook_normalized": ["mlp.hook_pre", "mlp.hook_pre_linear"],
    "mlp.hook_pre": ["mlp.hook_mid", "mlp.hook_post"],
    "mlp.hook_pre_linear": ["mlp.hook_mid", "mlp.hook_post"],
    "mlp.hook_mid": ["mlp.ln.hook_scale", "mlp.ln.hook_normalized"],
    "mlp.ln.hook_scale": ["mlp.ln.hook_normalized"],
    "mlp.ln.hook_normalized": ["mlp.hook_post"],
    "mlp.hook_post": ["hook_mlp_out"],
    "hook_mlp_out": ["hook_resid_post"],
}
# the same, where the norms stand behind the branches
POST_NORM_BLOCK = BLOCK | {
    "hook_resid_pre": ["attn.hook_q", "attn.hook_k", "attn.hook_v", "hook_resid_mid"],
    "attn.hook_result": ["ln1.hook_scale", "ln1.hook_normalized"],
    "ln1.hook_normalized": ["hook_attn_out"],
    "hook_mlp_in": ["mlp.hook_pre"],
    "mlp.hook_post": ["ln2.hook_scale", "ln2.hook_normalized"],
    "ln2.hook_normalized": ["hook_mlp_out"],
}
# an attention pool between the final norm and what is pooled
POOL = {
    "ln_final.hook_normalized": ["hook_pool_k", "hook_pool_v"],
    "hook_pool_q": ["hook_pool_scores"],
    "hook_pool_k": ["hook_pool_scores"],
    "hook_pool_scores": ["hook_pool_pattern"],
    "hook_pool_pattern": ["hook_pool_z"],
    "hook_pool_v": ["hook_pool_z"],
    "hook_pool_z": ["hook_pool_attn_out"],
    "hook_pool_attn_out": ["pool_ln.hook_scale", "pool_ln.hook_normalized", "hook_pooled"],
    "pool_ln.hook_scale": ["pool_ln.hook_normalized"],
    "pool_ln.hook_normalized": ["pool_mlp.hook_pre"],
    "pool_mlp.hook_pre": ["pool_mlp.hook_post"],
    "pool_mlp.hook_post": ["hook_pool_mlp_out"],
    "hook_pool_mlp_out": ["hook_pooled"],
}
# recomputed under another rounding as soon as their value is replaced, by an equal one too
ROUNDED = ("hook_scale", "hook_normalized", "hook_result")


def readers(model: HookedViT) -> dict[str, list[str]]:
    """hook -> the hooks whose activations are computed from its own."""
    n = model.cfg.n_layers
    first = ["ln_pre.hook_scale", "ln_pre.hook_normalized"] if model.cfg.ln_pre else ["blocks.0.hook_resid_pre"]
    placed = first if model.cfg.ln_pre else ["hook_embed"]
    graph = {
        "hook_pixels": ["embed.hook_patch"],
        "embed.hook_patch": ["embed.norm.hook_scale", "embed.norm.hook_normalized"] if model.cfg.patch_norm else placed,
        "embed.norm.hook_scale": ["embed.norm.hook_normalized"],
        "embed.norm.hook_normalized": placed,
        "hook_embed": ["blocks.0.hook_resid_pre"],
        "hook_pos_embed": first,
        "ln_pre.hook_scale": ["ln_pre.hook_normalized"],
        "ln_pre.hook_normalized": ["hook_embed"],
        # where there is no final norm its scale is one, whatever it is given
        f"blocks.{n - 1}.hook_resid_post": ["ln_final.hook_normalized"]
        + ["ln_final.hook_scale"] * (model.cfg.final_norm != "none"),
        "ln_final.hook_scale": ["ln_final.hook_normalized"],
        "ln_final.hook_normalized": ["hook_pooled"],
        "hook_pooled": ["hook_head_logits"],
        "hook_head_logits": ["hook_logits"],
        "hook_logits": [],
    }
    graph |= POOL if model.cfg.attention_pool else {}
    block = POST_NORM_BLOCK if model.cfg.post_norm else BLOCK
    for layer in range(n):
        graph |= {f"blocks.{layer}.{k}": [f"blocks.{layer}.{r}" for r in reads] for k, reads in block.items()}
        if layer:
            graph[f"blocks.{layer - 1}.hook_resid_post"] = [f"blocks.{layer}.hook_resid_pre"]
    live = model.hook_dict
    return {hook: [r for r in reads if r in live] for hook, reads in graph.items() if hook in live}


def downstream(graph: dict[str, list[str]], hook: str) -> set[str]:
    found, ahead = {hook}, [hook]
    while ahead:
        new = set(graph[ahead.pop()]) - found
        found |= new
        ahead += new
    return found


@cache
def watched(family: str) -> tuple[HookedViT, torch.Tensor, ActivationCache]:
    """A clean run with every hook point watched; watching changes no bit (test_parity)."""
    model = tiny(family)[1]
    x = pixels(model, n=2)
    with torch.no_grad():
        return model, x, model.run_with_cache(x, names_filter=lambda name: True)[1]


@cache
def precise(family: str) -> tuple[HookedViT, torch.Tensor, torch.Tensor]:
    """In float64, where rounding is no excuse."""
    model = make(family)
    x = pixels(model, n=2)
    with torch.no_grad():
        return model, x, model(x)


def nudge(act, hook):
    """Positive and uneven: scales keep their sign, and neither softmax nor layer norm takes it out again."""
    return act + 0.5 + torch.rand(act.shape, generator=torch.Generator().manual_seed(0)).to(act)


@pytest.fixture(scope="module", autouse=True)
def eager():
    """Where scores are watched the kernel is eager anyway; this keeps unwatched runs comparable bit by bit."""
    for family in GRAPHS:
        tiny(family)[1].set_attention("eager")
    yield
    for family in GRAPHS:
        tiny(family)[1].set_attention("auto")


@pytest.mark.parametrize("family", GRAPHS)
def test_each_fires_once_with_its_documented_shape(family):
    model = tiny(family)[1]
    seen, fired = {}, Counter()

    def look(act, hook):
        fired[hook.name] += 1
        seen[hook.name] = tuple(act.shape)

    model.run_with_hooks(pixels(model, n=5), fwd_hooks=[(lambda name: True, look)])
    assert fired == dict.fromkeys(model.hook_dict, 1)
    for name, shape, meaning in model.describe_hooks():
        axes = [axis.rpartition("=")[2] for axis in re.sub(r"\bbatch\b", "batch=5", shape).strip("[]").split(", ")]
        assert seen[name] == tuple(map(int, axes)), shape
        assert meaning


@pytest.mark.parametrize("family", GRAPHS)
def test_the_graph_names_every_hook(family):
    model = tiny(family)[1]
    assert set(readers(model)) == set(model.hook_dict)


@pytest.mark.parametrize(("family", "hook"), EVERY_HOOK)
def test_an_edit_moves_all_that_lies_behind_it_and_nothing_else(family, hook):
    model, x, clean = watched(family)
    with torch.no_grad(), model.hooks([(hook, nudge)]):
        _, edited = model.run_with_cache(x, names_filter=lambda name: True)
    moved = {name for name in clean if not torch.equal(clean[name], edited[name])}
    assert moved == downstream(readers(model), hook)
    assert "hook_logits" in moved


@pytest.mark.parametrize(("family", "hook"), EVERY_HOOK)
def test_a_hook_alone_acts_and_a_no_op_does_not(family, hook):
    """Alone, since tensors that are expensive are computed only for those who ask."""
    model, x, kept = watched(family)
    clean = kept["hook_logits"]
    with torch.no_grad():
        assert distance(model.run_with_hooks(x, fwd_hooks=[(hook, nudge)]), clean) > 1e-3
        idle = [(hook, lambda act, hook: act), (hook, lambda act, hook: None)]
        assert torch.equal(model.run_with_hooks(x, fwd_hooks=idle), clean)
        if hook.endswith(ROUNDED):
            model, x, clean = precise(family)
        copied = model.run_with_hooks(x, fwd_hooks=[(hook, lambda act, hook: act.clone())])
    assert distance(copied, clean) <= (1e-12 if hook.endswith(ROUNDED) else 0)


@pytest.mark.parametrize(
    "hook",
    [
        "hook_pixels",
        "blocks.0.ln1.hook_normalized",
        "blocks.1.ln2.hook_scale",
        "blocks.0.attn.hook_result",
        "blocks.0.hook_mlp_in",
    ],
)
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode], ids=lambda m: m.__name__)
def test_an_edit_in_place_is_seen_too(hook, mode):
    model = tiny("vit")[1]
    x = pixels(model)
    with mode():
        by_value = model.run_with_hooks(x, fwd_hooks=[(hook, lambda act, hook: act * act)])
        in_place = model.run_with_hooks(x, fwd_hooks=[(hook, lambda act, hook: act.mul_(act))])
        assert torch.equal(in_place, by_value)
        assert distance(in_place, model(x)) > 1e-3
    assert torch.equal(x, pixels(model))


@pytest.mark.parametrize("family", GRAPHS)
def test_gradients_reach_every_activation(family):
    model = tiny(family)[1]
    acts = {}

    def keep(act, hook):
        acts[hook.name] = act

    x = pixels(model, n=2).requires_grad_()  # or nothing is asked of hook_pixels
    logits = model.run_with_hooks(x, fwd_hooks=[(lambda name: True, keep)])
    grads = torch.autograd.grad((logits**2).sum(), list(acts.values()))
    assert [name for name, grad in zip(acts, grads, strict=True) if not grad.any()] == []


@pytest.mark.parametrize("family", GRAPHS)
def test_backward_hooks_fire_once_with_the_gradient(family):
    """A backward hook sees the gradient that autograd gives at the same activation, and may replace it."""
    model = make(family)
    x = pixels(model, n=2).requires_grad_()
    acts, seen = {}, {}

    def keep(act, hook):
        acts[hook.name] = act

    def look(grad, hook):
        assert hook.name not in seen
        seen[hook.name] = grad

    every = lambda name: True  # noqa: E731
    logits = model.run_with_hooks(x, fwd_hooks=[(every, keep)])
    expected = dict(zip(acts, torch.autograd.grad((logits**2).sum(), list(acts.values())), strict=True))
    with model.hooks(bwd_hooks=[(every, look)]):
        (model(x) ** 2).sum().backward()
    assert set(seen) == set(model.hook_dict)
    assert max(distance(seen[name], expected[name]) for name in seen) <= 1e-10

    model.zero_grad()
    with model.hooks(bwd_hooks=[("blocks.1.hook_resid_pre", lambda grad, hook: torch.zeros_like(grad))]):
        (model(x) ** 2).sum().backward()
    assert not model.blocks[0].mlp.fc_in.weight.grad.any()
    assert model.blocks[1].mlp.fc_in.weight.grad.any()


@pytest.mark.parametrize("family", GRAPHS)
def test_gradients_are_the_slopes_of_edits(family):
    """Where watching swaps kernels, the gradient is still that of the edit one would make."""
    model = make(family)
    x = pixels(model, n=2)
    for hook in [name for name in model.hook_dict if name.endswith((*ROUNDED, "hook_pattern", "hook_rel_pos_bias"))]:
        acts = []
        out = model.run_with_hooks(x, fwd_hooks=[(hook, lambda act, hook, acts=acts: acts.append(act))])
        (grad,) = torch.autograd.grad((out**2).sum(), acts)
        step = torch.randn(grad.shape, dtype=grad.dtype, generator=torch.Generator().manual_seed(2)) * 1e-5

        def loss(sign: int, hook=hook, step=step) -> torch.Tensor:
            moved = model.run_with_hooks(x, fwd_hooks=[(hook, lambda act, hook: act + sign * step)])
            return (moved**2).sum()

        with torch.no_grad():
            slope = (loss(1) - loss(-1)) / 2
        torch.testing.assert_close((grad * step).sum(), slope, rtol=1e-5, atol=1e-12)


@pytest.mark.parametrize("family", GRAPHS)
def test_hooks_run_in_the_order_given(family):
    model = tiny(family)[1]
    x, hook = pixels(model, n=2), "blocks.1.hook_resid_pre"
    edits = [(hook, lambda act, hook: act * 2), (hook, lambda act, hook: act + 1)]
    both = model.run_with_hooks(x, fwd_hooks=[(hook, lambda act, hook: act * 2 + 1)])
    assert torch.equal(model.run_with_hooks(x, fwd_hooks=edits), both)
    assert not torch.equal(model.run_with_hooks(x, fwd_hooks=edits[::-1]), both)
    with model.hooks(edits[:1]):
        _, cache = model.run_with_cache(x, names_filter=hook)
    assert torch.equal(cache[hook], 2 * model(x, stop_at_layer=1))


def test_layers_of_hooks_are_told_by_their_names():
    assert {layer_of(name) for name in tiny("vit")[1].hook_dict} == {-1, 0, 1}
    assert without_layer("blocks.1.hook_resid_pre") == without_layer("blocks.0.hook_resid_pre")
