"""A sweep gives what separate runs give, for any interventions, and pays once for what they share."""

from __future__ import annotations

import random
from collections import Counter

import pytest
import torch

from hooked_vit import HookedViT, ViTConfig
from hooked_vit.components.block import Block
from hooked_vit.components.watching import watched
from hooked_vit.hook_table import layer_of
from interventions import (
    Intervention,
    InterventionNotFired,
    apply,
    core,
    insert_token,
    intervention,
    low_pass,
    patch_cls,
    patch_tokens,
    readout,
    remove_tokens,
    shuffle_cls,
    sweep,
    zero_attention,
    zero_tokens,
)
from interventions.sweep import depth_of
from tests.interventions.cases import FULL, OURS, cases, setting, unchecked_types
from tests.tiny import FAMILIES, pixels, tiny


def alone(model: HookedViT, x: torch.Tensor, iv: Intervention) -> torch.Tensor | str:
    """Logits of a run of its own, or what kind of error it ends with."""
    try:
        with torch.no_grad(), apply(model, iv):
            return model(x)
    except ValueError as error:
        return type(error).__name__


def composed(family: str, seed: int, n: int) -> list[Intervention]:
    """Sums of one to three of all interventions there are."""
    s, rng = setting(family), random.Random(f"{family} {seed}")
    everything = [make for name in OURS for make in cases(name).valid]
    made = []
    for _ in range(n):
        parts = [make(s) for make in rng.sample(everything, rng.randint(1, 3))]
        made.append(sum(parts[1:], parts[0]))
    # runs that share a beginning, and one that is there twice
    return made + [iv + readout("full") for iv in made[:4]] + made[:2]


@pytest.mark.parametrize(("family", "seed"), [*((family, 0) for family in FULL), ("vit", 1)])
def test_equals_separate_runs(family, seed):
    s = setting(family)
    with unchecked_types():
        wanted = [(iv, alone(s.model, s.x, iv)) for iv in composed(family, seed, 16)]
        # some parts do not go together, and then they do not in a sweep either
        for iv in [iv for iv, logits in wanted if isinstance(logits, str)][:2]:
            with pytest.raises(ValueError):  # noqa: PT011  # whichever it was
                list(sweep(s.model, s.x, [iv]))
        runnable = [(iv, logits) for iv, logits in wanted if not isinstance(logits, str)]
        assert len(runnable) > len(wanted) // 2
        ivs = [iv for iv, _ in runnable]
        for fold_tokens, budget in ((0, 2**31), (4096, 2**31), (250, 300_000)):
            swept = list(sweep(s.model, s.x, ivs, fold_tokens=fold_tokens, memory_budget=budget))
            assert [iv for iv, _ in swept] == ivs
            for (iv, logits), (_, want) in zip(swept, runnable, strict=True):
                apart = (logits - want).abs().max() / want.abs().max().clamp(min=1)
                assert logits.shape == want.shape
                assert apart <= (1e-6 if fold_tokens else 0), (iv, fold_tokens, budget)
    assert not any(watched(point) for point in s.model.hook_points())


@pytest.fixture
def deep() -> HookedViT:
    torch.manual_seed(0)
    cfg = ViTConfig(d_model=16, n_layers=12, n_heads=2, d_mlp=16, image_size=(16, 16), patch_size=8, n_classes=3)
    return HookedViT(cfg)


@pytest.fixture
def evaluations(monkeypatch) -> Counter:
    """How many runs passed a block, counted in batches of two images; and how often a block was called."""
    count: Counter = Counter()
    forward = Block.forward

    def counted(self, x, rows=None):
        count["runs"] += len(x) // 2
        count["calls"] += 1
        count["narrow"] += len(x) // 2 * (rows is not None)
        return forward(self, x, rows)

    monkeypatch.setattr(Block, "forward", counted)
    return count


def test_twelve_layers_cost_sixty_six_and_twelve(deep, evaluations):
    x = torch.randn(2, 3, 16, 16)
    shuffles = [shuffle_cls(layer=layer, among="others") for layer in range(12)]
    for variants, runs in (
        (shuffles, 66 + 12),
        # the readout is no part of any block, so it is free
        (shuffles + [iv + readout("cls") for iv in shuffles], 66 + 12),
        ([*shuffles, *shuffles], 66 + 12),
        # an edit in front of a block, or inside it, cannot share it
        ([zero_tokens(layer, "cls", site="resid_pre") for layer in range(12)], 66 + 12 + 11),
        ([zero_attention("cls", "patches", layers=layer) for layer in range(12)], 66 + 12 + 11),
        ([readout(), readout("cls")], 12),
        ([], 0),
        # what begins alike is done once, whatever comes later
        ([shuffle_cls(0) + shuffle_cls(layer) for layer in range(1, 12)], 1 + 11 + 55),
        # edits of the picture share nothing
        ([low_pass(radius=r) for r in (1, 2)], 24),
    ):
        evaluations.clear()
        assert len(list(sweep(deep, x, variants))) == len(variants)
        assert evaluations["runs"] == runs, variants
    evaluations.clear()
    list(sweep(deep, x, shuffles))
    # the clean run and all others pass a block as one batch, the last one but for the run that is shuffled behind it
    assert evaluations["calls"] == 12 + 1
    assert evaluations["narrow"] == 11
    evaluations.clear()
    list(sweep(deep, x, shuffles, fold_tokens=0))
    assert evaluations["calls"] == evaluations["runs"] == 78


def test_memory_is_bounded(deep, monkeypatch):
    """Lists that would not fit are walked in parts, each with its own clean prefix."""
    x = torch.randn(4, 3, 16, 16)
    most = 0
    forward = Block.forward

    def watched_forward(self, resid, rows=None):
        nonlocal most
        most = max(most, len(resid))
        return forward(self, resid, rows)

    monkeypatch.setattr(Block, "forward", watched_forward)
    state = 4 * 5 * 16 * 4
    list(sweep(deep, x, [shuffle_cls(layer=0, seed=seed) for seed in range(20)], memory_budget=6 * state))
    assert most == 3 * 4


def test_folding_keeps_to_its_limit_and_to_equal_tokens(deep, evaluations):
    x = torch.randn(2, 3, 16, 16)
    variants = [zero_tokens(0, [t], where=0.5) for t in range(4)]
    list(sweep(deep, x, variants, fold_tokens=20))
    assert evaluations["calls"] == 1 + 11 * 2
    evaluations.clear()
    longer = [insert_token(1, torch.ones(16), index=i) for i in (0, 0, 2)] + [remove_tokens([4], layer=1)]
    list(sweep(deep, x, longer))
    assert evaluations["calls"] == 1 + 11 * 3  # the first two are one, the third has its token elsewhere


def test_pixels_to_patch_from_are_run_once(deep, evaluations):
    x, donors = torch.randn(2, 2, 3, 16, 16)
    patches = [patch_cls(layer=layer, value=donors) for layer in range(12)]
    swept = list(sweep(deep, x, patches, fold_tokens=0))
    assert evaluations["runs"] == 12 + 66 + 12
    for iv, logits in swept:
        assert torch.equal(alone(deep, x, iv), logits)
    evaluations.clear()
    mixed = [
        patch_tokens(l, t, donors, site=site) for l in (0, 5) for t in ("cls", "all") for site in ("z", "resid_mid")
    ]
    swept = list(sweep(deep, x, mixed, fold_tokens=0))
    for iv, logits in swept:
        assert torch.equal(alone(deep, x, iv), logits)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_hook_lies_in_a_part_of_the_network(family):
    model = tiny(family)[1]
    depths = [depth_of(model, name) for name, _, _ in model.describe_hooks()]
    assert depths == sorted(depths)
    for name in model.hook_dict:
        assert layer_of(name) in (depth_of(model, name), -1)
    assert depth_of(model, "hook_pixels") == depth_of(model, "blocks.0.hook_resid_pre") - 1 == -1
    assert depth_of(model, "ln_final.hook_scale") == depth_of(model, "hook_logits") == model.cfg.n_layers


@pytest.mark.parametrize("family", ["vit", "beit-mean-both", "clip-classifier"])
def test_an_edit_at_any_hook(family):
    """Not only where the catalogue acts."""
    model = tiny(family)[1]
    x = pixels(model)
    try:

        @intervention
        def nudge(model, *, name):
            return [(name, lambda act, hook: act * 1.5)]

        ivs = [nudge(name=name) for name in model.hook_dict]
        with unchecked_types():
            for iv, logits in sweep(model, x, ivs, fold_tokens=0):
                assert torch.equal(logits, alone(model, x, iv)), iv
    finally:
        core._REGISTRY.pop("nudge", None)


def test_refuses_before_it_runs(deep):
    x = torch.randn(2, 3, 16, 16)
    with pytest.raises(ValueError, match="layers are 0 to 11"):
        sweep(deep, x, [shuffle_cls(0), shuffle_cls(12)])
    with pytest.raises(ValueError, match="NaN"):
        sweep(deep, x * float("nan"), [shuffle_cls(0)])
    with unchecked_types(), pytest.raises(TypeError, match="expected an intervention"):
        sweep(deep, x, [shuffle_cls])
    with deep.hooks([("hook_logits", lambda act, hook: act)]), pytest.raises(RuntimeError, match="hooks are attached"):
        sweep(deep, x, [shuffle_cls(0)])
    running = sweep(deep, x, [shuffle_cls(0)])
    with deep.hooks([("hook_logits", lambda act, hook: act)]), pytest.raises(RuntimeError, match="hooks are attached"):
        next(running)
    assert deep.run.n_forwards == 0


def test_one_that_is_never_reached(deep):
    """A hook that only a family with relative positions reaches cannot be missed; one that another takes away can."""
    try:

        @intervention
        def unplugged(model):
            hooks = [("blocks.1.attn.hook_pattern", lambda act, hook: act)]
            return hooks

        iv = unplugged()
        deep.blocks[1].attn.forward = lambda x: x
        with pytest.raises(InterventionNotFired, match=r"blocks\.1\.attn\.hook_pattern"):
            list(sweep(deep, torch.randn(2, 3, 16, 16), [iv]))
    finally:
        core._REGISTRY.pop("unplugged", None)


def test_other_sizes_dtypes_and_modes(deep):
    deep.double()
    x = torch.randn(2, 3, 24, 32, dtype=torch.float64)
    ivs = [shuffle_cls(3), remove_tokens("patches", where=torch.rand(2, 12) > 0.5), zero_tokens(-1, "patches")]
    for mode in (torch.no_grad, torch.inference_mode, torch.enable_grad):
        with mode():
            for iv, logits in sweep(deep, x, ivs):
                assert not logits.requires_grad
                assert (logits - alone(deep, x, iv)).abs().max() < 1e-13
