"""The whole class-embedding study, and results joined into one."""

from __future__ import annotations

import pandas as pd
import pytest

from analyses import Result, class_projection, load_data
from analyses.pages.gallery import pictures_of
from analyses.questions.class_space.class_embedding.class_embedding import PARTS, class_embedding
from analyses.questions.class_space.class_embedding.figure import figures_of_parts
from analyses.reproductions.beside import published_beside
from analyses.reproductions.recipe import load_recipe
from analyses.running.catalogue import get_analysis
from analyses.running.report import write_report
from tests.analyses.questions.class_space.cases import noisy, with_processor

QUICK = ("class-projection", "residual-updates", "class-values", "attention-knockouts", "gradient-explanations")


@pytest.fixture(scope="module")
def study() -> Result:
    return class_embedding({"one": with_processor("vit")}, noisy(8), parts=QUICK)


def test_every_part_can_be_had_back(study: Result, tmp_path) -> None:
    study.save(tmp_path)
    loaded = Result.load(tmp_path)
    for name in QUICK:
        alone = get_analysis(name)({"one": with_processor("vit")}, noisy(8))
        again = loaded.part(name)
        assert list(again.frame) == list(alone.frame)
        pd.testing.assert_frame_equal(again.frame, alone.frame, check_dtype=False)
        assert len(get_analysis(name).figure(again).layout.to_plotly_json()) > 0


def test_the_study_draws_every_part(study: Result) -> None:
    figures = figures_of_parts(study)
    assert {get_analysis(name).summary for name in QUICK} <= set(figures)
    for draw in figures.values():
        assert draw(study).layout is not None
    assert len(study.figure().data) > 0


def test_it_shows_the_images_of_its_parts(study: Result, tmp_path) -> None:
    page = write_report(study, tmp_path).read_text("utf-8")
    shown = pictures_of(study.meta)
    assert {one["model"] for one in shown} == {"attention-knockouts, one"}
    assert page.count("<img") == len(shown) > 0


def test_its_table_is_that_of_its_parts(study: Result) -> None:
    (row,) = study.meta["table"]
    (projected,) = study.part("class-projection").meta["table"]
    assert row["rate"] == projected["rate"]
    assert row["accuracy"] == projected["accuracy"]
    cut = [r for r in study.part("attention-knockouts").meta["table"] if r["knockout"] == "self_only"]
    assert row["rate_self_only"] == cut[0]["rate_knockout"]


def test_parts_without_masks_are_left_out_and_said_to_be() -> None:
    result = class_embedding({"one": with_processor("vit")}, noisy(6), parts=("class-projection", "token-removal"))
    assert list(result.meta["parts"]) == ["class-projection"]
    assert any("token-removal: left out" in note and "mask" in note for note in result.meta["notes"])


def test_models_whose_answers_cannot_be_explained_are_left_out_of_explanations_alone() -> None:
    models = {"features": with_processor("vit-model"), "patches": with_processor("timm-rpn")}
    result = class_embedding(models, noisy(20), parts=("class-values", "gradient-explanations"))
    of = result.frame.groupby("study").model.unique()
    assert set(of["class-values"]) == {"features", "patches"}
    assert set(of["gradient-explanations"]) == {"features"}
    assert "gradient-explanations: without patches, which has no CLS token." in result.meta["notes"]
    assert result.meta["read"]["features"].startswith("a ridge head (fitted on ")


def test_an_unknown_part_is_refused_before_anything_runs() -> None:
    with pytest.raises(ValueError, match="has the parts class-projection"):
        class_embedding({"vit": with_processor("vit")}, noisy(2), parts=("projection",))
    with pytest.raises(ValueError, match="has the parts"):
        class_embedding({"vit": with_processor("vit")}, noisy(2), parts=())


def test_parts_are_analyses_and_commands() -> None:
    for name in PARTS:
        assert get_analysis(name).is_command
        assert get_analysis(name).figure is not None


def test_masks_of_scenes_reach_the_parts_that_need_them() -> None:
    from hooked_vit import zoo

    data = load_data("scenes:test", n=6)
    result = class_embedding({"vit": zoo.load("vit")}, data, parts=("context-tokens",))
    assert set(result.frame.study) == {"context-tokens"}


def test_results_join_whatever_their_columns() -> None:
    a = Result(pd.DataFrame({"layer": pd.array([0, 1], "Int64"), "label": ["x", None], "hit": [True, False]}), {"n": 1})
    b = Result(pd.DataFrame({"layer": [2], "label": [3], "value": [0.5]}), {"n": 2})
    both = Result.joined({"a": a, "b": b}, {"models": {}})
    assert both.frame.study.tolist() == ["a", "a", "b"]
    for name, one in (("a", a), ("b", b)):
        back = both.part(name)
        pd.testing.assert_frame_equal(back.frame, one.frame)
        assert back.meta == one.meta


def test_joining_refuses() -> None:
    one = Result(pd.DataFrame({"x": [1]}))
    with pytest.raises(ValueError, match="no result"):
        Result.joined({})
    with pytest.raises(ValueError, match="has one already"):
        Result.joined({"a": Result(pd.DataFrame({"study": [1]}))})
    with pytest.raises(LookupError, match="parts a"):
        Result.joined({"a": one}).part("b")


def test_the_papers_values_stand_beside_ours_where_models_and_data_are_its_own() -> None:
    recipe = load_recipe("class-embedding")
    frame = class_projection({"mine": with_processor("vit")}, noisy(6), repro=True).frame
    checkpoint = "timm/vit_base_patch32_224.augreg_in21k_ft_in1k"
    rows = published_beside(recipe, "class-projection", frame, {"mine": checkpoint}, "imagenet-s:here")
    told = {row["what"]: row for row in rows}
    accuracy = frame[(frame.measure == "accuracy") & (frame.control == "trained")].value.item()
    assert told["Accuracy"]["published"] == pytest.approx(0.8171)
    assert told["Accuracy"]["value"] == accuracy
    assert {row["model"] for row in rows} == {"mine"}
    by_name = published_beside(recipe, "class-projection", frame, {"mine": "vilas2023-vit-b32"}, "imagenet-s:here")
    assert by_name == rows
    assert published_beside(recipe, "class-projection", frame, {"mine": checkpoint}, "scenes:test") == []
    assert published_beside(recipe, "class-projection", frame, {"mine": "zoo:vit"}, "imagenet-s:here") == []
    study = Result(pd.DataFrame({"study": []}), {"parts": {}, "published": rows})
    drawn = figures_of_parts(study)["Published values and ours"](study)
    assert any(accuracy in list(trace.y) for trace in drawn.data)
