"""The census finds the outliers that were planted, and says nothing where there are none."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from torch import Tensor
from transformers import ViTImageProcessorPil

from analyses import Result
from analyses.controls.shuffle_floors import batch_seed
from analyses.data import ImageData, as_data
from analyses.questions.signal.norms import NormRule, token_norms
from analyses.questions.signal.registers.norm_census import NormCensus, patch_contents, patch_traits
from analyses.questions.signal.registers.register_study import CONTROL, readouts, shuffle_targets
from analyses.questions.signal.registers.registers import registers
from analyses.questions.signal.registers.words import busiest, summary_table
from analyses.running.catalogue import get_analysis
from hooked_vit import HookedViT, TokenLayout
from interventions import apply, shuffle_tokens
from tests.tiny import CLASSES, IMAGE, PATCH, make_hf

PROCESSOR = ViTImageProcessorPil(size={"height": IMAGE, "width": IMAGE})
SIDE = IMAGE // PATCH
PLANTED = 5  # the patch that becomes an outlier
MODELS = ("vit", "deit-teacher", "registers")


def model(name: str) -> HookedViT:
    return HookedViT.from_hf(make_hf(name), processor=PROCESSOR)


def pictures(n: int, seed: int) -> ImageData:
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.arange(n) % CLASSES)
    base = np.random.default_rng(0).uniform(60, 200, (CLASSES, 3))
    images = [np.clip(base[y] + rng.normal(0, 25, (IMAGE, IMAGE, 3)), 0, 255).astype(np.uint8) for y in labels]
    return as_data(([Image.fromarray(image) for image in images], labels.tolist()))


@pytest.fixture(scope="module")
def result() -> Result:
    models = {name: model(name) for name in MODELS}
    # at one position the position embedding is huge: an outlier in every image, of the model and not of its control
    with torch.no_grad():
        embedding = models["registers"].pos_embed.weight
        embedding[0, 1 + PLANTED] = 300 * embedding[0, 1 + PLANTED] / embedding[0, 1 + PLANTED].norm()
    return registers(models, pictures(40, 1), fit_data=pictures(60, 2), min_images=20, batch_size=20, seeds=2)


def pick(result: Result, name: str, measure: str, **where: object) -> pd.DataFrame:
    rows = result.frame[(result.frame.model == name) & (result.frame.measure == measure)]
    for column, value in where.items():
        rows = rows[(rows[column] == value).fillna(False)]
    return rows


@pytest.mark.parametrize("layer", [0, 1])
def test_a_planted_outlier_is_found_where_it_is(result: Result, layer: int) -> None:
    assert pick(result, "registers", "images_with_outliers", layer=layer, variant="trained").value.item() == 1
    places = pick(result, "registers", "outlier_position", layer=layer, variant="trained")
    found = places[places.value == 1]
    assert (PLANTED // SIDE, PLANTED % SIDE) in set(zip(found.row, found.col, strict=True))
    share = pick(result, "registers", "outlier_share", layer=layer, variant="trained").value.item()
    assert share == pytest.approx(places.value.mean())


def test_outliers_are_compared_with_other_patches_of_the_same_images(result: Result) -> None:
    content = pick(result, "registers", "content_r2", layer=0).set_index("token").value
    # the planted token holds its position and drowns the rest
    assert content["outlier"] < content["other"]
    assert set(pick(result, "registers", "class_probe", layer=0).token) == {"outlier", "other"}
    assert (pick(result, "registers", "class_probe").n == 40).all()
    border = pick(result, "registers", "overlap", layer=0, trait="border", variant="trained").set_index("token").value
    assert border["outlier"] < 0.5  # position 5 of 4 x 4 lies inside
    assert border["other"] == pytest.approx(12 / 15, abs=0.02)


@pytest.mark.parametrize("name", MODELS)
def test_the_histogram_counts_every_token_once(result: Result, name: str) -> None:
    histogram = pick(result, name, "norm_histogram")
    per_image = {"cls": 1, "dist": 1, "registers": 3, "patches": SIDE * SIDE}
    for (token, _), rows in histogram.groupby(["token", "layer"]):
        assert rows.value.sum() == pytest.approx(1)
        assert (rows.n == 40 * per_image[str(token)]).all()
    assert set(histogram.token) == set(model(name).tokens.roles)
    assert (histogram.norm_low < histogram.norm_high).all()


@pytest.mark.parametrize("name", ["vit", "deit-teacher"])
def test_norms_and_rule_are_those_of_a_separate_run(result: Result, name: str) -> None:
    one = model(name)
    pixels = one.preprocess(next(pictures(60, 2).batches(60)).images)
    with torch.no_grad():
        _, cache = one.run_with_cache(pixels, names_filter="blocks.1.hook_resid_post")
    norms = np.linalg.norm(cache["blocks.1.hook_resid_post"][:, one.tokens.patches].double().numpy(), axis=-1)
    median = np.median(norms)
    limit = median + 5 * 1.4826 * np.median(np.abs(norms - median))
    got = pick(result, name, "norm_threshold", layer=1, variant="trained").value.item()
    assert got == pytest.approx(limit, rel=1e-5)


def test_a_shuffle_is_the_run_under_the_intervention(result: Result) -> None:
    one = model("deit-teacher")
    for token, tokens in (("dist", "dist"), ("cls + dist", [0, 1])):
        hits = 0
        for i, batch in enumerate(pictures(40, 1).batches(20)):
            with apply(one, shuffle_tokens(0, tokens, seed=batch_seed(1, i))), torch.no_grad():
                hits += int((one(one.preprocess(batch.images)).argmax(-1) == batch.labels).sum())
        got = pick(result, "deit-teacher", "shuffled", token=token, layer=0, seed=1).value.item()
        assert got == pytest.approx(hits / 40, abs=1e-9)


def test_what_the_model_does_not_read_costs_nothing_at_the_last_layer(result: Result) -> None:
    clean = pick(result, "registers", "accuracy").value.item()
    last = pick(result, "registers", "shuffled", token="registers", layer=1).value
    assert (last == clean).all()  # its readout is CLS and patches


def test_every_register_is_a_readout(result: Result) -> None:
    probes = pick(result, "registers", "probe")
    assert set(probes.token) == {"cls", "registers", "register 0", "register 1", "register 2", "patches"}
    assert set(pick(result, "vit", "probe").token) == {"cls", "patches"}
    layout = TokenLayout.native(("cls", "registers", "registers"), (1, 2))
    resid = torch.arange(5.0).reshape(1, 5, 1)
    read = {token: x.item() for token, x in readouts(resid, layout).items()}
    assert read == {"cls": 0, "register 0": 1, "register 1": 2, "registers": 1.5, "patches": 3.5}


def test_shuffle_targets_follow_the_prefix() -> None:
    targets = shuffle_targets(TokenLayout.native(("cls", "dist"), (2, 2)), seed=0)
    assert list(targets) == ["cls", "dist", "cls + dist", CONTROL]
    assert targets["cls + dist"] == [0, 1]
    assert len(targets[CONTROL]) == 2
    assert min(targets[CONTROL]) >= 2
    assert shuffle_targets(TokenLayout.native((), (2, 2)), seed=0) == {}


def norms_of(*values: float) -> Tensor:
    return torch.tensor([values], dtype=torch.float64)


def test_norms_that_are_equal_have_no_outlier_but_by_cutoff() -> None:
    flat = norms_of(*[3.0] * 6, 3.0 + 1e-9, 90.0)
    rule = NormRule(flat)
    assert rule.undefined.tolist() == [True]
    assert not rule.outliers(flat[0], 0).any()
    assert torch.isnan(rule.z(flat[0], 0)).all()
    assert NormRule(flat, cutoff=50.0).outliers(flat[0], 0).tolist() == [False] * 7 + [True]


def test_a_robust_z_does_not_see_its_outliers() -> None:
    usual = torch.randn(2001, generator=torch.Generator().manual_seed(0), dtype=torch.float64) + 50
    rules = [NormRule(torch.cat([usual, torch.full((50,), far)])[None].double()) for far in (100.0, 1e6)]
    assert rules[0].threshold.item() == pytest.approx(rules[1].threshold.item())
    # for a normal distribution the robust z is the z-score
    assert rules[0].threshold.item() == pytest.approx(50 + 5, abs=0.5)


def test_the_census_does_not_depend_on_the_batches() -> None:
    layout = TokenLayout.native(("cls",), (2, 2))
    norms = torch.rand(30, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64) + 1
    norms[3, 2] = norms[7, 2] = 40
    traits = {"border": torch.ones(30, 4, dtype=torch.bool)}
    frames = []
    for sizes in ([30], [1, 9, 20]):
        census = NormCensus(NormRule(norms[:, 1:].flatten()[None]), layout.grid)
        for part, some in zip(norms.split(sizes), traits["border"].split(sizes), strict=True):
            census.update([part], layout, {"border": some})
        frames.append(pd.DataFrame([*census.rows(0), *census.histogram_rows()]))
    pd.testing.assert_frame_equal(*frames)
    position = frames[0][frames[0].measure == "outlier_position"].set_index(["row", "col"]).value
    assert position[0, 1] == pytest.approx(2 / 30)
    assert position.sum() == pytest.approx(2 / 30)
    assert frames[0][frames[0].measure == "overlap"].n.tolist() == [2, 2]
    assert frames[0][frames[0].measure == "images_with_outliers"].value.item() == pytest.approx(2 / 30)


def test_traits_and_contents_of_a_drawn_picture() -> None:
    layout = TokenLayout.native((), (4, 4))
    shown = torch.full((1, 3, 16, 16), 0.5)
    shown[0, :, 4:8, 4:8] = 1.0  # patch 5, uniform
    checker = torch.arange(4)[:, None] + torch.arange(4)
    for patch in range(16):
        if patch not in (5, 6, 7, 10):
            row, col = divmod(patch, 4)
            shown[0, :, 4 * row : 4 * row + 4, 4 * col : 4 * col + 4] = (checker % 2).float()
    objects = torch.zeros(1, 16, 16, dtype=torch.long)
    objects[0, 7, 7] = 2
    traits = patch_traits(shown, layout, objects)
    assert traits["object"][0].nonzero().flatten().tolist() == [5]
    assert traits["low contrast"][0].nonzero().flatten().tolist() == [5, 6, 7, 10]
    assert (~traits["border"][0]).nonzero().flatten().tolist() == [5, 6, 9, 10]
    contents = patch_contents(shown, layout)[0]
    assert contents[5].tolist() == pytest.approx([1, 1, 1, 0], abs=1e-6)
    assert contents[0].tolist() == pytest.approx([0.5, 0.5, 0.5, 0.5], abs=1e-6)
    assert "object" not in patch_traits(shown, layout)
    assert token_norms(torch.tensor([[[3.0, 4.0]]])).tolist() == [[5.0]]


def test_refusals_come_before_any_run() -> None:
    one = {"vit": model("vit")}
    for options, words in (
        ({"z": 0.0}, "z is above 0"),
        ({"cutoff": -1.0}, "cutoff is above 0"),
        ({"calibration": 0}, "calibration is a number of images"),
        ({"min_images": 0}, "min_images is a number of images"),
        ({"seeds": 0}, "at least one permutation"),
    ):
        with pytest.raises(ValueError, match=words):
            registers(one, pictures(20, 1), fit_data=pictures(20, 2), **options)
    assert one["vit"].run.n_forwards == 0


def test_figures_and_words_have_every_model(result: Result, tmp_path: Path) -> None:
    entry = get_analysis("registers")
    assert entry.figure is not None
    loaded = Result.load(result.save(tmp_path))
    for draw in (entry.figure, *entry.more_figures.values()):
        titles = {a.text.split(" (")[0] for a in draw(loaded).layout.annotations}
        assert titles >= set(MODELS)
    assert set(summary_table(loaded).model) == set(MODELS)
    for name in MODELS:
        assert sum(sentence.startswith(name) for sentence in result.meta["summary"]) >= 3
    assert busiest(result.frame[result.frame.model == "registers"]) is not None
    assert sum(note.startswith("R² of a patch's content") for note in result.meta["notes"]) == 1


def test_a_model_without_outliers_is_reported_as_such() -> None:
    alone = registers({"vit": model("vit")}, pictures(20, 1), fit_data=pictures(30, 2), cutoff=1e9, batch_size=10)
    assert (pick(alone, "vit", "outlier_share").value == 0).all()
    assert pick(alone, "vit", "overlap").empty
    assert pick(alone, "vit", "class_probe").empty
    assert any("no image token is an outlier" in sentence for sentence in alone.meta["summary"])
    for draw in (get_analysis("registers").figure, *get_analysis("registers").more_figures.values()):
        assert draw is not None
        draw(alone)


@pytest.mark.parametrize(("layers", "cutoff"), [((-1,), 1e9), ((1, -1), None), ((0,), None)])
def test_words_and_figures_are_of_the_layers_measured(layers: tuple[int, ...], cutoff: float | None) -> None:
    """A model of two blocks beside one of five; behind none of the layers, or behind some, a token is an outlier."""
    deep = HookedViT.from_hf(make_hf("registers", num_hidden_layers=5), processor=PROCESSOR)
    models = {"two": model("registers"), "five": deep}
    some = registers(
        models, pictures(40, 1), fit_data=pictures(60, 2), min_images=1, cutoff=cutoff, batch_size=20, layers=layers
    )
    for name, rows in some.frame.groupby("model"):
        assert set(rows.layer.dropna()) == {layer % models[str(name)].cfg.n_layers for layer in layers}
    summary = some.meta["summary"]
    census = [
        sentence for sentence in summary if "outliers are most frequent" in sentence or "is an outlier" in sentence
    ]
    assert len(census) == 2
    assert all("behind any layer measured" in one or "of the layers measured, outliers are" in one for one in census)
    entry = get_analysis("registers")
    assert entry.figure is not None
    main, shares, *_ = [draw(some) for draw in (entry.figure, *entry.more_figures.values())]
    lines = [trace for trace in main.data if str(trace.hovertext).startswith("layer")]
    assert len(lines) == sum(rows.layer.nunique() for _, rows in some.frame.groupby("model"))
    assert {layer for trace in shares.data for layer in trace.x} == set(some.frame.layer.dropna())


def test_norms_of_all_models_and_layers_are_counted_in_the_same_bins(result: Result) -> None:
    histogram = result.frame[(result.frame.measure == "norm_histogram") & (result.frame.norm_low > 0)]
    assert np.allclose(np.log10(histogram.norm_high / histogram.norm_low), 1 / 32)
    places = np.log10(histogram.norm_low.astype(float)) * 32
    assert np.allclose(places, places.round())
