"""Cutting attention between groups of tokens: exactly those edges, exactly that mass, and what it does to the class."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import ViTImageProcessorPil

from analyses import attention_knockouts
from analyses.data import ImageData, as_data
from analyses.questions.class_space.attention_knockouts.figure import knockout_figure, places_figure
from analyses.questions.class_space.attention_knockouts.knockout import (
    VARIANTS,
    Place,
    measure_knockouts,
    places_of,
    variants_of,
)
from analyses.questions.class_space.measures.projection import project_tokens
from hooked_vit import HookedViT
from interventions import apply, get
from tests.analyses.inert import inert
from tests.tiny import CLASSES, FAMILIES, IMAGE, make, make_hf, pixels, tiny

PROCESSOR = ViTImageProcessorPil(size={"height": IMAGE, "width": IMAGE})
CLASSIFIERS = tuple(name for name in FAMILIES if name != "clip-projection")


def noise(n: int, seed: int = 0) -> ImageData:
    rng = np.random.default_rng(seed)
    pictures = [Image.fromarray(rng.integers(0, 256, (IMAGE, IMAGE, 3), dtype=np.uint8)) for _ in range(n)]
    return as_data((pictures, (np.arange(n) % CLASSES).tolist()))


@torch.no_grad()
def patterns(net: HookedViT, x: torch.Tensor, *edits: object) -> list[torch.Tensor]:
    """Attention of every layer as it acts under interventions."""
    kept: list[torch.Tensor] = []
    hooks = [(f"blocks.{la}.attn.hook_pattern", lambda p, hook: kept.append(p)) for la in range(net.cfg.n_layers)]
    with apply(net, *edits):
        net.run_with_hooks(x, fwd_hooks=hooks)
    return kept


@pytest.mark.parametrize("name", FAMILIES)
def test_variants_cut_just_their_edges(name: str) -> None:
    _, net = tiny(name)
    x, t = pixels(net, n=2), net.tokens.n_tokens
    first = patterns(net, x)[0]
    patch, cls = net.tokens.mask("patches"), net.tokens.mask("cls")
    itself = torch.eye(t, dtype=torch.bool)
    others = patch[:, None] & patch & ~itself
    cut = {
        "self_only": patch[:, None] & ~itself,
        "img2img_zero": others,
        "img2img_renorm": others,
        "no_cls": patch[:, None] & cls,
        "cls_no_img": cls[:, None] & patch,
        "both": (patch[:, None] & cls) | (cls[:, None] & patch),
    }
    for variant, gone in cut.items():
        for pattern in patterns(net, x, VARIANTS[variant].knockout()):
            assert not pattern[..., gone].any(), variant
        changed = patterns(net, x, VARIANTS[variant].knockout())[0]
        rows = gone.any(-1)
        assert torch.allclose(changed[..., ~rows, :], first[..., ~rows, :], atol=1e-6)
        if variant in ("self_only", "img2img_renorm"):
            assert torch.allclose(changed.sum(-1), torch.ones(()), atol=1e-5)
        else:
            assert torch.allclose(changed.sum(-1), first.masked_fill(gone, 0).sum(-1), atol=1e-5)


@pytest.mark.parametrize("name", ["vit", "beit-mean-both", "beit-cls-shared-abs", "dinov2", "clip-classifier"])
@torch.no_grad()
def test_without_cls_image_tokens_evolve_as_if_it_were_absent(name: str) -> None:
    """Up to the mass that is not shared out again, which the renormalised knockout shares out."""
    net = make(name)
    x = pixels(net, n=2)
    shared = get("zero_attention", queries="patches", keys="cls", renormalise=True)
    last = {}
    for key, edit in {"cut": shared, "gone": get("remove_tokens", tokens="cls")}.items():
        with apply(net, edit):
            stream = net(x, stop_at_layer=2)
            last[key] = stream[:, 1:] if key == "cut" else stream
    assert torch.allclose(last["cut"], last["gone"], atol=1e-9)
    cut, renormalised = (patterns(net, x, edit)[0][..., 1:, :] for edit in (VARIANTS["no_cls"].knockout(), shared))
    assert torch.allclose(cut / cut.sum(-1, keepdim=True), renormalised, atol=1e-9)


@pytest.mark.parametrize("name", FAMILIES)
def test_an_empty_knockout_changes_nothing_at_all(name: str) -> None:
    _, net = tiny(name)
    x = pixels(net, n=2)
    for variant in VARIANTS.values():
        for made in (variant.knockout(), variant.control(0)):
            nowhere = made.replace(where=False)
            assert all(torch.equal(a, b) for a, b in zip(patterns(net, x), patterns(net, x, nowhere), strict=True))


@pytest.mark.parametrize("name", ["vit", "registers", "beit-mean-both"])
@pytest.mark.parametrize("renormalise", [False, True])
def test_the_random_control_takes_as_much_from_every_row(name: str, renormalise: bool) -> None:
    _, net = tiny(name)
    x = pixels(net, n=3)
    before = patterns(net, x)[0]
    how = {"queries": "patches", "keys": "patches", "keep_self": True, "renormalise": renormalise, "layers": 0}
    control = get("zero_random_attention", **how, seed=1)
    after = patterns(net, x, control)[0]
    patch = net.tokens.mask("patches")
    gone = patch[:, None] & patch & ~torch.eye(len(patch), dtype=torch.bool)
    lost = before.masked_fill(~gone, 0).sum(-1)
    want = torch.ones(()) if renormalise else 1 - lost
    assert torch.allclose(after[..., patch, :].sum(-1), want.expand(lost.shape)[..., patch], atol=1e-5)
    assert torch.equal(after[..., ~patch, :], before[..., ~patch, :])
    if not renormalise:  # keys are kept whole or lost whole, but for one in each row
        partly = (after > 1e-7) & ((after - before).abs() > 1e-6)
        assert partly.sum(-1).max() <= 1
    again, other = patterns(net, x, control)[0], patterns(net, x, control.replace(seed=2))[0]
    assert torch.equal(after, again)
    assert not torch.equal(after, other)


def test_a_control_of_nothing_is_nothing_and_layers_draw_for_themselves() -> None:
    _, net = tiny("vit")
    x = pixels(net, n=2)
    cut = get("zero_attention", queries="patches", keys="cls")
    control = get("zero_random_attention", queries="patches", keys="cls", seed=0)
    twice = patterns(net, x, cut + control)  # what the control would take is gone already
    assert all(torch.equal(a, b) for a, b in zip(twice, patterns(net, x, cut), strict=True))
    everything = get("zero_random_attention", queries="patches", keys="patches", seed=0)
    one, two = (p[..., 1:, :] == 0 for p in patterns(net, x, everything))
    assert not torch.equal(one, two)


def test_a_row_that_loses_everything_is_left_with_one_key() -> None:
    _, net = tiny("vit")
    control = get("zero_random_attention", queries="all", keys="all", renormalise=True, layers=0)
    pattern = patterns(net, pixels(net, n=2), control)[0]
    assert torch.allclose(pattern.sum(-1), torch.ones(()), atol=1e-5)
    assert ((pattern > 0.99).sum(-1) == 1).float().mean() > 0.9


def ending(net: HookedViT, x: torch.Tensor, labels: torch.Tensor, *edits: object) -> tuple[np.ndarray, np.ndarray]:
    """Which tokens put the class first [b, t], and which answers are right [b], straight from the cache."""
    with torch.no_grad(), apply(net, *edits):
        logits, kept = net.run_with_cache(x, names_filter="blocks.1.hook_resid_post")
        scores = project_tokens(net, kept["resid_post", 1]).numpy()
    first = np.array([[int(np.argmax(s)) == int(y) for s in row] for row, y in zip(scores, labels, strict=True)])
    return first, logits.argmax(-1).numpy() == labels.numpy()


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_rates_and_accuracy_agree_with_a_plain_reference(name: str) -> None:
    _, net = tiny(name)
    x, labels = pixels(net, n=6), torch.arange(6) % CLASSES
    plans = {key: VARIANTS[key] for key in ("self_only", "no_cls", "cls_no_img")}
    rows = measure_knockouts(net, [(x, labels)], plans)
    patch, cls = net.tokens.mask("patches").numpy(), net.tokens.mask("cls").numpy()

    def value(variant: str, measure: str, tokens: str | None = None, control: str = "knockout") -> float:
        (row,) = [
            r
            for r in rows
            if (r["variant"], r["measure"], r["tokens"], r["control"]) == (variant, measure, tokens, control)
        ]
        return row["value"]

    clean, right = ending(net, x, labels)
    assert value("none", "rate", "patches", "clean") == pytest.approx(clean[:, patch].mean())
    for variant, plan in plans.items():
        cut, answers = ending(net, x, labels, plan.knockout())
        assert value(variant, "rate", "patches") == pytest.approx(cut[:, patch].mean())
        assert value(variant, "rate", "cls") == pytest.approx(cut[:, cls].mean())
        assert value(variant, "accuracy") == pytest.approx(answers.mean())
        want = (cut[:, patch].mean(1) - clean[:, patch].mean(1)).mean()
        assert value(variant, "rate_change", "patches") == pytest.approx(want, abs=1e-6)
        lost = answers.astype(float).mean() - right.mean()
        assert value(variant, "accuracy_change") == pytest.approx(lost)
    mass = np.mean([p[..., patch, 0].mean() for p in patterns(net, x)])
    assert value("no_cls", "attention_mass", None, "clean") == pytest.approx(mass, abs=1e-5)


def test_published_code_counts_cls_among_the_tokens_of_a_knockout() -> None:
    """CLS names the class and no image token does: the published rate is not zero, and the clean one leaves CLS out."""
    net = inert(patch_bias=-5.0)
    x = torch.randn(3, 3, 16, 16)
    batch = [(x, torch.zeros(3, dtype=torch.long))]
    only = {"no_cls": VARIANTS["no_cls"]}
    for published, knockout in ((False, 0.0), (True, 1 / 5)):
        rows = measure_knockouts(net, batch, only, published=published)
        rates = {r["control"]: r["value"] for r in rows if r["measure"] == "rate" and r["tokens"] == "patches"}
        assert rates["knockout"] == pytest.approx(knockout)
        assert rates["clean"] == 0.0


def test_windows_and_heads_are_measured_where_they_are_said() -> None:
    _, net = tiny("vit")
    assert places_of(net, 1) == [Place(0, 1, None), Place(0, 0, None), Place(1, 1, None)]
    assert places_of(net, 0, by_head=True)[1:] == [Place(0, 1, head) for head in range(4)]
    x, labels = pixels(net, n=4), torch.arange(4)
    only = {"self_only": VARIANTS["self_only"]}
    rows = measure_knockouts(net, [(x, labels)], only, places=[Place(0, 1, None), Place(1, 1, None), Place(0, 1, 2)])
    for place, how in ((Place(1, 1, None), {"layers": 1}), (Place(0, 1, 2), {"heads": 2})):
        first, _ = ending(net, x, labels, get("self_only", **how))
        (row,) = [
            r
            for r in rows
            if (r["layer_first"], r["layer_last"], r["head"]) == place
            and (r["measure"], r["tokens"], r["control"]) == ("rate", "patches", "knockout")
        ]
        assert row["value"] == pytest.approx(first[:, 1:].mean())
    assert places_of(net, 2) == places_of(net, 0)  # a window of all layers is measured once
    with pytest.raises(ValueError, match="window"):
        places_of(net, 3)


def test_roles_of_ones_own_and_variants_a_model_cannot_have() -> None:
    _, net = tiny("deit")
    found, missing = variants_of(net, ["dist>patches", "registers>cls", "no_cls"])
    assert list(found) == ["dist>patches", "no_cls"]
    assert missing == ["registers>cls"]
    dist = net.tokens.mask("dist")
    for pattern in patterns(net, pixels(net, n=1), found["dist>patches"].knockout()):
        assert not pattern[..., dist, :][..., net.tokens.mask("patches")].any()
    with pytest.raises(ValueError, match="got pathces"):
        variants_of(net, ["pathces>cls"])  # misspelt, not absent
    with pytest.raises(ValueError, match="did you mean 'no_cls'"):
        variants_of(net, ["nocls"])


@pytest.fixture(scope="module")
def result():
    models = {name: HookedViT.from_hf(make_hf(name), processor=PROCESSOR) for name in ("vit", "dinov2")}
    return attention_knockouts(models, noise(8), window=1, variants=("self_only", "no_cls"), batch_size=5)


def test_the_analysis_puts_a_control_beside_every_knockout(result) -> None:
    frame = result.frame
    keys = ["model", "variant", "layer_first", "layer_last", "measure", "tokens"]
    cut, random = (frame[frame.control == c].set_index(keys).index for c in ("knockout", "random"))
    assert set(cut) == set(random)
    assert len(result.meta["table"]) == 4
    assert all("at random" in sentence for sentence in result.meta["summary"])
    assert "self_only()" in result.meta["interventions"]
    tests = frame[frame.measure.isin(["rate_change", "accuracy_change"])]
    assert (tests.p_adjusted >= tests.p).all()


@pytest.mark.parametrize("draw", [knockout_figure, places_figure])
def test_figures_hold_every_model(result, draw) -> None:
    text = draw(result).to_json()
    assert "vit" in text
    assert "dinov2" in text


def test_published_settings_are_the_two_variants_of_the_code() -> None:
    net = HookedViT.from_hf(make_hf("vit"), processor=PROCESSOR)
    result = attention_knockouts({"vit": net}, noise(6), repro=True)
    assert set(result.frame.variant) == {"none", "self_only", "no_cls"}
    assert any("CLS is counted" in note for note in result.meta["notes"])
    assert "window=1" in places_figure(result).to_json()


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"draws": 0}, "at least one random knockout"),
        ({"variants": ()}, "at least one knockout"),
        ({"variants": ("no_clss",)}, "no_clss"),
        ({"variants": ("registers>cls",)}, "none of the knockouts"),
        ({"window": 9}, "window"),
    ],
)
def test_bad_input_is_refused_before_any_run(options: dict, says: str) -> None:
    net = HookedViT.from_hf(make_hf("vit"), processor=PROCESSOR)
    with pytest.raises(ValueError, match=says):
        attention_knockouts({"vit": net}, noise(6), **options)
    assert net.run.n_forwards == 0
