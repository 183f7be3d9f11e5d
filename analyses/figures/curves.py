"""Figures with one panel per model: the grid, curves with intervals, and reference lines."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

COLUMNS = 3
BLUE, ORANGE, GREEN, PURPLE, GREY = "#1f77b4", "#ff7f0e", "#2ca02c", "#9467bd", "dimgray"


def panel_grid(
    names: Sequence[str],
    last_layer: int,
    y_title: str,
    *,
    x_title: str = "layer",
    y_range: tuple[float, float] = (0.0, 1.02),
    second_axis: bool = False,
    title: str = "",
) -> go.Figure:
    """An empty panel per name, three in a row, with common axes; `second_axis` gives each one on the right too."""
    rows = -(-len(names) // COLUMNS)
    columns = min(len(names), COLUMNS) if second_axis else COLUMNS
    fig = make_subplots(
        rows=rows,
        cols=columns,
        subplot_titles=list(names),
        shared_yaxes=not second_axis,
        horizontal_spacing=0.09 if second_axis else 0.03,
        vertical_spacing=0.3 / rows,
        specs=[[{"secondary_y": second_axis}] * columns] * rows,
    )
    fig.update_xaxes(title_text=x_title, dtick=1 if last_layer < 13 else None, showgrid=False, zeroline=False)
    fig.update_yaxes(range=list(y_range), gridcolor="#eeeeee")
    fig.update_yaxes(title_text=y_title, col=1, **({"secondary_y": False} if second_axis else {}))
    top = 90 if title else 40
    fig.update_layout(
        template="plotly_white",
        title={"text": title, "x": 0.01, "yref": "container", "y": 1 - 26 / (330 * rows + 70 + top)} if title else None,
        height=330 * rows + 70 + top,
        width=1080,
        margin={"l": 60, "r": 20, "t": top, "b": 90},
        legend={"orientation": "h", "y": -0.16 / rows - 0.06, "x": 0},
    )
    return fig


def panel(place: int) -> dict[str, int]:
    """Row and column of the panel with this number."""
    return {"row": place // COLUMNS + 1, "col": place % COLUMNS + 1}


def add_curve(
    fig: go.Figure,
    rows: pd.DataFrame,
    label: str,
    colour: str,
    at: dict[str, Any],
    *,
    show: bool,
    dash: str = "solid",
    x: str = "layer",
) -> None:
    """A line with its interval: over seeds the mean, and the widest of their intervals."""
    line = rows.groupby(x).agg(value=("value", "mean"), low=("low", "min"), high=("high", "max")).reset_index()
    error: dict[str, Any] = {
        "type": "data",
        "symmetric": False,
        "array": line.high - line.value,
        "arrayminus": line.value - line.low,
        "thickness": 1,
        "width": 2,
    }
    fig.add_trace(
        go.Scatter(
            x=line[x].astype(int),
            y=line.value,
            error_y=error,
            mode="lines+markers",
            name=label,
            legendgroup=label,
            showlegend=show,
            line={"color": colour, "dash": dash},
            marker={"size": 6},
        ),
        **at,
    )


def add_level(
    fig: go.Figure,
    value: float,
    last_layer: int,
    label: str,
    at: dict[str, Any],
    *,
    show: bool,
    dash: str,
    colour: str = GREY,
) -> None:
    """A horizontal line of something that has no layer."""
    fig.add_trace(
        go.Scatter(
            x=[0, last_layer],
            y=[value] * 2,
            mode="lines",
            line={"color": colour, "dash": dash, "width": 1.5},
            name=label,
            legendgroup=label,
            showlegend=show,
        ),
        **at,
    )
