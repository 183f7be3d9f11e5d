"""The pictures and the table of `random_readouts`."""

from __future__ import annotations

from typing import Any

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from analyses.figures.curves import BLUE, GREEN, GREY, ORANGE, PURPLE, add_curve
from analyses.results import Result

MODES = {
    "null": ("null: the block's own CLS", BLUE, "solid"),
    "null_de_novo": ("null, trained from scratch at every layer", BLUE, "dot"),
    "replace": ("replace: random token in the place of CLS", ORANGE, "solid"),
    "augment": ("augment: random token beside CLS", GREEN, "solid"),
    "deterministic": ("one learned token in the place of CLS", PURPLE, "dot"),
}
HEAD, FOOT = 130, 50  # pixels above and below the panels


def main_figure(result: Result) -> go.Figure:
    """Per model: accuracy of every readout over layers, and random tokens in and beside CLS's place, closer."""
    split = "validation" if result.meta["repro"] else "test"
    frame = result.frame[(result.frame.split == split) & result.frame.epoch.isna()]
    names = list(frame.model.unique())
    fig = _panels(
        [title for name in names for title in (f"{name}: all readouts", f"{name}: replace and augment, closer")],
        2,
        f"How much of the label can one block write into a token that knows nothing of the image? ({split} images)",
    )
    for row, name in enumerate(names, start=1):
        rows = frame[(frame.model == name) & (frame.measure == "accuracy")]
        for mode, (label, colour, dash) in MODES.items():
            for col in (1, 2) if mode in ("replace", "augment") else (1,):
                curve = rows[rows["mode"] == mode]
                add_curve(fig, curve, label, colour, {"row": row, "col": col}, show=row == col == 1, dash=dash)
        chance = frame.loc[(frame.model == name) & (frame.measure == "chance"), "value"].iloc[0]
        layers = [int(rows.layer.min()) - 0.2, int(rows.layer.max()) + 0.2]
        line = {"color": GREY, "dash": "dash", "width": 1.5}
        fig.add_trace(
            go.Scatter(x=layers, y=[chance] * 2, mode="lines", line=line, name="chance", showlegend=row == 1),
            row=row,
            col=1,
        )
    fig.update_xaxes(dtick=1)
    fig.update_xaxes(title_text="layer of the block that is run once more", row=len(names))
    fig.update_yaxes(range=[0, 1.02], col=1, title_text="accuracy")
    return fig


def curves_figure(result: Result) -> go.Figure:
    """One panel per model and layer: validation accuracy after every epoch."""
    frame = result.frame[result.frame.measure == "validation_accuracy"]
    names = list(frame.model.unique())
    layers = {name: sorted(frame[frame.model == name].layer.unique()) for name in names}
    cols = max(map(len, layers.values()))
    places = [(name, layers[name][i] if i < len(layers[name]) else None) for name in names for i in range(cols)]
    fig = _panels(
        [f"{name}, layer {layer}" if layer is not None else "" for name, layer in places],
        cols,
        "Validation accuracy while the readouts are trained (the learning rate falls to nearly nothing at the end)",
        shared_yaxes=True,
    )
    for place, (name, layer) in enumerate(places):
        if layer is None:
            continue
        rows = frame[(frame.model == name) & (frame.layer == layer)]
        for mode, (label, colour, dash) in MODES.items():
            line = rows[rows["mode"] == mode].groupby("epoch")["value"].mean()
            trace = go.Scatter(
                x=line.index.astype(int),
                y=line,
                mode="lines+markers",
                marker={"size": 4},
                name=label,
                legendgroup=label,
                showlegend=place == 0,
                line={"color": colour, "dash": dash, "width": 1.7},
            )
            fig.add_trace(trace, row=place // cols + 1, col=place % cols + 1)
    fig.update_yaxes(range=[0, 1.02])
    fig.update_yaxes(title_text="accuracy", col=1)
    fig.update_xaxes(title_text="epoch", row=len(names))
    return fig


def summary_table(result: Result) -> pd.DataFrame:
    """One row per model and layer: test accuracy of every readout, and how often two draws agree (mean over seeds)."""
    frame = result.frame[(result.frame.split == "test") & result.frame.layer.notna()]
    accuracy = frame[frame.measure == "accuracy"].pivot_table(
        index=["model", "layer"], columns="mode", values="value", sort=False
    )
    table = accuracy[list(MODES)]
    for mode, measure in (("replace", "accuracy_mean_of_draws"), ("replace", "agreement")):
        rows = frame[(frame.measure == measure) & (frame["mode"] == mode)]
        table = table.assign(**{f"{mode}_{measure}": rows.groupby(["model", "layer"])["value"].mean()})
    order = {name: i for i, name in enumerate(frame.model.unique())}
    table = table.reset_index()
    return table.sort_values(["model", "layer"], key=lambda c: c.map(order) if c.name == "model" else c)


def _panels(titles: list[str], cols: int, title: str, **kw: Any) -> go.Figure:
    rows = -(-len(titles) // cols)
    height = 230 * rows + HEAD + FOOT
    fig = make_subplots(
        rows=rows, cols=cols, subplot_titles=titles, horizontal_spacing=0.07, vertical_spacing=0.26 / rows, **kw
    )
    fig.update_xaxes(showgrid=False)
    fig.update_yaxes(gridcolor="#eeeeee")
    fig.update_layout(
        template="plotly_white",
        title={"text": title, "x": 0.01, "font": {"size": 16}, "yref": "container", "y": 1 - 24 / height},
        height=height,
        width=1080,
        margin={"l": 60, "r": 20, "t": HEAD, "b": FOOT},
        legend={"orientation": "h", "x": 0, "yref": "container", "y": 1 - 42 / height, "yanchor": "top"},
    )
    return fig
