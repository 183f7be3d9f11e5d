"""The pictures, the table and the sentences of `lenses`."""

from __future__ import annotations

from typing import Any

import pandas as pd
import plotly.graph_objects as go

from analyses.figures.curves import BLUE, GREY, ORANGE, PURPLE, add_curve, add_level, panel, panel_grid
from analyses.results import Result

READERS = {
    "probe": ("the layer's own ridge probe", "solid", BLUE),
    "head": ("the model's head", "dash", ORANGE),
    "translator": ("affine translator, then the head", "dot", PURPLE),
}
HALF = 0.5


def main_figure(result: Result) -> go.Figure:
    """One panel per model with two axes: accuracy of every reader (blue) and identifiability of the heads (purple)."""
    frame = result.frame
    fig = panel_grid(
        list(frame.model.unique()),
        int(frame.layer.max()),
        f'<span style="color:{BLUE}">accuracy</span>',
        second_axis=True,
        title=f"Which readers find the label in {_tokens(result)}, and at which layer?<br><sup>Blue, left: accuracy. "
        "Purple, right: identifiability, 1 − rank of the true class / classes: high where the class is near the top "
        "though not first.</sup>",
    )
    fig.update_yaxes(
        title_text=f'<span style="color:{PURPLE}">identifiability</span>',
        range=[_least(frame), 1.005],
        tickmode="array",
        tickvals=[k / 10 for k in range(11)],
        secondary_y=True,
        showgrid=False,
    )
    for place, (_, rows) in enumerate(frame.groupby("model", sort=False)):
        left, right = ({**panel(place), "secondary_y": second} for second in (False, True))
        show, last = place == 0, int(rows.layer.max())
        chance = _only(rows, "accuracy", "chance").value.iloc[0]
        add_level(fig, chance, last, "accuracy by chance", left, show=show, dash="dot")
        for reader, (label, dash, _) in READERS.items():
            curve = _only(rows, "accuracy", reader)
            add_curve(fig, curve, f"accuracy: {label}", BLUE, left, show=show, dash=dash)
        for reader in ("head", "translator"):
            label, dash, _ = READERS[reader]
            curve = _only(rows, "identifiability", reader)
            add_curve(fig, curve, f"identifiability: {label}", PURPLE, right, show=show, dash=dash)
        for measure, at, dash in (("accuracy", left, "solid"), ("identifiability", right, "dash")):
            untrained = _only(rows, measure, "random_head")
            if len(untrained):
                label = f"{measure}: head of a model with random weights"
                add_curve(fig, untrained, label, "#bbbbbb", at, show=show, dash=dash)
    return fig


def path_figure(result: Result) -> go.Figure:
    """One panel per model: identifiability against accuracy, layer after layer, for every reader."""
    frame = result.frame
    fig = panel_grid(
        list(frame.model.unique()),
        99,
        "identifiability",
        x_title="accuracy",
        y_range=(_least(frame), 1.02),
        title="Does the true class come near the top before it comes first?<br><sup>Each line goes through the layers "
        "of a model, from the one numbered. Above the grey line identifiability is further from chance to perfect than "
        "accuracy is.</sup>",
    )
    fig.update_xaxes(range=[-0.02, 1.02], dtick=0.2)
    for place, (_, rows) in enumerate(frame.groupby("model", sort=False)):
        at = panel(place)
        for reader, (label, dash, colour) in READERS.items():
            x, y = (
                _only(rows, m, reader).set_index("layer").value.sort_index() for m in ("accuracy", "identifiability")
            )
            fig.add_trace(
                go.Scatter(
                    x=x,
                    y=y,
                    text=["0", *[""] * (len(x) - 1)],
                    textposition="bottom center",
                    mode="lines+markers+text",
                    line={"color": colour, "dash": dash},
                    name=label,
                    legendgroup=label,
                    showlegend=place == 0,
                ),
                **at,
            )
        chance = [_only(rows, m, "chance").value.iloc[0] for m in ("accuracy", "identifiability")]
        fig.add_trace(
            go.Scatter(
                x=[chance[0], 1],
                y=[chance[1], 1],
                mode="lines+markers",
                marker={"symbol": "x", "size": [9, 0], "color": GREY},
                line={"color": "#bbbbbb", "width": 1},
                name="from chance to perfect",
                legendgroup="chance",
                showlegend=place == 0,
            ),
            **at,
        )
    return fig


def divergence_figure(result: Result) -> go.Figure:
    """One panel per model: KL divergence of the head's and the translator's reading from the model's answer."""
    rows = result.frame[result.frame.measure == "kl"]
    fig = panel_grid(
        list(result.frame.model.unique()),
        int(rows.layer.max()),
        "KL divergence (nats)",
        y_range=(0.0, 1.05 * float(rows.high.max())),
        title="How far is each layer's reading from the model's answer, before and after an affine change of code?",
    )
    for place, (_, cells) in enumerate(rows.groupby("model", sort=False)):
        for reader in ("head", "translator"):
            label, dash, colour = READERS[reader]
            curve = cells[cells.reader == reader]
            add_curve(fig, curve, label, colour, panel(place), show=place == 0, dash=dash)
    return fig


def summary_table(result: Result) -> pd.DataFrame:
    """One row per model: from which layer each reader has come half the way from chance to its best, and controls."""
    table = []
    for name, rows in result.frame.groupby("model", sort=False):
        row: dict[str, Any] = {"model": name, "accuracy": _only(rows, "accuracy", "model").value.iloc[0]}
        for reader in READERS:
            row[f"{reader}_from"] = _half(rows, "accuracy", reader)
        row["head_identifies_from"] = _half(rows, "identifiability", "head")
        first, last = _only(rows, "accuracy", "head"), rows.layer.max()
        row["head_at_the_last_layer"] = first[first.layer == last].value.iloc[0]
        untrained = _only(rows, "accuracy", "random_head")
        row["random_head_at_best"] = untrained.groupby("layer").value.mean().max() if len(untrained) else None
        row["chance"] = _only(rows, "accuracy", "chance").value.iloc[0]
        table.append(row)
    whole = {column: "Int64" for column in table[0] if column.endswith("_from")}
    return pd.DataFrame(table).astype(whole)


def in_words(result: Result) -> tuple[list[str], list[str]]:
    """Findings, and what to keep in mind."""
    found = []
    for row in summary_table(result).to_dict("records"):
        parts = [f"{what} from {_from(row[key])}" for what, key in (
            ("the layer's own probe reads half of its best", "probe_from"),
            ("the model's head", "head_from"),
            ("the head behind a translator", "translator_from"),
            ("the head's identifiability is half the way to its best", "head_identifies_from"),
        )]  # fmt: skip
        found.append(f"{row['model']}: {'; '.join(parts)}.")
    models = result.meta["models"]
    notes = [f"{name}: {about['lens']}." for name, about in models.items() if about["lens"]]
    notes += [
        f"{name} answers by {about['head']}; its scores are no log-probabilities, so divergences are small throughout."
        for name, about in models.items()
        if about["head_fitted"]
    ]
    notes += [
        f"{name}: the head chooses among {about['classes_of_the_head']} classes, the probe among the "
        f"{result.meta['n_classes']} of the data."
        for name, about in models.items()
        if about["classes_of_the_head"] != result.meta["n_classes"]
    ]
    if not result.meta["final_ln"]:
        notes.append("The head is applied without the final norm, as published; what it reads then is not the model's.")
    if result.meta["random_models"] == 0:
        notes.append("No model with random weights was run: the heads' numbers stand without that control.")
    return found, notes


def _half(rows: pd.DataFrame, measure: str, reader: str) -> int | None:
    """The first layer at which a reader has come half the way from chance to its best."""
    curve = _only(rows, measure, reader).set_index("layer").value.sort_index()
    chance = _only(rows, measure, "chance").value.iloc[0]
    if curve.max() <= chance:
        return None
    reached = curve.index[curve >= chance + HALF * (curve.max() - chance)]
    return int(reached[0])


def _from(layer: Any) -> str:
    return "no layer on" if pd.isna(layer) else f"layer {layer} on"


def _only(rows: pd.DataFrame, measure: str, reader: str) -> pd.DataFrame:
    return rows[(rows.measure == measure) & (rows.reader == reader)]


def _least(frame: pd.DataFrame) -> float:
    """Where the axis of identifiability begins: a little below the least of it."""
    values = frame[frame.measure == "identifiability"].low
    return max(0.0, float(values.min()) - 0.03)


def _tokens(result: Result) -> str:
    tokens = result.meta["tokens"]
    return "CLS" if tokens == "cls" else f"the mean of the {tokens} tokens"
