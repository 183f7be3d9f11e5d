"""Published values and ours in one picture each."""

from __future__ import annotations

from collections.abc import Iterator

import pandas as pd
import plotly.graph_objects as go

OURS, THEIRS, LINE = "#1f77b4", "#ff7f0e", "#696969"


def comparison_figure(frame: pd.DataFrame) -> go.Figure:
    """Every published number against ours: on the line they are equal."""
    figure = go.Figure()
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
    figure.add_scatter(
        x=edges, y=edges, mode="lines", line={"color": LINE, "dash": "dash", "width": 2}, name="equal", hoverinfo="skip"
    )
    figure.update_layout(
        title="Do we find what was published? On the dashed line both are equal"
        "<br><sup>bars: our 95 % interval over images, and how exactly the published number could be read</sup>",
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
        yield f"{what} ({step})", _curves(part, what)


def _curves(part: pd.DataFrame, what: str) -> go.Figure:
    from plotly.subplots import make_subplots

    models = list(dict.fromkeys(part["model"]))
    figure = make_subplots(1, len(models), subplot_titles=models, shared_yaxes=True)
    for column, model in enumerate(models, start=1):
        one = part[part["model"] == model].sort_values("at")
        x = one["at"].astype(int)
        figure.add_scatter(
            x=x, y=one["published"], name="published", line={"color": THEIRS, "dash": "dot"},
            mode="lines+markers", showlegend=column == 1, row=1, col=column,
        )  # fmt: skip
        figure.add_scatter(
            x=x, y=one["value"], name="ours, 95 % interval", line={"color": OURS}, mode="lines+markers",
            error_y={"array": one["high"] - one["value"], "arrayminus": one["value"] - one["low"]},
            showlegend=column == 1, row=1, col=column,
        )  # fmt: skip
    figure.update_xaxes(title_text=str(part["by"].iloc[0]), dtick=1)
    figure.update_yaxes(title_text=what, col=1)
    figure.update_layout(
        title=f"{what}: published and ours", template="simple_white", width=max(520, 300 * len(models)), height=420
    )
    return figure
