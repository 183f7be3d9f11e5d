"""The main job: probes, shuffles and heads say what they must on models and data of which that is known."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from transformers import ViTImageProcessorPil

from analyses import Result, cls_causality, load_data
from analyses.data import ImageData, as_data
from analyses.probes import class_moments
from analyses.questions.cls_use.cls_causality.figure import lens_figure, summary_table
from hooked_vit import HookedViT, zero_shot_head
from tests.tiny import CLASSES, IMAGE, Letters, make_hf

PROCESSOR = ViTImageProcessorPil(size={"height": IMAGE, "width": IMAGE})
MODELS = ("vit", "deit-teacher", "beit-mean-both", "dinov2", "clip-classifier")


def model(name: str) -> HookedViT:
    return HookedViT.from_hf(make_hf(name), processor=PROCESSOR)


def coloured(n: int, seed: int, classes: int = CLASSES) -> ImageData:
    """Noise whose mean colour is its class: decodable by any model that keeps the mean."""
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.arange(n) % classes)
    base = np.random.default_rng(0).uniform(0, 255, (classes, 3))
    pictures = [np.clip(base[y] + rng.normal(0, 25, (IMAGE, IMAGE, 3)), 0, 255).astype(np.uint8) for y in labels]
    return as_data(([Image.fromarray(p) for p in pictures], labels.tolist()))


@pytest.fixture(scope="module")
def result() -> Result:
    models = {name: model(name) for name in MODELS}
    return cls_causality(models, coloured(90, 1), fit_data=coloured(120, 2), seeds=3, batch_size=30)


def values(result: Result, name: str, measure: str, layer: int | None = None) -> pd.Series:
    frame = result.frame[(result.frame.model == name) & (result.frame.measure == measure)]
    return (frame if layer is None else frame[frame.layer == layer])["value"]


@pytest.mark.parametrize("name", MODELS)
def test_every_measure_is_there_for_every_layer_and_seed(result: Result, name: str) -> None:
    rows = result.frame[result.frame.model == name]
    assert len(values(result, name, "probe")) == len(values(result, name, "head_on_cls")) == 2
    shuffled = rows[rows.measure == "shuffled"]
    assert sorted(zip(shuffled.layer, shuffled.seed, strict=True)) == [(la, s) for la in range(2) for s in range(3)]
    assert ((rows.low <= rows.value) & (rows.value <= rows.high)).all()
    assert (rows.n == 90).all()


@pytest.mark.parametrize("name", ["beit-mean-both", "clip-classifier"])
def test_a_readout_that_ignores_cls_is_exactly_unchanged_at_the_last_layer(result: Result, name: str) -> None:
    assert set(values(result, name, "shuffled", 1)) == set(values(result, name, "clean"))
    assert values(result, name, "shuffled_cls_readout").empty
    # of this model, as others of its architecture may read something else
    assert any(note.startswith(f"{name}: ") and "never CLS" in note for note in result.meta["notes"])


def test_a_cls_only_readout_drops_to_the_floor_at_the_last_layer() -> None:
    """Every image gets the prediction of another: over all permutations the accuracy is the floor, exactly."""
    data = coloured(40, 3)
    run = cls_causality({"vit": model("vit")}, data, fit_data=coloured(60, 2), seeds=40, batch_size=40, head="ridge")
    at_last, floor = values(run, "vit", "shuffled", 1), values(run, "vit", "floor").iloc[0]
    assert values(run, "vit", "clean").iloc[0] > 0.5 > floor + 0.15
    assert abs(at_last.mean() - floor) < 4 * at_last.std() / len(at_last) ** 0.5
    assert at_last.max() < values(run, "vit", "clean").iloc[0]


@pytest.mark.parametrize("name", ["deit-teacher", "dinov2"])
def test_families_with_more_than_cls_show_the_cls_readout_beside_it(result: Result, name: str) -> None:
    assert len(values(result, name, "shuffled_cls_readout")) == 6
    assert len(values(result, name, "clean_cls_readout")) == 1


def test_the_last_layers_head_on_cls_is_the_model_where_cls_is_all_it_reads(result: Result) -> None:
    assert values(result, "vit", "head_on_cls", 1).iloc[0] == values(result, "vit", "clean").iloc[0]


def test_the_same_call_gives_the_same_numbers(result: Result) -> None:
    again = cls_causality({"vit": model("vit")}, coloured(90, 1), fit_data=coloured(120, 2), seeds=3, batch_size=30)
    first = result.frame[result.frame.model == "vit"].reset_index(drop=True)
    pd.testing.assert_frame_equal(again.frame, first)


def test_some_layers_alone_have_the_numbers_they_have_among_all(result: Result) -> None:
    models = {name: model(name) for name in MODELS[:2]}
    some = cls_causality(
        models, coloured(90, 1), fit_data=coloured(120, 2), seeds=3, batch_size=30, layers=(-1,)
    )  # fmt: skip
    whole = result.frame[result.frame.model.isin(models) & (result.frame.layer.isna() | (result.frame.layer == 1))]
    pd.testing.assert_frame_equal(some.frame, whole.reset_index(drop=True), atol=1e-6)
    assert any(note.startswith("Only layer -1 was measured") for note in some.meta["notes"])
    assert len(summary_table(some)) == 2


def test_probes_on_permuted_labels_sit_at_chance() -> None:
    data = coloured(200, 1)
    images, rng = [i for b in data.batches(50) for i in b.images], np.random.default_rng(5)
    mixed = as_data((images, rng.permutation(data.labels.numpy()).tolist()))
    run = cls_causality({"vit": model("vit")}, mixed, fit_data=coloured(120, 2), seeds=1, head="ridge")
    probe = run.frame[run.frame.measure == "probe"]
    assert (probe.low <= 1 / CLASSES).all()
    assert (probe.high >= 1 / CLASSES).all()
    clear = cls_causality({"vit": model("vit")}, data, fit_data=coloured(120, 2), seeds=1, head="ridge")
    assert values(clear, "vit", "probe").min() > 0.6


def test_shuffling_within_a_class_keeps_a_cls_readout_of_a_class_it_knows() -> None:
    data = coloured(60, 1)
    run = cls_causality(
        {"vit": model("vit")},
        data,
        fit_data=coloured(200, 2),
        seeds=2,
        batch_size=60,
        head="ridge",
        among="same_class",
    )
    assert values(run, "vit", "shuffled", 1).tolist() == values(run, "vit", "clean").tolist() * 2


@pytest.mark.parametrize("name", ["clip-model", "dinov2-model", "beit-masked", "vit-model", "clip-projection"])
def test_a_model_without_a_classifier_gets_a_ridge_head_and_the_result_says_so(name: str) -> None:
    run = cls_causality({name: model(name)}, coloured(60, 1), fit_data=coloured(150, 2), seeds=1)
    assert run.meta["models"][name]["head_fitted"]
    assert "ridge head" in run.meta["models"][name]["head"]
    assert values(run, name, "clean").iloc[0] > 0.5


def test_a_penalty_that_is_an_end_of_the_grid_is_said_of_probes_and_of_the_head(monkeypatch) -> None:
    """Once, with the sites, among the notes that the report shows."""
    monkeypatch.setattr(class_moments, "FIRST", 0)
    monkeypatch.setattr(class_moments, "FURTHEST", 0)
    run = cls_causality({"vit": model("vit-model")}, coloured(60, 1), fit_data=coloured(100, 2), seeds=1)
    (note,) = [note for note in run.meta["notes"] if "edge of the grid" in note]
    assert note.startswith("vit: ridge probes of 0, 1, head: the best penalty is at the edge of the grid: the ")


def test_the_callers_model_is_left_as_it_was() -> None:
    mine = model("dinov2-model")
    before = mine.cfg, {k: v.clone() for k, v in mine.state_dict().items()}
    cls_causality({"m": mine}, coloured(60, 1), fit_data=coloured(100, 2), seeds=1)
    assert mine.cfg == before[0]
    assert all(torch.equal(v, before[1][k]) for k, v in mine.state_dict().items())
    assert not any(point.has_hooks() for point in mine.hook_points())


def photos(folder: Path, classes: list[str], n: int = 12) -> Path:
    rng = np.random.default_rng(0)
    for k, name in enumerate(classes):
        (folder / name).mkdir(parents=True)
        for i in range(n):
            noise = rng.normal(60 + 90 * k, 20, (40 + i, 50, 3)).clip(0, 255).astype(np.uint8)
            Image.fromarray(noise).save(folder / name / f"{i}.jpg")
    return folder


def test_a_folder_of_photos_and_a_checkpoint_whose_head_knows_none_of_its_classes(tmp_path: Path) -> None:
    data = load_data(f"imagefolder:{photos(tmp_path, ['beach', 'forest'])}")
    run = cls_causality({"vit": model("vit")}, data, seeds=1, batch_size=8)
    assert run.meta["models"]["vit"]["head_fitted"]
    assert run.meta["fit_data"]["n"] + run.meta["data"]["n"] == 24
    assert run.meta["n_classes"] == 2


def test_clips_own_readout_with_prompts_stands_beside_the_mean_of_the_patches(tmp_path: Path) -> None:
    """The same tower twice: classes as prompts read CLS and drop to the floor, the classifier reads no CLS at all."""
    names = ["beach", "forest", "harbour", "lake", "moor"]
    data = load_data(f"imagefolder:{photos(tmp_path, names)}")
    prompts = zero_shot_head(make_hf("clip-full"), names, tokenizer=Letters(), processor=PROCESSOR)
    run = cls_causality({"prompts": prompts, "classifier": model("clip-classifier")}, data, seeds=2, batch_size=16)
    assert not run.meta["models"]["prompts"]["head_fitted"]
    last = prompts.cfg.n_layers - 1
    assert values(run, "prompts", "head_on_cls", last).item() == values(run, "prompts", "clean").item()
    assert (values(run, "classifier", "shuffled", last) == values(run, "classifier", "clean").item()).all()
    assert {"probe", "shuffled", "head_on_cls", "floor"} <= set(run.frame[run.frame.model == "prompts"].measure)


def test_a_label_the_head_does_not_know_is_named(tmp_path: Path) -> None:
    named = model("vit")
    named.cfg = named.cfg.replace(class_names=("beach", "forest", "harbour", "x", "y"))
    data = load_data(f"imagefolder:{photos(tmp_path, ['beach', 'glacier'])}")
    with pytest.raises(ValueError, match="glacier.*ridge"):
        cls_causality({"vit": named}, data, seeds=1)


def test_refusals_come_before_any_run() -> None:
    headless = model("vit-model")
    with pytest.raises(ValueError, match="no classifier"):
        cls_causality({"m": headless}, coloured(20, 1), head="own")
    with pytest.raises(ValueError, match="at least one permutation"):
        cls_causality({"m": model("vit")}, coloured(20, 1), seeds=0)
    with pytest.raises(ValueError, match="one of auto, own, ridge"):
        cls_causality({"m": model("vit")}, coloured(20, 1), head="mine")
    with pytest.raises(ValueError, match="at least two classes"):
        cls_causality({"m": model("vit")}, load_one_class(), head="ridge")


def load_one_class() -> ImageData:
    return as_data(([Image.new("RGB", (IMAGE, IMAGE), (i, i, i)) for i in range(8)], [0] * 8))


def test_pictures_and_table_have_every_model(result: Result) -> None:
    assert set(summary_table(result).model) == set(MODELS)
    for figure in (result.figure(), lens_figure(result)):
        assert {a.text for a in figure.layout.annotations} >= set(MODELS)
    names = {trace.name for trace in result.figure().data}
    assert any("reading CLS alone" in name for name in names)
    assert len(result.meta["summary"]) == len(MODELS)
