"""The pictures and the table of `cls_causality`."""

from __future__ import annotations

import pandas as pd
import plotly.graph_objects as go

from analyses.figures.curves import BLUE, GREEN, ORANGE, PURPLE, add_curve, add_level, panel, panel_grid
from analyses.results import Result

CURVES = {
    "probe": ("ridge probe on CLS: what is decodable", BLUE),
    "shuffled": ("accuracy with CLS shuffled at that layer: what is used", ORANGE),
    "shuffled_cls_readout": ("the same, reading CLS alone", GREEN),
}


def main_figure(result: Result) -> go.Figure:
    """One panel per model: decodable (blue), used (orange), used by a CLS-only readout (green)."""
    fig = _panels(result, "accuracy")
    for place, (name, rows) in _by_model(result):
        at = panel(place)
        flat = {m: rows.loc[rows.measure == m, "value"].iloc[0] for m in ("clean", "chance", "floor")}
        last = int(rows.layer.max())
        for measure, label, dash in (("clean", "unperturbed", "dash"), ("floor", "floor: another image's CLS", "dot")):
            add_level(fig, flat[measure], last, label, at, show=place == 0, dash=dash)
        for measure, (label, colour) in CURVES.items():
            curve = rows[rows.measure == measure]
            if len(curve):
                add_curve(fig, curve, label, colour, at, show=_first_with(result, measure) == name)
    return fig


def lens_figure(result: Result) -> go.Figure:
    """One panel per model: the model's own head on CLS, against the probe (methods section 4)."""
    fig = _panels(result, "accuracy or score")
    for place, (_, rows) in _by_model(result):
        at = panel(place)
        for measure, label, colour, dash in (
            ("probe", "ridge probe: accuracy", BLUE, "solid"),
            ("head_on_cls", "final norm and head on CLS: accuracy", BLUE, "dash"),
            ("identifiability", "the same head: 1 - rank of the true class / classes", PURPLE, "dash"),
        ):
            add_curve(fig, rows[rows.measure == measure], label, colour, at, show=place == 0, dash=dash)
    return fig


def summary_table(result: Result) -> pd.DataFrame:
    """One row per model: accuracies, and the first layers at which CLS is half decodable and at which it is used.

    `decodable_from`: the probe has come half the way from chance to its best (missing where it never beats chance).
    `used_from`: the first layer from which shuffling costs more than five points at every later layer too.
    """
    table = []
    for _, (name, rows) in _by_model(result):
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


def _by_model(result: Result) -> list[tuple[int, tuple[str, pd.DataFrame]]]:
    return list(enumerate(result.frame.groupby("model", sort=False)))


def _first_with(result: Result, measure: str) -> str | None:
    having = result.frame.loc[result.frame.measure == measure, "model"]
    return having.iloc[0] if len(having) else None


def _panels(result: Result, unit: str) -> go.Figure:
    return panel_grid(list(result.frame.model.unique()), int(result.frame.layer.max()), unit)
