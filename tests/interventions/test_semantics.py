"""Theorems: what interventions must do to a model, whatever its weights (methods §2, 3, 12, 14, 25)."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from hooked_vit import ActivationCache, HookedViT
from interventions import (
    Intervention,
    ablate_branch,
    ablate_heads,
    ablate_neurons,
    apply,
    drop_source,
    freeze_attention,
    gaussian_tokens,
    high_pass,
    insert_token,
    low_pass,
    mean_tokens,
    new_head,
    noise_tokens,
    patch_branch,
    patch_cls,
    patch_heads,
    patch_neurons,
    patch_tokens,
    project_out,
    readout,
    remove_tokens,
    resample_tokens,
    scale_attention,
    scale_branch,
    self_only,
    set_tokens,
    shuffle_cls,
    shuffle_patches,
    shuffle_tokens,
    steer,
    swap_cls_parameter,
    uniform_attention,
    zero_attention,
    zero_tokens,
)
from interventions.catalogue.pixels import low_frequencies
from interventions.catalogue.shuffling import AMONG, draw_permutation
from tests.interventions.cases import FULL, N, Setting, setting, unchecked_types
from tests.tiny import make, pixels, tiny


@pytest.fixture(scope="module", autouse=True)
def eager():
    """One kernel, so that equal means equal; and no gradients."""
    for family in FULL:
        tiny(family)[1].set_attention("eager")
    with torch.no_grad(), unchecked_types():
        yield
    for family in FULL:
        tiny(family)[1].set_attention("auto")


@pytest.fixture(params=FULL)
def s(request) -> Setting:
    return setting(request.param)


def run(s: Setting, *interventions: Intervention, x: Tensor | None = None) -> Tensor:
    with apply(s.model, *interventions):
        return s.model(s.x if x is None else x)


def cached(s: Setting, *interventions: Intervention, x: Tensor | None = None) -> ActivationCache:
    with apply(s.model, *interventions):
        return s.model.run_with_cache(s.x if x is None else x, names_filter=lambda name: True)[1]


def close(a: Tensor, b: Tensor, atol: float = 2e-6) -> bool:
    return a.shape == b.shape and torch.allclose(a, b, rtol=1e-5, atol=atol)


# §2: shuffling


def test_shuffling_in_front_of_block_0_changes_nothing(s):
    """CLS is the same for every image there, and so are the distillation token and registers."""
    clean = s.model(s.x)
    for role in s.model.tokens.roles:
        shuffled = run(s, shuffle_tokens(layer=0, tokens=role, site="resid_pre", among="others"))
        assert torch.equal(shuffled, clean) == (role != "patches"), role


def test_the_identity_changes_nothing(s):
    clean = s.model(s.x)
    one_each = list(range(N))  # alone in its class, an image can only keep its own
    assert torch.equal(run(s, shuffle_cls(layer=0, among="same_class", labels=one_each)), clean)
    own = s.model.run_with_cache(s.x)[1]
    assert torch.equal(run(s, patch_tokens(layer=0, tokens="all", value=own)), clean)
    assert torch.equal(run(s, patch_cls(layer=1, value=s.x)), clean)
    assert torch.equal(run(s, freeze_attention(own)), clean)


def test_at_the_last_layer_only_what_is_read_matters(s):
    clean = s.model(s.x)
    with apply(s.model, shuffle_cls(layer=-1, seed=1, among="others")) as made:
        shuffled = s.model(s.x)
    (order,) = made.record["shuffle_cls"]
    assert torch.equal(shuffled, clean) == ("cls" not in s.model.cfg.sources)
    if s.model.cfg.sources == ("cls",):
        assert torch.equal(shuffled, clean[order])
    if "cls" in s.model.cfg.sources:
        alone = shuffle_cls(layer=-1, seed=1, among="others") + readout("cls")
        assert torch.equal(run(s, alone), run(s, readout("cls"))[order])
        assert not torch.equal(shuffled, clean[order]) or len(s.model.cfg.sources) == 1


def test_shuffling_all_tokens_shuffles_the_images(s):
    with apply(s.model, shuffle_tokens(layer=0, tokens="all", seed=2, among="others")) as made:
        shuffled = s.model(s.x)
    assert torch.equal(shuffled, s.model(s.x)[made.record["shuffle_tokens"][0]])


@pytest.mark.parametrize("among", AMONG)
def test_who_gives_to_whom(among):
    labels = torch.tensor([0, 0, 1, 1, 2, 2, 7])
    known = labels if "class" in among else None
    for seed in range(20):
        order = draw_permutation(7, torch.Generator().manual_seed(seed), among, known)
        assert order.sort().values.equal(torch.arange(7))
        own, same = order == torch.arange(7), labels[order] == labels
        assert not own.any() or among not in ("others", "other_classes")
        assert not same.any() or among != "other_classes"
        assert same.all() or among != "same_class"


def test_where_nobody_can_give():
    model = tiny("vit")[1]
    x = pixels(model, n=4)
    for iv, images in (
        (shuffle_cls(0, among="others"), x[:1]),
        (shuffle_cls(0, among="other_classes", labels=[0, 0, 0, 1]), x),
        (resample_tokens(0, "cls"), x[:1]),
        (resample_tokens(0, "cls", among="other_classes", labels=[3, 3, 3, 3]), x),
    ):
        with pytest.raises(ValueError, match="batch"), apply(model, iv):
            model(images)


def test_resampling_takes_from_others():
    s = setting("vit")
    resid, labels = s.model(s.x, stop_at_layer=1), torch.tensor([0, 0, 0, 0, 1, 1])
    for seed in range(10):
        for iv in (resample_tokens(0, "cls", seed), resample_tokens(0, "cls", seed, "other_classes", labels)):
            with apply(s.model, iv) as made:
                after = s.model(s.x, stop_at_layer=1)
            (donors,) = made.record["resample_tokens"]
            assert torch.equal(after[:, 0], resid[donors, 0])
            assert torch.equal(after[:, 1:], resid[:, 1:])
            assert (donors != torch.arange(N)).all()
            assert iv.params["labels"] is None or (labels[donors] != labels).all()


# §3: readouts


def test_a_source_alone_depends_on_that_source_alone(s):
    model = s.model
    noisy = {role: noise_tokens(layer=-1, tokens=role, std=3.0) for role in model.tokens.roles}
    for source in model.cfg.sources:
        alone = run(s, readout(source))
        for role, noise in noisy.items():
            assert torch.equal(run(s, noise + readout(source)), alone) == (role != source)
    for role in set(model.tokens.roles) - set(model.cfg.sources):
        assert torch.equal(run(s, noisy[role]), model(s.x))
        with pytest.raises(ValueError, match=f"never '{role}'"):
            readout(role).hooks(model)


def test_sources_add_up(s):
    """Everything from here on is linear: full = Σ alone - what is counted too often."""
    model, n = s.model, len(s.model.cfg.sources)
    clean, pooled = model(s.x), cached(s)["hook_pooled"].unflatten(1, (n, -1))
    assert torch.equal(run(s, readout("full")), clean)
    for i, source in enumerate(model.cfg.sources):
        weight = model.W_U.unflatten(0, (n, -1))
        dropped = run(s, drop_source(source))
        assert close(dropped, clean - pooled[:, i] @ weight[i])
        mean = s.stats.mean("pooled", None, source)
        assert close(run(s, drop_source(source, stats=s.stats)), dropped + mean.float() @ weight[i])
        heads = [read for _, read in model.cfg.heads if i in read]
        if len(heads) == len(model.cfg.heads):
            assert close(run(s, readout(source)), pooled[:, i] @ weight[i] + model.b_U)


def test_a_head_fitted_anew(s):
    width = s.model.cfg.d_model * len(s.model.cfg.sources)
    weight, bias = torch.randn(3, width), torch.randn(3)
    pooled = cached(s)["hook_pooled"]
    assert torch.equal(run(s, new_head(weight, bias)), F.linear(pooled, weight, bias))
    source = s.model.cfg.sources[0]
    left = cached(s, drop_source(source))["hook_pooled"]
    assert torch.equal(run(s, drop_source(source) + new_head(weight)), left @ weight.T)
    assert torch.equal(run(s, new_head(weight) + drop_source(source)), pooled @ weight.T)  # as written


# §12: attention


def test_self_only(s):
    model = s.model
    cache = cached(s, self_only("patches"))
    for layer in range(model.cfg.n_layers):
        pattern, patches = cache["pattern", layer], model.tokens.patches
        assert torch.equal(pattern.sum(-1), torch.ones_like(pattern[..., 0])) or close(
            pattern.sum(-1), torch.ones(()).expand(pattern.shape[:-1])
        )
        assert torch.equal(
            pattern[:, :, patches], torch.eye(model.tokens.n_tokens)[patches].expand_as(pattern[:, :, patches])
        )
    # then each patch is an image of its own: what it becomes does not depend on the other patches
    other = s.x.clone()
    other[..., -8:, -8:] = s.donors[..., -8:, -8:]
    moved = (cached(s, self_only("patches"), x=other)["resid_post", -1] - cache["resid_post", -1]).abs().amax(
        (0, 2)
    ) > 0
    assert moved[model.tokens.patches].tolist() == [False] * 15 + [True]
    assert torch.equal(run(s, self_only("patches", where=False)), model(s.x))


def test_cut_edges(s):
    tokens = s.model.tokens
    clean = cached(s)["pattern", 0]
    cut = cached(s, zero_attention("patches", "cls", layers=0, heads=[1]))["pattern", 0]
    expected = clean.clone()
    expected[:, 1, tokens.patches, 0] = 0
    assert torch.equal(cut, expected)
    renormalised = cached(s, zero_attention("patches", "cls", layers=0, heads=[1], renormalise=True))["pattern", 0]
    assert close(renormalised, expected / expected.sum(-1, keepdim=True))
    assert close(renormalised.sum(-1), torch.ones_like(renormalised[..., 0]))
    kept = cached(s, zero_attention("all", "all", layers=0, keep_self=True))["pattern", 0]
    assert torch.equal(kept, clean * torch.eye(tokens.n_tokens))
    own = cached(s, zero_attention("all", "all", layers=0, keep_self=True, renormalise=True))["pattern", 0]
    assert torch.equal(own, torch.eye(tokens.n_tokens).expand_as(own))


def test_cls_cut_off_is_as_if_it_were_not_there(s):
    """Queries that may not look at CLS evolve as they do without it."""
    model = s.model
    without = cached(s, remove_tokens("cls")) if "cls" not in model.cfg.sources else None
    cut = cached(s, zero_attention(range(1, model.tokens.n_tokens), "cls", renormalise=True))
    if without is not None:
        assert close(cut["resid_post", -1][:, 1:], without["resid_post", -1], 1e-5)
    with apply(model, remove_tokens("cls")):
        resid = model(s.x, stop_at_layer=model.cfg.n_layers)
    assert close(cut["resid_post", -1][:, 1:], resid, 1e-5)


def test_scaled_edges(s):
    assert torch.equal(run(s, scale_attention("all", "cls", 1.0)), s.model(s.x))
    for renormalise in (False, True):
        zero = run(s, zero_attention("patches", "cls", renormalise=renormalise))
        assert torch.equal(run(s, scale_attention("patches", "cls", 0.0, renormalise=renormalise)), zero)
        half = run(s, scale_attention("patches", "cls", 0.5, renormalise=renormalise))
        assert torch.equal(run(s, zero_attention("patches", "cls", where=0.5, renormalise=renormalise)), half)
        assert torch.equal(run(s, scale_attention("patches", "cls", 0.0, where=0.5, renormalise=renormalise)), half)
    pattern = cached(s)["pattern", 1].clone()
    doubled = cached(s, scale_attention("cls", "patches", 2.0, layers=1, renormalise=True))["pattern", 1]
    pattern[:, :, 0, s.model.tokens.patches] *= 2
    assert close(doubled, pattern / pattern.sum(-1, keepdim=True))


def test_nothing_left_to_attend_to():
    s = setting("vit")
    with pytest.raises(ValueError, match="nothing left"):
        zero_attention("cls", "all", renormalise=True).hooks(s.model)
    # after a removal it is known only once the run gets there
    late = remove_tokens("patches", layer=0) + zero_attention("cls", "cls", renormalise=True)
    with pytest.raises(ValueError, match="nothing left"):
        run(s, late)


def test_the_fused_kernel_has_no_pattern_to_edit():
    model = make("vit", torch.float32)
    model.set_attention("sdpa")
    for iv in (zero_attention("cls", "patches"), self_only(), uniform_attention(), freeze_attention(pixels(model))):
        with pytest.raises(ValueError, match="fused"):
            iv.hooks(model)
    assert model.run.n_forwards == 0


def test_uniform_attention_averages_values(s):
    cache = cached(s, uniform_attention("cls", "patches", layers=1))
    values = cache["v", 1][:, s.model.tokens.patches].mean(1)
    assert close(cache["z", 1][:, 0], values)
    assert close(cache["pattern", 1].sum(-1), torch.ones_like(cache["pattern", 1][..., 0]))


def test_frozen_patterns_are_those_of_the_other_run(s):
    frozen = cached(s, freeze_attention(s.donors))
    for layer in range(s.model.cfg.n_layers):
        assert torch.equal(frozen["pattern", layer], s.cache["pattern", layer])
    assert torch.equal(
        cached(s, freeze_attention(s.cache, layers=1))["z", 1],
        s.cache["pattern", 1].matmul(cached(s)["v", 1].transpose(1, 2)).transpose(1, 2),
    )
    row = cached(s, freeze_attention(s.cache, layers=0, queries="cls", keys="patches", heads=2))["pattern", 0]
    where = row != cached(s)["pattern", 0]
    expected = torch.zeros_like(where)
    expected[:, 2, 0, s.model.tokens.patches] = True
    assert torch.equal(where, expected)
    with pytest.raises(ValueError, match="17|18|20"):
        run(s, remove_tokens([-1]) + freeze_attention(s.cache))


# §14: removal, and roles that survive


def test_removing_nothing_is_the_baseline(s):
    none = torch.zeros(N, s.model.tokens.n_tokens, dtype=torch.bool)
    assert torch.equal(run(s, remove_tokens("all", where=none)), s.model(s.x))
    assert torch.equal(run(s, remove_tokens("patches", where=none[:, :16])), s.model(s.x))
    inserted = insert_token(layer=0, vector=s.vector(), index=2) + remove_tokens("inserted")
    assert torch.equal(run(s, inserted), s.model(s.x))


def test_removal_is_a_run_of_the_tokens_that_are_left(s):
    """Padded in a batch, or alone without padding: the same."""
    model, n = s.model, s.model.tokens.n_tokens
    gone = (torch.rand(N, n, generator=torch.Generator().manual_seed(3)) > 0.6) & model.tokens.mask("patches")
    gone[0] = False
    together = cached(s, remove_tokens("all", where=gone))
    for i in range(N):
        places = (~gone[i]).nonzero().flatten()
        resid = model(s.x[i : i + 1], stop_at_layer=0)[:, places]
        alone = model(resid, start_at_layer=0, tokens=model.tokens.keep(places))
        assert close(together["hook_logits"][i : i + 1], alone, 1e-5)
        layout = together.tokens("resid_post", -1)
        assert layout.ids[i][: len(places)].tolist() == places.tolist()
    same = cached(s, remove_tokens("patches", layer=1, where=gone[1:2, -16:]))
    assert not same.tokens("resid_post", 1).ragged
    assert torch.equal(run(s, remove_tokens(gone[1].nonzero().flatten().tolist(), layer=1)), same["hook_logits"])


def test_the_order_of_tokens_is_irrelevant(s):
    model, n = s.model, s.model.tokens.n_tokens
    mixed = torch.randperm(n, generator=torch.Generator().manual_seed(0))
    resid = model(s.x, stop_at_layer=0)
    permuted = model(resid[:, mixed], start_at_layer=0, tokens=model.tokens.keep(mixed))
    assert close(permuted, model(s.x), 1e-5)
    # and interventions find their tokens there
    for iv in (zero_tokens(0, "cls"), set_tokens(1, [0, 3], s.vector(1, 2)), zero_attention("cls", [2, 5])):
        with apply(model, iv):
            assert close(model(resid[:, mixed], start_at_layer=0, tokens=model.tokens.keep(mixed)), model(s.x), 1e-5)


def test_tokens_that_are_gone_cannot_be_edited(s):
    gone = remove_tokens([-2])
    for iv in (
        zero_tokens(0, [-2]),
        zero_attention([-2], "cls"),
        insert_token(1, s.model.tokens.n_tokens - 2),
        remove_tokens([-2], layer=1),
    ):
        with pytest.raises(ValueError, match="removed earlier|are several"):
            run(s, gone + iv)
    per_image = remove_tokens([-2], where=torch.tensor([True] + [False] * (N - 1)))
    with pytest.raises(ValueError, match="removed earlier"):
        run(s, per_image + zero_tokens(0, [-2]))
    # a role that is still there means those that are left, each with its own value
    value = torch.arange(16.0)[:, None].expand(1, 16, s.d)
    after = cached(s, gone + set_tokens(0, "patches", value))
    left = [*range(14), 15]
    assert after.at("resid_post", 0, tokens="patches")[0, :, 0].tolist() == left
    with pytest.raises(ValueError, match="exchange"):
        run(s, remove_tokens("patches", where=torch.rand(N, 16) > 0.5) + shuffle_tokens(0, "patches"))


def test_an_image_keeps_at_least_one_token():
    s = setting("clip-classifier")
    everything = torch.zeros(N, s.model.tokens.n_tokens, dtype=torch.bool)
    everything[2] = True
    with pytest.raises(ValueError, match="no token left"):
        run(s, remove_tokens("all", where=everything))


def test_roles_survive_an_insertion(s):
    """A token nobody attends to, in front, changes no other: roles, readout and positions still find theirs."""
    for index in (0, 1, -1):
        alone = insert_token(layer=0, vector=s.vector(), index=index) + zero_attention(
            range(s.model.tokens.n_tokens), "inserted", renormalise=True
        )
        for iv in (
            None,
            shuffle_cls(0),
            zero_tokens(0, "patches"),
            zero_attention("patches", "cls"),
            set_tokens(0, [0, 4], s.vector(1, 2)),
        ):
            parts = [] if iv is None else [iv]
            assert close(run(s, alone, *parts), run(s, *parts), 1e-5), (index, iv)
    addressed = insert_token(0, s.vector()) + zero_tokens(0, "inserted")
    cache = cached(s, addressed)
    assert not cache.at("resid_post", 0, tokens="inserted").any()
    assert cache.at("resid_post", 0, tokens="cls").any()
    with pytest.raises(ValueError, match="no 'inserted' token"):
        run(s, zero_tokens(0, "inserted"))


def test_inserted_tokens(s):
    model = s.model
    draw = insert_token(1, "random", index=1, std=0.5)
    with apply(model, draw) as made:
        resid = model.run_with_cache(s.x)[1]["resid_pre", 1] if False else model(s.x, stop_at_layer=2)
    assert resid.shape[1] == model.tokens.n_tokens + 1
    (drawn,) = made.record["insert_token"]
    assert drawn.std() == pytest.approx(0.5, rel=0.2)
    entering = cached(s)["resid_pre", 1]
    for index, new in ((0, entering[:, 4]), (3, entering[:, 4]), (-1, entering[:, 4])):
        got = cached(s, insert_token(1, 4, index=index))
        assert torch.equal(got.at("resid_mid", 1, tokens="inserted")[:, 0].shape and new, entering[:, 4])
    some = torch.tensor([True, False, True] * (N // 3))
    logits = run(s, insert_token(0, s.vector(), where=some))
    assert close(logits[some], run(s, insert_token(0, s.vector()))[some], 1e-5)
    assert close(logits[~some], model(s.x)[~some], 1e-5)


@pytest.mark.parametrize("family", ["beit-mean-both", "dinov2", "registers", "clip-classifier"])
def test_a_new_patch_is_read(family):
    s = setting(family)
    last = insert_token(-1, s.vector(), index=-1, role="patches")
    assert not close(run(s, last), run(s, insert_token(-1, s.vector(), index=-1)), 1e-3)


@pytest.mark.parametrize("family", ["beit-mean-both", "beit-cls-shared-abs"])
def test_relative_position_bias_of_a_new_token(family):
    s = setting(family)
    model, name = s.model, "blocks.1.attn.hook_rel_pos_bias"
    native = cached(s)[name][0]
    others = torch.arange(model.tokens.n_tokens)

    def bias(*interventions: Intervention) -> Tensor:
        return cached(s, *interventions)[name][0]

    def without(table: Tensor, at: int) -> Tensor:
        keep = [i for i in range(table.shape[-1]) if i != at]
        return table[:, keep][:, :, keep]

    like_cls = bias(insert_token(1, s.vector(), index=2))
    places = torch.tensor([0, 1, 0, *range(2, model.tokens.n_tokens)])
    assert torch.equal(like_cls, native[:, places][:, :, places])
    none = bias(insert_token(1, s.vector(), index=2, bias="zero"))
    assert not none[:, 2].any()
    assert not none[:, :, 2].any()
    assert torch.equal(without(none, 2), native)

    own = torch.arange(12.0).reshape(3, 4)
    one = insert_token(0, s.vector(), index=2, bias=own)
    two = insert_token(1, s.vector(), index=0, bias=-own)
    table = bias(one)
    assert torch.equal(table[:, 2, 3], own[0])
    assert torch.equal(table[:, 3, 2], own[1])
    assert torch.equal(table[:, 2, 2], own[2])
    assert torch.equal(without(table, 2), native)
    both = bias(one + two)  # the first token stands at 3 now
    assert torch.equal(both[:, 0, 3], -own[0])  # what is written later has the last word
    assert torch.equal(both[:, 3, 4], own[0])
    assert torch.equal(without(without(both, 3), 0), native)
    with apply(model, one + remove_tokens("inserted", layer=1)):  # gone again
        assert model.run_with_cache(s.x, names_filter=name)[1][name].shape[-1] == len(others)


# replacing, steering, components


def test_patching_everything_gives_the_other_run(s):
    """§24: patch-all = 1 at every depth, empty = 0; and a component of a run put into itself changes nothing."""
    n = s.model.cfg.n_layers
    for layer in range(n):
        for site in ("resid_pre", "resid_mid", "resid_post"):
            assert torch.equal(run(s, patch_tokens(layer, "all", s.cache, site=site)), s.donor_logits)
    halves = patch_tokens(0, "patches", s.cache) + patch_tokens(0, list(range(s.model.tokens.n_prefix)), s.cache)
    assert torch.equal(run(s, halves), s.donor_logits)
    start = patch_tokens(0, "all", s.cache, site="resid_pre")
    attn = [patch_heads(l, None, s.cache) for l in range(n)]
    branches = [patch_branch(l, b, s.cache) for l in range(n) for b in ("attn", "mlp")]
    neurons = [patch_neurons(l, None, s.cache) for l in range(n)]
    embedded = s.x.new_tensor(0) + s.x  # other pixels: only what is patched can carry the donor
    cls_in = cached(s)["resid_pre", 0]
    for parts in (branches, attn + neurons):
        own = run(s, *parts, x=s.donors)
        assert torch.equal(own, s.donor_logits)
        assert torch.equal(run(s, start, *parts, x=embedded), s.donor_logits)
        # without the first the embedding is still this run's
        kept = cached(s, *parts)["resid_post", n - 1]
        assert close(kept - cls_in, s.cache["resid_post", n - 1] - s.cache["resid_pre", 0], 1e-5)
    results = [patch_heads(l, None, s.cache, site="result") for l in range(n)]
    assert close(run(s, *results, x=s.donors), s.donor_logits, 1e-5)


def test_cls_at_the_embedding_and_patches_behind_the_last_block(s):
    """§24: with a CLS readout, patches after the last block move nothing, CLS there everything; CLS at h0 nothing."""
    clean = s.model(s.x)
    assert torch.equal(run(s, patch_tokens(0, "cls", s.cache, site="resid_pre")), clean)
    for role in s.model.tokens.roles:
        patched = run(s, patch_tokens(-1, role, s.cache))
        assert torch.equal(patched, clean) == (role not in s.model.cfg.sources)
        assert torch.equal(patched, s.donor_logits) == ((role,) == s.model.cfg.sources)


def test_where_says_which_images_and_tokens(s):
    clean, model = s.model(s.x, stop_at_layer=1), s.model
    images = torch.tensor([True, False, True] * (N // 3))
    tokens = torch.rand(N, model.tokens.n_tokens, generator=torch.Generator().manual_seed(0)) > 0.5

    def after(**kw) -> Tensor:
        with apply(model, zero_tokens(0, **kw)):
            return model(s.x, stop_at_layer=1)

    assert torch.equal(after(tokens="cls", where=images)[:, 0], clean[:, 0] * ~images[:, None])
    assert torch.equal(after(tokens="all", where=tokens), clean * ~tokens[..., None])
    patches = model.tokens.patches
    assert torch.equal(
        after(tokens="patches", where=tokens[:, patches])[:, patches], (clean * ~tokens[..., None])[:, patches]
    )
    assert close(after(tokens="all", where=0.25), 0.75 * clean)
    assert torch.equal(after(tokens="all", where=torch.ones(1, model.tokens.n_tokens)), torch.zeros_like(clean))
    ramp = torch.linspace(0, 1, N)
    assert close(after(tokens="all", where=ramp), clean * (1 - ramp)[:, None, None])


def test_means_and_matched_gaussians(s):
    stats, model = s.stats, s.model
    mean, covariance = stats.mean("resid_post", 0, "patches"), stats.covariance("resid_post", 0, "patches")
    with apply(model, mean_tokens(0, "patches", stats=stats)):
        resid = model(s.x, stop_at_layer=1)
    assert torch.equal(resid[:, model.tokens.patches], mean.float().expand(N, 16, -1))
    with apply(model, gaussian_tokens(0, "patches", stats=stats)) as made:
        model(s.x.repeat(200, 1, 1, 1), stop_at_layer=1)
    (drawn,) = made.record["gaussian_tokens"]
    sample = drawn[:, model.tokens.patches].flatten(0, 1).double()
    spread = covariance.diagonal().sqrt()
    assert ((sample.mean(0) - mean) / spread).abs().max() < 0.05
    assert (torch.cov(sample.T) - covariance).norm() / covariance.norm() < 0.05


def test_gaussians_of_low_rank_stay_in_their_span():
    s = setting("vit")
    direction = s.vector()
    iv = gaussian_tokens(0, "cls", torch.zeros(s.d), direction.outer(direction))
    with apply(s.model, iv):
        cls = s.model(s.x, stop_at_layer=1)[:, 0]
    assert torch.linalg.matrix_rank(cls, rtol=1e-4) == 1
    with pytest.raises(ValueError, match="no covariance"):
        gaussian_tokens(0, "cls", torch.zeros(s.d), -torch.eye(s.d)).hooks(s.model)


def test_steering(s):
    model, vector = s.model, s.vector()
    clean = model(s.x, stop_at_layer=2)

    def after(iv: Intervention) -> Tensor:
        with apply(model, iv):
            return model(s.x, stop_at_layer=2)

    assert torch.equal(after(steer(1, "cls", vector, scale=2.0))[:, 0], clean[:, 0] + 2.0 * vector)
    assert close(after(steer(1, "cls", vector) + steer(1, "cls", -vector)), clean)
    directions = torch.stack([vector, 3 * vector, s.vector(seed=1)])
    out = after(project_out(1, "patches", directions))[:, model.tokens.patches]
    assert close(out @ directions.T / directions.norm(dim=1), torch.zeros(N, 16, 3), 1e-5)
    back = torch.linalg.lstsq(directions[[0, 2]].T, (clean[:, model.tokens.patches] - out).flatten(0, 1).T)
    assert back.residuals.numel() == 0 or back.residuals.max() < 1e-6
    noisy = after(noise_tokens(1, "patches", std=0.1)) - clean
    assert not noisy[:, 0].any()
    assert noisy[:, model.tokens.patches].std() == pytest.approx(0.1, rel=0.05)


def test_components(s):
    model, cache = s.model, cached(s)
    off = cached(s, ablate_heads(layers=0))
    assert close(off["attn_out", 0], model.blocks[0].attn.b_O.expand_as(off["attn_out", 0]))
    one = cached(s, ablate_heads(layers=0, heads=1, tokens="cls"))["attn_out", 0]
    assert close(one[:, 0], cache["attn_out", 0][:, 0] - cache["result", 0][:, 0, 1], 1e-5)
    assert torch.equal(one[:, 1:], cache["attn_out", 0][:, 1:])
    assert close(run(s, ablate_heads(layers=0, heads=1)), run(s, ablate_heads(layers=0, heads=1, site="result")), 1e-5)
    assert close(
        cached(s, ablate_neurons(layers=1, neurons=None))["mlp_out", 1],
        model.blocks[1].mlp.b_out.expand_as(cache["mlp_out", 1]),
    )
    some = cached(s, ablate_neurons(layers=1, neurons=[3, 5]))["post", 1]
    assert not some[..., [3, 5]].any()
    assert torch.equal(some[..., 6:], cache["post", 1][..., 6:])
    skipped = cached(s, ablate_branch("mlp") + ablate_branch("attn"))
    assert torch.equal(skipped["resid_post", -1], skipped["resid_pre", 0])
    mean = cached(s, ablate_branch("mlp", layers=[1, 0], stats=s.stats))
    for layer in range(2):
        want = s.stats.mean("mlp_out", layer, "all").float()
        assert torch.equal(mean["mlp_out", layer], want.expand_as(mean["mlp_out", layer]))
    assert torch.equal(run(s, scale_branch("mlp", 0.0)), run(s, ablate_branch("mlp")))
    assert torch.equal(run(s, scale_branch("attn", 1.0)), model(s.x))


def test_scaling_a_branch_is_layer_scale():
    model = make("dinov2", torch.float32)
    x, factor = pixels(model), torch.rand(model.cfg.d_model)
    with apply(model, scale_branch("mlp", factor, layers=1)):
        scaled = model(x)
    model.blocks[1].mlp.ls.data *= factor
    assert close(scaled, model(x))


# the embedding and the picture


@pytest.mark.parametrize("family", FULL)
@pytest.mark.parametrize("position", [True, False])
def test_swapping_the_cls_parameter_is_swapping_the_parameter(family, position):
    model = make(family, torch.float32)
    x, vector = pixels(model), torch.randn(model.cfg.d_model)
    with apply(model, swap_cls_parameter(vector, position=position)):
        swapped = model(x)
    with apply(model, swap_cls_parameter(model.embed.cls.flatten())):
        assert close(model(x), model(x))
    model.embed.cls.data[:] = vector
    if not position and model.pos_embed is not None:
        model.pos_embed.weight.data[:, 0] = 0
    assert close(swapped, model(x))


@pytest.mark.parametrize("size", [(32, 32), (31, 17), (24, 40)])
def test_filters_split_the_picture(size):
    x = torch.randn(2, 3, *size)
    for radius in (0, 1, 2.5, 9, 100):
        low = low_frequencies(x, radius)
        assert (low + (x - low) - x).abs().max() <= 2.4e-7
        again = low_frequencies(low, radius)
        assert close(again, low)
        assert close(low_frequencies(x - low, radius), torch.zeros_like(x))
        # the filter keeps what is inside the disc and nothing else, so both parts are real and orthogonal
        assert abs(float((low * (x - low)).sum())) < 1e-3 * float((x * x).sum())
    assert close(low_frequencies(x, 0), x.mean((-2, -1), keepdim=True).expand_as(x))
    assert close(low_frequencies(x, 100), x)
    with pytest.raises(ValueError, match="radius"):
        low_pass(radius=-1.0).hooks(tiny("vit")[1])


def test_filters_act_on_the_pixels(s):
    low, high = (cached(s, iv)["hook_pixels"] for iv in (low_pass(radius=4), high_pass(radius=4)))
    assert (low + high - s.x).abs().max() <= 2.4e-7
    assert torch.equal(run(s, low_pass(radius=4)), s.model(low))
    assert close(run(s, low_pass(radius=1000)), s.model(s.x), 1e-5)


def test_patches_put_together_at_random(s):
    with apply(s.model, shuffle_patches(seed=1)) as made:
        cache = s.model.run_with_cache(s.x)[1]
    (order,) = made.record["shuffle_patches"]
    assert torch.equal(cache["embed.hook_patch"], cached(s)["embed.hook_patch"][torch.arange(N)[:, None], order])
    assert not torch.equal(order[0], order[1])
    whole = cached(s, shuffle_patches(patch_size=32))["hook_pixels"]
    assert torch.equal(whole, s.x)
    small = cached(s, shuffle_patches(patch_size=2))["hook_pixels"]
    assert not torch.equal(small, s.x)
    assert torch.equal(small.flatten(1).sort().values, s.x.flatten(1).sort().values)


def test_a_model_without_cls_says_so():
    from hooked_vit import ViTConfig

    cfg = ViTConfig(
        d_model=16,
        n_layers=2,
        n_heads=2,
        d_mlp=16,
        image_size=(16, 16),
        patch_size=8,
        has_cls=False,
        sources=("patches",),
        n_classes=3,
    )
    model = HookedViT(cfg)
    for iv in (
        shuffle_cls(0),
        patch_cls(0, torch.zeros(16)),
        swap_cls_parameter(torch.zeros(16)),
        zero_attention("cls", "patches"),
        insert_token(0, "cls"),
    ):
        with pytest.raises(ValueError, match="no 'cls' token here; this model has patches"):
            iv.hooks(model)
    with apply(model, insert_token(0, torch.ones(16))):
        model(torch.randn(1, 3, 16, 16))


@pytest.mark.parametrize(
    "exchange",
    [
        *(shuffle_cls(layer=0, among=among) for among in ("batch", "others")),
        *(shuffle_cls(layer=0, among=among, labels=[0]) for among in ("same_class", "other_classes")),
        shuffle_tokens(layer=0, tokens="patches"),
        resample_tokens(layer=0, tokens="cls"),
        resample_tokens(layer=0, tokens="cls", among="other_classes", labels=[0]),
    ],
    ids=str,
)
def test_one_image_has_nobody_to_exchange_with(exchange):
    """It would keep its own tokens, and the run would look like one that was shuffled."""
    model = tiny("vit")[1]
    said = "one image alone has no other|some have none to take tokens from"
    with pytest.raises(ValueError, match=said), apply(model, exchange):
        model(pixels(model, n=1))
    for among in AMONG:
        with pytest.raises(ValueError, match="one image alone has no other to take a token from; use a larger batch"):
            draw_permutation(1, torch.Generator(), among, torch.zeros(1, dtype=torch.long))
