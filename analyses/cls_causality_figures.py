"""The pictures and the table of `cls_causality`."""

from __future__ import annotations

from typing import Any

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from analyses.results import Result

BLUE, ORANGE, GREEN, PURPLE, GREY = "#1f77b4", "#ff7f0e", "#2ca02c", "#9467bd", "dimgray"
CURVES = {
    "probe": ("ridge probe on CLS: what is decodable", BLUE),
    "shuffled": ("accuracy with CLS shuffled at that layer: what is used", ORANGE),
    "shuffled_cls_readout": ("the same, reading CLS alone", GREEN),
}


def main_figure(result: Result) -> go.Figure:
    """One panel per model: decodable (blue), used (orange), used by a CLS-only readout (green)."""
    fig = _panels(result, "accuracy")
    for place, (name, rows) in _by_model(result):
        at = {"row": place // 3 + 1, "col": place % 3 + 1}
        flat = {m: rows.loc[rows.measure == m, "value"].iloc[0] for m in ("clean", "chance", "floor")}
        last = int(rows.layer.max())
        for measure, label, dash in (("clean", "unperturbed", "dash"), ("floor", "floor: another image's CLS", "dot")):
            fig.add_trace(
                go.Scatter(
                    x=[0, last],
                    y=[flat[measure]] * 2,
                    mode="lines",
                    line={"color": GREY, "dash": dash, "width": 1.5},
                    name=label,
                    legendgroup=measure,
                    showlegend=place == 0,
                ),
                **at,
            )
        for measure, (label, colour) in CURVES.items():
            curve = rows[rows.measure == measure]
            if len(curve):
                _curve(fig, curve, label, colour, at, show=_first_with(result, measure) == name)
    return fig


def lens_figure(result: Result) -> go.Figure:
    """One panel per model: the model's own head on CLS, against the probe (methods section 4)."""
    fig = _panels(result, "accuracy or score")
    for place, (_, rows) in _by_model(result):
        at = {"row": place // 3 + 1, "col": place % 3 + 1}
        for measure, label, colour, dash in (
            ("probe", "ridge probe: accuracy", BLUE, "solid"),
            ("head_on_cls", "final norm and head on CLS: accuracy", BLUE, "dash"),
            ("identifiability", "the same head: 1 - rank of the true class / classes", PURPLE, "dash"),
        ):
            _curve(fig, rows[rows.measure == measure], label, colour, at, show=place == 0, dash=dash)
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
    names = list(result.frame.model.unique())
    rows = -(-len(names) // 3)
    fig = make_subplots(
        rows=rows, cols=3, subplot_titles=names, shared_yaxes=True, horizontal_spacing=0.03, vertical_spacing=0.3 / rows
    )
    fig.update_xaxes(title_text="layer", dtick=1 if result.frame.layer.max() < 13 else None, showgrid=False)
    fig.update_yaxes(range=[0, 1.02], gridcolor="#eeeeee")
    fig.update_yaxes(title_text=unit, col=1)
    fig.update_layout(
        template="plotly_white",
        height=330 * rows + 110,
        width=1080,
        margin={"l": 60, "r": 20, "t": 40, "b": 90},
        legend={"orientation": "h", "y": -0.16 / rows - 0.06, "x": 0},
    )
    return fig


def _curve(
    fig: go.Figure, rows: pd.DataFrame, label: str, colour: str, at: dict[str, int], *, show: bool, dash: str = "solid"
) -> None:
    """A line with its interval: over seeds the mean, and the widest of their Wilson intervals."""
    line = rows.groupby("layer").agg(value=("value", "mean"), low=("low", "min"), high=("high", "max")).reset_index()
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
            x=line.layer.astype(int),
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
