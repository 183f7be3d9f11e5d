"""Head ablation against runs made by hand, and on a model that has one head that does anything."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from analyses import Result, head_ablation
from analyses.data import as_data
from analyses.questions.patching.head_ablation.ablation import (
    Part,
    clean_run,
    direct_logits,
    margin,
    outputs_of,
    parts_of,
    total_logits,
)
from analyses.questions.patching.head_ablation.ranking import half_correlations, sizes
from analyses.running.catalogue import get_analysis
from hooked_vit import HookedViT
from interventions import wiring
from interventions.sources import mean_over_images
from tests.analyses.questions.cls_use.test_cls_causality import coloured, model
from tests.tiny import FAMILIES, make, pixels, tiny

SHOWN = ("vit", "deit", "dinov2", "clip-classifier")


def by_hand(
    vit: HookedViT, x: torch.Tensor, cache: dict, part: Part, value: torch.Tensor, direct: bool
) -> torch.Tensor:
    """One run in which a part puts out something else; directly: all that follows puts out what it did before."""
    site = "hook_mlp_out" if part.head is None else "attn.hook_z"

    def say(act: torch.Tensor, hook: object) -> torch.Tensor:
        new = act.clone()
        if part.head is None:
            new[:] = value
        else:
            new[:, :, part.head] = value[:, :, part.head]
        return new

    hooks = [(f"blocks.{part.layer}.{site}", say)]
    if direct:
        later = [f"blocks.{l}.attn.hook_z" for l in range(part.layer + 1, vit.cfg.n_layers)]
        later += [f"blocks.{l}.hook_mlp_out" for l in range(part.layer + (part.head is None), vit.cfg.n_layers)]
        hooks += [(name, lambda act, hook: cache[hook.name]) for name in later]
    return vit.run_with_hooks(x, fwd_hooks=hooks)


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_every_ablation_is_the_run_made_by_hand(family: str) -> None:
    vit = make(family)
    x, others = pixels(vit, n=4), pixels(vit, n=6, seed=1)
    parts, order = [Part(0, 1), Part(0, None), Part(1, 3), Part(1, None)], torch.tensor([2, 3, 1, 0])
    logits, final, outputs = clean_run(vit, x, parts)
    assert torch.equal(logits, vit(x))
    cache = vit.run_with_cache(x)[1]
    zeros = {hook: torch.zeros_like(kept) for hook, kept in outputs.items()}
    donors = {hook: kept[order] for hook, kept in outputs.items()}
    mean = mean_over_images(outputs_of(vit, some, parts) for some in others.split(4))
    whole = outputs_of(vit, others, parts)
    assert all(torch.allclose(mean[hook], kept.mean(0, keepdim=True), atol=1e-12) for hook, kept in whole.items())
    stacked = wiring.mean_outputs(vit, iter(others.split(4)))
    assert all(torch.equal(stacked.z[part.layer], mean[part.hook]) for part in parts if part.head is not None)
    assert all(torch.equal(stacked.mlp[part.layer], mean[part.hook]) for part in parts if part.head is None)
    for values, put_in in ((None, zeros), (mean, mean), (donors, donors)):
        total = list(total_logits(vit, x, [[part] for part in parts], values))
        direct = list(direct_logits(vit, x, final, outputs, parts, values))
        for part, all_behind, alone in zip(parts, total, direct, strict=True):
            value = put_in[part.hook]
            assert torch.allclose(all_behind, by_hand(vit, x, cache, part, value, False), atol=1e-10), part
            assert torch.allclose(alone, by_hand(vit, x, cache, part, value, True), atol=1e-10), part
        # behind the last MLP there is nothing that could hear of it
        assert torch.allclose(total[-1], direct[-1], atol=1e-10)


def found_with(families: tuple[str, ...], batch_size: int) -> Result:
    models = {family: model(family) for family in families}
    data, fit = coloured(12, 1), coloured(15, 2)
    return head_ablation(models, data, fit_data=fit, draws=2, batch_size=batch_size, head="ridge")


@pytest.fixture(scope="module")
def result() -> Result:
    return found_with(SHOWN, 12)


def test_the_frame_has_every_part_way_and_effect_and_is_drawn(result: Result) -> None:
    for family, frame in result.frame.groupby("model"):
        drops = frame[frame.measure == "drop"]
        assert len(drops) == 2 * 3 * len(parts_of(tiny(family)[1]))
        assert ((drops.low <= drops.value) & (drops.value <= drops.high)).all()
        assert (drops.n == 12).all()
        assert (frame[frame.measure == "together_accuracy"].n == 6).all()  # every second image
    assert len(result.figure().data) == len(SHOWN) * 2 * 3
    for draw in get_analysis("head-ablation").figures(result).values():
        assert draw(result).data
    assert [row["way"] for row in result.meta["table"][:3]] == ["zero", "mean", "resample"]
    assert all("ridge head" in about["head"] for about in result.meta["models"].values())


def test_what_draws_nothing_does_not_depend_on_who_shares_a_batch(result: Result) -> None:
    ours, theirs = (
        frame[(frame.model == "vit") & (frame.measure == "drop") & (frame.way != "resample")].value
        for frame in (result.frame, found_with(("vit",), 5).frame)
    )
    assert np.allclose(ours, theirs, atol=1e-5)


def one_head_model() -> HookedViT:
    """A tiny ViT in which head 2 of layer 0 alone writes to the stream."""
    vit = make("vit", torch.float32)
    with torch.no_grad():
        for l, block in enumerate(vit.blocks):
            block.mlp.fc_out.weight.zero_()
            block.mlp.fc_out.bias.zero_()
            for h in range(vit.cfg.n_heads):
                if (l, h) != (0, 2):
                    block.attn.o.weight[:, h * vit.cfg.d_head : (h + 1) * vit.cfg.d_head] = 0
            block.attn.o.weight.mul_(20)
    vit.processor = model("vit").processor
    return vit


def test_the_only_head_there_is_is_found() -> None:
    found = head_ablation({"one": one_head_model()}, coloured(24, 1), fit_data=coloured(24, 2), draws=3, head="ridge")
    drops = found.frame[found.frame.measure == "drop"]
    here = (drops.layer == 0) & (drops["head"].fillna(-1) == 2)
    assert (drops[~here].value.abs() < 1e-6).all()
    assert (drops[here].value > 1e-3).all()
    assert {row["most"] for row in found.meta["table"]} == {"L0H2"}
    drops = found.frame[(found.frame.measure == "together_drop") & (found.frame.k == 1)]
    ranked, random = (drops[drops.order == order].value for order in ("ranked", "random"))
    assert ranked.min() > 1e-3
    assert random.min() < 1e-6


def test_stability_is_one_where_heads_differ_and_nothing_where_they_do_not() -> None:
    rng = np.random.default_rng(0)
    noise = rng.normal(size=(60, 40))
    assert half_correlations(np.arange(40) * 10 + noise, 5, 0).min() > 0.999
    assert abs(half_correlations(noise, 50, 0).mean()) < 0.2
    assert sizes(1) == [1]
    assert sizes(8) == [1, 2, 4]


def test_margin_does_not_feel_a_shift() -> None:
    logits, labels = torch.randn(5, 7), torch.arange(5)
    assert torch.allclose(margin(logits, labels), margin(logits + 3, labels))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seeds": 0}, "at least one draw"),
        ({"draws": 0}, "at least one draw"),
        ({"batch_size": 1}, "two of them"),
        ({"batch_size": 10, "data": coloured(1, 1)}, "one image alone"),
        ({"models": {"rpn": "timm-rpn-cls"}}, "head ablation takes a branch apart"),
    ],
)
def test_bad_input_is_refused(change: dict, message: str) -> None:
    models = {name: make(family) for name, family in change.pop("models", {"vit": "vit"}).items()}
    data = as_data(change.pop("data", coloured(20, 1)))
    with pytest.raises(ValueError, match=message):
        head_ablation(models, data, fit_data=coloured(20, 2), **change)
