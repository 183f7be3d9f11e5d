"""Readouts through random CLS tokens: trained reproducibly, resumed exactly, and reported with their controls."""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from analyses import Result, random_readouts
from analyses.data import ImageData, as_data
from analyses.questions.cls_use.random_readouts import training
from analyses.questions.cls_use.random_readouts.arms import COMPARED, COUNTERPARTS, PLACEMENTS
from analyses.questions.cls_use.random_readouts.figure import curves_figure, summary_table, trained_figure
from analyses.questions.cls_use.random_readouts.frozen import FrozenBlock
from analyses.questions.cls_use.random_readouts.looked import looked_at, room
from analyses.questions.cls_use.random_readouts.networks import RandomToken, TokenReadout, make_decoder
from analyses.questions.cls_use.random_readouts.streams import Stream, plan, streams
from analyses.questions.cls_use.random_readouts.training import Trained, Training, evaluate, train
from hooked_vit import HookedViT, ViTConfig
from tests.analyses.questions.cls_use.test_cls_causality import coloured, model
from tests.tiny import CLASSES, IMAGE

SETTINGS = Training(epochs=3, batch_size=16, seed=3)


class Study:
    """A block, what it is trained on, and an untrained readout."""

    def __init__(self, folder: Path, family: str = "vit", placement: str = "augment", *, n: int = 48) -> None:
        vit = model(family)
        self.streams: list[Stream] = []
        for name, data in (("fit", coloured(n, 1)), ("validation", coloured(30, 2))):
            made = plan(vit, data, [1], folder, name=name)
            self.streams.append(streams(made, vit, {name: data}, what="caching")[0][name][1])
        self.block = FrozenBlock(vit, 1, placement, tokens=self.streams[0].layout)
        torch.manual_seed(0)
        d = vit.cfg.d_model
        token = None if placement == "null" else RandomToken(d, batch_norm=True)
        self.readout = TokenReadout(token, make_decoder("linear", d, CLASSES))

    def train(self, settings: Training = SETTINGS, checkpoint: Path | None = None) -> Trained:
        return train(self.readout, self.block, *self.streams, settings, checkpoint=checkpoint)


def same(a: Trained, b: Trained) -> bool:
    states = a.readout.state_dict(), b.readout.state_dict()
    weights = all(torch.equal(value, states[1][name]) for name, value in states[0].items())
    return weights and (a.history, a.best_epoch) == (b.history, b.best_epoch)


def test_a_decodable_class_is_learned_and_the_first_readout_is_left_alone(tmp_path):
    study = Study(tmp_path, placement="null")
    before = {name: value.clone() for name, value in study.readout.state_dict().items()}
    done = study.train(dataclasses.replace(SETTINGS, epochs=20, lr=0.01, patience=20))
    assert done.history[done.best_epoch - 1]["validation_accuracy"] > 0.6 > 0.2 + done.history[0]["fit_accuracy"] / 9
    assert done.history[-1]["loss"] < done.history[0]["loss"]
    assert all(torch.equal(value, before[name]) for name, value in study.readout.state_dict().items())


def test_the_best_epoch_is_the_one_that_is_kept(tmp_path):
    study = Study(tmp_path)
    done = study.train(dataclasses.replace(SETTINGS, epochs=5, lr=0.03))
    reached = [row["validation_accuracy"] for row in done.history]
    lost = [row["validation_loss"] for row in done.history]
    assert done.best_epoch == max(range(5), key=lambda i: (reached[i], -lost[i])) + 1
    with study.block.ready():
        again = evaluate(done.readout, study.block, study.streams[1], seed=SETTINGS.seed)
    assert again.one.double().mean().item() == max(reached)


def test_it_stops_when_validation_no_longer_gets_better(tmp_path):
    study = Study(tmp_path, placement="null")
    done = study.train(Training(epochs=60, lr=0.1, patience=2))
    reached = [row["validation_accuracy"] for row in done.history]
    assert len(reached) == done.best_epoch + 2 < 60
    assert max(reached[done.best_epoch :]) <= reached[done.best_epoch - 1]
    assert done.stopped
    assert not study.train(Training(epochs=len(reached) - 1, lr=0.1, patience=2)).stopped


def test_the_schedule_ends_where_it_is_said_to(tmp_path, monkeypatch):
    kept: list[dict[str, Any]] = []
    monkeypatch.setattr(training, "_save", lambda path, state: kept.append(state))
    Study(tmp_path, placement="null").train(dataclasses.replace(SETTINGS, patience=9, lr_min=1e-6))
    assert kept[-1]["optimiser"]["param_groups"][0]["lr"] == pytest.approx(1e-6)


def test_a_rate_stays_what_it_is_where_it_is_not_to_fall(tmp_path, monkeypatch):
    kept: list[dict[str, Any]] = []
    monkeypatch.setattr(training, "_save", lambda path, state: kept.append(state))
    Study(tmp_path, placement="null").train(SETTINGS)
    assert kept[-1]["optimiser"]["param_groups"][0]["lr"] == SETTINGS.lr


def test_of_several_rates_the_best_on_validation_is_kept_and_one_that_diverges_is_none(tmp_path):
    study = Study(tmp_path)
    rates = [1e30, 0.03, 1e-6]
    best = training.train_at_best_rate(study.readout, study.block, *study.streams, SETTINGS, rates)
    alone = {lr: study.train(dataclasses.replace(SETTINGS, lr=lr)) for lr in rates[1:]}
    assert best.lr == max(alone, key=lambda lr: alone[lr].reached)
    assert same(best, alone[best.lr])
    with pytest.raises(FloatingPointError):
        training.train_at_best_rate(study.readout, study.block, *study.streams, SETTINGS, [1e30])


@pytest.mark.parametrize("after", [1, 3, 7, 8])
def test_interrupted_at_any_step_and_resumed_it_ends_as_if_nothing_had_happened(tmp_path, monkeypatch, after):
    study = Study(tmp_path)
    whole = study.train()
    answer, calls = FrozenBlock.__call__, itertools.count(1)

    def interrupted(self, *args):
        if next(calls) > after:
            raise KeyboardInterrupt
        return answer(self, *args)

    with monkeypatch.context() as patch:
        patch.setattr(FrozenBlock, "__call__", interrupted)
        with pytest.raises(KeyboardInterrupt):
            study.train(checkpoint=tmp_path / "run")
    assert same(study.train(checkpoint=tmp_path / "run"), whole)
    assert len(list(tmp_path.glob("run-*.training"))) == 1


@pytest.mark.parametrize("placement", ["null", "replace", "augment"])
def test_a_block_that_has_looked_before_is_trained_around_to_the_same_numbers(tmp_path, placement):
    study = Study(tmp_path, "beit-mean-both", placement)
    whole, before = study.train(), sorted(tmp_path.rglob("*"))
    kept = {str(number): stream for number, stream in enumerate(study.streams)}
    with looked_at(study.block.model, 1, kept, tmp_path, "looking") as looked:
        assert same(train(study.readout, study.block, *looked.values(), SETTINGS), whole)
        (file,) = tmp_path.rglob("0.keys")
        n, layout = len(study.streams[0].labels), study.streams[0].layout
        assert 2 * file.stat().st_size == room(study.block.model, n, layout.n_tokens)
    assert sorted(tmp_path.rglob("*")) == before


def test_what_is_done_is_not_trained_again(tmp_path, monkeypatch):
    study = Study(tmp_path)
    first = study.train(checkpoint=tmp_path / "run")
    monkeypatch.setattr(torch.optim.Adam, "step", None)
    assert same(study.train(checkpoint=tmp_path / "run"), first)


def test_a_training_of_something_else_is_not_taken_up(tmp_path):
    study = Study(tmp_path)
    study.train(checkpoint=tmp_path / "run")
    others = [dataclasses.replace(SETTINGS, seed=4), dataclasses.replace(SETTINGS, lr=0.002)]
    for settings in others:
        assert same(study.train(settings, checkpoint=tmp_path / "run"), study.train(settings))
    with torch.no_grad():
        study.block.model.blocks[1].mlp.fc_in.bias.add_(0.1)
    study.train(checkpoint=tmp_path / "run")
    assert len(list(tmp_path.glob("run-*.training"))) == 4


def test_a_damaged_training_is_begun_anew_and_says_so(tmp_path):
    study = Study(tmp_path)
    first = study.train(checkpoint=tmp_path / "run")
    (path,) = tmp_path.glob("run-*.training")
    spoilt = bytearray(path.read_bytes())
    spoilt[5000] ^= 1
    path.write_bytes(spoilt)
    again = study.train(checkpoint=tmp_path / "run")
    assert same(again, first)
    assert "damaged" in again.notes[0]
    assert not first.notes


def test_a_loss_that_is_no_number_stops_the_training(tmp_path):
    with pytest.raises(FloatingPointError, match="lower lr"):
        Study(tmp_path).train(dataclasses.replace(SETTINGS, lr=1e30))


def test_no_batch_is_left_with_one_image():
    assert [b.stop - b.start for b in training._batches(33, 16)] == [16, 17]
    assert [b.stop - b.start for b in training._batches(34, 16)] == [16, 16, 2]
    assert training._batches(1, 16) == [slice(0, 1)]


def test_draws_of_a_token_that_is_not_random_agree_and_their_mean_is_any_of_them(tmp_path):
    study = Study(tmp_path, placement="null")
    with study.block.ready():
        drawn = evaluate(study.readout, study.block, study.streams[1], seed=0, draws=5)
    assert drawn.agreement.tolist() == [1.0] * 30
    assert torch.equal(drawn.one, drawn.mean)


def test_agreement_is_that_of_all_pairs_of_draws(tmp_path):
    study = Study(tmp_path)
    study.readout.token.layers[-1].weight.data.mul_(300)
    with study.block.ready():
        drawn = evaluate(study.readout, study.block, study.streams[1], seed=7, draws=4)
        generator = torch.Generator().manual_seed(7 + training.EVALUATION_SEED)
        x, _ = study.streams[1].batch(torch.arange(30))
        with torch.no_grad():
            said = [study.readout(study.block, x, generator).argmax(-1) for _ in range(4)]
    pairs = torch.stack([(a == b).double() for a, b in itertools.combinations(said, 2)]).mean(0)
    assert torch.allclose(drawn.agreement.double(), pairs)
    assert pairs.min() < 1


@pytest.fixture(scope="module")
def result() -> Result:
    return run({name: model(name) for name in ("beit-mean-both", "registers")}, repro=True)


def run(models: dict[str, HookedViT], data: ImageData | None = None, **kw: Any) -> Result:
    data = coloured(40, 1) if data is None else data
    small = {"layers": (0, 1), "epochs": 2, "batch_size": 32, "draws": 4, "fit_data": coloured(80, 2)}
    trained = {"modes": ("trained",), "seeds": 1, "lr": 1e-3}
    return random_readouts(models, data, **small | trained | kw)


def table(result: Result, measure: str) -> pd.DataFrame:
    return result.frame[(result.frame.measure == measure) & result.frame.epoch.isna()]


def test_every_readout_is_measured_on_both_splits(result):
    accuracy = table(result, "accuracy")
    assert (accuracy[accuracy.status == "closed form"].split == "test").all()
    accuracy = accuracy[accuracy["mode"].isin(PLACEMENTS)]
    assert len(accuracy) == 2 * 2 * len(PLACEMENTS) * 2
    assert accuracy.groupby("split")["n"].unique().map(list).to_dict() == {"test": [40], "validation": [15]}
    assert ((accuracy.low <= accuracy.value) & (accuracy.value <= accuracy.high)).all()
    assert len(table(result, "agreement")) == len(table(result, "accuracy_mean_of_draws")) == 2 * 2 * 2
    assert table(result, "agreement").value.between(0, 1).all()
    assert len(table(result, "chance")) == 4
    epochs = result.frame[result.frame.epoch.notna()]
    assert len(epochs) == 2 * 2 * len(PLACEMENTS) * 4 * 2
    assert set(epochs.measure) == {"loss", "fit_accuracy", "validation_accuracy", "validation_loss"}


def test_where_others_start_from_scratch_is_where_nothing_is_warm(result):
    """At layer 0, the last but one, both controls are the same run; elsewhere one of them starts warm."""
    rows = result.frame[result.frame.measure == "validation_accuracy"].set_index(["model", "layer", "mode"])
    for name in result.meta["models"]:
        null, de_novo = (rows.loc[(name, 0, mode), "value"].tolist() for mode in ("null", "null_de_novo"))
        assert null == de_novo
    losses = result.frame[(result.frame.measure == "loss") & (result.frame.layer == 1)].groupby("mode")["value"]
    assert losses.mean()["null"] != losses.mean()["null_de_novo"]


def test_a_difference_is_that_of_the_accuracies(result):
    accuracy = table(result, "accuracy").query("split == 'test'").set_index(["model", "layer", "mode"])["value"]
    rows = table(result, "difference")
    closed = len(result.meta["modes"]["closed_form"]) - 1
    assert len(rows) == 2 * 2 * (len(COMPARED) + sum(map(len, COUNTERPARTS.values())) + closed)
    for row in rows.itertuples():
        a, b = (accuracy[row.model, row.layer, mode] for mode in row.mode.split(" - "))
        assert row.value == pytest.approx(a - b)
        assert row.low <= row.value <= row.high


def test_the_same_call_gives_the_same_numbers_and_nothing_stays(result, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    again = run({"beit-mean-both": model("beit-mean-both")}, repro=True)
    first = result.frame[result.frame.model == "beit-mean-both"]
    pd.testing.assert_frame_equal(again.frame, first.reset_index(drop=True))
    assert not list(tmp_path.iterdir())


def test_seeds_repeat_the_training():
    kw = {"layers": (1,), "epochs": 1, "fit_data": coloured(40, 2)}
    kw["modes"] = ("null", "replace")
    both = run({"vit": model("vit")}, seeds=2, trainings=2, **kw).frame
    second = run({"vit": model("vit")}, seed=1, **kw).frame

    def of_second(frame: pd.DataFrame) -> pd.DataFrame:
        # what a training is compared with is drawn with the first seed
        rows = frame[frame.seed.eq(1).fillna(False) & frame.measure.ne("difference")]
        return rows.drop(columns="status").reset_index(drop=True)

    pd.testing.assert_frame_equal(of_second(both), of_second(second))
    losses = both[both.measure == "loss"].groupby("seed")["value"].apply(list)
    assert losses[0] != losses[1]


def test_the_model_is_left_as_it_was():
    vit = model("vit")
    before = {name: value.clone() for name, value in vit.state_dict().items()}
    run({"vit": vit}, epochs=1, layers=(1,))
    assert all(torch.equal(value, before[name]) for name, value in vit.state_dict().items())
    assert all(p.requires_grad and p.grad is None for p in vit.parameters())
    assert not any(point.has_hooks() for point in vit.hook_points())


KILLED = """
import os, signal, sys
sys.path.insert(0, {root!r})
import torch
torch.set_num_threads(1)
from analyses.questions.cls_use.random_readouts.frozen import FrozenBlock
from tests.analyses.questions.cls_use.test_random_readouts import model, run

answer, left = FrozenBlock.__call__, [{after}]

def killed(self, *args):
    left[0] -= 1
    if not left[0]:
        os.kill(os.getpid(), signal.SIGKILL)
    return answer(self, *args)

FrozenBlock.__call__ = killed
run({{"vit": model("vit")}}, keep_in={folder!r})
"""


def test_a_killed_process_ends_with_the_same_numbers_when_it_is_run_again(tmp_path):
    code = KILLED.format(root=str(Path(__file__).parents[4]), after=60, folder=str(tmp_path))
    done = subprocess.run([sys.executable, "-c", code], env=os.environ | {"TQDM_DISABLE": "1"}, timeout=300)
    assert done.returncode == -signal.SIGKILL
    begun = set(tmp_path.glob("*.training"))
    assert len(begun) >= 2
    resumed = run({"vit": model("vit")}, keep_in=str(tmp_path))
    assert begun < set(tmp_path.glob("*.training"))
    pd.testing.assert_frame_equal(resumed.frame, run({"vit": model("vit")}).frame)


def test_permuted_labels_are_at_chance():
    """What no readout can know, none is reported to know."""
    pictures = [image for batch in coloured(200, 1).batches(50) for image in batch.images]
    labels = torch.randint(CLASSES, (200,), generator=torch.Generator().manual_seed(0)).tolist()
    clear = coloured(100, 2)
    kw = {"layers": (1,), "epochs": 6, "fit_data": clear, "lr": 0.01, "modes": ("closed_form", "trained")}
    rows = table(run({"vit": model("vit")}, as_data((pictures, labels)), **kw), "accuracy").query("split == 'test'")
    assert (rows.low <= 1 / CLASSES).all()
    assert (rows.high >= 1 / CLASSES).all()
    read = table(run({"vit": model("vit")}, coloured(60, 3), **kw), "accuracy").query("split == 'test'")
    assert read.value.max() > 0.5


def test_a_class_without_training_images_is_noted():
    few = coloured(80, 2, classes=CLASSES - 1)
    assert any(
        "1 of 5 classes have no training image" in note for note in run({"v": model("vit")}, fit_data=few).meta["notes"]
    )


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"draws": 1}, "draws must be at least 2"),
        ({"epochs": 0}, "epochs must be at least 1"),
        ({"seeds": 0}, "seeds must be at least 1"),
        ({"batch_size": 1}, "batch_size must be at least 2"),
        ({"lr": 1e-7, "repro": True}, "begins above that"),
        ({"trainings": 2}, "at most seeds=1; got 2"),
        ({"modes": ()}, "got none"),
        (
            {"modes": ("replace_mean_cl",)},
            "a mode is one of .*; got 'replace_mean_cl'; did you mean 'replace_mean_cls'",
        ),
        ({"modes": ("null_de_novo",)}, "so null_de_novo is null"),
        ({"start": 0}, r"every readout begins anew .*start=0.*repro=True"),
        ({"layers": (5,)}, "the model has 2"),
        ({"layers": (1,), "start": 0, "repro": True}, r"one of those that are read, \[1\]"),
        ({"fit_data": coloured(5, 1)}, "5 classes cannot be learned from 4 images"),
    ],
)
def test_what_cannot_be_done_is_refused_before_any_run(settings, says):
    vit = model("vit")
    with pytest.raises(ValueError, match=says):
        run({"vit": vit}, **settings)
    assert vit.run.n_forwards == 0


def test_a_model_without_cls_is_refused():
    sizes = {"d_model": 32, "n_layers": 2, "n_heads": 4, "d_mlp": 64, "image_size": (IMAGE, IMAGE), "patch_size": 8}
    gap = HookedViT(ViTConfig(**sizes, has_cls=False, sources=("patches",), n_classes=CLASSES))
    with pytest.raises(ValueError, match="gap has no CLS token"):
        run({"gap": gap})


def test_the_last_third_is_read_unless_layers_are_named():
    vit = model("vit")
    assert set(run({"vit": vit}, layers=None, epochs=1).frame.layer.dropna()) == {1}


def test_pictures_table_and_words_have_every_model(result):
    names = set(result.meta["models"])
    assert {row["model"] for row in result.meta["table"]} == names
    assert list(summary_table(result)["layer"].unique()) == [0, 1]
    figure, curves, trained = result.figure(), curves_figure(result), trained_figure(result)
    for drawn in (figure, curves, trained):
        titles = " ".join(a.text for a in drawn.layout.annotations)
        assert all(name in titles for name in names)
    assert {"chance"} < {trace.name for trace in figure.data}
    assert "unsettled: no finding" in {trace.name for trace in trained.data}
    assert len(result.meta["summary"]) == 4
    assert "test images" in figure.layout.title.text
    json.dumps(result.meta)


def test_the_sources_setting_shows_validation_and_normalises_batches():
    published = run({"vit": model("vit")}, repro=True, epochs=1)
    assert "validation images" in trained_figure(published).layout.title.text
    assert published.meta["training"]["generator_batch_norm"]
    assert published.meta["training"]["decoder_input"] == "raw"
