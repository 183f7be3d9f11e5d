"""The pictures and the table of `cls_causality`."""

from __future__ import annotations

import pandas as pd
import plotly.graph_objects as go

from analyses.drawing.colours import BLUE, FLOOR, GREEN, ORANGE, PURPLE, UNTOUCHED
from analyses.drawing.panels import curve, each_panel, level, model_panels
from analyses.drawing.rows import by_model, span, value_of
from analyses.running.results import Result
from analyses.running.shown import drawn_plain

CURVES = {
    "probe": ("ridge probe on CLS: what is decodable", BLUE),
    "shuffled": ("accuracy with CLS shuffled after that layer: what is used", ORANGE),
    "shuffled_cls_readout": ("the same, reading CLS alone", GREEN),
}


def main_figure(result: Result) -> go.Figure:
    """One panel per model: decodable (blue), used (orange), used by a CLS-only readout (green)."""
    fig = model_panels(
        result,
        "From which layer on is the class decodable from CLS, and from which on does the model use it?",
        "Blue: what a probe reads behind a layer. Orange: what the model still answers right when CLS behind that "
        "layer is exchanged between images: low where CLS is used. 95 % intervals over images",
        y="accuracy",
    )
    for at, _, rows in each_panel(fig, result):
        ends = span(rows)
        level(fig, at, ends, value_of(rows, "clean"), "the model, unperturbed", UNTOUCHED)
        level(fig, at, ends, value_of(rows, "chance"), "chance: always the most frequent class")
        level(fig, at, ends, value_of(rows, "floor"), "floor: expected of another image's CLS", FLOOR)
        for measure, (label, colour) in CURVES.items():
            curve(fig, at, rows[rows.measure == measure], label, colour)
    return fig


@drawn_plain
def lens_figure(result: Result) -> go.Figure:
    """One panel per model: the model's own head on CLS, against the probe (methods section 4)."""
    fig = model_panels(
        result,
        "Does the model's own head read the class from CLS as early as a probe does?",
        "Purple: identifiability, 1 − rank of the true class / classes: high where the class is near the top though "
        "not first",
        y="accuracy, or identifiability",
    )
    for at, _, rows in each_panel(fig, result):
        level(fig, at, span(rows), value_of(rows, "chance"), "accuracy by chance")
        for measure, label, colour, dash in (
            ("probe", "ridge probe: accuracy", BLUE, "solid"),
            ("head_on_cls", "final norm and head on CLS: accuracy", BLUE, "dash"),
            ("identifiability", "the same head: identifiability", PURPLE, "dash"),
        ):
            curve(fig, at, rows[rows.measure == measure], label, colour, dash=dash)
    return fig


def summary_table(result: Result) -> pd.DataFrame:
    """One row per model: accuracies, and the first layers at which CLS is half decodable and at which it is used.

    `decodable_from`: the probe has come half the way from chance to its best (missing where it never beats chance).
    `used_from`: the first layer from which shuffling costs more than five points at every later layer too.
    """
    table = []
    for name, rows in by_model(result):
        value = {m: rows.loc[rows.measure == m, "value"].iloc[0] for m in ("clean", "chance", "floor")}
        probe = rows[rows.measure == "probe"].set_index("layer")["value"]
        used = rows[rows.measure == "shuffled"].groupby("layer")["value"].mean()
        half = value["chance"] + (probe.max() - value["chance"]) / 2
        read = [int(layer) for layer in probe.index[probe >= half]] if probe.max() > value["chance"] else []
        costs = used < value["clean"] - 0.05
        late = [int(layer) for layer in costs.index if costs.loc[layer:].all()]
        table.append(
            {
                "model": name,
                "clean": value["clean"],
                "best_probe": probe.max(),
                "least_shuffled": used.min(),
                "floor": value["floor"],
                "chance": value["chance"],
                "decodable_from": read[0] if read else None,
                "used_from": late[0] if late else None,
                "head": result.meta["models"][name]["head"],
            }
        )
    return pd.DataFrame(table).astype({"decodable_from": "Int64", "used_from": "Int64"})
