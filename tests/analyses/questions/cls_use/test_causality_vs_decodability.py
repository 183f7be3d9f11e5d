"""Decodability, causal effect and their gap: equal to what other analyses measure, with intervals over images."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch

from analyses import Result, causality_vs_decodability, cls_causality
from analyses.activations.streams import read_stream
from analyses.controls.shuffle_floors import batch_seed
from analyses.probes.opening import Opening
from analyses.probes.role_probes import fit_role_probes, read_role
from analyses.questions.cls_use.causality_vs_decodability.figure import one_axis_figure
from analyses.statistics.intervals import paired_difference
from analyses.statistics.ranks import correct, rank
from interventions import apply, shuffle_tokens
from tests.analyses.questions.cls_use.test_cls_causality import coloured, model
from tests.tiny import CLASSES

MODELS = ("vit", "deit-teacher", "beit-mean-both", "dinov2", "clip-classifier")
DATA, FIT, BATCH = coloured(90, 1), coloured(120, 2), 30


@pytest.fixture(scope="module")
def result() -> Result:
    models = {name: model(name) for name in MODELS}
    return causality_vs_decodability(models, DATA, fit_data=FIT, seeds=2, batch_size=BATCH, head="ridge")


def values(result: Result, name: str, measure: str) -> pd.Series:
    rows = result.frame[(result.frame.model == name) & (result.frame.measure == measure)]
    return rows.sort_values(["layer", "seed"]).value.reset_index(drop=True)


@pytest.mark.parametrize("name", MODELS)
def test_probes_and_shuffles_are_those_of_cls_causality(result: Result, name: str) -> None:
    other = cls_causality({name: model(name)}, DATA, fit_data=FIT, seeds=2, batch_size=BATCH, head="ridge")
    for ours, theirs in (("decodability", "probe"), ("shuffled", "shuffled"), ("clean", "clean"), ("chance", "chance")):
        assert values(result, name, ours).tolist() == values(other, name, theirs).tolist()
    assert values(result, name, "shuffle_floor").iloc[0] == pytest.approx(values(other, name, "floor").iloc[0])


@pytest.mark.parametrize("name", MODELS)
def test_effect_and_gap_are_their_formulas(result: Result, name: str) -> None:
    of = {m: values(result, name, m) for m in ("decodability", "probe_floor", "causal_effect", "gap", "clean")}
    shuffled = values(result, name, "shuffled").to_numpy().reshape(2, 2).mean(1)
    np.testing.assert_allclose(of["causal_effect"], of["clean"].iloc[0] - shuffled, atol=1e-6)
    np.testing.assert_allclose(of["gap"], of["decodability"] - of["probe_floor"] - of["causal_effect"], atol=1e-6)
    rows = result.frame[result.frame.model == name]
    assert (rows.low <= rows.value + 1e-9).all()
    assert (rows.value <= rows.high + 1e-9).all()


@pytest.mark.parametrize("name", ["beit-mean-both", "clip-classifier"])
def test_what_the_readout_never_reads_has_no_effect_at_the_last_layer(result: Result, name: str) -> None:
    row = result.frame.query("model == @name and measure == 'causal_effect' and layer == 1").iloc[0]
    assert row.value == 0
    assert row.low < 0 < row.high  # none of these images says what others do
    assert any(name in note and "cannot matter" in note for note in result.meta["notes"])


def test_patches_are_what_a_mean_of_patches_uses() -> None:
    """At the last layer the model's answer is that of another image: over all permutations, its own floor."""
    run = causality_vs_decodability(
        {"m": model("clip-classifier")},
        coloured(40, 3),
        fit_data=FIT,
        tokens="patches",
        seeds=40,
        batch_size=40,
        head="ridge",
    )
    shuffled, floor = values(run, "m", "shuffled")[40:], values(run, "m", "shuffle_floor").iloc[0]
    assert abs(shuffled.mean() - floor) < 4 * shuffled.std() / 40**0.5
    effect = values(run, "m", "causal_effect")
    assert effect[1] == pytest.approx(values(run, "m", "clean").iloc[0] - shuffled.mean(), abs=1e-6)
    assert effect[1] > 0.3


def test_the_gap_is_paired_image_by_image(result: Result) -> None:
    """Against images gone through one shuffle after another, and the interval of two lists."""
    vit = model("vit")
    probes, answers = fit_role_probes("vit", vit, Opening(FIT, FIT, "", CLASSES, {"vit": None}), BATCH)
    read, used = [], []
    for i, batch in enumerate(DATA.batches(BATCH)):
        x, labels = answers.model.preprocess(batch.images), batch.labels
        logits, at_layer = read_stream(answers.model, x, read_role(answers.model))
        said = probes[0].predict(at_layer[0])
        read.append((said == labels).double() - torch.stack([(said == y).double().mean() for y in labels]))
        right = [correct(rank(logits, labels)).double()]
        for seed in range(2):
            with apply(answers.model, shuffle_tokens(layer=0, tokens="cls", seed=batch_seed(seed, i))), torch.no_grad():
                right.append(correct(rank(answers.model(x), labels)).double())
        used.append(right[0] - (right[1] + right[2]) / 2)
    expected = paired_difference(torch.cat(read).numpy(), torch.cat(used).numpy())
    row = result.frame.query("model == 'vit' and measure == 'gap' and layer == 0").iloc[0]
    assert row.value == pytest.approx(expected.estimate, abs=1e-6)
    assert [row.low, row.high] == pytest.approx([expected.low, expected.high], abs=1e-6)


def test_the_same_call_gives_the_same_numbers(result: Result) -> None:
    again = causality_vs_decodability(
        {"vit": model("vit")}, DATA, fit_data=FIT, seeds=2, batch_size=BATCH, head="ridge"
    )
    first = result.frame[result.frame.model == "vit"].reset_index(drop=True)
    pd.testing.assert_frame_equal(again.frame, first)


def test_the_callers_model_is_left_as_it_was() -> None:
    mine = model("dinov2-model")
    before = mine.cfg
    run = causality_vs_decodability({"m": mine}, DATA, fit_data=FIT, seeds=1)
    assert mine.cfg == before
    assert not any(point.has_hooks() for point in mine.hook_points())
    assert any("ridge head" in note for note in run.meta["notes"])


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"tokens": "registers"}, "no registers token"),
        ({"seeds": 0}, "at least one permutation"),
        ({"batch_size": 1}, "within a batch"),
        ({"among": "others", "batch_size": 1}, "needs two of them"),
        ({"head": "mine"}, "one of auto, own, ridge"),
    ],
)
def test_refusals_come_before_any_run(options: dict, says: str) -> None:
    vit = model("vit")
    with pytest.raises(ValueError, match=says):
        causality_vs_decodability({"vit": vit}, DATA, fit_data=FIT, **options)
    assert vit.run.n_forwards == 0


def test_one_figure_and_one_table_for_all_models(result: Result) -> None:
    figure = result.figure()
    assert {a.text for a in figure.layout.annotations} >= set(MODELS)
    assert {trace.name for trace in one_axis_figure(result).data} == set(MODELS)
    table = pd.DataFrame(result.meta["table"])
    assert len(table) == 2 * len(MODELS)
    gap = table[table.model == "dinov2"].gap.tolist()
    assert gap == values(result, "dinov2", "gap").tolist()
    assert len(result.meta["summary"]) == len(MODELS)
