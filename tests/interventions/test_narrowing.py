"""The last block for the tokens alone that the readout pools: the same numbers, and nobody who looks misses a token."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor, nn

from hooked_vit import HookedViT
from hooked_vit.components.block import Block
from hooked_vit.components.narrowing import BEHIND_POOLING, rows_pooled
from interventions import (
    Intervention,
    apply,
    core,
    insert_token,
    intervention,
    readout,
    remove_tokens,
    sweep,
    zero_tokens,
)
from interventions.sweep import depth_of
from tests.interventions.cases import unchecked_types
from tests.tiny import FAMILIES, pixels, sizes, tiny


@pytest.fixture
def narrowed(monkeypatch: pytest.MonkeyPatch) -> list[slice]:
    """The tokens of every pass of a block for some of them alone."""
    seen: list[slice] = []
    forward = Block.forward

    def noted(self: Block, x: Tensor, rows: slice | None = None) -> Tensor:
        seen.extend([] if rows is None else [rows])
        return forward(self, x, rows)

    monkeypatch.setattr(Block, "forward", noted)
    return seen


def alone(model: HookedViT, x: Tensor, iv: Intervention) -> Tensor:
    with torch.no_grad(), apply(model, iv):
        return model(x)


def assert_as_alone(model: HookedViT, x: Tensor, variants: list[Intervention]) -> None:
    for iv, logits in sweep(model, x, variants):
        want = alone(model, x, iv)
        assert (logits - want).abs().max() <= 1e-6 * want.abs().max().clamp(min=1), iv


@pytest.mark.parametrize("family", FAMILIES)
def test_equals_separate_runs_in_every_family(family: str, narrowed: list[slice]) -> None:
    _, model = tiny(family)
    new = torch.randn(model.cfg.d_model, generator=torch.Generator().manual_seed(0))
    variants = [readout("full"), *(zero_tokens(layer, [1]) for layer in (0, 1))]
    variants += [insert_token(layer, new, index=at) for at in (0, -1) for layer in (0, 1)]
    for size in sizes(family)[:2]:
        assert_as_alone(model, pixels(model, size, n=3), variants)
    few = rows_pooled(model.cfg, model.tokens)
    assert bool(narrowed) == (few is not None)
    # where CLS has moved it is found
    assert {rows.start for rows in narrowed} == (set() if few is None else {few.start, few.start + 1})


def test_what_reads_patches_or_attends_is_computed_whole() -> None:
    for family, few in (
        ("vit", slice(0, 1)),
        ("deit-teacher", slice(0, 2)),
        ("beit-mean-both", None),
        ("dinov2", None),
    ):
        model = tiny(family)[1]
        assert rows_pooled(model.cfg, model.tokens) == few
    layout = tiny("vit")[1].tokens
    assert rows_pooled(tiny("vit")[1].cfg, layout.keep(torch.tensor([[0, 1, 2], [0, 3, -1]]))) is None


@contextmanager
def watching(name: str, seen: list[Tensor]) -> Iterator[Intervention]:
    """An intervention that looks at one hook."""
    try:

        @intervention
        def look(model, *, at):
            def see(act, hook):
                seen.append(act.clone())
                assert model.tokens.n_tokens == model.layout_for(*model.cfg.image_size).n_tokens
                return act

            return [(at, see)]

        yield look(at=name)
    finally:
        core._REGISTRY.pop("look", None)


@pytest.mark.parametrize("family", ["vit", "deit-teacher", "clip-projection"])
def test_a_hook_sees_what_it_sees_in_a_run_of_its_own(family: str, narrowed: list[slice]) -> None:
    _, model = tiny(family)
    x, last = pixels(model, n=2), model.cfg.n_layers - 1
    names = [name for name in model.hook_dict if depth_of(model, name) >= last]
    assert rows_pooled(model.cfg, model.tokens) is not None
    for name in names:
        seen: list[Tensor] = []
        narrowed.clear()
        with unchecked_types(), watching(name, seen) as iv:
            both = zero_tokens(0, [1]) + iv
            for _ in sweep(model, x, [both]):
                pass
            assert bool(narrowed) == (name in BEHIND_POOLING or name.endswith(f"{last}.hook_resid_pre")), name
            alone(model, x, both)
        swept, want = seen
        assert swept.shape == want.shape
        assert (swept - want).abs().max() <= 1e-6 * want.abs().max().clamp(min=1), name


def test_the_undisturbed_run_is_shown_whole(narrowed: list[slice]) -> None:
    _, model = tiny("vit")
    shown: list[int] = []
    look = lambda layer, resid: shown.append(resid.shape[1])  # noqa: E731
    list(sweep(model, pixels(model, n=2), [readout("full"), zero_tokens(0, [1])], undisturbed=look))
    assert shown == [model.tokens.n_tokens] * model.cfg.n_layers
    assert len(narrowed) == 1


class Other(nn.Linear):
    """Anybody's linear layer, which may do anything with the tokens."""


@pytest.mark.parametrize("how", ["hook", "pre hook", "forward", "layer"])
def test_what_others_put_into_the_last_block_sees_every_token(how: str, narrowed: list[slice]) -> None:
    model = tiny("vit")[1].shared_copy()
    x, seen, mlp = pixels(model, n=2), [], model.blocks[-1].mlp
    variants = [readout("full"), zero_tokens(0, [1]), remove_tokens([2], layer=0)]
    if how == "hook":
        mlp.register_forward_hook(lambda module, args, out: seen.append(out.shape[1]))
    elif how == "pre hook":
        mlp.fc_in.register_forward_pre_hook(lambda module, args: seen.append(args[0].shape[1]))
    elif how == "forward":
        before = mlp.forward
        mlp.forward = lambda x: (seen.append(x.shape[1]), before(x))[1]
    else:
        mlp.fc_in = Other(*reversed(mlp.fc_in.weight.shape))
    list(sweep(model, x, variants))
    assert narrowed == []
    n = model.tokens.n_tokens
    assert how == "layer" or set(seen) == {n, n - 1}


def test_bit_by_bit_nothing_is_narrowed(narrowed: list[slice]) -> None:
    _, model = tiny("vit")
    x = pixels(model, n=2)
    for iv, logits in sweep(model, x, [zero_tokens(0, [1]), readout("cls")], fold_tokens=0):
        assert torch.equal(logits, alone(model, x, iv))
    assert narrowed == []
