"""The counting study on a small model that counts a little: its oracles, its choice of pairs, its refusals."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest
import torch
from datasets import Dataset
from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessorPil

from analyses.activations.token_groups import aligned_masks
from analyses.data import digit_scenes, load_data
from analyses.probes.ridge import GramRidge
from analyses.questions.patching.counting.counting import counting
from analyses.questions.patching.counting.figure import cumulative_figure, summary_table
from analyses.questions.patching.counting.scenes import count_ids
from analyses.running.catalogue import registered_analyses
from analyses.running.results import Result
from hooked_vit import HookedViT
from tests.tiny import make

SQUARE = {"height": 48, "width": 48}
N = 60


@pytest.fixture(scope="module")
def model() -> HookedViT:
    """Random blocks, and a head that rounds a least-squares estimate of the count: right in two scenes of three."""
    torch.manual_seed(0)
    size = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 96}
    hf = ViTForImageClassification(ViTConfig(**size, image_size=48, patch_size=8, num_labels=6)).eval()
    with torch.no_grad():
        hf.vit.embeddings.patch_embeddings.projection.weight.mul_(4)
        for parameter in hf.parameters():
            if parameter.ndim == 2:
                parameter.mul_(2)
    processor = ViTImageProcessorPil(size=SQUARE, image_mean=[0.5] * 3, image_std=[0.5] * 3)
    model = HookedViT.from_hf(hf, processor=processor)
    features, counts = [], []
    for batch in load_data("scenes:train", n=300).batches(100, extra=["pair", "count"]):
        k = torch.tensor(batch.extra["count"])
        for images, number in ((batch.images, k), (batch.extra["pair"], k - 1)):
            cache = model.run_with_cache(model.preprocess(images), names_filter="hook_pooled")[1]
            features.append(cache["hook_pooled"].double())
            counts.append(number.double())
    x = torch.cat([torch.cat(features), torch.ones(600, 1)], dim=1)
    fit = torch.linalg.solve(x.T @ x + 1e-3 * torch.eye(49), x.T @ torch.cat(counts)).float()
    k = torch.arange(6.0)
    # -(estimate - k)^2 without the part all classes share
    model.set_head_(2 * k[:, None] * fit[:48], 2 * k * fit[48] - k**2, tuple(str(int(i)) for i in k))
    return model


@pytest.fixture(scope="module")
def result(model: HookedViT) -> Result:
    return counting(
        {"tiny": model}, load_data("scenes:test", n=N), fit_data=load_data("scenes:train", n=150), batch_size=32
    )


def curves(result: Result, measure: str = "recovery"):
    rows = result.frame[result.frame.measure == measure]
    return rows.set_index(["group", "depth", "direction", "cumulative"]).sort_index()


def test_oracles_hold_exactly(result: Result) -> None:
    value = curves(result).value
    for way in ("denoise", "noise"):
        for depth in range(3):
            assert value["all", depth, way, False] == 1
            assert value["all", depth, way, True] == 1
        assert value["patches", 0, way, False] == 1
        assert value["cls", 0, way, False] == 0
        assert value["cls", 2, way, False] == 1
        for group in ("patches", "removed", "others", "background", "random"):
            assert value[group, 2, way, False] == 0
        assert value["removed", 0, way, False] == pytest.approx(1, abs=0.1)  # but for the object's faint edge
        assert value["random", 0, way, False] == pytest.approx(0, abs=0.1)
        # what was patched at the embedding is there whatever is patched later
        assert value["patches", 2, way, True] == 1
    flips = curves(result, "flip_rate").value
    assert flips["all", 1, "denoise", False] == 1
    assert flips["cls", 0, "noise", False] == 0


def test_only_pairs_counted_right_on_both_sides_are_patched(model: HookedViT, result: Result) -> None:
    right, both, seen = 0, 0, []
    for batch in load_data("scenes:test", n=N).batches(32, extra=["pair", "count"]):
        counts = torch.tensor(batch.extra["count"])
        clean = model(model.preprocess(batch.images)).argmax(-1) == counts
        corrupt = model(model.preprocess(batch.extra["pair"])).argmax(-1) == counts - 1
        right, both = right + int(clean.sum()), both + int((clean & corrupt).sum())
        seen += counts[clean & corrupt].tolist()
    about = result.meta["models"]["tiny"]
    assert both > N / 3
    assert about["pairs_patched"] == both
    assert about["accuracy"] == pytest.approx(right / N)
    assert about["pairs_right"] == pytest.approx(both / N)
    rows = curves(result)
    assert rows.n["cls", 1, "denoise", False] + rows.n_dropped["cls", 1, "denoise", False] == both
    # a scene of one object has no other objects
    alone = sum(k == 1 for k in seen)
    assert rows.n_excluded["others", 1, "noise", True] == alone
    assert about["change_inside_removed"] > 0.9


def test_probes_are_those_of_the_ridge(model: HookedViT, result: Result) -> None:
    """CLS behind the last block, once more by hand."""

    def features(split: str, n: int):
        (batch,) = load_data(split, n=n).batches(n, extra=["count"])
        cache = model.run_with_cache(model.preprocess(batch.images), names_filter="blocks.1.hook_resid_post")[1]
        return cache["resid_post", 1][:, 0], torch.tensor(batch.extra["count"])

    ridge = GramRidge(6)
    x, y = features("scenes:train", 150)
    ridge.update({"cls": x}, y)
    x, y = features("scenes:test", N)
    predicted = ridge.fit()["cls"].predict(x)
    rows = result.frame[(result.frame.group == "cls") & (result.frame.depth == 2)].set_index("measure")
    assert rows.value["probe_accuracy"] == pytest.approx((predicted == y).double().mean().item(), abs=0.02)
    assert rows.value["probe_mae"] == pytest.approx((predicted - y).abs().double().mean().item(), abs=0.02)
    plain = result.frame.set_index("measure").value
    assert plain["chance"] == y.bincount().max().item() / N
    assert plain["chance_mae"] == (y - y.median()).abs().double().mean().item()


def test_report_parts_are_there_and_survive_saving(result: Result, tmp_path) -> None:
    again = Result.load(result.save(tmp_path))
    assert again.meta == result.meta
    assert again.frame.equals(result.frame)
    assert any("pairs were patched" in sentence for sentence in result.meta["summary"])
    assert any("counts only" in note for note in result.meta["notes"])  # this model is a bad one, and that is said
    table = summary_table(result)
    assert table.group.tolist() == ["cls", "removed", "others", "background", "random", "patches", "all"]
    assert table.set_index("group").enough_at["all"] == "0–2"
    assert table.set_index("group").tokens["patches"] == 36
    assert json.dumps(result.meta["table"])
    for figure in (again.figure(), cumulative_figure(again)):
        assert len(figure.data) == 7 * 4
        assert sum(bool(trace.showlegend) for trace in figure.data) == 4
    assert "counting" in registered_analyses()


def test_results_repeat_and_pairs_can_be_few(model: HookedViT, result: Result) -> None:
    kw = {"data": load_data("scenes:test", n=N), "fit_data": load_data("scenes:train", n=150)}
    few = counting({"tiny": model}, **kw, max_pairs=3, batch_size=30)
    assert few.meta["models"]["tiny"]["pairs_patched"] == 3
    assert few.meta["models"]["tiny"]["accuracy"] == result.meta["models"]["tiny"]["accuracy"]
    probes = [curves(r, "probe_accuracy").value.to_numpy(float) for r in (few, result)]
    np.testing.assert_allclose(*probes, atol=0.04)  # other batches, other rounding


def test_the_default_model_is_the_zoos(model: HookedViT, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(
        sys.modules["analyses.questions.patching.counting.counting"].zoo,
        "load",
        lambda name: asked.append(name) or model,
    )
    result = counting(
        data=load_data("scenes:test", n=20), fit_data=load_data("scenes:train", n=60), max_pairs=2, batch_size=20
    )
    assert asked == ["vit-count"]
    assert list(result.meta["models"]) == ["vit-count"]
    assert any("trained for nothing but counting" in note for note in result.meta["notes"])


def test_masks_move_as_the_processor_moves_images() -> None:
    model = make("vit")
    model.processor = ViTImageProcessorPil(size={"height": 32, "width": 32})
    scenes = digit_scenes("test", n=2)
    moved = aligned_masks(model, scenes["mask"][:2])
    assert moved.shape == (2, 32, 32)
    assert set(moved[0].unique().tolist()) == {0, *range(1, scenes[0]["count"] + 1)}
    model.processor = None
    with pytest.raises(ValueError, match="without an image processor"):
        aligned_masks(model, scenes["mask"][:1])


def test_counts_are_found_by_class_name() -> None:
    model = make("vit")
    assert count_ids(model) == {0: 0, 1: 1, 2: 2, 3: 3, 4: 4}
    model.set_head_(torch.zeros(3, 32), torch.zeros(3), ("3", "4", "5"))
    assert count_ids(model) == {3: 0, 4: 1, 5: 2}
    with pytest.raises(ValueError, match="no classifier"):
        count_ids(make("vit-model"))


def test_bad_input_is_refused(model: HookedViT) -> None:
    scenes, others = digit_scenes("test", n=6), digit_scenes("train", n=6)
    rows = [dict(row) for row in scenes]
    rows[2]["pair"] = rows[2]["pair"].resize((40, 48))
    uneven = Dataset.from_list(rows, features=scenes.features)
    with pytest.raises(ValueError, match=r"\(48, 48\) and \(40, 48\) in pair 2"):
        counting({"tiny": model}, uneven, fit_data=others)
    with pytest.raises(ValueError, match="lacks pair"):
        counting({"tiny": model}, scenes.remove_columns("pair"), fit_data=others)
    with pytest.raises(ValueError, match="max_pairs is at least 1"):
        counting({"tiny": model}, scenes, fit_data=others, max_pairs=0)
    wrong = model.shared_copy()
    wrong.set_head_(torch.zeros(6, 48), torch.arange(6.0), tuple("012345"))  # always five
    fours = scenes.filter(lambda row: row["count"] <= 4)
    with pytest.raises(ValueError, match="counts no pair"):
        counting({"wrong": wrong}, fours, fit_data=others)
    wrong.set_head_(torch.zeros(3, 48), torch.zeros(3), ("0", "1", "2"))
    with pytest.raises(ValueError, match=r"knows the counts \[0, 1, 2\]"):
        counting({"wrong": wrong}, scenes, fit_data=others)
