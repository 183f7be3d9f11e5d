"""One layer, two far apart, models of different depth: nothing is done for other layers, and all that is said holds."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from analyses import (
    Result,
    causality_vs_decodability,
    cls_causality,
    decodability,
    head_ablation,
    lenses,
    restoration,
)
from analyses.activations.sites import SiteReader
from analyses.activations.store.stats import means_over
from analyses.activations.streams import read_layers, read_stream
from analyses.questions.cls_use.causality_vs_decodability.figure import one_axis_figure
from analyses.questions.cls_use.restoration.figure import in_words, panels_figure, restored_figure
from analyses.questions.decoding.lenses.figure import divergence_figure, path_figure
from analyses.questions.patching.counting.counting import counting
from analyses.questions.patching.head_ablation.ablation import outputs_of, parts_of
from analyses.running.catalogue import get_analysis
from hooked_vit import HookedViT, zoo
from hooked_vit.components import pieces
from interventions import apply, readout, shuffle_cls
from tests.analyses import everything
from tests.analyses.questions.cls_use.test_cls_causality import coloured
from tests.analyses.questions.cls_use.test_cls_causality import model as of_family
from tests.analyses.questions.test_some_layers import model, run, scenes
from tests.tiny import FAMILIES, make, pixels

BATCH = 20
DATA, FIT = coloured(40, 1), coloured(60, 2)
SIX = ("causality-vs-decodability", "restoration", "decodability", "lenses", "head-ablation", "cls-causality")
DEEP = 4


@contextmanager
def passed() -> Iterator[list[int]]:
    """How often each block of the model is run meanwhile."""
    times = [0] * DEEP

    def count(layer: int) -> Any:
        def counted(*_: Any) -> None:
            times[layer] += 1

        return counted

    handles = [block.register_forward_hook(count(layer)) for layer, block in enumerate(model().blocks)]
    try:
        yield times
    finally:
        for handle in handles:
            handle.remove()


def asked(function: Any, layers: tuple[int, ...], **options: Any) -> list[int]:
    """The blocks it runs where it is asked for these layers."""
    with passed() as times:
        function({"tiny": model()}, scenes(), fit_data=everything.scenes("train", 60), batch_size=BATCH,
                 layers=layers, **options)  # fmt: skip
    return times


N_FIT, N = 3, 2  # batches to fit on, and to measure on


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("in_pieces", [False, True])
@torch.no_grad()
def test_a_run_without_an_answer_ends_behind_the_last_layer_that_is_read(
    family: str, in_pieces: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    vit = make(family, torch.float32)
    x, ends = pixels(vit, n=3), []
    if in_pieces:
        monkeypatch.setattr(pieces, "PIECE_BYTES", 1)
    answer, (start, *streams) = read_stream(vit, x, embedding=True)
    vit.blocks[1].register_forward_hook(lambda *_: ends.append("last block"))
    assert torch.equal(read_layers(vit, x, layers=(0,))[0], streams[0])
    assert torch.equal(read_layers(vit, x, layers=(), embedding=True)[0], start)
    features = SiteReader(vit, ("patches",), layers=(-1, 0)).features(x, torch.arange(3))
    assert not ends
    again, (second,) = read_stream(vit, x, layers=(1,))
    assert torch.equal(again, answer)
    assert torch.equal(second, streams[1])
    _, whole = SiteReader(vit, ("patches",), layers=(-1, 0, 1)).read(x, torch.arange(3))
    assert all(torch.equal(kept, whole[site]) for site, kept in features.items())


def test_what_waits_behind_the_last_layer_read_is_reached() -> None:
    x = pixels(model(), n=3)
    shuffled = shuffle_cls(layer=2, seed=0) + readout("full")
    with passed() as times, apply(model(), shuffled) as made:
        read_layers(model(), x, layers=(0,))
    assert times == [1] * DEEP
    assert all(made.fired.values())


def test_no_more_is_run_than_is_asked_for() -> None:
    plain = {"controls": ("none",), "learning_curve": False}
    assert asked(decodability, (1,), roles=("cls",), **plain) == [N_FIT + N] * 2 + [0, 0]
    assert asked(decodability, (0,), roles=("cls",), embedding=True, **plain) == [N_FIT + N, 0, 0, 0]
    assert asked(decodability, (0,), roles=("cls", "head_input"), **plain) == [N_FIT + N] * DEEP
    # a shuffle behind block 2 passes block 3 once more
    assert asked(restoration, (2,), seeds=1) == [N_FIT + N] * 3 + [N_FIT + 2 * N]
    assert asked(restoration, (2,), seeds=1, probe_fit="refit") == [N_FIT + N] * 3 + [2 * N_FIT + 2 * N]
    assert asked(restoration, (-1,), seeds=3) == [N_FIT + N] * DEEP
    # once to fit, once as it is, once with CLS exchanged behind block 3
    assert asked(causality_vs_decodability, (3,), seeds=1) == [N_FIT + 2 * N] * DEEP


def test_heads_are_looked_at_no_further_than_they_are() -> None:
    parts = parts_of(model(), [1])
    with passed() as times:
        found = outputs_of(model(), pixels(model(), n=2), parts)
    assert times == [1, 1, 0, 0]
    assert set(found) == {"blocks.1.attn.hook_z", "blocks.1.hook_mlp_out"}
    with passed() as times:
        means_over(model(), scenes(), list(found), batch_size=BATCH, what="means")
    assert times == [N, N, 0, 0]


@pytest.mark.parametrize("name", SIX)
@pytest.mark.parametrize("layers", [(-1,), (0, -1)])
def test_models_of_different_depth(name: str, layers: tuple[int, ...]) -> None:
    """Of each the layers it calls so, and all there is can be drawn."""
    entry = get_analysis(name)
    models = {"deep": model(), "shallow": everything.model()}
    result = entry.run(models, scenes(), **everything.arguments(entry) | {"layers": layers})
    column = "shuffled_layer" if name == "restoration" else "layer"
    for called, net in models.items():
        mine = result.frame[result.frame.model == called]
        assert sorted(mine[column].dropna().unique()) == sorted({layer % net.cfg.n_layers for layer in layers})
    assert len(result.figure().data)
    for draw in entry.figures(result).values():
        assert draw(result).layout.height
    said = " ".join([*result.meta["summary"], *result.meta["notes"]])
    assert "nan" not in said
    if len(layers) == 1:
        assert not [words for words in ("from layer", "from no layer", "widest") if words in said]
        assert ("the last layer" in said) <= (layers == (-1,))


def of(family: str, function: Any, layers: tuple[int, ...], **options: Any) -> Result:
    return function({family: of_family(family)}, DATA, fit_data=FIT, batch_size=BATCH, layers=layers, **options)


def test_one_layer_is_said_to_be_neither_first_nor_best() -> None:
    (said,) = of("vit", causality_vs_decodability, (0,), head="ridge", seeds=1).meta["summary"]
    assert "costs more than 5% of the images at " in said
    assert "At layer 0 " in said
    (said,) = of("vit", cls_causality, (0,), head="ridge", seeds=1).meta["summary"]
    assert "; at layer 0 a probe reads " in said
    assert "shuffling CLS" in said
    (said,) = of("vit", lenses, (0,), head="ridge", steps=2, random_models=1).meta["summary"]
    assert said.startswith("vit: at layer 0 the layer's own probe reads ")
    plain = {"controls": ("none",), "learning_curve": False}
    (said,) = of("vit", decodability, (0,), roles=("cls",), **plain).meta["summary"]
    assert said.startswith("vit: the label is read from CLS after layer 0, in ")
    (said,) = of("vit", decodability, (0,), roles=("cls", "patches"), **plain).meta["summary"]
    assert "is read best from" in said
    (said,) = of("vit", decodability, (0,), roles=("cls",), embedding=True, **plain).meta["summary"]
    assert "is read best from" in said
    (said,) = of("vit", head_ablation, (0,), head="ridge", draws=1).meta["summary"]
    assert "of the heads of layer 0 the one that matters most is L0H" in said


def test_only_where_the_last_layer_was_measured_something_is_said_of_it() -> None:
    notes = [" ".join(of("clip-classifier", causality_vs_decodability, (layer,), head="ridge", seeds=1).meta["notes"])
             for layer in (0, -1)]  # fmt: skip
    assert ["cannot matter" in note for note in notes] == [False, True]
    both = of("vit", causality_vs_decodability, (0, 1), head="ridge", seeds=1).meta["summary"][0]
    assert "; at the last layer it is " in both


def test_depth_is_the_share_of_all_blocks_there_are() -> None:
    result = run("causality-vs-decodability", layers=(1, 2))
    assert list(one_axis_figure(result).data[0].x) == [0.5, 0.75]


AFTER = "one block after the shuffle"


def cells(shuffled: tuple[int, ...], deep: int, back: dict[tuple[int, int], float]) -> Result:
    """A result of restoration: tokens exchanged behind these layers, and what came back in which cells."""
    first = min(shuffled)
    rows: list[dict[str, Any]] = [
        {"measure": "accuracy", "shuffled_layer": s, "probe_layer": p, "value": 0.5}
        for s in (None, *shuffled) for p in range(first, deep)
    ]  # fmt: skip
    rows += [
        {"measure": "restoration", "shuffled_layer": s, "probe_layer": p, "value": v} for (s, p), v in back.items()
    ]
    rows += [{"measure": "floor", "shuffled_layer": s, "probe_layer": s, "value": 0.2} for s in shuffled]
    rows += [{"measure": "chance", "value": 0.2}]
    frame = pd.DataFrame([{"model": "m", **row} for row in rows]).astype(
        {"shuffled_layer": "Int64", "probe_layer": "Int64"}
    )
    meta = {"tokens": "cls", "probe_tokens": "cls", "probe_fit": "clean", "batch_size": 10, "models": {"m": {}}}
    return Result(frame.assign(low=frame.value, high=frame.value, seed=0), meta)


@pytest.mark.parametrize(
    ("shuffled", "back", "said"),
    [
        ((3,), {}, "behind layer 3, the last, no block is left that could restore anything. Right"),
        ((1,), {}, "no probe reads enough for anything to be restored."),
        ((1,), {(1, 3): 0.7}, "the probe has nothing to regain; at layer 3 it has regained 70% of what it lost. Right"),
        ((1,), {(1, 2): 0.7}, f"{AFTER} behind layer 1 the probe has regained 70% of what it lost. Right"),
        ((2,), {(2, 3): 0.7}, f"{AFTER} behind layer 2 the probe has regained 70% of what it lost. Right"),
        ((0, 3), {(0, 1): 0.1, (0, 3): 0.7}, f"{AFTER} behind layer 0 the probe has regained 10% of what it lost; at "
         "layer 3 70%. Right"),
        ((0, 2), {(0, 1): 0.1, (2, 3): 0.7}, f"{AFTER} the probe has regained 40% of what it lost, on average over "
         "layers (least at 0 → 1: 10%); at layer 3 70%. Right"),
        ((0, 1, 2, 3), {(0, 1): 0.1, (0, 3): 0.7}, f"{AFTER} behind layer 0 the probe has regained 10% of what it "
         "lost; at the last layer 70%. Right"),
    ],
)  # fmt: skip
def test_what_is_said_to_be_restored(shuffled: tuple[int, ...], back: dict[tuple[int, int], float], said: str) -> None:
    result = cells(shuffled, DEEP, back)
    (found,), notes = in_words(result)
    assert said in found
    some = len(shuffled) < DEEP
    assert any("exchanged behind layer" in note for note in notes) == some
    restored = restored_figure(result)
    assert any("nothing to be restored" in note.text for note in restored.layout.annotations) == (not back)
    assert list(restored.data[0].y) == list(map(str, shuffled))
    assert list(restored.data[0].x) == list(map(str, range(min(shuffled), DEEP)))
    panels = panels_figure(result)
    titles = [note.text for note in panels.layout.annotations]
    assert titles == [f"probe behind layer {p}" for p in range(min(shuffled), DEEP)]
    # a line from layer to layer would say something of those between
    assert {line.mode for line in panels.data} == {"markers" if some else "lines+markers"}


def test_panels_of_probes_no_model_has_read_are_left_out() -> None:
    frames = [cells((deep - 1,), deep, {}).frame.assign(model=f"of {deep}") for deep in (2, 4)]
    result = Result(pd.concat(frames), cells((0,), 2, {}).meta)
    panels = panels_figure(result)
    assert [note.text for note in panels.layout.annotations] == ["probe behind 100% of the blocks"]
    assert [list(line.x) for line in panels.data] == [[0, 1], [0, 1]]


def test_points_of_one_layer_can_be_told_apart_and_controls_be_seen() -> None:
    drawn = run("decodability", layers=(2,), roles=("cls",)).figure()
    found = {line.name: line for line in drawn.data if line.name}
    assert list(found["chance: always the most frequent"].x) == [1.5, 2.5]
    area = found["probes of permuted labels"]
    assert sorted({*area.x}) == [1.5, 2.5]
    symbols = [line.marker.symbol for line in drawn.data if line.mode == "lines+markers"]
    assert len(symbols) == len({*symbols, "circle-open-dot"}) + 1  # the legend's own
    readers = run("lenses", layers=(2,)).figure()
    symbols = [line.marker.symbol for line in readers.data if (line.name or "").startswith("accuracy: ")]
    assert len(symbols) == len({*symbols}) + 1  # the head of random weights is grey


def test_ways_through_the_layers_begin_at_the_first_that_was_measured() -> None:
    result = run("lenses", layers=(1, 3))
    assert {line.text[0] for line in path_figure(result).data if line.text} == {"1"}
    # the last layer's reading is the model's answer, and nothing is far from it
    last = run("lenses", layers=(-1,))
    rows = last.frame[(last.frame.measure == "kl") & (last.frame.reader == "head")]
    assert rows.value.max() < 1e-6
    low, high = divergence_figure(last).layout.yaxis.range
    assert high > low
    assert np.isfinite(high)


def test_layers_of_heads_that_are_left_out_take_no_room() -> None:
    result = run("head-ablation", layers=(0, 3))
    for draw in (
        result.figure,
        *(lambda d=draw: d(result) for draw in get_analysis("head-ablation").figures(result).values()),
    ):
        for trace in draw().data:
            assert trace.type != "heatmap" or list(trace.y) == ["0", "3"]
    assert result.frame.k.max() == model().cfg.n_heads  # half of those of two layers
    assert {row["most"][:2] for row in result.meta["table"]} <= {"L0", "L3"}


def test_the_stream_in_front_of_the_first_block_is_counted_in_where_it_is_asked_for() -> None:
    vit: HookedViT = zoo.load("vit-count")
    options = {**everything.arguments(get_analysis("counting")), "layers": (2,)}
    alone, both = (counting({"vit-count": vit}, scenes(), **options, embedding=e) for e in (False, True))
    assert sorted(alone.frame.depth.dropna().unique()) == [3]
    assert sorted(both.frame.depth.dropna().unique()) == [0, 3]
    rest = both.frame[both.frame.depth.isna() | (both.frame.depth == 3)]
    pd.testing.assert_frame_equal(alone.frame, rest.reset_index(drop=True), rtol=0, atol=1e-6)
    said = " ".join(alone.meta["summary"])
    assert "patched, at depth 3." in said
    assert "behind block 2 (depth 3)" in said
    assert not [words for words in ("at best", "never", "half the way", "the last block") if words in said]
    assert "patched, at depth 0 and 3." in " ".join(both.meta["summary"])
