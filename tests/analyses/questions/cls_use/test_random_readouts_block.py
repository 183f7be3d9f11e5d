"""The frozen block: which token is placed, which one is read, and that nothing of the model learns."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from analyses.questions.cls_use.random_readouts.frozen import FrozenBlock
from analyses.questions.cls_use.random_readouts.networks import FixedToken, RandomToken, TokenReadout, make_decoder
from hooked_vit import HookedViT
from interventions import apply, insert_token
from tests.tiny import FAMILIES, make, pixels, tiny

LAYER = 1


def entering(model: HookedViT) -> Tensor:
    with torch.no_grad():
        return model(pixels(model), stop_at_layer=LAYER) * 1.0


def tokens(model: HookedViT, seed: int = 0) -> Tensor:
    return torch.randn(3, model.cfg.d_model, generator=torch.Generator().manual_seed(seed))


def read(model: HookedViT, placement: str, x: Tensor, s: Tensor | None = None) -> Tensor:
    with torch.no_grad(), FrozenBlock(model, LAYER, placement, tokens=model.tokens).ready() as block:
        return block(x, s)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_inserted_token_is_the_one_that_is_read(family):
    """Against the whole block on the longer sequence, every token through every part of it."""
    model = tiny(family)[1]
    x, s = entering(model), tokens(model)
    layout = model.tokens.insert(0, 1, donor=0)
    with torch.no_grad(), model.running(layout):
        longer = model.blocks[LAYER](torch.cat([s[:, None], x], dim=1))
    answer = read(model, "augment", x, s)
    assert torch.allclose(answer, longer[:, 0], atol=1e-5)
    assert not torch.allclose(answer, longer[:, 1], atol=1e-2), "this would be the original CLS"
    assert layout.ids[1] == 0
    assert layout.where("inserted") == slice(0, 1)


@pytest.mark.parametrize("family", FAMILIES)
def test_it_agrees_with_the_intervention_of_the_same_name(family):
    model = tiny(family)[1]
    x, s = entering(model), tokens(model)
    with torch.no_grad(), apply(model, insert_token(layer=LAYER, vector=s)):
        _, cache = model.run_with_cache(x, start_at_layer=LAYER, names_filter=f"blocks.{LAYER}.hook_resid_post")
        inserted = cache.at("resid_post", LAYER, tokens="inserted")[:, 0]
    assert torch.allclose(read(model, "augment", x, s), inserted, atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_second_cls_is_answered_as_cls_is(family):
    """A copy of CLS inserted beside it has its vector and, where positions bias attention, its entries."""
    model = tiny(family)[1]
    x = entering(model)
    with torch.no_grad(), model.running(model.tokens.insert(0, 1, donor=0)):
        longer = model.blocks[LAYER](torch.cat([x[:, :1], x], dim=1))
    assert torch.allclose(read(model, "augment", x, x[:, 0]), longer[:, 1], atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_null_is_the_unaltered_model_and_so_is_cls_replaced_by_itself(family):
    model = tiny(family)[1]
    x = entering(model)
    with torch.no_grad():
        _, cache = model.run_with_cache(pixels(model))
    own = cache.at("resid_post", LAYER, tokens="cls")[:, 0]
    assert torch.allclose(read(model, "null", x), own, atol=1e-5)
    assert torch.equal(read(model, "replace", x, x[:, 0]), read(model, "null", x))


@pytest.mark.parametrize("family", FAMILIES)
def test_only_replace_is_blind_to_the_models_cls(family):
    model = tiny(family)[1]
    x, s = entering(model), tokens(model)
    other = x.clone()
    other[:, 0] += tokens(model, seed=1)
    assert torch.equal(read(model, "replace", x, s), read(model, "replace", other, s))
    assert not torch.allclose(read(model, "augment", x, s), read(model, "augment", other, s), atol=1e-3)
    assert not torch.allclose(read(model, "null", x), read(model, "null", other), atol=1e-3)


@pytest.mark.parametrize("family", FAMILIES)
def test_looked_at_once_it_answers_for_any_placement_and_token(family):
    model = tiny(family)[1]
    x, s = entering(model), tokens(model)
    with torch.no_grad(), FrozenBlock(model, LAYER, "null", tokens=model.tokens).ready() as block:
        looked = block.look(x)
    assert len(looked) == len(x)
    for placement in ("null", "replace", "augment"):
        with torch.no_grad(), FrozenBlock(model, LAYER, placement, tokens=model.tokens).ready() as block:
            for token in (s, tokens(model, seed=1)):
                assert torch.equal(block(looked, token), block(x, token))


@pytest.mark.parametrize("placement", ["null", "replace", "augment"])
def test_a_frozen_block_gets_no_gradient_and_the_model_comes_back_as_it_was(placement):
    model = make("beit-mean-both", torch.float32).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model.blocks[0].ln1.weight.requires_grad_(False)
    x = entering(model)
    token = None if placement == "null" else RandomToken(model.cfg.d_model)
    readout = TokenReadout(token, make_decoder("linear", model.cfg.d_model, 5))
    optimiser = torch.optim.SGD([*readout.parameters(), *model.parameters()], lr=1.0, weight_decay=0.1)
    with FrozenBlock(model, LAYER, placement, tokens=model.tokens).ready() as block:
        assert not any(p.requires_grad for p in model.parameters())
        assert not model.training
        readout(block, x, torch.Generator()).square().sum().backward()
        optimiser.step()
    assert all(p.grad is None for p in model.parameters())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(p.grad.abs().sum() > 0 for p in readout.parameters())
    assert model.training
    assert not model.blocks[0].ln1.weight.requires_grad
    assert model.blocks[0].ln2.weight.requires_grad
    assert not any(point.has_hooks() for point in model.hook_points())


def test_an_error_inside_leaves_the_model_as_it_was():
    model = make("vit", torch.float32)
    with (
        pytest.raises(KeyboardInterrupt),
        FrozenBlock(model, LAYER, "replace", tokens=model.tokens).ready(),
    ):
        raise KeyboardInterrupt
    assert all(p.requires_grad for p in model.parameters())
    assert not any(point.has_hooks() for point in model.hook_points())


def test_the_generator_is_the_one_of_the_note():
    token = RandomToken(32)
    sizes = [(m.in_features, m.out_features) for m in token.layers if isinstance(m, nn.Linear)]
    assert sizes == [(768, 512), (512, 512), (512, 512), (512, 32)]
    assert [m.negative_slope for m in token.layers if isinstance(m, nn.LeakyReLU)] == [0.01] * 3
    assert not any(isinstance(m, nn.BatchNorm1d) for m in token.layers)
    normed = RandomToken(32, batch_norm=True)
    assert sum(isinstance(m, nn.BatchNorm1d) for m in normed.layers) == 3
    assert len({id(m) for m in normed.layers}) == len(normed.layers)


def test_tokens_differ_between_images_and_draws_and_not_between_equal_seeds():
    token = RandomToken(32)
    generator = torch.Generator().manual_seed(0)
    first, second = token(4, generator), token(4, generator)
    assert len(torch.cat([first, second]).unique(dim=0)) == 8
    assert torch.equal(token(4, torch.Generator().manual_seed(0)), first)
    fixed = FixedToken(32)
    assert torch.equal(fixed(3, generator), fixed.token.expand(3, -1))


def test_decoders():
    assert isinstance(make_decoder("linear", 32, 5), nn.Linear)
    mlp = make_decoder("mlp", 32, 5)
    assert [m.out_features for m in mlp if isinstance(m, nn.Linear)] == [512, 512, 5]
