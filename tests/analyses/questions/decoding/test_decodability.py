"""Decodability: every target, its controls where they must be, and what is refused before the first run."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from datasets import Dataset, Features, Image, Value
from datasets import List as ListOf
from PIL import Image as Picture

from analyses import Result, load_data, restoration
from analyses.controls.control_task import ControlTask
from analyses.data import ImageData, as_data
from analyses.data.sets import count_classes, two_sets
from analyses.probes import fit_probes, with_target
from analyses.questions.decoding.decodability.decodability import decodability
from analyses.questions.decoding.decodability.figure import control_figure, curve_figure, main_figure, summary_table
from hooked_vit import HookedViT
from tests.analyses.probes.test_probe_engine import relabelled
from tests.analyses.questions.cls_use.test_cls_causality import coloured, model
from tests.tiny import CLASSES

MODELS = ("vit", "deit", "registers", "clip-classifier")


def run(models: dict[str, HookedViT], data: ImageData | None, fit_data: ImageData | None = None, **kw) -> Result:
    return decodability(models, data, fit_data=fit_data, **{"batch_size": 40, "random_models": 2} | kw)


@pytest.fixture(scope="module")
def result() -> Result:
    return run(
        {name: model(name) for name in MODELS}, coloured(100, 1), coloured(120, 2), embedding=True, permutations=5
    )


def of(result: Result, measure: str, name: str = "vit", role: str = "cls") -> pd.DataFrame:
    f = result.frame
    return f[(f.measure == measure) & (f.model == name) & (f.role == role)]


@pytest.mark.parametrize("name", MODELS)
def test_every_measure_for_every_role_and_layer(result: Result, name: str) -> None:
    rows = result.frame[(result.frame.model == name) & result.frame.role.notna()]
    extra = {"deit": {"dist"}, "registers": {"registers"}}.get(name, set())
    assert set(rows.role) == {"cls", "patches", "random_patch"} | extra
    for role in set(rows.role):
        varying = 3 if role in ("patches", "random_patch") else 2  # prefix tokens do not vary before the first block
        assert {m: len(of(result, m, name, role)) for m in set(rows.measure)} == {
            "accuracy": 3, "identifiability": 3, "permuted": varying, "pca": 3, "control_task": 3, "selectivity": 3,
            "memorised": 3, "beyond_memorised": 3,
            "random_weights": 6, "learning_curve": 15,
        }  # fmt: skip
    assert ((rows.low <= rows.value + 1e-12) & (rows.value <= rows.high + 1e-12)).all()
    assert (rows[rows.measure != "memorised"].n == 100).all()
    assert (rows[rows.measure == "memorised"].n == 120).all()


def test_accuracy_is_that_of_fitted_probes(result: Result) -> None:
    said = fit_probes(model("vit"), coloured(120, 2), batch_size=40).evaluate(model("vit"), coloured(100, 1))
    assert of(result, "accuracy").set_index("layer").value[1] == said.accuracy("cls", 1)
    last = of(result, "learning_curve")
    assert last[(last.n_fit == 120) & (last.layer == 1)].value.item() == said.accuracy("cls", 1)


def test_cls_of_the_embedding_is_the_same_everywhere_so_nothing_can_be_read(result: Result) -> None:
    for measure in ("accuracy", "pca", "random_weights"):
        rows = of(result, measure)
        assert (rows[rows.layer == -1].value <= result.frame[result.frame.measure == "chance"].value.iloc[0]).all()
    assert of(result, "accuracy").set_index("layer").value[1] > 0.6
    assert any("cls@embedding: the features do not vary" in note for note in result.meta["notes"])


def test_permuted_labels_are_at_chance_within_their_interval(result: Result) -> None:
    rows = result.frame[result.frame.measure == "permuted"]
    assert (rows.low <= 1 / CLASSES).all()
    assert (rows.high >= 1 / CLASSES).all()
    sentence = result.meta["summary"][-1]
    assert f"at {len(rows)} of {len(rows)} sites" in sentence


def test_a_probe_that_could_read_permuted_labels_would_be_named() -> None:
    """The check can fail: with the interval moved away from chance, the sentence names the site."""
    from analyses.questions.decoding.decodability.figure import in_words

    small = run({"vit": model("vit")}, coloured(60, 1), coloured(60, 2), controls=("permuted",), learning_curve=False)
    moved = small.frame.copy()
    first = moved.index[moved.measure == "permuted"][0]
    moved.loc[first, ["value", "low", "high"]] = [0.9, 0.8, 0.95]
    sentence = in_words(Result(moved, small.meta))[-1]
    assert "at 5 of 6 sites; not at vit CLS layer 0" in sentence


def test_selectivity_is_test_against_test(result: Result) -> None:
    """Hewitt & Liang 2019: both accuracies are of new images, paired image by image."""
    task, control, left = (of(result, m).set_index("layer") for m in ("accuracy", "control_task", "selectivity"))
    assert np.allclose(task.value - control.value, left.value)
    assert (control.n == 100).all()
    assert (left.high - left.low > 0).all()


def test_a_control_task_is_one_function_of_the_picture_for_both_sets() -> None:
    fit, new = coloured(120, 2), coloured(100, 1)
    task = ControlTask.drawn(fit.labels.numpy(), seed=3)
    pictures = [image for data in (fit, new) for batch in data.batches(50) for image in batch.images]
    types, answers = task.types(pictures), task.answers(pictures).numpy()
    assert all(len(set(answers[types == t])) == 1 for t in set(types))
    assert (task.answers(pictures).numpy() == answers).all()
    other = ControlTask.drawn(fit.labels.numpy(), seed=4).answers(pictures).numpy()
    assert (other != answers).any()
    assert set(ControlTask.drawn(np.repeat([0, 1], [90, 10])).answer_of) <= {0, 1}


def test_beyond_memorised_is_accuracy_less_what_is_learned_by_heart(result: Result) -> None:
    task, control, left = (
        of(result, m).set_index("layer").value for m in ("accuracy", "memorised", "beyond_memorised")
    )
    assert np.allclose(task - control, left)
    # 120 images, 32 units and 5 classes: a probe memorises more of random labels than it guesses of new images
    assert control[1] > of(result, "permuted").set_index("layer").value[1] + 0.05


def test_with_more_units_than_images_a_probe_memorises_most(result: Result) -> None:
    few = run({"vit": model("vit")}, coloured(40, 1), coloured(20, 2), controls=("memorised",), learning_curve=False)
    assert of(few, "memorised").value.iloc[-1] > of(result, "memorised").value.iloc[-1] + 0.2
    assert of(few, "permuted").empty
    assert of(few, "selectivity").empty


@pytest.mark.parametrize("probe", ["logistic", "mlp"])
def test_other_probes_have_the_same_measures(probe: str) -> None:
    one = run(
        {"vit": model("vit")}, coloured(60, 1), coloured(100, 2), probe=probe, roles=("cls",), permutations=2,
        random_models=1, components=4,
    )  # fmt: skip
    assert of(one, "accuracy").value.iloc[1] > 0.5
    assert {"permuted", "pca", "selectivity", "random_weights", "learning_curve"} <= set(one.frame.measure)


def test_a_column_as_the_target() -> None:
    data = load_data("scenes:test", n=60)
    one = run({"vit": model("vit")}, data, load_data("scenes:train", n=80), target="count", controls=("none",))
    assert one.meta["classes"] == ["1", "2", "3", "4", "5"]
    assert set(one.frame.measure) == {"accuracy", "identifiability", "learning_curve", "chance"}
    (asked,) = with_target("count", data)
    assert [int(asked.target.classes[y]) for y in asked.labels.tolist()] == data.column("count")


def test_presence_as_the_target() -> None:
    data = coloured(60, 1)
    (asked,) = with_target("label=3", data)
    assert asked.target.classes == ("not 3", "3")
    assert torch.equal(asked.labels, (data.labels == 3).long())
    one = run({"vit": model("vit")}, data, coloured(80, 2), target="label=3", controls=("permuted",))
    assert of(one, "accuracy").value.max() > one.frame[one.frame.measure == "chance"].value.iloc[0]
    assert "whether label is 3" in one.meta["summary"][0]


def test_presence_in_a_list_and_text_as_the_target() -> None:
    pictures = [p for batch in coloured(20, 1).batches(20) for p in batch.images]
    columns = {
        "image": pictures,
        "label": [0, 1] * 10,
        "objects": [["cat"], ["dog", "cat"], [], ["dog"]] * 5,
        "light": ["day", "night", "night", "day"] * 5,
        "size": [0.5] * 20,
    }
    features = Features(
        {
            "image": Image(), "label": Value("int64"), "objects": ListOf(Value("string")), "light": Value("string"),
            "size": Value("float64"),
        }
    )  # fmt: skip
    data = as_data(Dataset.from_dict(columns, features=features), image="image", label="label")
    (dogs,) = with_target("objects=dog", data)
    assert dogs.labels.tolist() == [0, 1, 0, 1] * 5
    (light,) = with_target("light", data)
    assert light.target.classes == ("day", "night")
    assert light.labels.tolist() == [0, 1, 1, 0] * 5
    batch = next(light.batches(20, "reading"))
    assert torch.equal(batch.labels[:, 0], light.labels)
    for target, says in (
        ("size", r"holds 0\.5"),
        ("objects", "objects=value"),
        ("image", "holds images"),
        ("colour", "not 'colour'"),
        ("light=", "column=value"),
    ):
        with pytest.raises(ValueError, match=says):
            with_target(target, data)


def test_the_data_set_of_origin_as_the_target() -> None:
    """Two data sets that differ in brightness alone."""
    bright, dark = coloured(60, 1), coloured(60, 5)
    darkened = as_data(([p.point(lambda v: v // 4) for b in dark.batches(60) for p in b.images], dark.labels.tolist()))
    one = run({"vit": model("vit")}, bright, other_data=darkened, target="dataset", controls=("permuted",))
    assert of(one, "accuracy", role="patches").value.min() > 0.9
    assert one.frame[one.frame.measure == "chance"].value.iloc[0] == 0.5
    assert one.frame.n.iloc[0] == 60
    with pytest.raises(ValueError, match="give other_data with it"):
        run({"vit": model("vit")}, bright, target="dataset")
    with pytest.raises(ValueError, match="give other_data with it"):
        run({"vit": model("vit")}, bright, other_data=darkened)


def test_a_class_absent_from_training_and_one_absent_from_the_test() -> None:
    fitted, measured = relabelled(coloured(80, 2), [0, 1, 2, 3, 3]), relabelled(coloured(50, 1), [0, 1, 2, 4, 4])
    one = run({"vit": model("vit")}, measured, fitted, controls=("permuted",), learning_curve=False, roles=("cls",))
    notes = " ".join(one.meta["notes"])
    assert "never predicted: 4" in notes
    assert "no image of 3 to measure on" in notes
    assert of(one, "accuracy").value.max() <= 0.6 + 1e-9  # what is of class 4 cannot be right


def test_roles_some_models_lack() -> None:
    models = {name: model(name) for name in ("vit", "deit")}
    one = run(models, coloured(40, 1), coloured(60, 2), roles=("cls", "dist"), controls=("none",), learning_curve=False)
    assert set(one.frame[one.frame.model == "vit"].role.dropna()) == {"cls"}
    assert "vit has no dist" in one.meta["notes"]
    with pytest.raises(ValueError, match="has no 'register_0'"):
        run(models, coloured(40, 1), coloured(60, 2), roles=("cls", "register_0"))
    with pytest.raises(ValueError, match="vit has none of the roles dist"):
        run(models, coloured(40, 1), coloured(60, 2), roles=("dist",))


def test_what_is_refused() -> None:
    models = {"vit": model("vit")}
    for kw, says in (
        ({"controls": ("placebo",)}, "'placebo'"),
        ({"random_models": 0}, "at least 1"),
        ({"target": "weather"}, "not 'weather'"),
    ):
        with pytest.raises(ValueError, match=says):
            run(models, coloured(40, 1), coloured(60, 2), **kw)


def test_images_a_probe_was_fitted_on_are_not_measured_on() -> None:
    models, data = {"vit": model("vit")}, coloured(40, 1)
    for spec, again in ((data, data), ("scenes:test", "scenes:test"), (data, coloured(40, 1))):
        with pytest.raises(ValueError, match="measured on images they were not fitted on"):
            two_sets(spec, again)
    # as many images with the same labels in the same order, and other pictures
    mirrored = [picture.transpose(0) for batch in data.batches(40) for picture in batch.images]
    assert two_sets(data, as_data((mirrored, data.labels.tolist()))).note == "given"
    with pytest.raises(ValueError, match="leave out the set to fit on"):
        run(models, data, data)
    assert models["vit"].run.n_forwards == 0


def test_class_folders_that_differ_would_number_classes_differently(tmp_path: Path) -> None:
    """Without a folder for bees, label 1 is a cat in one set and a bee in the other."""
    models = {"vit": model("vit")}
    for split, names in (("fit", ("ant", "bee", "cat")), ("test", ("ant", "cat"))):
        for name in names:
            (tmp_path / split / name).mkdir(parents=True)
            for i in range(4):
                colour = (40 * i, 10 * len(split), ord(name[0]))
                Picture.new("RGB", (32, 32), colour).save(tmp_path / split / name / f"{i}.png")
    test, fit = (f"imagefolder:{tmp_path / split}" for split in ("test", "fit"))
    for refused in (lambda: restoration(models, test, fit_data=fit), lambda: run(models, test, fit)):
        with pytest.raises(ValueError, match="alike.*2 classes, ant, cat and .*3 classes, ant, bee, cat"):
            refused()
    probes = fit_probes(models["vit"], load_data(fit), roles=("cls",))
    with pytest.raises(ValueError, match="knows the classes ant, bee, cat .*the same number would be another class"):
        probes.evaluate(models["vit"], test)
    (tmp_path / "test" / "bee").mkdir()
    assert count_classes(load_data(test), load_data(fit)) == 3
    assert probes.evaluate(models["vit"], test).counts == (4, 0, 4)


def test_the_figures_and_the_table(result: Result) -> None:
    for draw in (main_figure, control_figure, curve_figure):
        fig = draw(result)
        assert {a.text for a in fig.layout.annotations} >= set(MODELS)
        assert fig.layout.title.text.strip()
    table = summary_table(result).set_index(["model", "role"])
    cls = of(result, "accuracy")
    assert table.loc[("vit", "cls"), "accuracy"] == cls.value.max()
    assert cls.set_index("layer").value[table.loc[("vit", "cls"), "best_layer"]] == cls.value.max()


def test_the_same_call_gives_the_same_numbers(result: Result) -> None:
    again = run({"vit": model("vit")}, coloured(100, 1), coloured(120, 2), embedding=True, permutations=5)
    first = result.frame[result.frame.model == "vit"].reset_index(drop=True)
    pd.testing.assert_frame_equal(again.frame, first)


def test_saving_and_loading_keep_it(result: Result, tmp_path) -> None:
    loaded = Result.load(result.save(tmp_path))
    pd.testing.assert_frame_equal(loaded.frame, result.frame)
    assert main_figure(loaded).to_json() == main_figure(result).to_json()
