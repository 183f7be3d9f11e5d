"""A spliced dictionary: the identity until it is edited, by hand the same, known by name while it is there."""

from __future__ import annotations

from itertools import cycle

import pytest
import torch

from hooked_vit.errors import UnknownHookError
from hooked_vit.hook_table import SPLICED
from interventions import (
    InterventionNotFired,
    Sae,
    ablate_feature,
    apply,
    get,
    insert_token,
    intervention,
    remove_tokens,
    shuffle_cls,
    splice,
    steer,
    steer_feature,
    sweep,
    zero_tokens,
)
from tests.interventions.cases import sae_of, unchecked_types
from tests.tiny import FAMILIES, attention, make, pixels, tiny

HOST = "blocks.0.hook_resid_post"
ACTS = HOST + SPLICED
KINDS = {
    "relu": {},
    "topk": {"activation": "topk", "k": 4, "norm": "layer_norm"},
    "jumprelu": {"activation": "jumprelu", "threshold": torch.full((24,), 0.2), "norm": "rescale"},
    "gated": {"activation": "gated", "r_mag": torch.zeros(24), "b_mag": torch.zeros(24), "centred": False},
}


def plain(sae: Sae, x: torch.Tensor) -> torch.Tensor:
    return sae.decode(sae.encode(x), x)


@pytest.mark.parametrize(("family", "kind"), list(zip(FAMILIES, cycle(KINDS), strict=False)))
def test_the_identity_bit_by_bit_with_the_error_term_and_by_hand_without(family, kind):
    _, model = tiny(family)
    x, sae = pixels(model), sae_of(model.cfg.d_model, **KINDS[kind])
    for site in ("resid_post", "attn_out", "z"):
        host = f"blocks.0.{'attn.' * (site == 'z')}hook_{site}"
        replace = [(host, lambda act, hook: plain(sae, act.flatten(2)).reshape(act.shape))]
        with torch.no_grad(), unchecked_types(), attention(model, "auto"):
            clean = model(x)
            with apply(model, splice(sae, layer=0, site=site)) as run:
                assert torch.equal(model(x), clean)
                assert torch.equal(model.run_with_cache(x)[0], clean)  # watched too
            assert run.changes[host] == [0.0, 0.0]
            with apply(model, splice(sae, layer=0, site=site, error_term=False)):
                out = model(x)
            by_hand = model.run_with_hooks(x, fwd_hooks=replace)
        assert torch.equal(out, by_hand)
        assert not torch.equal(out, clean)


@pytest.mark.parametrize("family", ["vit", "deit-teacher", "dinov2", "clip-classifier"])
def test_an_edit_moves_the_stream_by_what_it_changes_in_the_reconstruction(family):
    _, model = tiny(family)
    x, sae = pixels(model), sae_of(model.cfg.d_model, **KINDS["topk"])
    with torch.no_grad(), apply(model, splice(sae, 0, "resid_post") + steer_feature(0, [3, 5], by=2.0, tokens="cls")):
        out, cache = model.run_with_cache(x)
    with torch.no_grad():
        before = model.run_with_cache(x)[1][HOST]
        after, cls = before.clone(), model.tokens.mask("cls")
        edited = sae.encode(before)
        edited[..., [3, 5]] += 2.0
        after[:, cls] += (sae.decode(edited, before) - plain(sae, before))[:, cls]
        by_hand = model.run_with_hooks(x, fwd_hooks=[(HOST, lambda act, hook: after)])
    torch.testing.assert_close(cache[HOST], after, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(out, by_hand, rtol=1e-4, atol=1e-5)
    assert torch.equal(cache[ACTS][:, ~cls], sae.encode(before)[:, ~cls])
    assert torch.equal(cache.at(ACTS, tokens="cls"), edited[:, cls])


def test_it_is_known_by_name_while_it_is_there_and_leaves_nothing():
    model = make("vit")
    x, sae, names = pixels(model), sae_of(model.cfg.d_model), list(model.hook_dict)
    state = list(model.state_dict())
    with pytest.raises(UnknownHookError, match=r"no hook point is called .*hook_sae_acts"):
        model.run_with_cache(x, names_filter=ACTS)
    with apply(model, splice(sae, 0, "resid_post")):
        assert model.run_with_cache(x)[1][ACTS].shape == (len(x), model.tokens.n_tokens, sae.n_features)
        ((name, shape, _),) = [row for row in model.describe_hooks() if row[0] == ACTS]
        assert shape == "[batch, pos=17, sae_feature]"
        rows = [row[0] for row in model.describe_hooks()]
        assert rows[rows.index(HOST) + 1] == name
        with pytest.raises(UnknownHookError, match="did you mean"):
            model.run_with_hooks(x, fwd_hooks=[(ACTS + "s", lambda act, hook: act)])
        again = apply(model, splice(sae, 0, "resid_post"))
        with pytest.raises(ValueError, match="hook_sae_acts is there already"), again:
            pass
        model.add_hook(ACTS, lambda act, hook: act * 0)  # until reset_hooks, or until its place goes
    assert list(model.hook_dict) == names
    assert list(model.state_dict()) == state
    alone = apply(model, ablate_feature(0, 1))
    with pytest.raises(UnknownHookError, match=r"no dictionary is spliced in at .*: write splice"), alone:
        pass
    with pytest.raises(ZeroDivisionError), apply(model, splice(sae, 0, "resid_post")):
        model.run_with_hooks(x, fwd_hooks=[(ACTS, lambda act, hook: 1 / 0)])
    assert list(model.hook_dict) == names
    with apply(model, splice(sae, 0, "resid_post")):
        assert model.run_with_cache(x, names_filter=ACTS)[1][ACTS].any()  # the hook of before went with its place


def test_start_and_stop_and_what_is_not_reached():
    _, model = tiny("vit")
    x, both = pixels(model), splice(sae_of(32), 0, "resid_post") + ablate_feature(0, [0, 1, 2])
    with torch.no_grad(), apply(model, both):
        whole = model(x)
        torch.testing.assert_close(model(model(x, stop_at_layer=1), start_at_layer=1), whole)
    with torch.no_grad(), pytest.raises(InterventionNotFired), apply(model, both):
        model(torch.zeros(1, model.tokens.n_tokens, 32), start_at_layer=1, tokens=model.tokens)


@pytest.mark.parametrize("family", ["vit", "beit-mean-both", "registers"])
def test_it_goes_with_other_edits_and_other_sizes(family):
    _, model = tiny(family)
    vector = torch.randn(model.cfg.d_model, generator=torch.Generator().manual_seed(0))
    sae, one = sae_of(model.cfg.d_model, **KINDS["topk"]), ablate_feature(1, list(range(12)))
    for others in (
        insert_token(layer=0, vector=vector, index=1),
        remove_tokens([2, 3], layer=1),
        shuffle_cls(layer=0, among="others") + zero_tokens(layer=1, tokens=[4, 5]),
    ):
        for size in [(24, 40)] if "registers" in family else [None]:
            x = pixels(model, size, n=3)
            spliced = splice(sae, layer=1, site="resid_pre")
            there = others + spliced + ablate_feature(1, list(range(12)), site="resid_pre")
            with torch.no_grad(), unchecked_types(), attention(model, "eager"):
                (kept,) = [out for _, out in sweep(model, x, [others], fold_tokens=0)]
                second = splice(sae, 1, "mlp_out") + one.replace(site="mlp_out")
                variants = [others + spliced, there, spliced, there + second]
                swept = [out for _, out in sweep(model, x, variants, fold_tokens=0)]
                assert torch.equal(swept[0], kept)
                assert torch.equal(swept[2], model(x))
                assert not torch.equal(swept[1], kept)
                for variant, out in zip(variants, swept, strict=True):
                    with apply(model, variant):
                        assert torch.equal(model(x), out)


def test_a_sweep_over_features_and_dictionaries_is_separate_runs():
    _, model = tiny("vit")
    x, first = pixels(model), splice(sae_of(32), 1, "resid_post")
    other = splice(sae_of(32, features=7, seed=3), 1, "resid_post", error_term=False)
    variants = [first + ablate_feature(1, f) for f in range(4)] + [other, other + steer_feature(1, 6, by=1.0)]
    with torch.no_grad(), attention(model, "eager"):
        for variant, out in sweep(model, x, variants):
            with apply(model, variant):
                torch.testing.assert_close(model(x), out)
    with pytest.raises(ValueError, match="features are 0 to 6"):
        list(sweep(model, x, [first + ablate_feature(1, 9), other + ablate_feature(1, 9)]))


def test_a_users_own_edit_of_the_activations():
    @intervention
    def double_features(model, *, layer):
        """Twice every activation."""
        return [(f"blocks.{layer}.hook_resid_post{SPLICED}", lambda acts, hook: 2 * acts)]

    _, model = tiny("vit")
    x, sae = pixels(model), sae_of(32)
    with torch.no_grad(), apply(model, splice(sae, 0, "resid_post"), double_features(layer=0)):
        out = model(x)
    with torch.no_grad(), apply(model, steer(0, "all", torch.zeros(32))):
        clean = model(x)
    read = [(HOST, lambda act, hook: act + sae.encode(act) @ sae.W_dec)]
    torch.testing.assert_close(out, model.run_with_hooks(x, fwd_hooks=read).detach())
    assert not torch.allclose(out, clean)


def test_gradients_reach_the_activations_the_input_and_the_weight_of_an_edit():
    model = make("vit", torch.float64)
    x = pixels(model).double().requires_grad_()
    sae = sae_of(32, **KINDS["relu"]).to(torch.float64)
    whole = splice(sae, 0, "resid_post")
    plainly = torch.autograd.grad(model(x)[:, 0].sum(), x)[0]
    with apply(model, whole):
        torch.testing.assert_close(torch.autograd.grad(model(x)[:, 0].sum(), x)[0], plainly)
        _, cache = model.run_with_cache(x, names_filter=[HOST, ACTS], incl_bwd=True, metric=lambda out: out[:, 0].sum())
    torch.testing.assert_close(cache[ACTS + "_grad"], cache[HOST + "_grad"] @ sae.W_dec.T)

    def effect(how_far: torch.Tensor) -> torch.Tensor:
        with apply(model, whole, ablate_feature(0, [2, 4], where=how_far)):
            return model(x.detach())[:, 0].sum()

    assert torch.autograd.gradcheck(effect, torch.tensor(0.3, dtype=torch.float64, requires_grad=True))


def test_it_is_stored_and_read_back():
    there = splice(sae_of(32, layer=1, site="mlp_out", tokens="cls"), error_term=False)
    assert get("splice", **there.params) == there
    assert there != there.replace(sae=sae_of(32, seed=1, layer=1, site="mlp_out", tokens="cls"))
    assert len(repr(there)) < 800
    _, model = tiny("vit")
    with torch.no_grad(), apply(model, there) as run:
        model(pixels(model))
    assert set(run.fired) == {"blocks.1.hook_mlp_out"}


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"activation": "softmax"}, "activation of a dictionary is one of"),
        ({"norm": "batch"}, "norm of a dictionary is one of"),
        ({"activation": "topk"}, "takes k; got none"),
        ({"k": 3}, "takes none of k"),
        ({"activation": "topk", "k": 25}, "k is 1 to 24"),
        ({"activation": "jumprelu", "threshold": torch.zeros(5)}, r"threshold is \[24\]"),
        ({"b_dec": torch.zeros(32, dtype=torch.float64)}, "of one dtype"),
        ({"b_dec": torch.full((32,), torch.nan)}, "finite"),
        ({"input_scale": 0.0}, "above 0"),
    ],
)
def test_a_dictionary_that_does_not_fit_together_is_refused(fields, said):
    with pytest.raises(ValueError, match=said):
        sae_of(32, **fields)
