"""Models of different depth stand beside each other, each as wide as its panel and with ticks of its own."""

from __future__ import annotations

import pandas as pd

from analyses.drawing.colours import BLUE
from analyses.drawing.panels import curve, each_panel, model_panels
from analyses.running.results import Result


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
