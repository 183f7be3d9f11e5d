"""Which attention kernel runs is a matter of speed, and of numbers only up to rounding."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from tests.tiny import GRAPHS, attention, distance, make, pixels, tiny

KERNELS = ("auto", "eager", "sdpa")


@pytest.fixture
def fused(monkeypatch):
    """Counts the calls of the fused kernel."""
    calls = []
    kernel = F.scaled_dot_product_attention
    monkeypatch.setattr(F, "scaled_dot_product_attention", lambda *a, **kw: calls.append(1) or kernel(*a, **kw))
    return calls


@pytest.mark.parametrize("family", GRAPHS)
def test_kernels_agree(family):
    for model, bound in ((tiny(family)[1], 3e-6), (make(family), 1e-12)):
        for size in (None, (48, 40)):
            x = pixels(model, size)
            out = {}
            for kernel in KERNELS:
                with attention(model, kernel), torch.no_grad():
                    out[kernel] = model(x)
            assert torch.equal(out["auto"], out["sdpa"])
            assert distance(out["eager"], out["sdpa"]) <= bound


@pytest.mark.parametrize("family", GRAPHS)
def test_kernels_agree_on_gradients(family):
    model = make(family)
    x = pixels(model).requires_grad_()
    grads = []
    for kernel in KERNELS:
        with attention(model, kernel):
            grads += torch.autograd.grad((model(x) ** 2).sum(), x)
    assert max(distance(grad, grads[0]) for grad in grads) <= 1e-12


@pytest.mark.parametrize("watched", ["hook_pattern", "hook_attn_scores"])
def test_auto_leaves_the_fused_kernel_only_where_it_must(fused, watched):
    """Who watches does so beside it; the layer whose scores are edited, and no other, takes the edited ones instead."""
    model = tiny("vit")[1]
    x = pixels(model)

    def runs(**kw) -> int:
        fused.clear()
        model.run_with_cache(x, **kw)
        return len(fused)

    assert runs() == runs(names_filter="hook_logits") == 2
    for edit in (lambda act, hook: act * 1.5, lambda act, hook: act.zero_()):
        with model.hooks([(f"blocks.1.attn.{watched}", edit)]), torch.no_grad():
            assert runs() == 1
    with attention(model, "eager"):
        assert runs(names_filter="hook_logits") == runs() == 0


def test_a_pattern_is_never_silently_absent():
    """transformers returns None for patterns under sdpa; here asking is an error, before or behind the first layer."""
    model = tiny("beit-mean-both")[1]
    for hook in ("blocks.0.attn.hook_pattern", "blocks.1.attn.hook_attn_scores"):
        with attention(model, "sdpa"), pytest.raises(RuntimeError, match=r'set_attention\("auto"\)'):
            model.run_with_cache(pixels(model), names_filter=hook)


def test_unknown_kernel_is_refused():
    with pytest.raises(ValueError, match=r'"auto", "eager" or "sdpa", got \'flash\''):
        tiny("vit")[1].set_attention("flash")


@pytest.mark.parametrize("family", GRAPHS)
def test_rows_of_the_pattern_are_distributions(family):
    model = make(family)
    _, cache = model.run_with_cache(pixels(model))
    for layer in range(model.cfg.n_layers):
        pattern, scores = cache["pattern", layer], cache["attn_scores", layer]
        torch.testing.assert_close(pattern.sum(-1), torch.ones_like(pattern[..., 0]), rtol=0, atol=1e-12)
        torch.testing.assert_close(pattern, scores.softmax(-1), rtol=0, atol=1e-15)
