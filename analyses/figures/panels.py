"""Rows of panels with curves, intervals and reference lines, as all figures of the class space are drawn."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

GREEN, ORANGE, BLUE, YELLOW, GREY = "#66c2a5", "#fc8d62", "#8da0cb", "#ffd92f", "#b3b3b3"
COLOURS = {"cls": GREEN, "patches": ORANGE}
NAMES = {"cls": "[CLS]", "dist": "distillation token", "registers": "registers", "patches": "image tokens"}
MODELS = (
    *("#1f77b4", "#ff7f0e", "#2ca02c", "#d62728", "#9467bd"),
    *("#8c564b", "#e377c2", "#7f7f7f", "#bcbd22", "#17becf"),
)
REFERENCE = {"color": "dimgray", "dash": "dash", "width": 2}
HEADER = 70  # pixels above the panels, for the title and what it needs to be understood
FOOTER = 110


def panels(
    titles: Sequence[str],
    question: str,
    explained: str,
    *,
    x: str,
    y: str,
    columns: int = 3,
    y_range: tuple[int | float, int | float] | None = (0, 1.03),
    height: int = 320,
    shared: bool = True,
) -> go.Figure:
    """Empty panels under a title that asks what they answer, with a line below it that says how to read them."""
    columns = min(columns, len(titles))
    rows = -(-len(titles) // columns)
    total = height * rows + HEADER + FOOTER
    fig = make_subplots(
        rows=rows,
        cols=columns,
        subplot_titles=list(titles),
        shared_yaxes=shared,
        horizontal_spacing=0.04 if shared else 0.08,
        vertical_spacing=min(0.9 / rows, 90 / (total - HEADER - FOOTER)),
    )
    fig.update_xaxes(title_text=x, showgrid=False)
    fig.update_yaxes(gridcolor="#eeeeee", range=y_range)
    fig.update_yaxes(title_text=y, col=1)
    fig.update_layout(
        template="plotly_white",
        width=1080,
        height=total,
        margin={"l": 70, "r": 20, "t": HEADER + 30, "b": FOOTER},
        title={"text": f"{question}<br><sup>{explained}</sup>", "x": 0.01, "y": 1 - 28 / total, "yanchor": "middle"},
        legend={"orientation": "h", "yref": "container", "y": 8 / total, "yanchor": "bottom", "x": 0},
    )
    return fig


def place(fig: go.Figure, number: int) -> dict[str, int]:
    """Row and column of the n-th panel, from 0."""
    columns = len(fig._grid_ref[0])
    return {"row": number // columns + 1, "col": number % columns + 1}


def curve(
    fig: go.Figure,
    at: dict[str, int],
    x: Sequence[Any] | pd.Series,
    rows: pd.DataFrame,
    label: str,
    colour: str,
    *,
    dash: str = "solid",
    symbol: str = "circle",
) -> None:
    """A line through `value` with its intervals; of several curves of one label the first stands in the legend."""
    fig.add_trace(
        go.Scatter(
            x=list(x),
            y=rows.value,
            error_y=_error(rows),
            mode="lines+markers",
            name=label,
            legendgroup=label,
            showlegend=_is_new(fig, label),
            line={"color": colour, "dash": dash},
            marker={"size": 6, "symbol": symbol},
        ),
        **at,
    )


def bars(
    fig: go.Figure, at: dict[str, int], x: Sequence[Any] | pd.Series, rows: pd.DataFrame, label: str, colour: str
) -> None:
    """Bars of `value` with their intervals."""
    fig.add_trace(
        go.Bar(
            x=list(x),
            y=rows.value,
            error_y=_error(rows),
            name=label,
            legendgroup=label,
            showlegend=_is_new(fig, label),
            marker_color=colour,
        ),
        **at,
    )


BOX = ("whisker_low", "quartile_low", "median", "quartile_high", "whisker_high")


def boxes(fig: go.Figure, at: dict[str, int], rows: pd.DataFrame, label: str, colour: str) -> None:
    """A box per layer, blocks counted from 1, from rows whose measures are the parts of a box plot."""
    wide = rows[rows.measure.isin(BOX)].pivot_table(index="layer", columns="measure", values="value")
    if not len(wide):
        return
    fig.add_trace(
        go.Box(
            x=wide.index + 1,
            lowerfence=wide.whisker_low,
            q1=wide.quartile_low,
            median=wide["median"],
            q3=wide.quartile_high,
            upperfence=wide.whisker_high,
            name=label,
            legendgroup=label,
            offsetgroup=label,
            showlegend=_is_new(fig, label),
            marker_color=colour,
            line={"width": 1},
        ),
        **at,
    )


def stars(fig: go.Figure, at: dict[str, int], x: Sequence[Any] | pd.Series, colour: str, y: float = 1.1) -> None:
    """Stars above the boxes at these x."""
    marker = {"symbol": "star", "color": colour, "size": 8}
    fig.add_trace(
        go.Scatter(x=list(x), y=[y] * len(x), mode="markers", marker=marker, showlegend=False, hoverinfo="skip"), **at
    )


def says(text: str) -> go.Figure:
    """A figure of one sentence, where there is nothing to be drawn."""
    fig = go.Figure()
    fig.update_layout(
        template="plotly_white", width=1080, height=120, xaxis={"visible": False}, yaxis={"visible": False}
    )
    fig.add_annotation(text=text, x=0.5, y=0.5, xref="paper", yref="paper", showarrow=False)
    return fig


def _error(rows: pd.DataFrame) -> dict[str, Any]:
    return {
        "type": "data",
        "symmetric": False,
        "array": (rows.high - rows.value).fillna(0),
        "arrayminus": (rows.value - rows.low).fillna(0),
        "thickness": 1,
        "width": 2,
    }


def _is_new(fig: go.Figure, label: str) -> bool:
    return not any(trace.name == label for trace in fig.data)


def level(
    fig: go.Figure,
    at: dict[str, int],
    x: Sequence[Any],
    y: float | None,
    label: str,
    line: dict[str, Any] | None = None,
) -> None:
    """A reference line from the first to the last x, where there is a value for it."""
    if y is None:
        return
    fig.add_trace(
        go.Scatter(
            x=[x[0], x[-1]],
            y=[y, y],
            mode="lines",
            name=label,
            legendgroup=label,
            showlegend=_is_new(fig, label),
            line=REFERENCE if line is None else line,
            hoverinfo="skip",
        ),
        **at,
    )


def over_seeds(rows: pd.DataFrame, by: str = "layer") -> pd.DataFrame:
    """One row per layer: the mean over seeds, and the widest of their intervals."""
    return rows.groupby(by).agg(value=("value", "mean"), low=("low", "min"), high=("high", "max")).reset_index()
