"""One panel per model of a result, and what is drawn into it from the model's rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd
import plotly.graph_objects as go

from analyses.figures.panels import panels, place
from analyses.results import Result

CHANCE_LINE = {"color": "black", "dash": "dot", "width": 1}


def model_panels(result: Result, question: str, explained: str, **kw: Any) -> go.Figure:
    """Empty panels, one per model of the result; keywords as in `panels`."""
    return panels(list(result.frame.model.unique()), question, explained, **kw)


def by_model(result: Result) -> list[tuple[str, pd.DataFrame]]:
    """(model, its rows) in the order of the frame."""
    return [(str(name), rows) for name, rows in result.frame.groupby("model", sort=False)]


def each_panel(fig: go.Figure, result: Result) -> list[tuple[dict[str, int], str, pd.DataFrame]]:
    """(place in the figure, model, its rows)."""
    return [(place(fig, number), name, rows) for number, (name, rows) in enumerate(by_model(result))]


def picked(rows: pd.DataFrame, **where: Any) -> pd.DataFrame:
    """The rows whose columns have these values; a missing value is none of them."""
    for column, value in where.items():
        rows = rows[(rows[column] == value).fillna(False).astype(bool)]
    return rows


def value_of(rows: pd.DataFrame, measure: str, **where: Any) -> float | None:
    """The value of the first row of a measure; None where there is none."""
    some = picked(rows, measure=measure, **where)
    return None if some.empty else float(some["value"].iloc[0])


def add_bars(fig: go.Figure, at: dict[str, int], x: Sequence[str], rows: pd.DataFrame, label: str, colour: str) -> None:
    """Bars with their intervals; of several series of one label the first stands in the legend."""
    if rows.empty:
        return
    error = {"type": "data", "symmetric": False, "array": rows.high - rows.value, "arrayminus": rows.value - rows.low}
    fig.add_trace(
        go.Bar(
            x=list(x),
            y=rows.value,
            error_y={**error, "thickness": 1, "width": 3},
            name=label,
            legendgroup=label,
            marker_color=colour,
            showlegend=not any(trace.name == label for trace in fig.data),
        ),
        **at,
    )
