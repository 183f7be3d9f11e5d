"""The hook graph computes what transformers computes, to the last bit where the kernels are the same."""

from __future__ import annotations

import pytest
import torch

from hooked_vit import HookedViT, architectures
from hooked_vit.loading.conversion import convert
from tests.tiny import (
    CORE,
    LOADED,
    TINY,
    answer,
    assert_parity,
    attention,
    distance,
    make_hf,
    pixels,
    set_kernel,
    size_ids,
    sizes,
    tiny,
)

EVERY_SIZE = [pytest.param(name, size, id=f"{name}-{size_ids(size)}") for name in TINY for size in sizes(name)]


# both position biases: transformers adds them to the scores one after the other, and we their sum; AIMv2's pool has the
# fused kernel alone
EXCEPTIONS = {"data2vec": 3e-6, "aimv2-head": 3e-6, "aimv2-full": 3e-6}


def every_model():
    return [(name, tiny(name)[1]) for name in TINY]


def test_every_supported_class_has_a_tiny_model():
    assert {case.hf_class for case in TINY.values()} == set(architectures.supported_classes())
    assert {tiny(name)[1].cfg.architecture for name in LOADED} == set(architectures.registered())


@pytest.mark.parametrize("name", TINY)
def test_no_parameter_is_inert(name):
    """A LayerScale of ones or a bias of zeros would hide a mistake."""
    _, model = tiny(name)
    dull = [key for key, p in model.named_parameters() if p.eq(p.flatten()[0]).all() or p.eq(0).any() or p.eq(1).any()]
    assert dull == []


@pytest.mark.parametrize(("name", "size"), EVERY_SIZE)
def test_bit_identical_to_eager(name, size):
    hf, model = tiny(name)
    assert_parity(hf, model, pixels(model, size), at_most=EXCEPTIONS.get(name, 0.0))


def test_no_other_exception_is_made():
    """`verify` takes the bound from the family."""
    bounds = {name: architectures.get(model.cfg.architecture).eager_bound(model.cfg) for name, model in every_model()}
    assert {name: bound for name, bound in bounds.items() if bound} == EXCEPTIONS
    assert architectures.get("data2vec").eager_bound(tiny("vit")[1].cfg) > 0  # heads of width 8


def test_tokens_where_the_convolution_left_them_differ_in_the_last_bit_alone():
    """AIMv2 is compared with its tokens copied into rows; this is what the copy is worth."""
    hf, model = tiny("aimv2-model")
    x = pixels(model)
    with torch.no_grad(), attention(model, "eager"):
        assert 0 < distance(hf(x).last_hidden_state.mean(1), model(x)) <= 1e-6


@pytest.mark.parametrize("name", TINY)
def test_fused_kernel_to_rounding(name):
    """With transformers' sdpa, ours fused; and in float64, where only a real difference would remain."""
    hf = make_hf(name)
    set_kernel(hf, "sdpa")
    model = HookedViT.from_hf(hf)
    assert_parity(hf, model, pixels(model), at_most=3e-6, kernel="sdpa")
    model = HookedViT.from_hf(hf.double())
    for size in sizes(name)[:2]:
        # against sdpa: their eager softmax is float32 in a float64 model too
        assert_parity(hf, model, pixels(model, size), at_most=1e-12, kernel="auto")
        assert_parity(hf, model, pixels(model, size), at_most=1e-12, kernel="eager")


@pytest.mark.parametrize("name", [name for name in CORE if name not in EXCEPTIONS])
def test_bfloat16(name):
    """The same kernels round alike, in half precision too; at the native size, where no family upcasts."""
    hf = make_hf(name).bfloat16()
    model = HookedViT.from_hf(hf)
    assert model.cfg == tiny(name)[1].cfg
    assert_parity(hf, model, pixels(model))


@pytest.mark.parametrize("name", LOADED)
def test_parameter_gradients(name):
    """And what the graph has no place for has no gradient, so nothing that acts was left out."""
    hf = make_hf(name).double().requires_grad_(True)  # of those too that were never trained
    set_kernel(hf, "sdpa")
    model = HookedViT.from_hf(hf)
    x = pixels(model, sizes(name)[-1])
    weights = torch.randn(answer(hf, x)[0].shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    for output in (answer(hf, x)[0], model(x)):
        (output * weights).sum().backward()

    family = architectures.get(model.cfg.architecture)
    theirs = {key: torch.zeros_like(p) if p.grad is None else p.grad for key, p in hf.named_parameters()}
    state = model.state_dict()
    read = convert(family, model.cfg, theirs, state)
    apart = {key: distance(p.grad, read[key]) for key, p in model.named_parameters()}
    assert set(read) == set(apart)
    assert max(apart.values()) <= 1e-12, apart
    assert sum(g.count_nonzero() for g in theirs.values()) == sum(g.count_nonzero() for g in read.values())


@pytest.mark.parametrize("grad", [torch.enable_grad, torch.no_grad, torch.inference_mode], ids=lambda g: g.__name__)
@pytest.mark.parametrize("name", CORE)
def test_watching_changes_no_bit(name, grad):
    """Every activation cached, the expensive ones included, with the kernel that the unwatched run has."""
    _, model = tiny(name)
    x = pixels(model)
    scores = ("hook_attn_scores", "hook_pattern")
    for kernel, watched in (("eager", lambda _: True), ("auto", lambda hook: not hook.endswith(scores))):
        model.set_attention(kernel)
        with grad():
            logits, cache = model.run_with_cache(x, names_filter=watched)
            assert torch.equal(logits, model(x))
        assert len(cache) == sum(map(watched, model.hook_dict))
    model.set_attention("auto")


@pytest.mark.parametrize("name", CORE)
def test_watching_changes_no_gradient(name):
    """Gradients flow through the activations that are watched, so they must be those of the unwatched run."""
    model = HookedViT.from_hf(make_hf(name).double())
    x = pixels(model)
    grads = []
    for run in (model, lambda x: model.run_with_cache(x, names_filter=lambda _: True)[0]):
        model.zero_grad()
        (run(x) ** 2).sum().backward()
        grads.append({key: p.grad.clone() for key, p in model.named_parameters()})
    apart = {key: distance(grads[1][key], grads[0][key]) for key in grads[0]}
    assert max(apart.values()) <= 1e-12, apart
