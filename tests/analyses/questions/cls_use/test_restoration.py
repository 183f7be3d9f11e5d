"""The restoration matrix: its oracles hold exactly, and floors are what all permutations give on average."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pandas as pd
import pytest
import torch

from analyses import Result, causality_vs_decodability, cls_causality, restoration
from analyses.activations.streams import read_stream
from analyses.controls.shuffle_floors import batch_order, batch_seed, check_exchange, expected_hits
from analyses.data import as_data
from analyses.probes.opening import Opening
from analyses.probes.ridge import GramRidge
from analyses.probes.role_probes import fit_role_probes, read_role
from analyses.questions.cls_use.restoration.figure import panels_figure, restored_figure
from analyses.questions.cls_use.restoration.walk import shuffled_streams
from interventions import apply, shuffle_tokens
from interventions.catalogue.shuffling import draw_permutation
from tests.analyses.questions.cls_use.test_cls_causality import coloured, model
from tests.tiny import CLASSES, FAMILIES, make, pixels

NAME, BATCH, SEEDS = "deit-teacher", 30, 2
DATA, FIT = coloured(70, 1), coloured(120, 2)


@pytest.fixture(scope="module")
def result() -> Result:
    return restoration({NAME: model(NAME)}, DATA, fit_data=FIT, seeds=SEEDS, batch_size=BATCH)


def cell(
    result: Result, shuffled: int | None, probed: int, seed: int | None = None, measure: str = "accuracy"
) -> float:
    frame = result.frame[(result.frame.measure == measure) & (result.frame.probe_layer == probed)]
    frame = frame[frame.shuffled_layer.isna() if shuffled is None else frame.shuffled_layer == shuffled]
    if seed is not None:
        frame = frame[frame.seed == seed]
    return float(frame.value.mean())


@pytest.mark.parametrize("name", FAMILIES)
def test_walking_on_from_the_shared_prefix_is_running_under_the_shuffle(name: str) -> None:
    """Exactly, for every cell; what lies before the shuffle is the clean stream."""
    vit = make(name, torch.float32)
    for role in vit.tokens.roles:
        read, x, labels = read_role(vit, role), pixels(vit, n=6), torch.zeros(6, dtype=torch.long)
        orders = {seed: batch_order(seed, 3, "batch", labels) for seed in range(2)}
        walked = {place: v for *place, v in shuffled_streams(vit, x, role, orders, read) for place in [tuple(place)]}
        _, clean = read_stream(vit, x, read)
        assert all(torch.equal(walked[None, None, p], clean[p]) for p in range(2))
        for shuffled, seed in ((s, k) for s in range(2) for k in range(2)):
            with apply(vit, shuffle_tokens(layer=shuffled, tokens=role, seed=batch_seed(seed, 3))):
                _, alone = read_stream(vit, x, read)
            assert all(torch.equal(alone[p], clean[p]) for p in range(shuffled))
            assert all(torch.equal(walked[shuffled, seed, p], alone[p]) for p in range(shuffled, 2))
        assert torch.equal(walked[0, 0, 0], clean[0][orders[0]])


def test_tokens_are_read_of_the_images_that_run_whatever_size_they_are_of() -> None:
    """A processor that keeps a picture's shape makes other sizes than the native one, which `model.tokens` is of."""
    vit = make("vit", torch.float32)
    x = torch.randn(4, 3, 16, 24)
    (*_, (*place, last)) = shuffled_streams(vit, x, "patches", {}, read_role(vit, "patches"))
    _, cache = vit.run_with_cache(x)
    assert place == [None, None, 1]
    assert torch.equal(last, cache.at("resid_post", 1, tokens="patches").mean(1))


def test_columns_before_the_shuffled_layer_are_exactly_the_row_without_a_shuffle(result: Result) -> None:
    assert [cell(result, 1, 0, seed) for seed in range(SEEDS)] == [cell(result, None, 0)] * SEEDS
    assert cell(result, 1, 1) < cell(result, None, 1)


def test_the_row_without_a_shuffle_is_the_probe_curve(result: Result) -> None:
    curve = cls_causality({NAME: model(NAME)}, DATA, fit_data=FIT, seeds=1, batch_size=BATCH).frame
    curve = curve[curve.measure == "probe"].sort_values("layer")
    assert [cell(result, None, p) for p in range(2)] == curve.value.tolist()


def test_the_diagonal_is_the_probe_on_the_tokens_that_were_dealt_out(result: Result) -> None:
    """Exactly for the permutations drawn, and the floor is its mean over all there are."""
    vit = model(NAME)
    probes, _ = fit_role_probes(NAME, vit, Opening(FIT, FIT, "", CLASSES, {NAME: None}), BATCH)
    for p in range(2):
        hits, luck = [0] * SEEDS, []
        for i, batch in enumerate(DATA.batches(BATCH)):
            _, at_layer = read_stream(vit, vit.preprocess(batch.images), read_role(vit))
            said = probes[p].predict(at_layer[p])
            luck += [(said == y).double().mean().item() for y in batch.labels]
            for seed in range(SEEDS):
                hits[seed] += int((said[batch_order(seed, i, "batch", batch.labels)] == batch.labels).sum())
        assert [cell(result, p, p, seed) for seed in range(SEEDS)] == [h / len(DATA) for h in hits]
        assert cell(result, p, p, measure="floor") == pytest.approx(np.mean(luck), abs=1e-12)


def test_restoration_is_its_formula(result: Result) -> None:
    at_floor, none = cell(result, 1, 1), cell(result, None, 1)
    expected = (cell(result, 0, 1) - at_floor) / (none - at_floor)
    rows = result.frame[result.frame.measure == "restoration"]
    assert rows.value.tolist() == pytest.approx([expected], abs=1e-9)
    assert (rows.low <= rows.value).all()
    assert (rows.value <= rows.high).all()
    assert list(zip(rows.shuffled_layer, rows.probe_layer, strict=True)) == [(0, 1)]


LABELS = torch.tensor([0, 0, 1, 1, 2, 2])
SAID = torch.tensor([0, 1, 1, 1, 0, 2])


@pytest.mark.parametrize("among", ["batch", "others"])
def test_expected_hits_are_the_mean_over_all_permutations(among: str) -> None:
    orders = torch.tensor(list(permutations(range(6))))
    if among == "others":
        orders = orders[(orders != torch.arange(6)).all(1)]
    mean = (SAID[orders] == LABELS).double().mean(0)
    torch.testing.assert_close(expected_hits(SAID, LABELS, among), mean, rtol=0, atol=1e-12)


@pytest.mark.parametrize("among", ["same_class", "other_classes"])
@pytest.mark.parametrize("labels", [LABELS, torch.tensor([0, 0, 0, 1, 2, 1])])
def test_expected_hits_are_the_mean_over_many_draws(among: str, labels: torch.Tensor) -> None:
    generator, n = torch.Generator().manual_seed(0), 4000
    drawn = torch.stack([draw_permutation(6, generator, among, labels) for _ in range(n)])
    mean = (SAID[drawn] == labels).double().mean(0)
    assert (expected_hits(SAID, labels, among) - mean).abs().max() < 4.5 * 0.5 / n**0.5


def test_refitted_probes_are_fitted_and_read_under_the_same_shuffle() -> None:
    vit = model(NAME)
    run = restoration({NAME: vit}, DATA, fit_data=FIT, probe_fit="refit", seeds=SEEDS, batch_size=BATCH)
    read, ridge, hits = read_role(vit), GramRidge(CLASSES), 0
    for i, batch in enumerate(FIT.batches(BATCH)):
        with apply(vit, shuffle_tokens(layer=0, tokens="cls", seed=batch_seed(0, i))):
            ridge.update({"1": read_stream(vit, vit.preprocess(batch.images), read)[1][1]}, batch.labels)
    probe = ridge.fit()["1"]
    for i, batch in enumerate(DATA.batches(BATCH)):
        with apply(vit, shuffle_tokens(layer=0, tokens="cls", seed=batch_seed(1, i))):
            said = probe.predict(read_stream(vit, vit.preprocess(batch.images), read)[1][1])
        hits += int((said == batch.labels).sum())
    assert cell(run, 0, 1, seed=1) == hits / len(DATA)
    assert cell(run, 0, 1) != cell(run, None, 1)
    clean = restoration({NAME: vit}, DATA, fit_data=FIT, seeds=SEEDS, batch_size=BATCH)
    assert [cell(run, None, p) for p in range(2)] == [cell(clean, None, p) for p in range(2)]


def test_the_published_setting_is_refit_with_one_permutation() -> None:
    published = restoration({NAME: model(NAME)}, DATA, fit_data=FIT, batch_size=BATCH, repro=True)
    asked = restoration({NAME: model(NAME)}, DATA, fit_data=FIT, batch_size=BATCH, probe_fit="refit", seeds=1)
    pd.testing.assert_frame_equal(published.frame, asked.frame)
    assert published.meta["probe_fit"] == "refit"


def test_other_tokens_are_shuffled_and_probed() -> None:
    vit = model("registers")
    run = restoration(
        {"m": vit}, DATA, fit_data=FIT, tokens="registers", probe_tokens="patches", seeds=1, batch_size=BATCH
    )
    assert [cell(run, p, p) for p in range(2)] == [cell(run, None, p) for p in range(2)]
    assert cell(run, 0, 0, measure="floor") < cell(run, None, 0)
    both = restoration({"m": vit}, DATA, fit_data=FIT, tokens="registers", seeds=1, batch_size=BATCH)
    assert cell(both, 0, 0) < cell(both, None, 0)


def test_where_nothing_can_be_read_nothing_is_said_to_be_restored() -> None:
    images = [i for b in DATA.batches(35) for i in b.images]
    mixed = as_data((images, np.random.default_rng(5).permutation(DATA.labels.numpy()).tolist()))
    run = restoration({NAME: model(NAME)}, mixed, fit_data=FIT, seeds=1, batch_size=BATCH)
    assert not (run.frame.measure == "restoration").any()
    assert "nothing to be restored" in run.meta["summary"][0] or "no probe" in run.meta["summary"][0]
    assert any("no restoration" in note for note in run.meta["notes"])
    for draw in (restored_figure, panels_figure):
        assert draw(run).data


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"tokens": "registers"}, "no registers token.*nothing to shuffle"),
        ({"probe_tokens": "registers"}, "no registers token.*nothing to probe"),
        ({"seeds": 0}, "at least one permutation"),
        ({"batch_size": 1}, "within a batch"),
        ({"among": "neighbours"}, "among is one of"),
    ],
)
def test_refusals_come_before_any_run(options: dict, says: str) -> None:
    vit = model("vit")
    with pytest.raises(ValueError, match=says):
        restoration({"vit": vit}, DATA, fit_data=FIT, **options)
    assert vit.run.n_forwards == 0


@pytest.mark.parametrize("run", [restoration, causality_vs_decodability, cls_causality])
def test_data_in_the_order_of_their_classes_are_refused(run) -> None:
    """Exchanged within a class, CLS looks unused wherever it is used."""
    images = [image for batch in DATA.batches(35) for image in batch.images]
    ordered = as_data((images, sorted(DATA.labels.tolist())))
    vit = model("vit")
    with pytest.raises(ValueError, match=r"batches have to mix classes: .*probability 74.6%.* with 18.8%"):
        run({"vit": vit}, ordered, fit_data=FIT, seeds=1, batch_size=10)
    assert vit.run.n_forwards == 0
    for mixed in (ordered, DATA):  # one batch of everything mixes all there is
        check_exchange(mixed, batch_size=len(mixed) if mixed is ordered else 10)


def test_a_batch_one_class_dominates_cannot_take_tokens_of_others() -> None:
    vit = model("vit")
    images = [i for b in DATA.batches(35) for i in b.images]
    lopsided = as_data((images, [0] * 60 + [1] * 10))
    with pytest.raises(ValueError, match="cannot all receive"):
        restoration({"vit": vit}, lopsided, fit_data=FIT, among="other_classes", batch_size=BATCH)
    assert vit.run.n_forwards == 0


def test_the_heatmap_shows_the_numbers(result: Result) -> None:
    drawn = result.figure().data[0]
    assert list(drawn.y) == ["none", "0", "1"]
    assert drawn.z[1][1] == pytest.approx(cell(result, 0, 1))
    assert {a.text for a in result.figure().layout.annotations} >= {NAME}
    assert len(panels_figure(result).data) == 2
    assert result.meta["table"][0]["diagonal"] == pytest.approx(np.mean([cell(result, p, p) for p in range(2)]))


def test_models_of_different_depth_stand_at_the_same_share_of_their_blocks() -> None:
    """Each layer behind as many of its own blocks, the last of either at the right; of one depth, by layer."""
    depths = {"shallow": 2, "deep": 4}
    rows = [
        {"model": name, "measure": "accuracy", "shuffled_layer": s, "probe_layer": p, "seed": 0,
         "value": p + (s or 0) / 10}
        for name, n in depths.items() for p in range(n) for s in (None, *range(n))
    ]  # fmt: skip
    rows += [{"model": name, "measure": "chance", "value": 0.5} for name in depths]
    frame = pd.DataFrame(rows).astype({"shuffled_layer": "Int64", "probe_layer": "Int64", "seed": "Int64"})
    meta = {"tokens": "cls", "probe_tokens": "cls", "probe_fit": "clean", "batch_size": 10}
    both = panels_figure(Result(frame.assign(low=frame.value, high=frame.value), meta))
    lines = {(line.name, line.xaxis): (list(line.x), list(line.y)) for line in both.data}
    assert lines["shallow (2 blocks)", "x"] == ([0, 0.5, 1], [0, 0, 0.1])
    assert lines["deep (4 blocks)", "x"] == ([0, 0.25, 0.5, 0.75, 1], [1, 1, 1.1, 1.2, 1.3])
    assert lines["deep (4 blocks)", "x2"][1][0] == lines["deep (4 blocks)", "x2"][1][1] == 3
    titles = [note.text for note in both.layout.annotations]
    assert titles == ["probe behind 50% of the blocks", "probe behind 100% of the blocks"]
    assert "differ in depth" in both.layout.title.text
    assert both.layout.xaxis.title.text == "blocks passed before the shuffle"
    one = panels_figure(Result(frame[frame.model == "deep"].assign(low=0, high=1), meta))
    assert [note.text for note in one.layout.annotations] == [f"probe behind layer {p}" for p in range(4)]
    assert list(one.layout.xaxis.ticktext) == ["none", "0", "1", "2", "3"]
