"""Tokens come and go, and roles, positions and readout follow them."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from hooked_vit import HookedViT
from tests.tiny import FAMILIES, answer, assert_parity, attention, distance, make, pixels, tiny

# what transformers can do with a stream of another length: no relative position bias
NO_BIAS = ("vit", "deit", "deit-teacher", "dinov2", "registers", "clip-projection", "clip-classifier", "clip-model")
# and its mean over patches is a slice, which would swallow an inserted token
CLS_ONLY = ("vit", "deit", "vit-model", "dinov2-model", "registers-model", "clip-projection", "clip-model")


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def order(n: int, seed: int = 0) -> torch.Tensor:
    return torch.randperm(n, generator=torch.Generator().manual_seed(seed))


def run(model: HookedViT, edit: Callable, *, layer: int = 1, images: slice = slice(None), size=None) -> torch.Tensor:
    """Logits with an edit of the stream entering a block."""
    x = pixels(model, size)[images]
    with torch.no_grad():
        return model.run_with_hooks(x, fwd_hooks=[(f"blocks.{layer}.hook_resid_pre", lambda act, hook: edit(act))])


def keep(model: HookedViT, places) -> Callable:
    return lambda act: model.keep_tokens(act, torch.as_tensor(places))


def insert(model: HookedViT, at: int, vectors: torch.Tensor, **kw) -> Callable:
    return lambda act: model.insert_tokens(act, at, vectors, **kw)


def layers_of(hf: nn.Module) -> nn.ModuleList:
    return next(m for m in hf.modules() if isinstance(m, nn.ModuleList) and len(m) == 2)


@pytest.mark.parametrize("kernel", ["auto", "eager"])
@pytest.mark.parametrize("family", FAMILIES)
def test_removing_nothing_changes_no_bit(family, kernel):
    model = tiny(family)[1]
    with attention(model, kernel):
        for size in (None, (48, 40)):
            clean = run(model, lambda act: act, size=size)
            n = model.layout_for(*(size or model.cfg.image_size)).n_tokens
            for layer in (0, 1):
                for places in (torch.arange(n), torch.arange(n).expand(3, -1), torch.arange(n)[None]):
                    assert torch.equal(run(model, keep(model, places), layer=layer, size=size), clean)


@pytest.mark.parametrize("family", FAMILIES)
def test_order_of_tokens_is_irrelevant(family):
    """Positions went in before the first block, or go by the token's id: to attention tokens are a set."""
    model = make(family)
    clean = run(model, lambda act: act)
    n = model.tokens.n_tokens
    per_image = torch.stack([order(n, seed) for seed in range(3)])
    for places in (order(n), per_image):
        assert distance(run(model, keep(model, places)), clean) <= 1e-12
    few = order(n)[:9]
    few = torch.cat([torch.arange(len(model.cfg.prefix)), few[few >= len(model.cfg.prefix)]])
    shuffled = few[order(len(few), 4)]
    assert distance(run(model, keep(model, shuffled)), run(model, keep(model, few))) <= 1e-12


@pytest.mark.parametrize("family", FAMILIES)
def test_padded_removal_is_each_image_on_its_own(family):
    model = make(family)
    p, n = len(model.cfg.prefix), model.tokens.n_tokens
    kept = [torch.cat([torch.arange(p), p + order(n - p, seed)[:k]]) for seed, k in enumerate((9, 4, 1))]
    padded = torch.nn.utils.rnn.pad_sequence(kept, batch_first=True, padding_value=-1)
    for kernel in ("eager", "sdpa"):
        with attention(model, kernel):
            together = run(model, keep(model, padded))
            for i, places in enumerate(kept):
                alone = run(model, keep(model, places), images=slice(i, i + 1))
                assert distance(together[i : i + 1], alone) <= 1e-12


@pytest.mark.parametrize("family", FAMILIES)
def test_a_removed_token_is_one_that_nobody_attends_to(family):
    """So what is left of the stream is the stream of a run in which those keys are masked; BEiT's bias included."""
    model = make(family)
    n, places = model.tokens.n_tokens, [i for i in range(model.tokens.n_tokens) if i % 3 != 2]
    gone = torch.tensor([i not in places for i in range(n)])
    x = pixels(model)
    last = "blocks.1.hook_resid_post"
    with torch.no_grad(), model.hooks([("blocks.1.hook_resid_pre", lambda act, hook: keep(model, places)(act))]):
        _, removed = model.run_with_cache(x, names_filter=last)

    def mask(scores, hook):
        return scores.masked_fill(gone, float("-inf"))

    with torch.no_grad(), model.hooks([("blocks.1.attn.hook_attn_scores", mask)]):
        _, masked = model.run_with_cache(x, names_filter=last)
    assert distance(removed[last], masked[last][:, ~gone]) <= 1e-12
    assert torch.equal(removed.at("resid_post", 1, tokens=[3, 4]), removed[last][:, [2, 3]])


@pytest.mark.parametrize("name", NO_BIAS)
def test_removal_equals_the_same_edit_of_the_original(name):
    hf, model = tiny(name)
    # all of the prefix stays: transformers finds the patches by their number
    places = [i for i in range(model.tokens.n_tokens) if i < len(model.cfg.prefix) or i % 3 != 2]
    handle = layers_of(hf)[1].register_forward_pre_hook(lambda _, args: (args[0][:, places], *args[1:]))
    try:
        with torch.no_grad():
            want, _ = answer(hf, pixels(model))
    finally:
        handle.remove()
    with attention(model, "eager"):
        assert torch.equal(run(model, keep(model, places)), want)


@pytest.mark.parametrize("name", CLS_ONLY)
def test_insertion_equals_the_same_edit_of_the_original(name):
    hf, model = tiny(name)
    extra = random(3, 2, 32).float()
    handle = layers_of(hf)[1].register_forward_pre_hook(lambda _, args: (torch.cat([args[0], extra], 1), *args[1:]))
    try:
        with torch.no_grad():
            want, _ = answer(hf, pixels(model))
    finally:
        handle.remove()
    with attention(model, "eager"):
        assert torch.equal(run(model, insert(model, -1, extra)), want)
    assert_parity(hf, model, pixels(model))


@pytest.mark.parametrize("family", FAMILIES)
def test_where_a_token_is_inserted_is_irrelevant(family):
    model = make(family)
    extra = random(3, 2, 32)
    n = model.tokens.n_tokens
    for donor in (0, None, 4):
        want = run(model, insert(model, n, extra, donor=donor))
        assert distance(want, run(model, lambda act: act)) > 1e-3
        for at in (0, 1, len(model.cfg.prefix), n // 2, -1, -n - 1):
            assert distance(run(model, insert(model, at, extra, donor=donor)), want) <= 1e-12


@pytest.mark.parametrize("family", FAMILIES)
def test_a_copy_with_the_entries_of_its_original_stays_a_copy(family):
    """The bias of an inserted token is that of its donor, as a query and as a key."""
    model = make(family)
    for donor in (0, 5):

        def edit(act, hook, donor=donor):
            return model.insert_tokens(act, 2, act[:, [donor]], donor=donor)

        with torch.no_grad(), model.hooks([("blocks.0.hook_resid_pre", edit)]):
            _, cache = model.run_with_cache(pixels(model))
        copied = cache.at("resid_post", 1, tokens="inserted")
        assert distance(copied, cache.at("resid_post", 1, tokens=[donor])) <= 1e-12
        pattern = cache["pattern", 1]
        where = cache.tokens("resid_pre", 1).mask([donor]).nonzero().item()
        assert distance(pattern[..., 2], pattern[..., where]) <= 1e-12


def test_a_token_without_a_donor_has_no_bias():
    model = tiny("beit-mean-both")[1]
    with model.hooks(
        [("blocks.0.hook_resid_pre", lambda act, hook: insert(model, 3, torch.ones(1, 32), donor=None)(act))]
    ):
        _, cache = model.run_with_cache(pixels(model))
    bias = cache["blocks.1.attn.hook_rel_pos_bias"]
    assert not bias[:, :, 3].any()
    assert not bias[..., 3].any()
    old = [i for i in range(18) if i != 3]
    _, clean = model.run_with_cache(pixels(model))
    assert torch.equal(bias[:, :, old][..., old], clean["blocks.1.attn.hook_rel_pos_bias"])


@pytest.mark.parametrize("family", FAMILIES)
def test_the_role_of_a_new_token_decides_whether_it_is_read(family):
    """Behind the last block nothing attends to it any more: a token of no role is not read, one of a read role is."""
    model = make(family)
    extra, last = random(3, 1, 32), f"blocks.{model.cfg.n_layers - 1}.hook_resid_post"
    clean = run(model, lambda act: act)
    for role in ("inserted", *model.tokens.roles):
        out = model.run_with_hooks(
            pixels(model), fwd_hooks=[(last, lambda act, hook, role=role: insert(model, 2, extra, role=role)(act))]
        )
        assert (distance(out, clean) > 1e-6) == (role in model.cfg.sources), role


@pytest.mark.parametrize("family", FAMILIES)
def test_a_run_inside_a_hook_has_its_own_tokens(family):
    model = tiny(family)[1]
    clean, other = model(pixels(model)), model(pixels(model, (48, 40)))
    nested = []

    def edit(act, hook):
        if nested:  # the runs below come through here too
            return None
        act = model.insert_tokens(act, 1, torch.ones(2, 32))
        nested.append(model.tokens)
        assert torch.equal(model(pixels(model, (48, 40))), other)
        assert model.tokens is nested[0]
        with pytest.raises(ValueError, match="NaN"):
            model(pixels(model) * float("nan"))
        assert model.tokens is nested[0]
        return model.keep_tokens(act, torch.tensor([i for i in range(act.shape[1]) if i not in (1, 2)]))

    assert torch.equal(model.run_with_hooks(pixels(model), fwd_hooks=[("blocks.1.hook_resid_pre", edit)]), clean)
    assert nested[0].n_tokens == model.tokens.n_tokens + 2
    assert model.tokens is model.run.native


def test_the_readout_says_which_role_it_misses():
    for name, places, role in (
        ("vit", [1, 2, 3], "cls"),
        ("beit-mean-none", [0], "patches"),
        ("dinov2", [0], "patches"),
    ):
        model = tiny(name)[1]
        with pytest.raises(ValueError, match=f"reads '{role}', but no such token is left"):
            run(model, keep(model, places))


@pytest.mark.parametrize(
    ("edit", "says"),
    [
        (lambda m, x: m.insert_tokens(x, 19, torch.ones(1, 32)), "cannot insert at 19: positions are 0 to 17"),
        (lambda m, x: m.insert_tokens(x, -19, torch.ones(1, 32)), "cannot insert at -19"),
        (
            lambda m, x: m.insert_tokens(x, 0, torch.ones(1, 32), role="patch"),
            "unknown token role 'patch'; roles are cls",
        ),
        (
            lambda m, x: m.insert_tokens(x, 0, torch.ones(1, 32), donor=17),
            "a donor is an original token, 0 to 16, got 17",
        ),
        (lambda m, x: m.insert_tokens(x, 0, torch.ones(1, 31)), r"new tokens are \[n, 32\] or \[3, n, 32\]"),
        (lambda m, x: m.insert_tokens(x, 0, torch.ones(32)), r"got \(32,\)"),
        (lambda m, x: m.insert_tokens(x, 0, torch.ones(2, 1, 32)), r"got \(2, 1, 32\)"),
        (
            lambda m, x: m.insert_tokens(x[:, :9], 0, torch.ones(1, 32)),
            r"residual stream \[b, 17, d\], got \(3, 9, 32\)",
        ),
        (lambda m, x: m.keep_tokens(x, torch.tensor([0, 17])), r"0 to 16, or -1 for padding; got \[0, 17\]"),
        (lambda m, x: m.keep_tokens(x, torch.tensor([0, -2])), r"0 to 16, or -1 for padding"),
    ],
)
def test_tokens_that_cannot_be_are_refused(edit, says):
    model = tiny("vit")[1]
    with pytest.raises(ValueError, match=says):
        run(model, lambda act: edit(model, act))


def test_outside_a_run_there_are_no_tokens_to_change():
    model = tiny("vit")[1]
    stream = model(pixels(model), stop_at_layer=1)
    with pytest.raises(RuntimeError, match="inside a hook"):
        model.insert_tokens(stream, 0, torch.ones(1, 32))
    with pytest.raises(RuntimeError, match="inside a hook"):
        model.keep_tokens(stream, torch.tensor([0]))
    assert model.tokens is model.run.native
