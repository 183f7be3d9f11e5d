"""Whatever goes wrong in a run, nothing stays behind; what cannot be meant is refused before it is attached."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch

from hooked_vit import HookedViT
from hooked_vit.errors import UnknownHookError
from tests.tiny import GRAPHS, make, pixels, tiny

GOOD = ("blocks.0.hook_resid_pre", lambda act, hook: act + 1)
MISSPELT = "blocks.0.hook_resid_prr"


class Interrupted(KeyboardInterrupt):
    """Not an Exception: what pressing Ctrl-C raises."""


def failing(error: type[BaseException]) -> Callable:
    def fail(act, hook):
        raise error

    return fail


def attached(model: HookedViT) -> list[str]:
    return [
        name
        for name, point in model.hook_dict.items()
        if point.fwd_hooks or point.bwd_hooks or point._forward_hooks or point._backward_hooks
    ]


@pytest.fixture
def model() -> Iterator[HookedViT]:
    """A model that must be afterwards what it was before."""
    model = tiny("beit-mean-both")[1]
    clean = model(pixels(model))
    yield model
    assert attached(model) == []
    assert model.tokens is model.run.native
    assert model.run.depth == 0
    assert model.context_level == 0
    assert torch.equal(model(pixels(model)), clean)


@pytest.mark.parametrize("error", [ValueError, Interrupted])
@pytest.mark.parametrize(
    "where", ["embed.hook_patch", "blocks.1.attn.hook_z", "blocks.1.attn.hook_pattern", "hook_logits"]
)
def test_a_hook_that_raises(model, error, where):
    hooks, x = [GOOD, (where, failing(error))], pixels(model)
    with pytest.raises(error):
        model.run_with_hooks(x, fwd_hooks=hooks)
    with pytest.raises(error), model.hooks(hooks):
        model.run_with_cache(x)
    with pytest.raises(error), model.hooks([GOOD]), model.hooks(hooks[1:]):
        model(x)


def test_a_backward_hook_that_raises(model):
    with pytest.raises(Interrupted), model.hooks([GOOD], bwd_hooks=[("blocks.0.hook_resid_pre", failing(Interrupted))]):
        model(pixels(model)).sum().backward()


def test_a_model_that_raises(model):
    for bad in (pixels(model) * float("nan"), pixels(model)[:, :2], pixels(model)[..., :-1]):
        with pytest.raises(ValueError, match="pixels|image"):
            model.run_with_hooks(bad, fwd_hooks=[GOOD])
        with pytest.raises(ValueError, match="pixels|image"):
            model.run_with_cache(bad)
    with pytest.raises(AssertionError, match="batch size 3"):
        model.run_with_cache(pixels(model), remove_batch_dim=True)


def test_an_exception_between_the_runs(model):
    def interrupted_work():
        with model.hooks([GOOD]):
            model(pixels(model))
            raise Interrupted

    with pytest.raises(Interrupted):
        interrupted_work()


def test_an_edit_of_a_wrong_shape(model):
    with pytest.raises(RuntimeError):
        model.run_with_hooks(pixels(model), fwd_hooks=[("blocks.0.hook_attn_out", lambda act, hook: act[..., :-1])])


def test_an_exception_behind_an_insertion(model):
    def insert(act, hook):
        return model.insert_tokens(act, 1, torch.zeros(2, model.cfg.d_model))

    with pytest.raises(Interrupted):
        model.run_with_hooks(
            pixels(model),
            fwd_hooks=[("blocks.0.hook_resid_post", insert), ("blocks.1.hook_resid_post", failing(Interrupted))],
        )


def test_a_misspelt_hook_offers_the_nearest_and_attaches_nothing(model):
    x, bad = pixels(model), (MISSPELT, failing(AssertionError))
    attempts = [
        lambda: model.run_with_hooks(x, fwd_hooks=[GOOD, bad]),
        lambda: model.run_with_hooks(x, fwd_hooks=[GOOD], bwd_hooks=[bad]),
        lambda: model.run_with_cache(x, names_filter=MISSPELT),
        lambda: model.run_with_cache(x, names_filter=["hook_logits", MISSPELT]),
        lambda: model.add_hook(*bad),
        lambda: model.hooks([GOOD, bad]).__enter__(),
    ]
    for attempt in attempts:
        runs = model.run.n_forwards
        with pytest.raises(UnknownHookError, match=r"did you mean 'blocks\.0\.hook_resid_pre'\?"):
            attempt()
        assert model.run.n_forwards == runs


def test_a_filter_that_fits_nothing_is_an_error(model):
    nothing = lambda name: name.startswith("layers.")  # noqa: E731
    with pytest.raises(UnknownHookError, match="fits no hook point"):
        model.run_with_hooks(pixels(model), fwd_hooks=[GOOD, (nothing, failing(AssertionError))])
    with pytest.raises(UnknownHookError, match="fits no hook point"):
        model.run_with_cache(pixels(model), names_filter=nothing)


@pytest.mark.parametrize("kind", ["resid_pre", "resid_mid", "resid_post"])
@pytest.mark.parametrize("family", GRAPHS)
def test_a_plain_hook_that_changes_the_tokens_is_told_how(family, kind):
    """Roles would be lost silently, and with them the readout."""
    model = tiny(family)[1]
    n = model.tokens.n_tokens
    for layer in range(model.cfg.n_layers):
        for changed, edit in (
            (n - 1, lambda act, hook: act[:, :-1]),
            (n + 1, lambda act, hook: act[:, [0, *range(n)]]),
        ):
            hook = f"blocks.{layer}.hook_{kind}"
            with pytest.raises(ValueError, match=rf"from {n} to {changed}.*insert_tokens.*keep_tokens"):
                model.run_with_hooks(pixels(model), fwd_hooks=[(hook, edit)])
    assert attached(model) == []


def test_hooks_from_before_stay(model):
    """A run removes what it attached, and leaves what somebody else did."""
    model.add_hook(*GOOD)
    edited = model(pixels(model))
    model.run_with_hooks(pixels(model), fwd_hooks=[("hook_embed", lambda act, hook: act)])
    model.run_with_cache(pixels(model))
    with pytest.raises(Interrupted):
        model.run_with_hooks(pixels(model), fwd_hooks=[("hook_embed", failing(Interrupted))])
    assert attached(model) == ["blocks.0.hook_resid_pre"]
    assert torch.equal(model(pixels(model)), edited)
    model.reset_hooks()


def test_a_copy_has_its_own_hooks_on_the_same_weights():
    model = make("vit")
    copy = model.shared_copy()
    copy.add_hook(*GOOD)
    assert attached(model) == []
    assert not torch.equal(copy(pixels(model)), model(pixels(model)))
    copy.reset_hooks()
    with torch.no_grad():
        model.blocks[0].mlp.fc_in.weight.mul_(2)
    assert torch.equal(copy(pixels(model)), model(pixels(model)))
