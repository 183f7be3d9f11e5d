"""A model told to take products in 16 bits does so in every run and readout, and nowhere else."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from analyses.controls.random_weights import with_random_weights
from analyses.running.models import load_model
from analyses.running.notes import about_model
from hooked_vit import HookedViT
from hooked_vit.loading.digests import model_digests
from interventions import apply, new_head, only, project_out, shuffle_cls, sweep
from interventions.circuits import Circuit, Graph
from tests.tiny import make, pixels

FAMILIES = ("vit", "dinov2", "clip-full", "siglip-full", "beit-mean-both")


@pytest.fixture(params=FAMILIES)
def pair(request: pytest.FixtureRequest) -> tuple[HookedViT, HookedViT]:
    """The same model plain, and told to."""
    plain = make(request.param, torch.float32)
    told = plain.shared_copy()
    told.set_autocast("bfloat16")
    return plain, told


def same(told: Tensor, wanted: Tensor, plain: Tensor) -> bool:
    """As inside torch's own autocast, and so otherwise than without."""
    assert told.dtype == wanted.dtype
    return torch.equal(told, wanted) and not torch.equal(told.float(), plain.float())


@torch.no_grad()
def test_it_is_torchs_own_around_every_run_and_readout(pair: tuple[HookedViT, HookedViT]) -> None:
    plain, told = pair
    x, last = pixels(plain), plain.cfg.n_layers
    resid = plain(x, stop_at_layer=last)
    with torch.autocast("cpu", torch.bfloat16):
        logits, stopped, read, pooled = plain(x), plain(x, stop_at_layer=last), plain.readout(resid), plain.pool(resid)
        answered = plain.answer_of(pooled)
    assert same(told(x), logits, plain(x))
    assert same(told(x, stop_at_layer=last), stopped, resid)
    assert same(told.readout(resid), read, plain.readout(resid))
    assert torch.equal(told.pool(resid), pooled)
    assert torch.equal(told.answer_of(pooled), answered)
    if not plain.cfg.is_feature_model:
        with torch.autocast("cpu", torch.bfloat16):
            scores = plain.project(resid[:, 0])
        assert same(told.project(resid[:, 0]), scores, plain.project(resid[:, 0]))
    told.set_autocast(None)
    assert torch.equal(told(x), plain(x))


@torch.no_grad()
def test_a_sweep_is_the_runs_one_by_one() -> None:
    told = make("dinov2", torch.float32)
    told.set_autocast("bfloat16")
    x, variants = pixels(told), [shuffle_cls(layer=layer, seed=0) for layer in range(told.cfg.n_layers)]
    for variant, (_, out) in zip(variants, sweep(told, x, variants, fold_tokens=0), strict=True):
        with apply(told, variant):
            assert torch.equal(out, told(x))


@torch.no_grad()
def test_what_a_hook_multiplies_is_its_own() -> None:
    model = make("vit", torch.float32)
    model.set_autocast("bfloat16")
    square, seen = torch.randn(32, 32), {}

    def multiply(x: Tensor, hook: object) -> Tensor:
        seen["product"] = x @ square
        return seen["product"]

    out, cache = model.run_with_cache(pixels(model), names_filter=["blocks.0.hook_resid_post", "blocks.0.attn.hook_q"])
    x = cache["blocks.0.hook_resid_post"]
    model.run_with_hooks(pixels(model), fwd_hooks=[("blocks.0.hook_resid_post", multiply)])
    assert torch.equal(seen["product"], x @ square)
    assert seen["product"].dtype == torch.float32
    with torch.autocast("cpu", torch.bfloat16):
        assert (x @ square).dtype == torch.bfloat16
    assert cache["blocks.0.attn.hook_q"].dtype == torch.bfloat16


def test_it_is_told_apart_and_said() -> None:
    model = make("vit", torch.float32)
    before = model_digests(model)
    model.set_autocast(torch.float16)
    assert about_model(model)["dtype"] == "float32, inside autocast to float16"
    assert {part for part, mark in model_digests(model).items() if mark != before[part]} == {"config"}
    assert model.shared_copy().run.autocast == torch.float16
    model.set_autocast(None)
    assert model_digests(model) == before
    assert about_model(model)["dtype"] == "float32"


def test_gradients_are_taken_through_it() -> None:
    model = make("vit", torch.float32)
    model.set_autocast("bfloat16")
    x = pixels(model).requires_grad_()
    model(x).float().sum().backward()
    assert x.grad is not None
    assert x.grad.dtype == torch.float32
    assert x.grad.isfinite().all()


def test_what_cannot_be_is_refused() -> None:
    model = make("vit", torch.float32)
    with pytest.raises(ValueError, match="in bfloat16 or float16; got float32"):
        model.set_autocast("float32")
    with pytest.raises(ValueError, match="dtype is one of float32, bfloat16, float16, autocast; got 'int8'"):
        model.set_autocast("int8")
    with pytest.raises(ValueError, match="these are bfloat16: they multiply in bfloat16 already"):
        model.to(torch.bfloat16).set_autocast("bfloat16")
    with pytest.raises(ValueError, match="the device 'meta'"):
        make("vit", torch.float32).to("meta").set_autocast("bfloat16")


def test_it_has_a_name_among_the_numbers_a_model_is_loaded_in() -> None:
    model = load_model("zoo:vit", dtype="autocast")
    assert (model.dtype, model.run.autocast) == (torch.float32, torch.bfloat16)


@torch.no_grad()
def test_what_an_edit_multiplies_is_the_same_in_a_sweep() -> None:
    told = make("dinov2", torch.float32)
    told.set_autocast("bfloat16")
    x, directions = pixels(told), torch.randn(2, 32, generator=torch.Generator().manual_seed(0))
    edits = [project_out(layer=layer, tokens="cls", directions=directions) for layer in range(told.cfg.n_layers)]
    for edit, (_, out) in zip(edits, sweep(told, x, edits, fold_tokens=0), strict=True):
        with apply(told, edit):
            assert torch.equal(out, told(x))


@torch.no_grad()
def test_what_hooks_return_there_is_what_they_were_shown_in_kind() -> None:
    """New heads, circuits and paths multiply in full digits, and answer in those of the run."""
    plain = make("vit", torch.float32)
    told = plain.shared_copy()
    told.set_autocast("bfloat16")
    x, other = pixels(plain), pixels(plain).flip(0)
    weight = torch.randn(5, plain.cfg.d_pooled, generator=torch.Generator().manual_seed(0))
    graph = Graph.of(plain)
    circuit = Circuit.of(plain, graph.edges[::2])
    for edit in (new_head(weight), only(circuit), only(circuit, value=other)):
        with apply(plain, edit):
            wanted = plain(x)
        with apply(told, edit):
            found = told(x)
        assert (found.float() - wanted).abs().max() < 0.03 * wanted.abs().max()  # a bfloat16 has 8 bits
        assert not torch.equal(found.float(), wanted)


def test_weights_folded_inside_autocast_stay_whole() -> None:
    for family in ("vit", "dinov2", "vit-no-qkv-bias"):
        model = make(family, torch.float32)
        x, before = pixels(model), model(pixels(model)).detach()
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            inside = model(x)
            model.fold_layer_norm_()
            model.fold_layer_scale_()
            assert torch.allclose(model(x), inside, atol=0.1)
        assert {p.dtype for p in model.parameters()} == {torch.float32}
        assert torch.allclose(model(x), before, atol=1e-5)


def test_a_model_of_random_weights_multiplies_as_the_model_does() -> None:
    told = make("vit", torch.float32)
    told.set_autocast("bfloat16")
    assert with_random_weights(told, seed=0).run.autocast == torch.bfloat16


def test_only_products_of_float32_are_taken_in_other_numbers() -> None:
    double = make("vit", torch.float64)
    with torch.autocast("cpu", torch.bfloat16):
        assert about_model(double)["dtype"] == "float64"
