"""Models of different depth stand beside each other, each as wide as its panel and with ticks of its own."""

from __future__ import annotations

from html import unescape

import pandas as pd
import plotly.graph_objects as go
import pytest

from analyses.drawing.colours import BLUE
from analyses.drawing.panels import GAP, WIDTH, curve, each_panel, level, model_panels
from analyses.drawing.rows import from_layer, span
from analyses.drawing.side_by_side import BOX, boxes
from analyses.running.results import Result
from analyses.running.shown import SMALL_LINE, finding_first, in_lines, plain, shown


def test_every_model_has_the_ticks_of_its_own_depth() -> None:
    rows = [{"model": f"of {n}", "layer": layer, "value": 0.5} for n in (4, 12, 24, 40) for layer in range(n)]
    result = Result(pd.DataFrame(rows))
    fig = model_panels(result, "How deep?", y="value")
    for at, _, mine in each_panel(fig, result):
        curve(fig, at, mine, "value", BLUE)
    axes = list(fig.select_xaxes())
    assert [axis.dtick for axis in axes] == [1, 1, 2, 4]
    assert [axis.range or axis.matches for axis in axes] == [None] * 4  # each as wide as its own layers ask for
    assert [len(line.x) for line in fig.data] == [4, 12, 24, 40]


LONG = "facebook/dinov2-with-registers-base-imagenet1k-1-layer-finetuned"
NAMES = ("vit", LONG, f"{LONG} <b>&amp; $x$ %{{y}}", "n" * 300)


def test_long_names_stand_in_lines_no_wider_than_their_panel() -> None:
    """They make room for themselves, in every row of panels, and are text still; so are entries of the legend."""
    rows = [{"model": name, "layer": layer, "value": 0.5} for name in NAMES for layer in range(3)]
    result = shown(Result(pd.DataFrame(rows)))
    fig, short = (model_panels(part, "How?", y="value") for part in (result, _only(result, "vit")))
    titles = [note.text for note in fig.layout.annotations]
    assert titles[0] == "vit"
    assert titles[1].replace("<br>", "") == LONG
    lines = [unescape(line) for title in titles for line in title.split("<br>")]
    assert max(map(len, lines)) * 8 <= (WIDTH - 90) / 3
    assert "<b>" not in "".join(titles)
    assert titles[3].count("<br>") == 2
    more = fig.layout.margin.t - short.layout.margin.t
    assert more == 18 * max(title.count("<br>") for title in titles)
    lower, upper = fig.layout.yaxis4.domain[1], fig.layout.yaxis.domain[0]
    area = fig.layout.height - fig.layout.margin.t - fig.layout.margin.b
    assert (upper - lower) * area == pytest.approx(GAP + more)
    for at, name, mine in each_panel(fig, result):
        curve(fig, at, mine, name, BLUE)
    entries = [line.name for line in fig.data]
    assert entries[:2] == ["vit", LONG]
    assert len(entries[3]) * 6 < WIDTH
    assert len({line.legendgroup for line in fig.data}) == len(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_a_name_in_lines_is_the_name(name: str) -> None:
    for letters in (5, 20, 400):
        lines = [unescape(line) for line in in_lines(plain(name), letters, most=100).split("<br>")]
        assert "".join(lines).replace(" ", "") == name.replace(" ", "")
        assert max(map(len, lines)) <= letters
    assert len(in_lines(plain(name), 20).split("<br>")) <= 3


def test_a_line_below_a_title_is_as_far_from_it_as_any_other() -> None:
    """It is of smaller letters and not raised, so that a finding of two lines does not stand on the question."""
    meta = {"models": {"vit": {}}, "summary": ["vit: " + "word " * 40 + "end."]}
    result = Result(pd.DataFrame([{"model": "vit", "layer": 0, "value": 0.5}]), meta)
    fig = finding_first(lambda r: model_panels(r, "How?", "Curves: how.", y="value"))(result)
    lines = fig.layout.title.text.split("<br>")
    assert len(lines) == 4
    assert [line.startswith('<span style="font-size:12px">') for line in lines] == [False, False, True, True]
    assert "<su" not in fig.layout.title.text
    plainly = model_panels(result, "How?", "Curves: how.", y="value")
    assert fig.layout.margin.t == plainly.layout.margin.t + 2 * SMALL_LINE


def _only(result: Result, name: str) -> Result:
    return Result(result.frame[result.frame.model == name])


def test_of_layers_that_stand_apart_each_has_a_tick_and_a_single_one_is_seen() -> None:
    rows = [
        {"model": name, "layer": layer, "value": 0.5} for name, at in (("two", (1, 22)), ("one", (7,))) for layer in at
    ]
    result = Result(pd.DataFrame(rows))
    fig = model_panels(result, "Where?", y="value")
    for at, _, mine in each_panel(fig, result):
        curve(fig, at, mine, "control", BLUE, dash="dot", bare=True)
        level(fig, at, span(mine), 0.3, "chance")
    assert [axis.tickvals for axis in fig.select_xaxes()] == [(1, 22), (7,)]
    drawn = {tuple(trace.x): trace.mode for trace in fig.data}
    assert drawn == {(1, 22): "lines", (7,): "lines+markers", (6.5, 7.5): "lines"}
    many = pd.DataFrame({"model": "many", "layer": range(3, 40), "value": 0.5})
    (axis,) = model_panels(Result(many), "Where?", y="value").select_xaxes()
    assert len(axis.tickvals) <= 13


def test_boxes_of_distant_layers_are_as_wide_as_of_neighbours_and_beside_each_other() -> None:
    def drawn(layers: tuple[int, ...]) -> list[go.Box]:
        rows = pd.DataFrame([{"layer": layer, "measure": part, "value": 0.5} for layer in layers for part in BOX])
        fig = model_panels(Result(rows.assign(model="m")), "How?", y="value")
        for number in range(2):
            boxes(fig, {"row": 1, "col": 1}, rows, f"box {number}", BLUE, number, 2)
        return list(fig.data)

    near, far = drawn((0, 1)), drawn((0, 11))
    for box, other in zip(near, far, strict=True):
        assert box.width == other.width
        assert box.x[0] == other.x[0]
        assert [round(x) for x in other.x] == [0, 11]  # what is said of a box where the mouse is
    assert near[1].x[0] - near[0].x[0] > near[0].width


def test_from_which_layer_on_something_is_so_is_said_of_those_measured() -> None:
    assert from_layer(3, range(12), 12) == "from layer 3 on"
    assert from_layer(11, range(12), 12) == "from layer 11 on"
    assert from_layer(3, [0, 3, 11], 12) == "at layer 3 and every later one measured"
    assert from_layer(3, [0, 3], 12) == "at layer 3"
