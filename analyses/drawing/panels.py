"""Grids of panels under a title that asks and explains, and what is drawn into them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from textwrap import wrap
from typing import Any

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from analyses.drawing.colours import CHANCE, SHAPES
from analyses.drawing.rows import by_model, layers_in, model_names, over_seeds
from analyses.running.results import Result
from analyses.running.shown import in_lines, small

Place = dict[str, Any]

WIDTH = 1080
GAP = 88  # pixels between two rows of panels: tick labels, title of the axis, title of the next panel
LINE = 22  # pixels of a line of the explanation
TITLE_LINE, TITLE_LETTER = 18, 8  # pixels of a line of a panel's title, and of one of its letters
LEGEND_LETTER = 6.4
MOST_TICKS = 13
HOLLOW = {"dash": "-open", "dot": "-open-dot"}
"""What tells points of one colour apart where there is one of each, and no line that could be dashed."""
ENTRY, KEY = 20, 50  # pixels of a line of the legend, and of the mark in front of an entry


def panels(
    titles: Sequence[str],
    question: str,
    explained: str = "",
    *,
    x: str = "layer",
    y: str,
    columns: int = 3,
    y_range: tuple[int | float, int | float] | None = (0, 1.03),
    height: int = 330,
    shared: bool = True,
    second_axis: bool = False,
    last: int | None = None,
    left: int = 70,
    right: int = 20,
) -> go.Figure:
    """Empty panels under a title that asks what they answer, with lines below it that say how to read them.

    `last`: the last layer, where x counts layers, each of which then has its tick. `shared`: one y axis for all.
    `second_axis`: one on the right of every panel too. `height` is of a row of panels, in pixels.
    """
    columns = max(1, min(columns, len(titles)))
    rows = max(1, -(-len(titles) // columns))
    room = (WIDTH - left - right) / columns - 16
    titles = [in_lines(title, int(room / TITLE_LETTER)) for title in titles]
    more = TITLE_LINE * max((title.count("<br>") for title in titles), default=0)
    gap = GAP + more
    area = rows * (height - GAP) + (rows - 1) * gap
    cell = {"secondary_y": second_axis}
    fig = make_subplots(
        rows=rows,
        cols=columns,
        subplot_titles=list(titles),
        shared_yaxes=shared and not second_axis,
        horizontal_spacing=0.1 if second_axis else 0.035 if shared else 0.08,
        vertical_spacing=gap / area if rows > 1 else 0,
        specs=[[cell if r * columns + c < max(1, len(titles)) else None for c in range(columns)] for r in range(rows)],
    )
    fig.update_xaxes(title_text=x, title_standoff=8, showgrid=False, zeroline=False)
    if last is not None:
        whole_numbers(fig, last)
    fig.update_yaxes(gridcolor="#eeeeee", zeroline=False)
    first = {"secondary_y": False} if second_axis else {}
    fig.update_yaxes(range=y_range, **first)
    fig.update_yaxes(title_text=y, col=1, **first)
    fig.update_annotations(font_size=14)
    # fits also where a wider font stands in for plotly's
    lines = wrap(explained.replace("95 %", "95\u00a0%"), 160, break_on_hyphens=False)
    top = 70 + LINE * len(lines) + more
    fig.update_layout(
        template="plotly_white",
        width=WIDTH,
        height=top + area + 60,
        margin={"l": left, "r": right, "t": top, "b": 60},
        title={
            "text": "<br>".join([*wrap(question, 115), *map(small, lines)]),
            **{"x": 0.01, "yref": "container", "yanchor": "top", "font": {"size": 17}},
        },
        legend={"orientation": "h", "yref": "container", "yanchor": "bottom", "x": 0, "tracegroupgap": 0},
    )
    return _fit(fig)


def model_panels(result: Result, question: str, explained: str = "", *, x: str = "layer", **kw: Any) -> go.Figure:
    """Empty panels, one per model of the result, as wide for few layers as for many; keywords as in `panels`.

    Each has the ticks that suit its own depth.
    """
    fig = panels(model_names(result), question, explained, x=x, **kw)
    if x.startswith("layer") and "layer" in result.frame:
        for at, _, rows in each_panel(fig, result):
            layer_ticks(fig, rows, **at)
    return fig


def layer_ticks(fig: go.Figure, rows: pd.DataFrame, **at: Any) -> go.Figure:
    """Ticks at the layers of these rows, fewer where they would crowd; none at a layer that was not measured."""
    layers = layers_in(rows) or [0]
    if len(layers) >= layers[-1]:  # all there are, or all but the first
        return whole_numbers(fig, layers[-1], **at)
    return fig.update_xaxes(tickmode="array", tickvals=layers[:: -(-len(layers) // MOST_TICKS)], **at)


def whole_numbers(fig: go.Figure, last: int, **at: Any) -> go.Figure:
    """Ticks where x counts something up to `last`: at whole numbers alone, fewer where they would crowd."""
    return fig.update_xaxes(tickmode="linear", tick0=0, dtick=1 if last < 13 else 2 if last < 25 else 4, **at)


def place(fig: go.Figure, number: int) -> Place:
    """Row and column of the n-th panel, from 0."""
    columns = len(fig._grid_ref[0])
    return {"row": number // columns + 1, "col": number % columns + 1}


def each_panel(fig: go.Figure, result: Result) -> Iterator[tuple[Place, str, pd.DataFrame]]:
    """(place in the figure, model, its rows) of a figure of `model_panels`."""
    for number, (name, rows) in enumerate(by_model(result)):
        yield place(fig, number), name, rows


def curve(
    fig: go.Figure,
    at: Place,
    rows: pd.DataFrame,
    label: str | None,
    colour: str,
    *,
    x: str = "layer",
    dash: str = "solid",
    symbol: str | None = None,
    bare: bool = False,
) -> None:
    """A line through `value` against column x: over seeds the mean, and the widest of their intervals.

    The points have the shape of the colour, unless `symbol` says another.
    `bare`: a thin line without points and intervals, as of a control; of a single value it is that point. Without a
    label it is not in the legend.
    """
    line = over_seeds(rows.dropna(subset=[x]), x)
    if line.empty:
        return
    whole = pd.api.types.is_integer_dtype(line[x])
    points = not bare or len(line) == 1
    drawn = go.Scatter(
        x=line[x].astype(int) if whole else line[x],
        y=line.value,
        mode="lines+markers" if points else "lines",
        line={"color": colour, "dash": dash, "width": 1.5 if bare else 2},
    )
    if points:
        drawn.update(marker={"size": 4 if bare else 6, "symbol": symbol or SHAPES.get(colour, "circle")})
    if not bare:
        drawn.update(error_y=_error(line))
    if len(line) == 1 and dash in HOLLOW:
        drawn.update(marker_symbol=f"{drawn.marker.symbol}{HOLLOW[dash]}")
    add(fig, at, drawn, label)


def bars(
    fig: go.Figure, at: Place, x: Sequence[Any] | pd.Series, rows: pd.DataFrame, label: str, colour: str, **kw: Any
) -> None:
    """Bars of `value`, with their intervals where there are any; keywords as of a plotly bar."""
    if rows.empty:
        return
    error = _error(rows) if {"low", "high"} <= set(rows.columns) else None
    add(fig, at, go.Bar(x=list(x), y=rows.value, error_y=error, marker_color=colour, **kw), label)


def band(fig: go.Figure, at: Place, rows: pd.DataFrame, label: str | None, colour: str, *, x: str = "layer") -> None:
    """The area between `low` and `high`; of the colour, which is given as red,green,blue, little."""
    line = over_seeds(rows, x)
    if line.empty:
        return
    if len(line) == 1:  # a point has no area
        line = pd.concat([line.assign(**{x: line[x].astype(float) + shift}) for shift in (-0.5, 0.5)])
    drawn = go.Scatter(
        x=[*line[x], *line[x][::-1]],
        y=[*line.high, *line.low[::-1]],
        fill="toself",
        fillcolor=colour,
        line={"width": 0},
        mode="lines",
        hoverinfo="skip",
    )
    add(fig, at, drawn, label)


def level(
    fig: go.Figure,
    at: Place,
    x: Sequence[Any],
    y: float | None,
    label: str,
    line: dict[str, Any] = CHANCE,
) -> None:
    """A horizontal line from the first to the last x, where there is a value for it."""
    if y is not None:
        drawn = go.Scatter(x=[x[0], x[-1]], y=[y, y], mode="lines", line=line, hoverinfo="skip")
        add(fig, at, drawn, label)


def stars(fig: go.Figure, at: Place, x: Sequence[Any] | pd.Series, y: Sequence[Any] | pd.Series, colour: str) -> None:
    """Stars at these places, which the explanation below the title says the meaning of."""
    marker = {"symbol": "star", "color": colour, "size": 8}
    add(fig, at, go.Scatter(x=list(x), y=list(y), mode="markers", marker=marker, hoverinfo="skip"), None)


def note(fig: go.Figure, at: Place, text: str) -> None:
    """A word in a panel with nothing in it."""
    fig.add_annotation(text=text, showarrow=False, xref="x domain", yref="y domain", x=0.5, y=0.7, **at)


def sentence(text: str) -> go.Figure:
    """A figure of one sentence, where there is nothing to be drawn."""
    fig = go.Figure(layout={"template": "plotly_white", "width": WIDTH, "height": 120})
    fig.update_layout(xaxis={"visible": False}, yaxis={"visible": False}, margin={"t": 20, "b": 20})
    fig.add_annotation(text=text, x=0.5, y=0.5, xref="paper", yref="paper", showarrow=False, font={"size": 14})
    return fig


def add(fig: go.Figure, at: Place, drawn: Any, label: str | None) -> None:
    """Of all with one label the first stands in the legend, for which room is made below the panels.

    A label longer than the legend is wide loses its middle.
    """
    new = label is not None and not any(trace.legendgroup == label for trace in fig.data)
    margin = fig.layout.margin
    letters = int((fig.layout.width - margin.l - margin.r - KEY) / LEGEND_LETTER)
    name = None if label is None else in_lines(label, letters, most=1)
    fig.add_trace(drawn.update(name=name, legendgroup=label, showlegend=new), **at)
    if new:
        _fit(fig)


def _fit(fig: go.Figure) -> go.Figure:
    """Give the legend the height it needs, and everything else the place it had."""
    margin = fig.layout.margin
    room, used, lines = fig.layout.width - margin.l - margin.r, 0.0, 0
    for trace in fig.data:
        if getattr(trace, "showlegend", None):
            wide = KEY + LEGEND_LETTER * len(trace.name)
            if not lines or used + wide > room:
                used, lines = 0.0, lines + 1
            used += wide
    bottom = 60 + ENTRY * lines + (10 if lines else 0)
    height = fig.layout.height - margin.b + bottom
    return fig.update_layout(
        height=height, margin_b=bottom, title_y=1 - 22 / height, legend_y=6 / height, showlegend=lines > 0
    )


def _error(rows: pd.DataFrame) -> dict[str, Any]:
    return {
        "type": "data",
        "symmetric": False,
        "array": (rows.high - rows.value).fillna(0),
        "arrayminus": (rows.value - rows.low).fillna(0),
        "thickness": 1,
        "width": 2,
    }
