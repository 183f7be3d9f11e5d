"""Bars and boxes beside each other at a layer, as wide where other layers are missing as where they are not."""

from __future__ import annotations

import pandas as pd
import plotly.graph_objects as go

from analyses.drawing.panels import Place, add

BOX = ("whisker_low", "quartile_low", "median", "quartile_high", "whisker_high")
BOX_ROOM = 0.7
"""Of the distance between layers what boxes take, and of a box's part of that what it takes."""


def beside(number: int, of: int, room: float = 0.85) -> tuple[float, float]:
    """How far the middle of the n-th of several bars is from its layer, and how wide it is; together they take `room`.

    >>> beside(0, 2, room=0.8)
    (-0.2, 0.4)

    Left to plotly, what stands at layers 1 and 11 alone is ten times as wide.
    """
    return room * ((number + 0.5) / of - 0.5), room / of


def boxes(fig: go.Figure, at: Place, rows: pd.DataFrame, label: str, colour: str, number: int, of: int) -> None:
    """A box per layer, the n-th of so many there, from rows whose measures are the parts of a box plot."""
    wide = rows[rows.measure.isin(BOX)].pivot_table(index="layer", columns="measure", values="value")
    if wide.empty:
        return
    shift, room = beside(number, of, BOX_ROOM)
    drawn = go.Box(
        x=wide.index.astype(int) + shift,
        width=BOX_ROOM * room,
        lowerfence=wide.whisker_low,
        q1=wide.quartile_low,
        median=wide["median"],
        q3=wide.quartile_high,
        upperfence=wide.whisker_high,
        xhoverformat=".0f",
        marker_color=colour,
        line={"width": 1},
    )
    add(fig, at, drawn, label)
