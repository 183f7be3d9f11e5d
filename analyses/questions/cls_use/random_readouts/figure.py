"""The pictures and the table of `random_readouts`."""

from __future__ import annotations

import pandas as pd
import plotly.graph_objects as go

from analyses.drawing.colours import BLUE, GREEN, ORANGE, PURPLE
from analyses.drawing.panels import curve, level, panels, place
from analyses.drawing.rows import by_model, last_layer, model_names, value_of
from analyses.running.results import Result
from analyses.running.shown import drawn_plain

MODES = {
    "null": ("null: the block's own CLS", BLUE, "solid"),
    "null_de_novo": ("null, trained from scratch at every layer", BLUE, "dot"),
    "replace": ("replace: random token in the place of CLS", ORANGE, "solid"),
    "augment": ("augment: random token beside CLS", GREEN, "solid"),
    "deterministic": ("one learned token in the place of CLS", PURPLE, "dot"),
}


def main_figure(result: Result) -> go.Figure:
    """Per model: accuracy of every readout over layers, and random tokens in and beside CLS's place, closer."""
    split = "validation" if result.meta["repro"] else "test"
    fig = panels(
        [t for name in model_names(result) for t in (f"{name}: all readouts", f"{name}: replace and augment, closer")],
        f"How much of the label can one block write into a token that knows nothing of the image? ({split} images)",
        "Each readout runs the block of a layer once more and is trained on its output; 95 % intervals over images",
        x="layer of the block that is run once more",
        y="accuracy",
        columns=2,
        shared=False,
        last=last_layer(result),
    )
    for row, (_, rows) in enumerate(by_model(result)):
        left, right = place(fig, 2 * row), place(fig, 2 * row + 1)
        rows = rows[(rows.split == split) & rows.epoch.isna()]
        accuracy = rows[rows.measure == "accuracy"]
        layers = [int(accuracy.layer.min()) - 0.2, int(accuracy.layer.max()) + 0.2]
        level(fig, left, layers, value_of(rows, "chance"), "chance")
        for mode, (label, colour, dash) in MODES.items():
            for at in (left, right) if mode in ("replace", "augment") else (left,):
                curve(fig, at, accuracy[accuracy["mode"] == mode], label, colour, dash=dash)
    fig.update_yaxes(range=None, col=2)
    return fig


@drawn_plain
def curves_figure(result: Result) -> go.Figure:
    """One panel per model and layer: validation accuracy after every epoch."""
    frame = result.frame[result.frame.measure == "validation_accuracy"]
    cells = [
        (name, layer) for name in model_names(result) for layer in sorted(frame[frame.model == name].layer.unique())
    ]
    fig = panels(
        [f"{name}, layer {layer}" for name, layer in cells],
        "Had the readouts learned all they could when training ended?",
        "Accuracy on validation images after every epoch, mean over seeds; the learning rate falls to nearly 0 at "
        "the end",
        x="epoch",
        y="accuracy",
        columns=min(4, frame.layer.nunique()),
        height=280,
    )
    for number, (name, layer) in enumerate(cells):
        rows = frame[(frame.model == name) & (frame.layer == layer)].assign(low=float("nan"), high=float("nan"))
        for mode, (label, colour, dash) in MODES.items():
            curve(fig, place(fig, number), rows[rows["mode"] == mode], label, colour, x="epoch", dash=dash)
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
