"""Curves of CLS's attention are those of straight-line NumPy, obey their laws, and verdicts follow from intervals."""

from __future__ import annotations

import datasets
import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from analyses import Result, cls_attention
from analyses.data import ImageData, as_data
from analyses.questions.looking.cls_attention import claims
from analyses.questions.looking.cls_attention.shape import (
    centre_distance,
    head_diversity,
    normalised_entropy,
    object_shares,
    over_patches,
    spread,
)
from analyses.questions.looking.cls_attention.study import OTHER_MASKS, RANDOM, TRAINED, UNIFORM
from analyses.running.catalogue import get_analysis
from analyses.statistics.intervals import mean_interval
from hooked_vit import HookedViT
from tests.tiny import CLASSES, IMAGE, make, make_hf, processor_of

N, BATCH = 13, 6
FAMILIES = ("vit", "registers", "deit-teacher")
BLIND = "sees all alike"


def model(name: str, **changes: int) -> HookedViT:
    return HookedViT.from_hf(make_hf(name, num_hidden_layers=3, **changes), processor=processor_of((IMAGE, IMAGE)))


def blind() -> HookedViT:
    """A model whose queries are zero: every token attends to all tokens alike."""
    found = model("vit")
    with torch.no_grad():
        for name, parameter in found.named_parameters():
            if ".attn.q." in name:
                parameter.zero_()
    return found


def pictures(n: int, seed: int, *, masks: bool = True) -> ImageData:
    """A square of the class's colour on noise, and the mask of the square."""
    rng = np.random.default_rng(seed)
    labels = (np.arange(n) % CLASSES).tolist()
    colours = np.random.default_rng(0).integers(0, 256, (CLASSES, 3))
    images, drawn = [], []
    for label in labels:
        image, mask = rng.integers(0, 256, (IMAGE, IMAGE, 3), np.uint8), np.zeros((IMAGE, IMAGE), np.uint8)
        row, column = rng.integers(0, IMAGE // 2, 2)
        here = np.s_[row : row + IMAGE // 2, column : column + IMAGE // 2]
        image[here], mask[here] = colours[label], 1
        images.append(Image.fromarray(image))
        drawn.append(Image.fromarray(mask))
    columns = {"mask": drawn} if masks else {}
    return as_data(datasets.Dataset.from_dict({"image": images, "label": labels, **columns}))


@pytest.fixture(scope="module")
def result() -> Result:
    models = {**{name: model(name) for name in FAMILIES}, BLIND: blind()}
    return cls_attention(models, pictures(N, 1), fit_data=pictures(24, 2), rule="any", batch_size=BATCH)


def value(result: Result, name: str, measure: str, variant: str, layer: int) -> float:
    rows = result.frame.query("model == @name and measure == @measure and variant == @variant and layer == @layer")
    return float(rows.value.item())


def at_hand(name: str, layer: int) -> dict[str, np.ndarray]:
    """Entropy, spread, divergence and mass on the object, image by image, in loops over heads and patches."""
    one = model(name)
    batch = next(pictures(N, 1).batches(N, extra=["mask"]))
    with torch.no_grad():
        _, cache = one.run_with_cache(one.preprocess(batch.images))
    first, (rows, columns) = one.tokens.n_prefix, one.tokens.grid
    pattern = cache[f"blocks.{layer}.attn.hook_pattern"].double().numpy()[:, :, 0, first:]
    places = [(r, c) for r in range(rows) for c in range(columns)]
    side = IMAGE // rows
    found: dict[str, list[float]] = {
        m: [] for m in ("entropy", "spread", "head_diversity", "object_mass", "patch_mass")
    }
    for image, mask in zip(pattern, batch.extra["mask"], strict=True):
        heads = [weights / weights.sum() for weights in image]
        found["patch_mass"].append(np.mean([weights.sum() for weights in image]))
        found["entropy"].append(np.mean([-(w * np.log(w)).sum() / np.log(len(w)) for w in heads]))
        apart = np.array([[np.hypot(a[0] - b[0], a[1] - b[1]) for b in places] for a in places])
        found["spread"].append(np.mean([w @ apart @ w for w in heads]) / apart.mean())
        pairs = [(p, q) for i, p in enumerate(heads) for q in heads[:i]]
        kl = [[(x * np.log2(x / ((p + q) / 2))).sum() for x in (p, q)] for p, q in pairs]
        found["head_diversity"].append(np.mean(kl))
        on = [np.asarray(mask)[r * side : (r + 1) * side, c * side : (c + 1) * side].any() for r, c in places]
        mixed = any(on) and not all(on)
        found["object_mass"].append(np.mean([w[on].sum() for w in heads]) if mixed else np.nan)
    return {measure: np.array(values) for measure, values in found.items()}


@pytest.mark.parametrize("layer", [0, 2])
@pytest.mark.parametrize("name", FAMILIES)
def test_curves_are_those_of_numpy(result: Result, name: str, layer: int) -> None:
    for measure, values in at_hand(name, layer).items():
        known = values[np.isfinite(values)]
        assert value(result, name, measure, TRAINED, layer) == pytest.approx(known.mean(), abs=1e-6), measure
        assert np.std(known) > 0


def test_parts_are_paired_over_images_and_their_intervals_hold_together(result: Result) -> None:
    early, late = (at_hand("vit", layer)["entropy"] for layer in (0, 2))
    n_tests = result.meta["n_tests"]
    assert n_tests == len(claims.PARTS) * (len(FAMILIES) + 1)
    want = mean_interval(early - late, bounds=(-1.0, 1.0), confidence=1 - 0.05 / n_tests)
    row = result.frame.query("model == 'vit' and part == 'entropy, early − late'").iloc[0]
    assert [row.value, row.low, row.high] == pytest.approx(want, abs=1e-6)
    assert str(n_tests) in result.meta["corrected"][0]


def test_a_model_that_sees_all_alike_is_its_own_control(result: Result) -> None:
    def same(measure: str, expected: float | None = None) -> None:
        for layer in range(3):
            control = value(result, BLIND, measure, UNIFORM, layer) if expected is None else expected
            assert value(result, BLIND, measure, TRAINED, layer) == pytest.approx(control, abs=1e-6), measure

    for measure in ("entropy", "spread", "centre_distance", "head_diversity", "object_mass", "class_probe"):
        same(measure)
    same("object_excess", 0.0)
    same("class_gain", 0.0)
    verdicts = {row["claim"]: row["verdict"] for row in result.meta["table"] if row["model"] == BLIND}
    assert claims.SUPPORTED not in verdicts.values()
    assert verdicts[claims.OBJECTS] == claims.NOT_SUPPORTED  # what it has on them is known to be what all have


def test_every_measure_has_its_controls_and_intervals(result: Result) -> None:
    frame = result.frame[result.frame.model == "registers"]
    has = frame.groupby("measure").variant.agg(set).to_dict()
    assert all({TRAINED, RANDOM} <= has[measure] for measure in has if measure not in ("chance", "contrast"))
    assert all(UNIFORM in has[m] for m in ("entropy", "spread", "head_diversity", "object_mass", "class_probe"))
    assert all(OTHER_MASKS in has[m] for m in ("object_mass", "object_excess", "object_lift"))
    measured = frame[(frame.variant == TRAINED) & (frame.measure != "object_lift")]
    assert (measured.low < measured.high).all()
    figures = get_analysis("cls-attention").figures(result)
    assert all(len(draw(result).data) for draw in [get_analysis("cls-attention").figure, *figures.values()])


def test_uniform_and_one_hot_attention_have_the_values_they_must() -> None:
    n = 12
    uniform = torch.full((1, 3, n), 1 / n, dtype=torch.float64)
    one_hot = torch.eye(n, dtype=torch.float64)[None, :3]
    assert normalised_entropy(uniform).item() == pytest.approx(1, abs=1e-12)
    assert normalised_entropy(one_hot).item() == 0
    assert spread(uniform, (3, 4)).item() == pytest.approx(1, abs=1e-12)
    assert spread(one_hot, (3, 4)).item() == 0
    assert head_diversity(uniform).item() == 0
    assert head_diversity(one_hot).item() == pytest.approx(1, abs=1e-12)
    assert head_diversity(uniform[:, :1]).isnan().all()
    labels = torch.tensor([[1] * 3 + [0] * 7 + [-1] * 2])
    mass, area = object_shares(uniform, labels)
    assert mass.item() == pytest.approx(area.item(), abs=1e-12) == pytest.approx(0.3)
    assert all(x.isnan().all() for x in object_shares(uniform, torch.ones(1, n, dtype=torch.int64)))


def test_measures_do_not_ask_for_the_order_of_heads_or_the_attention_to_other_tokens() -> None:
    drawn = torch.rand(4, 3, 12, generator=torch.Generator().manual_seed(0))
    weights, share = over_patches(drawn / 20)
    assert torch.allclose(weights.sum(-1), torch.ones(4, 3, dtype=torch.float64))
    assert torch.allclose(share, drawn.double().sum(-1).mean(-1) / 20)
    for measure in (
        normalised_entropy,
        head_diversity,
        lambda w: spread(w, (3, 4)),
        lambda w: centre_distance(w, (3, 4)),
    ):
        assert torch.allclose(measure(weights), measure(weights[:, [2, 0, 1]]))
        assert torch.allclose(measure(weights), measure(over_patches(drawn / 7)[0]))
    # an image turned upside down is looked at as broadly
    turned = weights.unflatten(-1, (3, 4)).flip(-2, -1).flatten(-2)
    assert torch.allclose(spread(weights, (3, 4)), spread(turned, (3, 4)))


@pytest.mark.parametrize(("height", "verdict"), [(0.3, "supported"), (-0.3, "not supported"), (0.0, "cannot tell")])
def test_a_verdict_is_what_was_planted(height: float, verdict: str) -> None:
    rng = np.random.default_rng(0)
    columns = {
        ("entropy", variant, layer): 0.5 + rng.normal(0, 0.05, 200) + height * (variant == TRAINED) * (layer < 2)
        for variant in (TRAINED, RANDOM)
        for layer in range(6)
    }
    found = [*claims.settle(claims.differences(columns, 6), 3)]
    assert len(found) == 3
    assert claims.judge(claims.BROAD, found, "").verdict == verdict
    # a claim of which a part is missing is no claim
    assert claims.judge(claims.BROAD, found[:2], "too few").why == "too few"


@pytest.mark.parametrize("height", [1e-5, -1e-5])
def test_what_is_next_to_nothing_supports_nothing_though_all_images_agree(height: float) -> None:
    """As with random weights, whose attention is uniform: a verdict says how large its differences are."""
    columns = {
        ("entropy", variant, layer): 0.9 + np.full(50, height * (variant == TRAINED) * (layer < 2))
        for variant in (TRAINED, RANDOM)
        for layer in range(6)
    }
    rng = np.random.default_rng(0)
    columns = {key: values + rng.normal(0, 1e-7, 50) for key, values in columns.items()}
    found = [*claims.settle(claims.differences(columns, 6), 3)]
    assert all(one.interval.low > 0 or one.interval.high < 0 for one in found)
    judged = claims.judge(claims.BROAD, found, "")
    assert judged.verdict == "not supported"
    assert judged.why.count("(+1e-05)" if height > 0 else "(−1e-05)") == 3


def test_without_masks_nothing_is_said_of_objects() -> None:
    one = cls_attention({"vit": model("vit")}, pictures(N, 1, masks=False), fit_data=pictures(24, 2), batch_size=BATCH)
    assert not one.frame.measure.str.startswith("object").any()
    (row,) = (row for row in one.meta["table"] if row["claim"] == claims.OBJECTS)
    assert (row["verdict"], row["why"]) == ("cannot tell", "the data have no masks")
    assert any("nothing is said of objects: the data have no masks" in note for note in one.meta["notes"])
    drawn = get_analysis("cls-attention").figure(one)
    # a panel without a trace has no axes, and what is noted in it stands in the first panel
    assert {trace.xaxis for trace in drawn.data} == {"x", "x2", "x3"}


def test_two_blocks_have_no_middle_and_no_verdict() -> None:
    shallow = HookedViT.from_hf(make_hf("vit"), processor=processor_of((IMAGE, IMAGE)))
    one = cls_attention({"vit": shallow}, pictures(N, 1), fit_data=pictures(24, 2), rule="any", batch_size=BATCH)
    assert {(row["verdict"], row["why"]) for row in one.meta["table"]} == {
        ("cannot tell", "fewer than three blocks have no middle")
    }
    for draw in get_analysis("cls-attention").figures(one).values():
        draw(one)


@pytest.mark.parametrize(
    ("layers", "why", "told"),
    [
        ((0,), {"no middle and no late", "no middle", "no late"}, {"shallow": "early", "deep": "early (0)"}),
        ((-1,), {"no early and no middle", "no early"}, {"shallow": "late", "deep": "late (6)"}),
        ((0, -1), {"no middle"}, {"shallow": "early and late", "deep": "early (0) and late (6)"}),
    ],
)
def test_a_third_without_a_measured_layer_has_no_claim(layers: tuple[int, ...], why: set[str], told: dict) -> None:
    """Of three blocks each is a third; of seven 0 and 1 are early, 2 and 3 in the middle, 4 to 6 late."""
    deep = HookedViT.from_hf(make_hf("vit", num_hidden_layers=7), processor=processor_of((IMAGE, IMAGE)))
    models, options = {"shallow": model("vit"), "deep": deep}, {"fit_data": pictures(24, 2), "rule": "any"}
    whole = cls_attention(models, pictures(N, 1), **options, batch_size=BATCH)
    one = cls_attention(models, pictures(N, 1), **options, batch_size=BATCH, layers=layers)
    unjudged = {row["why"] for row in one.meta["table"] if row["why"].endswith("layer was measured")}
    assert unjudged == {f"{reason} layer was measured" for reason in why}
    judged = [row for row in one.meta["table"] if row["why"] not in unjudged]
    assert {row["claim"] for row in judged} == ({claims.DISCRIMINATES} if len(layers) == 2 else set())
    for name, thirds in told.items():
        assert sum(s.startswith(f"{name}: in the network's {thirds} part entropy") for s in one.meta["summary"]) == 1
    # what is compared is the mean of the layers that were measured, here of one
    compared = one.frame[one.frame.measure == "contrast"].set_index(["model", "part"]).value
    there = whole.frame[whole.frame.measure == "contrast"].set_index(["model", "part"]).value
    assert len(compared) == one.meta["n_tests"] < len(there)
    if len(compared):
        mine = compared["shallow"]
        pd.testing.assert_series_equal(mine, there["shallow"][mine.index], atol=1e-9)
    for draw in [get_analysis("cls-attention").figure, *get_analysis("cls-attention").figures(one).values()]:
        drawn = draw(one)
        seen = [t for t in drawn.data if t.type == "scatter" and t.mode == "lines" and len(t.x) == 1]
        assert not seen  # a line through one point is nothing to be seen


def test_a_model_without_cls_is_refused() -> None:
    with pytest.raises(ValueError, match="gap has no CLS token .it has patches.: no query runs through its blocks"):
        cls_attention({"gap": make("siglip", torch.float32)}, pictures(N, 1))
