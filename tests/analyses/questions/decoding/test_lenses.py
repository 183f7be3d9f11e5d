"""Readers of every layer: the head is the model's at the last layer, translators learn a change of code and no more."""

from __future__ import annotations

import pandas as pd
import pytest
import torch
import torch.nn.functional as F

from analyses import Result, cls_causality, lenses
from analyses.activations.streams import read_stream
from analyses.controls.random_weights import with_random_weights
from analyses.probes.role_probes import read_role
from analyses.questions.decoding.lenses.figure import divergence_figure, path_figure
from analyses.questions.decoding.lenses.lenses import _drawn, what_it_reads
from analyses.questions.decoding.lenses.translators import fit_translators, kl_divergence
from analyses.statistics.ranks import correct, identifiability, rank
from tests.analyses.questions.cls_use.test_cls_causality import coloured, model
from tests.tiny import CLASSES, FAMILIES, tiny

MODELS = ("vit", "deit-teacher", "beit-mean-both", "dinov2", "clip-classifier")
CONFIGS = {name: tiny(name)[1].cfg for name in FAMILIES}
CLS_ONLY = tuple(name for name, cfg in CONFIGS.items() if cfg.sources == ("cls",) and cfg.outputs == "classes")
DATA, FIT, BATCH, STEPS = coloured(90, 1), coloured(120, 2), 30, 20


def read(names: tuple[str, ...], **options) -> Result:
    models = {name: model(name) for name in names}
    return lenses(models, DATA, fit_data=FIT, batch_size=BATCH, **{"steps": STEPS, "random_models": 1} | options)


@pytest.fixture(scope="module")
def result() -> Result:
    return read(MODELS)


def curve(result: Result, name: str, measure: str, reader: str) -> list[float]:
    frame = result.frame
    rows = frame[(frame.model == name) & (frame.measure == measure) & (frame.reader == reader)]
    return rows.sort_values("layer").value.tolist()


@pytest.mark.parametrize("name", CLS_ONLY)
def test_at_the_last_layer_the_head_is_the_model_and_the_translator_the_identity(name: str) -> None:
    run = read((name,), random_models=0)
    for measure in ("accuracy", "identifiability"):
        answer = curve(run, name, measure, "model")
        assert curve(run, name, measure, "head")[-1:] == curve(run, name, measure, "translator")[-1:] == answer
    assert abs(curve(run, name, "kl", "head")[-1]) < 1e-9
    assert curve(run, name, "kl", "translator")[-1] == curve(run, name, "kl", "head")[-1]
    assert run.meta["models"][name]["lens"] == ""


@pytest.mark.parametrize("name", MODELS)
def test_probe_and_head_are_those_of_cls_causality(result: Result, name: str) -> None:
    other = cls_causality({name: model(name)}, DATA, fit_data=FIT, seeds=1, batch_size=BATCH).frame
    for measure, reader, theirs in (
        ("accuracy", "probe", "probe"),
        ("accuracy", "head", "head_on_cls"),
        ("identifiability", "head", "identifiability"),
        ("accuracy", "model", "clean"),
    ):
        expected = other[other.measure == theirs].sort_values("layer").value.tolist()
        assert curve(result, name, measure, reader) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("name", ["vit", "clip-classifier"])
def test_the_published_setting_leaves_out_the_final_norm(result: Result, name: str) -> None:
    vit, hits, places = model(name), 0.0, 0.0
    weight, bias = vit.head_for("cls")
    for batch in DATA.batches(BATCH):
        _, at_layer = read_stream(vit, vit.preprocess(batch.images), read_role(vit))
        pos = rank(F.linear(at_layer[0], weight, bias), batch.labels)
        hits, places = hits + float(correct(pos).sum()), places + float(identifiability(pos, CLASSES).sum())
    bare = read((name,), repro=True, random_models=0)
    assert curve(bare, name, "accuracy", "head")[0] == pytest.approx(hits / 90)
    assert curve(bare, name, "identifiability", "head")[0] == pytest.approx(places / 90, abs=1e-6)
    same = curve(bare, name, "kl", "head") == curve(result, name, "kl", "head")
    assert same == (model(name).cfg.final_norm == "none")


def rotated(seed: int = 0, n: int = 400, d: int = 12) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Vectors of two layers, the first an affine change of the second, and logits a head reads from the second."""
    generator = torch.Generator().manual_seed(seed)
    last = torch.randn(n, d, generator=generator)
    turn = torch.linalg.qr(torch.randn(d, d, generator=generator)).Q
    head = torch.randn(4, d, generator=generator)
    return torch.stack([50 * last @ turn + 7, last], 1), last @ head.T, head


def test_a_translator_learns_an_affine_change_of_code_and_leaves_alone_what_needs_none() -> None:
    x, target, head = rotated()
    head.requires_grad_()
    fitted = fit_translators(x, target, lambda v: v @ head.T, steps=400, lr=1e-2)
    assert fitted.kl_after[0] < 0.01 * fitted.kl_before[0]
    assert fitted.kl_before[1] == fitted.kl_after[1] == 0
    assert torch.equal(fitted(1, x[:, 1]), x[:, 1])
    assert head.grad is None
    # what was learnt holds for images never seen
    new, answers, _ = rotated(seed=0, n=600)
    everywhere = kl_divergence(answers[400:], fitted(0, new[400:, 0]) @ head.detach().T)
    assert everywhere.mean() < 0.05 * kl_divergence(answers[400:], new[400:, 0] @ head.detach().T).mean()


def test_a_translator_is_never_worse_than_the_head_alone_on_what_was_held_out() -> None:
    """Even at a rate that ruins it."""
    x, target, head = rotated()
    wild = fit_translators(x, target, lambda v: v @ head.T, steps=10, lr=1e3)
    assert (wild.kl_after <= wild.kl_before).all()
    again = fit_translators(x, target, lambda v: v @ head.T, steps=10, lr=1e3)
    assert torch.equal(wild.weight, again.weight)
    tame, other = (fit_translators(x, target, lambda v: v @ head.T, steps=10, seed=k) for k in (0, 1))
    assert not torch.equal(tame.weight[0], other.weight[0])


def test_units_that_do_not_vary_are_no_trouble() -> None:
    x, target, head = rotated()
    x[:, :, 3] = 2.0
    fitted = fit_translators(x, target, lambda v: v @ head.T, steps=50)
    assert torch.isfinite(fitted.weight).all()
    assert fitted.kl_after[0] < fitted.kl_before[0]
    x[5, 0, 0] = float("nan")
    with pytest.raises(ValueError, match="finite"):
        fit_translators(x, target, lambda v: v @ head.T)
    with pytest.raises(ValueError, match="at least 20 images"):
        fit_translators(x[20:30], target[20:30], lambda v: v @ head.T)


def test_the_divergence_is_torchs() -> None:
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(2, 7, 5, generator=generator, dtype=torch.float64)
    expected = F.kl_div(b.log_softmax(-1), a.log_softmax(-1), log_target=True, reduction="none").sum(-1)
    torch.testing.assert_close(kl_divergence(a, b), expected)


def test_translators_are_nearer_to_the_model_on_other_images(result: Result) -> None:
    for name in MODELS:
        head, translator = (curve(result, name, "kl", reader) for reader in ("head", "translator"))
        assert translator[0] < head[0]


@pytest.mark.parametrize("name", MODELS)
def test_the_control_is_the_same_pipeline_on_random_weights(result: Result, name: str) -> None:
    untrained = {name: with_random_weights(model(name), seed=0)}
    alone = lenses(untrained, DATA, fit_data=FIT, batch_size=BATCH, steps=1, random_models=0)
    for measure, reader in (("accuracy", "head"), ("identifiability", "head"), ("accuracy", "probe")):
        assert curve(result, name, measure, f"random_{reader}") == curve(alone, name, measure, reader)
    assert curve(result, name, "identifiability", "chance") == [0.5 + 0.5 / CLASSES]
    assert curve(result, name, "accuracy", "chance") == [1 / CLASSES]


def test_the_same_call_gives_the_same_numbers(result: Result) -> None:
    first = result.frame[result.frame.model == "dinov2"].reset_index(drop=True)
    pd.testing.assert_frame_equal(read(("dinov2",)).frame, first)


@pytest.mark.parametrize(
    ("name", "tokens", "says"),
    [
        ("vit", "patches", "never patches; the lens gives it patches in the place of cls"),
        ("dinov2", "patches", "reads patches, without cls"),
        ("deit-teacher", "dist", "reads dist, without cls"),
        ("clip-classifier", "cls", "reads patches, never cls"),
        ("beit-mean-both", "patches", ""),
    ],
)
def test_what_the_lens_reads_is_said(name: str, tokens: str, says: str) -> None:
    said = what_it_reads(model(name), tokens)
    assert says in said
    assert bool(said) == bool(says)


def test_a_mean_of_patches_is_read_as_the_family_reads_it() -> None:
    run = read(("beit-mean-both",), tokens="patches", random_models=0)
    assert curve(run, "beit-mean-both", "accuracy", "head")[-1:] == curve(run, "beit-mean-both", "accuracy", "model")
    assert curve(run, "beit-mean-both", "kl", "head")[-1] < 1e-9


def test_a_model_without_a_classifier_is_read_through_a_ridge_head_on_what_its_family_reads() -> None:
    run = read(("vit-model", "clip-projection"))
    for name in ("vit-model", "clip-projection"):
        assert run.meta["models"][name]["head_fitted"]
        assert any(name in note and "ridge head" in note for note in run.meta["notes"])
        assert len(curve(run, name, "accuracy", "random_head")) == 2
    assert curve(run, "vit-model", "accuracy", "head")[-1:] == curve(run, "vit-model", "accuracy", "model")
    assert "never cls" in run.meta["models"]["clip-projection"]["lens"]


def test_at_most_so_many_images_are_held() -> None:
    data = coloured(50, 1)
    drawn = _drawn(data, 20, seed=0)
    assert len(drawn) == 20
    assert drawn.positions.tolist() != list(range(20))
    assert _drawn(data, 50, seed=0) is data


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"tokens": "registers"}, "no registers token.*nothing to read"),
        ({"steps": 0}, "at least 1 step"),
        ({"random_models": -1}, "no negative number"),
        ({"lens_images": 5}, "20 images"),
        ({"head": "mine"}, "one of auto, own, ridge"),
    ],
)
def test_refusals_come_before_any_run(options: dict, says: str) -> None:
    vit = model("vit")
    with pytest.raises(ValueError, match=says):
        lenses({"vit": vit}, DATA, fit_data=FIT, **options)
    assert vit.run.n_forwards == 0


def test_a_reader_whose_best_is_within_chance_begins_nowhere(result: Result) -> None:
    some = False
    for row in result.meta["table"]:
        rows = result.frame[(result.frame.model == row["model"]) & (result.frame.measure == "accuracy")]
        for reader in ("probe", "head", "translator"):
            curve = rows[rows.reader == reader]
            above = curve.low[curve.value.idxmax()] > 1 / CLASSES
            assert (row[f"{reader}_from"] is not None) == above
            some |= not above and curve.value.max() > 1 / CLASSES
    assert some, "no curve's best was above chance by luck alone"


def test_a_random_model_is_named_by_the_seed_it_was_drawn_with() -> None:
    run = read(("vit",), random_models=2, seed=3)
    control = run.frame[run.frame.reader == "random_head"]
    assert set(control.seed) == set(run.meta["seeds"]) == {3, 4}


def test_figures_and_words_name_every_model(result: Result) -> None:
    for figure in (result.figure(), path_figure(result), divergence_figure(result)):
        assert {a.text for a in figure.layout.annotations} >= set(MODELS)
    assert any(axis.side == "right" for axis in result.figure().select_yaxes())
    assert len(result.meta["summary"]) == len(result.meta["table"]) == len(MODELS)
    assert any("clip-classifier" in note and "never cls" in note for note in result.meta["notes"])
