"""A large batch passes in pieces where nobody can tell: never under a hook, and always to the same numbers."""

from __future__ import annotations

import pytest
import torch

from analyses.activations.streams import read_stream
from hooked_vit.components import pieces
from hooked_vit.components.pieces import images_at_once, in_pieces
from interventions import apply, readout, shuffle_cls, sweep
from tests.tiny import FAMILIES, pixels, tiny


@pytest.fixture
def one_by_one(monkeypatch):
    """The smallest pieces there are."""
    monkeypatch.setattr(pieces, "PIECE_BYTES", 1)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_same_numbers_in_pieces(family, one_by_one):
    _, model = tiny(family)
    x = pixels(model, n=3)
    passed = []
    with torch.no_grad():
        logits, kept = read_stream(model, x, lambda resid: (passed.append(len(resid)), resid)[1])
        whole, cache = model.run_with_cache(x)
        torch.testing.assert_close(logits, whole)
        for layer, resid in enumerate(kept):
            torch.testing.assert_close(resid, cache["resid_post", layer])
        resid, block = cache["resid_pre", 1], model.blocks[1]
        with model.running(model.tokens):
            torch.testing.assert_close(in_pieces(block, model.cfg, (), resid), cache["resid_post", 1])
    assert passed == [3] * model.cfg.n_layers  # what is read is the stream of the whole batch


def test_a_sweep_in_pieces_gives_what_separate_runs_give(one_by_one):
    _, model = tiny("vit")
    x, seen = pixels(model, n=5), []
    variants = [readout("cls"), *(shuffle_cls(layer=layer, seed=layer) for layer in range(model.cfg.n_layers))]
    outputs = dict(sweep(model, x, variants, undisturbed=lambda layer, resid: seen.append(resid)))
    with torch.no_grad():
        for variant in variants:
            with apply(model, variant):
                torch.testing.assert_close(outputs[variant], model(x))
        _, cache = model.run_with_cache(x)
    assert len(seen) == model.cfg.n_layers
    for layer, resid in enumerate(seen):
        torch.testing.assert_close(resid, cache["resid_post", layer])


@pytest.mark.parametrize("budget", [1, 2**31])
def test_the_undisturbed_run_is_shown_once_whatever_is_asked_beside_it(budget):
    _, model = tiny("vit")
    x, seen = pixels(model, n=2), []
    variants = [shuffle_cls(layer=0, seed=0), shuffle_cls(layer=1, seed=0)]
    list(sweep(model, x, variants, memory_budget=budget, undisturbed=lambda layer, resid: seen.append(layer)))
    assert seen == [*range(model.cfg.n_layers)]


def test_under_a_hook_a_batch_stays_whole(one_by_one):
    """A shuffle of one image at a time is none."""
    _, model = tiny("vit")
    x = pixels(model, n=4)
    with torch.no_grad():
        clean, _ = read_stream(model, x)
        with apply(model, shuffle_cls(layer=model.cfg.n_layers - 1, seed=0)):
            shuffled, _ = read_stream(model, x)
        with apply(model, shuffle_cls(layer=model.cfg.n_layers - 1, seed=0)):
            torch.testing.assert_close(shuffled, model(x), rtol=0, atol=0)
    assert not torch.equal(shuffled, clean)


def test_pieces_are_for_a_cpu_without_gradients():
    _, model = tiny("vit")
    x, points = torch.zeros(10**5, 1), [*model.hook_points()]
    with torch.no_grad():
        assert 1 <= images_at_once(model.cfg, points, x, 37) < len(x)
        assert images_at_once(model.cfg, points, x.to("meta"), 37) == len(x)
        with model.hooks(fwd_hooks=[("hook_embed", lambda x, hook: None)]):
            assert images_at_once(model.cfg, points, x, 37) == len(x)
    assert images_at_once(model.cfg, points, x, 37) == len(x)


def test_what_looks_at_the_undisturbed_run_changes_nothing():
    _, model = tiny("vit")
    x, variants = pixels(model, n=3), [shuffle_cls(layer=1, seed=0), readout("cls")]
    expected = [logits for _, logits in sweep(model, x, variants)]
    edited = [logits for _, logits in sweep(model, x, variants, undisturbed=lambda layer, resid: resid.zero_())]
    for logits, other in zip(edited, expected, strict=True):
        torch.testing.assert_close(logits, other, rtol=0, atol=0)
