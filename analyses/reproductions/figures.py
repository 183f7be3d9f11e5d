"""Published values and ours in one picture each."""

from __future__ import annotations

from collections.abc import Iterator

import pandas as pd
import plotly.graph_objects as go

from analyses.drawing.colours import BLUE, CHANCE, ORANGE
from analyses.drawing.panels import curve, panels, place
from analyses.running.shown import plain, plain_frame, small


def comparison_figure(frame: pd.DataFrame) -> go.Figure:
    """Every published number against ours: on the line they are equal."""
    figure, frame = go.Figure(), plain_frame(frame[frame["published"].notna()])
    for (step, what), part in frame.groupby(["step", "what"], sort=False):
        said = [
            f"{row.model}{'' if pd.isna(row.at) else f', {row.by} {row.at}'}<br>published {row.published:.3f}, ours "
            f"{row.value:.3f}"
            for row in part.itertuples()
        ]
        figure.add_scatter(
            x=part["published"],
            y=part["value"],
            mode="markers",
            name=f"{what} ({step})",
            hovertext=said,
            hoverinfo="text",
            error_y={"array": part["high"] - part["value"], "arrayminus": part["value"] - part["low"], "thickness": 1},
            error_x={"array": part["reading"], "thickness": 1},
        )
    edges = [0.0, 1.0]
    if len(frame):
        edges = [min(0.0, frame[["published", "low"]].min().min()), max(1.0, frame[["published", "high"]].max().max())]
    figure.add_scatter(x=edges, y=edges, mode="lines", line=CHANCE, name="equal", hoverinfo="skip")
    figure.update_layout(
        title="Do we find what was published? On the dashed line both are equal"
        "<br>" + small("bars: our 95 % interval over images, and how exactly the published number could be read"),
        xaxis_title="published",
        yaxis_title="ours",
        template="simple_white",
        width=1000,
        height=620,
    )
    return figure


def curve_figures(frame: pd.DataFrame) -> Iterator[tuple[str, go.Figure]]:
    """For each curve that was published: theirs and ours along the layers, one panel per model."""
    along = frame[frame["at"].notna()]
    for (step, what), part in along.groupby(["step", "what"], sort=False):
        yield f"{what} ({step})", _curves(plain_frame(part), plain(what))


def _curves(part: pd.DataFrame, what: str) -> go.Figure:
    models = list(dict.fromkeys(part["model"]))
    figure = panels(
        models,
        f"{what}: do we find what was published?",
        "Bars: our 95 % interval over images",
        x=str(part["by"].iloc[0]),
        y=what,
        y_range=None,
        last=int(part["at"].max()),
    )
    for number, model in enumerate(models):
        at, one = place(figure, number), part[part["model"] == model]
        published = one.assign(value=one["published"], low=float("nan"), high=float("nan"))
        curve(figure, at, published, "published", ORANGE, x="at", dash="dot")
        curve(figure, at, one, "ours", BLUE, x="at")
    return figure
