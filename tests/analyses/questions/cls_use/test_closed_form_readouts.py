"""Readouts in closed form are the base: exact, on the very block outputs, and what a training has to reach."""

from __future__ import annotations

import time
from typing import Any

import pandas as pd
import pytest
import torch
from torch import Tensor

from analyses import Result, load_data, random_readouts
from analyses.data import ImageData
from analyses.probes.ridge import GramRidge
from analyses.questions.cls_use.random_readouts import readouts
from analyses.questions.cls_use.random_readouts.arms import BELOW, COUNTERPARTS, ENDED, choose, told
from analyses.questions.cls_use.random_readouts.frozen import FrozenBlock
from analyses.questions.cls_use.random_readouts.looked import looked_at
from analyses.questions.cls_use.random_readouts.networks import RandomToken
from analyses.questions.cls_use.random_readouts.starting import begin_at_cls
from analyses.questions.cls_use.random_readouts.streams import Stream
from analyses.questions.cls_use.random_readouts.tokens import ARMS, BASE, RANDOM, TOKENS, ClsDistribution, Placed
from analyses.running.catalogue import registered_analyses
from hooked_vit import zoo
from interventions.vocabulary import generator_of
from tests.analyses.questions.cls_use.test_cls_causality import coloured, model
from tests.tiny import CLASSES

LAYER = 1


@pytest.fixture(scope="module")
def fit() -> list[Stream]:
    """Two streams of a model with registers, whose CLS is not all of its prefix."""
    vit, found = model("registers"), []
    for seed, n in ((2, 60), (3, 20)):
        entering = vit.preprocess(next(coloured(n, seed).batches(n)).images)
        with torch.no_grad():
            x = vit(entering, stop_at_layer=LAYER)
        labels = next(coloured(n, seed).batches(n)).labels
        found.append(Stream(x, labels, vit.tokens, f"stream {seed}"))
    return found


@pytest.fixture(scope="module")
def cls(fit: list[Stream]) -> ClsDistribution:
    return ClsDistribution.of(fit)


def every_cls(fit: list[Stream]) -> Tensor:
    return torch.cat([s.x[:, 0] for s in fit]).double()


def placed(token: Any, fit: list[Stream], cls: ClsDistribution, *, fitting: bool = True, seed: int = 0) -> Tensor:
    tokens = Placed(token, cls, fit, seed=seed, fitting=fitting)
    halves = [(s, rows) for s in fit for rows in torch.arange(len(s.labels)).chunk(2)]
    return torch.cat([tokens(s, rows).double() for s, rows in halves])


def test_cls_has_the_mean_and_covariance_it_has(fit, cls):
    own = every_cls(fit)
    assert torch.allclose(cls.mean, own.mean(0), atol=1e-6)
    assert torch.allclose(cls.factor @ cls.factor.T, torch.cov(own.T, correction=0), atol=1e-6)
    drawn = cls.draw(200_000, generator_of(0))
    assert torch.allclose(torch.cov(drawn.T), torch.cov(own.T, correction=0), atol=0.02 * own.var(0).max())


def test_every_token_is_what_its_name_says(fit, cls):
    own = every_cls(fit)
    assert torch.equal(placed("own_cls", fit, cls), own)
    assert torch.allclose(placed("mean_cls", fit, cls), own.mean(0).expand_as(own), atol=1e-6)
    patches = torch.cat([s.x[:, s.layout.patches].double().mean(1) for s in fit])
    assert torch.allclose(placed("mean_patch", fit, cls), patches, atol=1e-6)
    assert len(placed("normal", fit, cls).unique(dim=0)) == len(own)
    for one in ("one_normal", "one_gaussian"):
        fitting, measured = (placed(one, fit, cls, fitting=fitting) for fitting in (True, False))
        assert len(torch.cat([fitting, measured]).unique(dim=0)) == 1
        assert not torch.equal(fitting, placed(one, fit, cls, seed=1))


def test_another_images_cls_is_never_its_own_and_everybodys_is_given_once(fit, cls):
    own = every_cls(fit)
    for seed in range(5):
        other = placed("other_cls", fit, cls, seed=seed)
        assert not (other == own).all(1).any()
        assert torch.equal(other.unique(dim=0), own.unique(dim=0))
    measured = placed("other_cls", fit, cls, fitting=False)
    assert all((row == own).all(1).any() for row in measured)


def test_draws_for_fitting_and_for_measuring_differ(fit, cls):
    for token in ("gaussian", "normal", "other_cls"):
        first = placed(token, fit, cls)
        assert torch.equal(first, placed(token, fit, cls))
        assert not torch.equal(first, placed(token, fit, cls, fitting=False))
        assert not torch.equal(first, placed(token, fit, cls, seed=1))


@pytest.fixture(scope="module")
def result() -> Result:
    return run(layers=(0, LAYER))


def run(data: ImageData | None = None, **kw: Any) -> Result:
    data = coloured(60, 1) if data is None else data
    options = {"layers": (LAYER,), "seeds": 2, "fit_data": coloured(80, 2), "batch_size": 32, "epochs": 2, "draws": 2}
    return random_readouts({"vit": model("vit")}, data, **options | kw)


def rows(result: Result, measure: str, **where: Any) -> pd.DataFrame:
    frame = result.frame[(result.frame.measure == measure) & (result.frame.split == "test")]
    for column, value in where.items():
        frame = frame[frame[column].eq(value).fillna(False)]
    return frame


def test_without_modes_all_closed_forms_are_measured_and_nothing_is_trained(result, monkeypatch):
    accuracy = rows(result, "accuracy")
    assert set(accuracy["mode"]) == set(ARMS) == {f"{p}_{t}" for p in ("replace", "augment") for t in TOKENS}
    assert set(result.frame.status.dropna()) == {"closed form"}
    for arm in ARMS.values():
        seeds = accuracy[(accuracy["mode"] == arm.name) & (accuracy.layer == LAYER)].seed
        assert seeds.tolist() == [0, 1] if arm.token in RANDOM else seeds.isna().all()
    assert result.meta["modes"] == {"closed_form": list(ARMS), "trained": []}
    monkeypatch.setattr(torch.optim, "Adam", None)
    pd.testing.assert_frame_equal(run(layers=(0, LAYER)).frame, result.frame)


def test_own_cls_is_read_as_a_ridge_probe_reads_the_models_own_stream(result):
    """The base is the block undisturbed, decoded by our probe: the same number by another way."""
    vit, ridge = model("vit"), GramRidge(CLASSES)

    def cls_behind(data: ImageData) -> tuple[Tensor, Tensor]:
        (batch,) = data.batches(100)
        with torch.no_grad():
            return vit(vit.preprocess(batch.images), stop_at_layer=LAYER + 1)[:, 0], batch.labels

    x, labels = cls_behind(coloured(80, 2))
    ridge.update({"cls": x}, labels)
    tested, expected = cls_behind(coloured(60, 1))
    right = ridge.fit()["cls"].predict(tested) == expected
    assert rows(result, "accuracy", mode=BASE, layer=LAYER)["value"].item() == pytest.approx(right.double().mean())


def test_every_arm_is_compared_with_own_cls_on_the_same_images(result):
    differences = rows(result, "difference")
    per_seed = sum(2 if arm.token in RANDOM else 1 for arm in ARMS.values()) - 1
    assert len(differences) == 2 * per_seed
    for row in differences.itertuples():
        arm, base = row.mode.split(" - ")
        assert base == BASE
        mine = rows(result, "accuracy", mode=arm, layer=row.layer)
        mine = mine[mine.seed.eq(row.seed).fillna(False)] if not pd.isna(row.seed) else mine
        own = rows(result, "accuracy", mode=BASE, layer=row.layer)["value"].item()
        assert row.value == pytest.approx(mine["value"].item() - own)
        assert row.low <= row.value <= row.high


def test_a_copy_of_cls_beside_it_answers_as_itself_does_where_nothing_else_looks(result):
    """At layer 0 every image has one CLS: its own, the mean and another image's are one and the same."""
    at_0 = rows(result, "accuracy", layer=0).groupby("mode")["value"].first()
    for token in ("mean_cls", "other_cls", "gaussian", "one_gaussian"):
        for placement in ("replace", "augment"):
            assert at_0[f"{placement}_{token}"] == pytest.approx(at_0[f"{placement}_own_cls"], abs=0.02)


def test_a_generator_begins_as_cls_is_distributed(fit, cls):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        token = RandomToken(len(cls.mean)).start_at(cls, generator_of(0))
    with torch.no_grad():
        drawn = token(20_000, generator_of(1)).double()
    own = torch.cov(every_cls(fit).T, correction=0)
    assert torch.allclose(drawn.mean(0), cls.mean, atol=0.05 * own.diagonal().max().sqrt())
    assert (torch.cov(drawn.T) - own).norm() < 0.15 * own.norm()


@pytest.mark.parametrize("mode", ["null", "replace", "augment", "deterministic"])
def test_a_decoder_sees_standardised_input_when_training_begins(fit, cls, mode, tmp_path):
    vit = model("registers")
    placement = {"null": "null", "augment": "augment"}.get(mode, "replace")
    block = FrozenBlock(vit, LAYER, placement, tokens=vit.tokens)
    with looked_at(vit, LAYER, {"fit": fit[0]}, tmp_path, "looking") as looked:
        readout = begin_at_cls(mode, block, "linear", CLASSES, cls, looked["fit"], 0)
    if mode == "deterministic":
        assert torch.allclose(readout.token.token.double(), cls.mean, atol=1e-6)
    seen: list[Tensor] = []
    readout.decoder[1].register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    with block.ready(), torch.no_grad():
        readout(block, fit[0].x, generator_of(0))
    assert seen[0].mean(0).abs().max() < 0.05
    assert (seen[0].std(0, correction=0) - 1).abs().max() < 0.05


def test_settled_is_said_of_every_training_and_of_nothing_that_is_below_its_closed_form():
    trained = run(modes=("trained",), epochs=12, patience=3, lr=3e-3, seeds=1)
    accuracy = rows(trained, "accuracy")
    value, status = (accuracy.groupby("mode")[column].first() for column in ("value", "status"))
    curves = trained.frame[trained.frame.measure == "validation_accuracy"].groupby("mode")["value"].apply(list)
    lost = trained.frame[trained.frame.measure == "validation_loss"].groupby("mode")["value"].apply(list)
    for mode in trained.meta["modes"]["trained"]:
        reached = [(a, -b) for a, b in zip(curves[mode], lost[mode], strict=True)]
        stopped = len(reached) - 1 - reached.index(max(reached)) >= 3
        below = value[mode] < max(value[arm] for arm in COUNTERPARTS[mode])
        assert status[mode] == (ENDED if not stopped else BELOW if below else "settled")
    assert any("lower bounds" in note and "null too" in note for note in trained.meta["notes"])
    assert all("lower bounds" in s for s in trained.meta["summary"] if "trained readouts" in s)
    for row in rows(trained, "difference").itertuples():
        a, b = row.mode.split(" - ")
        assert row.status == told(status[a], status[b])


def test_a_readout_that_learned_nothing_is_called_unsettled_everywhere():
    """Its optimiser is at fault, as everybody can see beside the closed form."""
    hopeless = run(modes=("null",), lr=1e-9, epochs=40, patience=1, layers=(LAYER,))
    (row,) = rows(hopeless, "accuracy", mode="null").itertuples()
    assert row.value < rows(hopeless, "accuracy", mode=BASE)["value"].item()
    assert row.status in (BELOW, ENDED)
    assert rows(hopeless, "difference", mode=f"null - {BASE}").status.item() == row.status
    assert "0 of 1 trained readout is settled; unsettled" in hopeless.meta["summary"][-1]
    (drawn,) = (
        draw(hopeless)
        for title, draw in registered_analyses()["random-readouts"].figures(hopeless).items()
        if title == "Trained readouts"
    )
    assert "unsettled: no finding" in {trace.name for trace in drawn.data}
    assert not any("null" in s for s in hopeless.meta["summary"][:-1])


def test_a_learning_rate_is_found_on_validation_images(monkeypatch):
    tried: list[list[float]] = []
    found = readouts.train_at_best_rate

    def watched(*args: Any, **kw: Any) -> Any:
        tried.append(list(args[5]))
        return found(*args, **kw)

    monkeypatch.setattr(readouts, "train_at_best_rate", watched)
    best = run(modes=("null",), epochs=4)
    assert len(tried[0]) >= 3
    assert best.frame[best.frame.measure == "learning_rate"]["value"].item() in tried[0]
    run(modes=("null",), lr=0.02)
    assert tried[1] == [0.02]


def test_what_others_are_compared_with_is_always_measured():
    assert choose(["replace"], repro=False).closed == [BASE, "replace_mean_cls", "replace_gaussian"]
    assert choose(["augment_normal"], repro=False) == ([BASE, "augment_normal"], [])
    assert choose(["trained"], repro=True).trained == ["null", "null_de_novo", "replace", "augment", "deterministic"]
    assert set(run(modes=("augment_normal",)).frame["mode"].dropna()) == {
        *(BASE, "augment_normal", f"augment_normal - {BASE}")
    }


def test_closed_forms_of_a_built_in_model_are_cheap():
    """Seconds of processor time, at a fifth of the default sizes."""
    vit, begun = zoo.load("vit"), time.process_time()
    few = {"fit_data": load_data("scenes:train", n=400), "layers": (6,), "seeds": 1}
    found = random_readouts({"vit": vit}, load_data("scenes:test", n=200), **few)
    assert time.process_time() - begun < 30
    base, mean, noise = (
        found.frame[(found.frame.measure == "accuracy") & (found.frame["mode"] == arm)]["value"].item()
        for arm in (BASE, "replace_mean_cls", "replace_normal")
    )
    assert base > mean > noise, "in this model the label comes with CLS itself"
