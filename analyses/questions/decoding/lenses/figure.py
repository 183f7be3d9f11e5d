"""The pictures, the table and the sentences of `lenses`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd
import plotly.graph_objects as go

from analyses.drawing.colours import BLUE, DARK, ORANGE, PURPLE, UNTRAINED
from analyses.drawing.panels import add, curve, each_panel, level, model_panels
from analyses.drawing.rows import last_layer, layers_in, reached, span
from analyses.running.results import Result
from hooked_vit.config.showing import counted

READERS = {
    "probe": ("the layer's own ridge probe", "solid", BLUE),
    "head": ("the model's head", "dash", ORANGE),
    "translator": ("affine translator, then the head", "dot", PURPLE),
}
HALF = 0.5


def main_figure(result: Result) -> go.Figure:
    """One panel per model with two axes: accuracy of every reader (blue) and identifiability of the heads (purple)."""
    frame = result.frame
    fig = model_panels(
        result,
        f"Which readers find the label in {_tokens(result)}, and at which layer?",
        "Blue, left axis: accuracy. Purple, right axis: identifiability, 1 − rank of the true class / classes: high "
        "where the class is near the top though not first. Grey: the head of a model with random weights",
        y=f'<span style="color:{BLUE}">accuracy</span>',
        second_axis=True,
        right=70,
    )
    fig.update_yaxes(tickfont={"color": BLUE}, secondary_y=False)
    fig.update_yaxes(
        range=[_least(frame), 1.005],
        tickfont={"color": PURPLE},
        tickmode="array",
        tickvals=[k / 10 for k in range(11)],
        secondary_y=True,
        showgrid=False,
    )
    title = f'<span style="color:{PURPLE}">identifiability</span>'
    for at, name, rows in each_panel(fig, result):
        if at["col"] == len(fig._grid_ref[0]) or name == frame.model.iloc[-1]:
            fig.update_yaxes(title_text=title, secondary_y=True, **at)
        left, right = ({**at, "secondary_y": second} for second in (False, True))
        chance = _only(rows, "accuracy", "chance").value.iloc[0]
        level(fig, left, span(rows), chance, "accuracy by chance")
        for reader, (label, dash, _) in READERS.items():
            curve(fig, left, _only(rows, "accuracy", reader), f"accuracy: {label}", BLUE, dash=dash)
        for reader in ("head", "translator"):
            label, dash, _ = READERS[reader]
            curve(fig, right, _only(rows, "identifiability", reader), f"identifiability: {label}", PURPLE, dash=dash)
        for measure, side, dash in (("accuracy", left, "solid"), ("identifiability", right, "dash")):
            untrained = _only(rows, measure, "random_head")
            curve(fig, side, untrained, f"{measure}: head of random weights", UNTRAINED, dash=dash)
    return fig


def path_figure(result: Result) -> go.Figure:
    """One panel per model: identifiability against accuracy, layer after layer, for every reader."""
    fig = model_panels(
        result,
        "Does the true class come near the top before it comes first?",
        "Each line goes through the layers of a model, from the first, which is numbered. Above the dashed line "
        "identifiability (1 − rank of the true class / classes) has come further from chance to 1 than accuracy has",
        x="accuracy",
        y="identifiability",
        y_range=(_least(result.frame), 1.02),
    )
    fig.update_xaxes(range=[-0.02, 1.05], dtick=0.2)
    for at, _, rows in each_panel(fig, result):
        chance = [float(_only(rows, m, "chance").value.iloc[0]) for m in ("accuracy", "identifiability")]
        straight = pd.DataFrame({"accuracy": [chance[0], 1.0], "value": [chance[1], 1.0], "low": None, "high": None})
        curve(fig, at, straight, "from chance to 1", DARK, x="accuracy", dash="dash", bare=True)
        for reader, (label, _, colour) in READERS.items():
            x, y = (
                _only(rows, m, reader).set_index("layer").value.sort_index() for m in ("accuracy", "identifiability")
            )
            drawn = go.Scatter(
                x=x,
                y=y,
                text=[str(x.index[0]), *[""] * (len(x) - 1)],
                textposition="bottom center",
                hovertext=[f"layer {layer}" for layer in x.index],
                mode="lines+markers+text",
                marker={"size": 6},
                line={"color": colour},
            )
            add(fig, at, drawn, label)
    return fig


def divergence_figure(result: Result) -> go.Figure:
    """One panel per model: KL divergence of the head's and the translator's reading from the model's answer."""
    highest = float(result.frame[result.frame.measure == "kl"].high.max())
    fig = model_panels(
        result,
        "How far is each layer's reading from the model's answer, before and after an affine change of code?",
        "KL divergence of what the head says at a layer from what the model says in the end; 0: the same",
        y="KL divergence (nats)",
        # what the head reads at the last layer is the model's answer, so that all there is may be 0
        y_range=(0.0, 1.05 * highest if highest > 0 else 1.0),
    )
    for at, _, rows in each_panel(fig, result):
        for reader in ("head", "translator"):
            label, dash, colour = READERS[reader]
            curve(fig, at, _only(rows, "kl", reader), label, colour, dash=dash)
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
        rows = result.frame[result.frame.model == row["model"]]
        layers, n = layers_in(rows), result.meta["models"][row["model"]]["n_layers"]
        if len(layers) == 1:
            found.append(f"{row['model']}: {_at_one(rows)}.")
            continue
        parts = [f"{what} {_from(row[key], layers, n)}" for what, key in (
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
        f"{name}: the head chooses among {counted(about['classes_of_the_head'], 'class', 'classes')}, the probe among "
        f"the {result.meta['n_classes']} of the data."
        for name, about in models.items()
        if about["classes_of_the_head"] != result.meta["n_classes"]
    ]
    if not result.meta["final_ln"]:
        notes.append("The head is applied without the final norm, as published; what it reads then is not the model's.")
    if result.meta["random_models"] == 0:
        notes.append("No model with random weights was run: the heads' numbers stand without that control.")
    return found, notes


def _half(rows: pd.DataFrame, measure: str, reader: str) -> int | None:
    """The first layer at which a reader has come half the way from chance to its best; None where that is chance."""
    curves = _only(rows, measure, reader).set_index("layer").sort_index()
    curve, chance = curves.value, _only(rows, measure, "chance").value.iloc[0]
    if not curves.low[curve.idxmax()] > chance:  # an interval that is not there is above nothing
        return None
    reached = curve.index[curve >= chance + HALF * (curve.max() - chance)]
    return int(reached[0])


def _from(layer: Any, measured: Sequence[int], n_layers: int) -> str:
    return reached(None if pd.isna(layer) else layer, measured, n_layers)


def _at_one(rows: pd.DataFrame) -> str:
    """What every reader reads at the only layer that was measured."""
    told = [
        f"{what} {_only(rows, measure, reader).value.iloc[0]:.1%}"
        for what, measure, reader in (
            ("the layer's own probe reads", "accuracy", "probe"),
            ("the model's head", "accuracy", "head"),
            ("the head behind a translator", "accuracy", "translator"),
            ("the head's identifiability is", "identifiability", "head"),
        )
    ]
    return f"at layer {last_layer(rows)} {', '.join(told)}"


def _only(rows: pd.DataFrame, measure: str, reader: str) -> pd.DataFrame:
    return rows[(rows.measure == measure) & (rows.reader == reader)]


def _least(frame: pd.DataFrame) -> float:
    """Where the axis of identifiability begins: a little below the least of it."""
    values = frame[frame.measure == "identifiability"].low
    return max(0.0, float(values.min()) - 0.03)


def _tokens(result: Result) -> str:
    tokens = result.meta["tokens"]
    return "CLS" if tokens == "cls" else f"the mean of the {tokens} tokens"
