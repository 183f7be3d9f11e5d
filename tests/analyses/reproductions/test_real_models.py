"""The page of a real checkpoint holds what was saved, and nothing else."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from transformers import BitImageProcessorPil

from analyses.data import load_data
from analyses.reproductions.real_models import measuring, page
from analyses.reproductions.real_models.kept import FOLDERS, keep_results
from analyses.reproductions.real_models.measuring import MEASURED, Study, measure, pairs
from analyses.reproductions.real_models.order import order_found
from analyses.reproductions.real_models.page import write_page
from analyses.reproductions.real_models.runs import RUNS, Run, find, saved_in
from analyses.reproductions.real_models.tables import SHOWN
from analyses.running.results import Result
from hooked_vit import HookedViT, zoo
from hooked_vit.loading.placing import resize_
from tests.tiny import make_hf

SMALL = (
    Run("register-controls", 24, 40, {"seeds": 1, "reads": "cls", "batch_size": 12}),
    Run("aligned-subspace", 8, 40, {"layer": 0, "dims": (1, 4), "steps": 2, "draws": 2}),
)
NUMBER = re.compile(r"-?\d+(?:\.\d+)?(?:e-?\d+)?")


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Study:
    folder = tmp_path_factory.mktemp("models") / "tiny-dino"
    make_hf("dinov2-model").save_pretrained(folder)
    processor = BitImageProcessorPil(size={"shortest_edge": 64}, crop_size={"height": 56, "width": 56})
    processor.save_pretrained(folder)
    return Study(str(folder), "scenes:test", "scenes:train", image_size=32)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("saved")
    # trained, as pairs have to be answered differently
    study = Study(str(zoo.path("vit")), "scenes:test", "scenes:train", provenance="Weights of the zoo.")
    for run in SMALL:
        measuring.save_measured(run, study, out / run.name)
    return out


def test_every_number_in_the_tables_is_of_a_saved_result(saved: Path, tmp_path: Path) -> None:
    text = write_page(saved, tmp_path / "page.md").read_text(encoding="utf-8")
    results = {run.name: Result.load(saved / run.name) for run in SMALL}
    row = results["register-controls"].frame.query("measure == 'accuracy' and token == 'cls' and replaced == 'mean'")
    value, low, high = (page._number(float(row[column].item())) for column in ("value", "low", "high"))
    assert f"| mean | {value} [{low}, {high}] |" in text
    random = results["aligned-subspace"].frame.query("subspace == 'random' and dims == 4")
    assert len(random) == 2
    mean, low, high = (page._number(float(x)) for x in (random.value.mean(), random["low"].min(), random["high"].max()))
    assert f"{mean} [{low}, {high}]" in text
    for name, result in results.items():
        section = text.partition(f"*Run* `{name}`")[2].partition("\n## ")[0]
        numbers = result.frame[["value", "low", "high"]].astype(float)
        known = {page._number(x) for x in numbers.stack()}
        if name == "aligned-subspace":  # of several draws, their mean
            known |= {page._number(x) for x in result.frame.groupby(["subspace", "dims"]).value.mean()}
        cells = [cell for line in section.splitlines() if line.startswith("|") for cell in line.split("|")[2:]]
        shown = [number for cell in cells for number in NUMBER.findall(cell)]
        assert len(shown) > 10
        assert set(shown) <= known, set(shown) - known


def test_the_page_follows_the_saved_results(saved: Path, tmp_path: Path) -> None:
    found = {run.name: Result.load(saved / run.name) for run in SMALL}
    before = page.page(found)
    found["register-controls"].frame.loc[:, "value"] = 0.123456
    after = page.page(found)
    assert "0.123 [" in after
    assert "0.123 [" not in before


def test_the_page_says_what_it_is_of_and_what_is_missing(saved: Path, tmp_path: Path) -> None:
    text = write_page(saved, tmp_path / "page.md").read_text(encoding="utf-8")
    measured = Result.load(saved / "register-controls").meta[MEASURED]
    height, width = measured["image_size"]
    said = ["Weights of the zoo.", f"at {height} × {width} pixels (", f"{measured['peak_memory'] / 2**30:.2f} GiB"]
    said += [measured["files"]["model.safetensors"], measured["checkpoint"]["weights"]]
    assert [words for words in said if words not in text] == []
    assert "/" not in text.partition("## What was not run")[0].partition("Images:")[2].partition("\n")[0]
    assert measured["peak_memory"] > 2**20
    missing = text.partition("## What was not run")[2]
    assert all((f"`{run.name}`" in missing) == (run.name not in [s.name for s in SMALL]) for run in RUNS)


def test_results_are_given_away_without_images_and_paths_and_make_the_same_page(saved: Path, tmp_path: Path) -> None:
    with_images = Result.load(saved / "register-controls")
    with_images.meta |= {"pictures": ["..."], "model": {"/home/me/models/x": ["~/data/a.png", "1/2 of /tmp/b/c.png"]}}
    with_images.save(tmp_path / "saved" / "register-controls")
    kept = keep_results(tmp_path / "saved", tmp_path / "kept")
    assert [each.name for each in kept] == ["register-controls"]
    again = Result.load(tmp_path / "kept" / "register-controls")
    assert "pictures" not in again.meta
    assert again.meta["model"] == {"x": ["a.png", "1/2 of c.png"]}
    assert str(zoo.path("vit").parent) not in str(again.meta)
    pd.testing.assert_frame_equal(again.frame, with_images.frame)
    assert page.page({"register-controls": again}) == page.page({"register-controls": with_images})
    with pytest.raises(FileNotFoundError, match="no saved result"):
        keep_results(tmp_path, tmp_path / "none")


def test_the_page_in_the_docs_is_that_of_the_results_beside_it() -> None:
    """Whoever reads a number there finds it in a result that is there too, and those lie nowhere on a machine."""
    docs = Path(__file__).parents[3] / "docs"
    results = saved_in(docs / "results")
    assert set(results) == {run.name for run in RUNS}
    assert page.page(results) == (docs / "real_models.md").read_text(encoding="utf-8")
    assert not any(FOLDERS.search(str(result.meta)) or "pictures" in result.meta for result in results.values())


def test_the_order_of_trained_readouts_is_told_from_their_rows() -> None:
    difference = {"measure": "difference", "mode": "replace - null", "split": "test"}
    rows = [
        {**difference, "layer": 0, "value": 0.1, "low": 0.05, "high": 0.15, "status": "settled"},
        {
            **difference,
            "layer": 1,
            "value": -0.1,
            "low": -0.2,
            "high": 0.01,
            "status": "unsettled: below its closed form",
        },
    ]
    place = {"mode": "replace", "seed": 0, "split": "test", "low": 0.0, "high": 0.0}
    for layer, (status, rate) in enumerate((("settled", 0.01), ("unsettled: below its closed form", 0.003))):
        rows += [{**place, "layer": layer, "measure": "accuracy", "value": 0.5, "status": status}]
        rows += [{**place, "layer": layer, "measure": "learning_rate", "value": rate, "status": status}]
        for epoch in range(1, 4 + layer):
            rows += [{**place, "layer": layer, "measure": "validation_accuracy", "value": 0.5, "epoch": epoch}]
    meta = {"training": {"epochs": 9, "lr": [0.001, 0.003, 0.01]}, "fit_data": {"fit": 30}}
    order, budget, edge, below = order_found(Result(pd.DataFrame(rows), meta))
    assert "layer 0 +0.100 [+0.050, +0.150] (ahead); layer 1 -0.100 [-0.200, +0.010] (neither, not settled)" in order
    assert "within 4 of 9 epochs" in budget
    assert "best in 1" in edge
    assert below.startswith("1 of 2 read less")
    assert "on 30 images" in below
    assert order_found(Result(pd.DataFrame(rows[:0] or [{"measure": "accuracy", "mode": "x"}]), meta)) == []


def test_results_of_two_checkpoints_make_no_page(saved: Path) -> None:
    found = {run.name: Result.load(saved / run.name) for run in SMALL}
    found["aligned-subspace"].meta[MEASURED]["checkpoint"]["weights"] = "another"
    with pytest.raises(ValueError, match="a page is of one checkpoint.*another"):
        page.page(found)
    del found["aligned-subspace"].meta[MEASURED]
    with pytest.raises(ValueError, match="aligned-subspace does not say what it cost"):
        page.page(found)
    with pytest.raises(FileNotFoundError, match="no saved result"):
        saved_in(saved.parent / "nothing")


def test_a_table_without_rows_is_refused(saved: Path) -> None:
    result = Result.load(saved / "register-controls")
    result.frame = result.frame[result.frame.replaced != "noise"]
    with pytest.raises(ValueError, match="no row where .*noise"):
        page.page({"register-controls": result})


def test_a_processor_of_another_size_keeps_its_proportions(study: Study) -> None:
    model = HookedViT.from_pretrained(study.model)
    before = model.processor
    resize_(model, 112)
    assert model.processor_size == (112, 112)
    assert dict(model.processor.size)["shortest_edge"] == 128
    assert dict(before.size)["shortest_edge"] == 64
    with pytest.raises(ValueError, match="cover no side of 30"):
        resize_(model, 30)
    model.processor = None
    with pytest.raises(ValueError, match="squares of one size"):
        resize_(model, 112)


def test_pairs_are_of_different_classes_and_use_no_image_twice() -> None:
    data = load_data("scenes:test", 24)
    clean, corrupt = pairs(data, 8)
    assert len({np.asarray(image).tobytes() for image in [*clean, *corrupt]}) == 16
    batch = next(data.batches(24))
    label = {np.asarray(image).tobytes(): int(y) for image, y in zip(batch.images, batch.labels, strict=True)}
    of = [[label[np.asarray(image).tobytes()] for image in images] for images in (clean, corrupt)]
    assert all(a != b for a, b in zip(*of, strict=True))
    with pytest.raises(ValueError, match="24 images make"):
        pairs(data, 13)


def test_runs_are_shown_and_what_they_are_compared_with_is_published() -> None:
    assert list(SHOWN) == [run.name for run in RUNS]
    for shown in SHOWN.values():
        for told in (told for table in shown.tables for told in table.published.values()):
            assert page._published(told), told


def test_a_run_without_its_dictionary_is_refused(study: Study) -> None:
    with pytest.raises(LookupError, match="--dictionary"):
        measure(find("sparse-features"), study)
    with pytest.raises(LookupError, match="there is no run 'nothing'"):
        find("nothing")
