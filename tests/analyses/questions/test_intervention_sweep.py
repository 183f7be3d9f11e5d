"""A sweep over data: the numbers of separate runs, rows that survive an interruption, files of others refused."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest
import torch

from analyses import cls_causality, intervention_sweep
from analyses.data import Batch
from analyses.questions.intervention_sweep.journal import Journal
from hooked_vit import HookedViT
from interventions import apply, grid, intervention, shuffle_cls, sweep, zero_attention
from interventions.core import _REGISTRY
from tests.analyses.questions.cls_use.test_cls_causality import coloured, model

CHOSEN = [*grid(shuffle_cls, layer=range(2), seed=[0, 1]), zero_attention("cls", "patches")]


def test_a_grid_is_the_product_of_its_lists() -> None:
    ivs = grid(shuffle_cls, layer=range(2), seed=[3, 4], among="others")
    assert [(iv.params["layer"], iv.params["seed"]) for iv in ivs] == [(0, 3), (0, 4), (1, 3), (1, 4)]
    assert {iv.params["among"] for iv in ivs} == {"others"}
    with pytest.raises(TypeError, match="speed"):
        grid(shuffle_cls, layer=[1], speed=[2])


def test_numbers_are_those_of_separate_runs() -> None:
    vit, data = model("vit"), coloured(40, 1)
    result = intervention_sweep({"vit": vit}, data, interventions=CHOSEN, batch_size=20).frame
    for iv in CHOSEN:
        hits = 0
        for batch in data.batches(20):
            with torch.no_grad(), apply(vit, iv):
                hits += int((vit(vit.preprocess(batch.images)).argmax(-1) == batch.labels).sum())
        assert result.loc[result.intervention == repr(iv), "accuracy"].item() == hits / 40
    assert result.iloc[0].changed == 0


class Stop(Exception):
    pass


def test_an_interrupted_sweep_goes_on_where_it_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    vit, data = model("vit"), coloured(60, 1)
    whole = intervention_sweep({"vit": vit}, data, interventions=CHOSEN, batch_size=20)
    file, add, written = tmp_path / "rows.jsonl", Journal.add, []

    def add_some(self: Journal, batch: Batch, rows: list[dict]) -> None:
        if written:  # in the middle of the second batch
            add(self, batch, rows[:3])
            raise Stop
        written.append(rows)
        add(self, batch, rows)

    monkeypatch.setattr(Journal, "add", add_some)
    with pytest.raises(Stop):
        intervention_sweep({"vit": vit}, data, interventions=CHOSEN, batch_size=20, file=str(file))
    monkeypatch.setattr(Journal, "add", add)
    with file.open("a") as out:
        out.write('{"model": "vit", "bat')  # torn by the power cut
    for n_left in (2, 0):  # the first batch was complete; and what was torn is whole from then on
        before = vit.run.n_forwards
        resumed = intervention_sweep({"vit": vit}, data, interventions=CHOSEN, batch_size=20, file=str(file))
        assert vit.run.n_forwards - before == n_left
        pd.testing.assert_frame_equal(resumed.frame, whole.frame)
        assert bool(resumed.meta["notes"]) == bool(n_left)


def test_a_file_of_another_sweep_is_refused_with_both_fingerprints(tmp_path: Path) -> None:
    vit, data, file = model("vit"), coloured(20, 1), tmp_path / "rows.jsonl"
    mine = intervention_sweep({"vit": vit}, data, interventions=CHOSEN, file=str(file)).meta["fingerprint"]
    kept = file.read_text()
    for differs, other in {
        "images of data": {"data": coloured(20, 2), "interventions": CHOSEN},
        "interventions": {"data": data, "interventions": CHOSEN[:2]},
        r"batch size \(7, not 64\)": {"data": data, "interventions": CHOSEN, "batch_size": 7},
    }.items():
        with pytest.raises(
            ValueError, match=f"another sweep: its fingerprint is {mine}, this one's [0-9a-f]{{16}}. .*{differs}"
        ):
            intervention_sweep({"vit": vit}, file=str(file), **other)
    assert file.read_text() == kept
    file.write_text("a shopping list\n")
    with pytest.raises(ValueError, match="not written by a sweep"):
        intervention_sweep({"vit": vit}, data, interventions=CHOSEN, file=str(file))


def test_rows_are_on_disk_as_they_are_measured(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    intervention_sweep({"vit": model("vit")}, coloured(20, 1), interventions=CHOSEN, file=str(file), batch_size=10)
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    assert set(lines[0]) == {"fingerprint", "of"}
    assert len(lines) == 1 + 2 * (len(CHOSEN) + 1)


def test_an_intervention_of_ones_own_works_in_sweep_and_in_cls_causality(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a notebook cell defines needs no change of the package."""
    monkeypatch.setattr("interventions.core._REGISTRY", dict(_REGISTRY))  # other tests go through all there are

    @intervention
    def negated_cls(model: HookedViT, *, layer: int):  # type: ignore[no-untyped-def]
        """Turn CLS around after block `layer`."""

        def edit(resid: torch.Tensor, hook: object) -> torch.Tensor:
            return torch.where(model.tokens.mask("cls")[:, None], -resid, resid)

        return [(f"blocks.{layer}.hook_resid_post", edit)]

    vit, data = model("vit"), coloured(30, 1)
    pixels = vit.preprocess(next(data.batches(30)).images)
    ours = dict(sweep(vit, pixels, grid(negated_cls, layer=range(2))))
    with torch.no_grad(), apply(vit, negated_cls(layer=1)) as run:
        assert torch.equal(vit(pixels), ours[negated_cls(layer=1)])
    assert run.fired == {"blocks.1.hook_resid_post": 1}
    result = cls_causality({"vit": vit}, data, fit_data=coloured(60, 2), seeds=1, disturb=negated_cls)
    assert result.meta["interventions"][0] == "negated_cls(layer=…)"
    shuffled = result.frame[(result.frame.measure == "shuffled") & (result.frame.layer == 1)]["value"].item()
    answers = ours[negated_cls(layer=1)].argmax(-1)
    assert shuffled == (answers == next(data.batches(30)).labels).double().mean().item()


def test_no_batch_holds_one_image_alone():
    """It would exchange tokens with itself: the last one joins the batch before it, one in all is refused."""
    vit = model("vit")
    runs = vit.run.n_forwards
    for n, batch_size in ((1, 8), (20, 1)):
        with pytest.raises(ValueError, match="one image alone|needs two of them"):
            intervention_sweep({"vit": vit}, coloured(n, 1), batch_size=batch_size)
        with pytest.raises(ValueError, match="one image alone|needs two of them"):
            cls_causality({"vit": vit}, coloured(n, 1), fit_data=coloured(20, 2), batch_size=batch_size)
    assert vit.run.n_forwards == runs
    assert set(intervention_sweep({"vit": vit}, coloured(21, 1), batch_size=10).frame.n) == {21}
    cls_causality({"vit": vit}, coloured(21, 1), fit_data=coloured(20, 2), batch_size=10)
    intervention_sweep({"vit": vit}, coloured(21, 1), interventions=[zero_attention("cls", "patches")], batch_size=10)
