"""The pictures, the table and the sentences of `decodability`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pandas as pd
import plotly.graph_objects as go
from plotly.colors import sample_colorscale

from analyses.activations.sites import LABELS
from analyses.drawing.colours import BLUE, BROWN, CYAN, GREEN, MIDGREY, OLIVE, ORANGE, PINK, READ_FROM, RED
from analyses.drawing.panels import HOLLOW, Place, add, band, curve, each_panel, level, model_panels, place
from analyses.drawing.rows import picked, span, value_of
from analyses.running.results import Result
from hooked_vit.config.showing import counted

COLOURS = {**READ_FROM, "random_patch": BROWN}
MORE = (PINK, MIDGREY, OLIVE, CYAN, RED)
NAMES = {**LABELS, "head_input": "what the head reads"}
CHANCE_LABEL = "chance: always the most frequent"


def main_figure(result: Result) -> go.Figure:
    """One panel per model: accuracy by role, with random weights, and where probes of permuted labels fall."""
    fig = model_panels(
        result,
        f"What can a {result.meta['probe']} probe tell about {_asked(result)} from each kind of token?",
        "Accuracy on images the probe was not fitted on, 95 % intervals over images",
        y="accuracy",
    )
    for at, _, rows in each_panel(fig, result):
        band(
            fig, at, _in_layers(rows[rows.measure == "permuted"]), "probes of permuted labels", "rgba(120,120,120,0.25)"
        )
        _chance(fig, rows, at)
        for role, colour in _roles(result).items():
            mine = _in_layers(rows[rows.role == role])
            curve(fig, at, mine[mine.measure == "accuracy"], _name(role), colour)
            curve(fig, at, mine[mine.measure == "random_weights"], None, colour, dash="dot")
    if (result.frame.measure == "random_weights").any():
        dotted = go.Scatter(x=[None], y=[None], mode="lines", line={"color": "black", "dash": "dot"})
        if result.frame.layer.nunique() == 1:
            dotted.update(mode="lines+markers", marker={"symbol": f"circle{HOLLOW['dot']}", "size": 6})
        add(fig, place(fig, 0), dotted, "dotted: the same token in models of random weights")
    return fig


def control_figure(result: Result) -> go.Figure:
    """One panel per model, on its first role: accuracy, from few components, on the control task, and by heart."""
    role = next(iter(_roles(result)))
    least = float(result.frame.loc[result.frame.measure.isin(["selectivity", "beyond_memorised"]), "low"].min())
    fig = model_panels(
        result,
        f"How much is the probe's own doing? Probes on {_name(role)}",
        "Control task: an answer drawn at random for every type of picture, the same for new images. Green: accuracy "
        "less that, on the same images. Orange: labels drawn at random for every image, by heart. 95 % intervals",
        y="accuracy",
        y_range=(min(0.0, least) if least == least else 0.0, 1.03),
    )
    k = result.meta["components"]
    for at, _, rows in each_panel(fig, result):
        mine = _in_layers(rows[rows.role == role])
        _chance(fig, rows, at)
        for measure, label, colour, dash in (
            ("accuracy", "accuracy on new images", BLUE, "solid"),
            ("pca", f"the same from {counted(k, 'principal component')}", BLUE, "dash"),
            ("control_task", "accuracy on the control task, on new images", BROWN, "solid"),
            ("selectivity", "selectivity: accuracy − control task", GREEN, "solid"),
            ("memorised", "random labels by heart, on the images it was fitted on", ORANGE, "solid"),
        ):
            curve(fig, at, mine[mine.measure == measure], label, colour, dash=dash)
    return fig


def curve_figure(result: Result) -> go.Figure:
    """One panel per model: accuracy on its first role against the images fitted on, a line per layer."""
    role = next(iter(_roles(result)))
    rows = picked(result.frame, measure="learning_curve", role=role)
    fig = model_panels(
        result,
        f"How many images does a probe on {_name(role)} need?",
        "Accuracy on new images, a line per layer; light: early layers, dark: late. 95 % intervals over images",
        x="images fitted on (each step doubles them)",
        y="accuracy",
    )
    fig.update_xaxes(type="log", tickvals=sorted(rows.n_fit.dropna().astype(int).unique()))
    last = max(1, int(rows.layer.max())) if len(rows) else 1
    for at, name, mine in each_panel(fig, result):
        lines = rows[rows.model == name]
        if len(lines):
            level(fig, at, [lines.n_fit.min(), lines.n_fit.max()], value_of(mine, "chance"), CHANCE_LABEL)
        for layer, line in lines.groupby("layer"):
            colour = sample_colorscale("Blues", 0.25 + 0.75 * max(0, int(layer)) / last)[0]
            label = "embedding" if layer < 0 else f"layer {layer}"
            curve(fig, at, line, label, colour, x="n_fit")
    return fig


def summary_table(result: Result) -> pd.DataFrame:
    """One row per model and role: best accuracy and where, and beside it each control at the same layer."""
    table = []
    for model, role, rows in _sites(result):
        found = rows[rows.measure == "accuracy"]
        best = found.loc[found.value.idxmax()]
        here = rows if pd.isna(best.layer) else rows[rows.layer == best.layer]
        row = {"model": model, "role": role, "best_layer": best.layer, "accuracy": best.value}
        row |= {
            measure: here.loc[here.measure == measure, "value"].mean()
            for measure in ("identifiability", "permuted", "random_weights", "pca", "selectivity")
            if (result.frame.measure == measure).any()
        }
        chance = result.frame[(result.frame.model == model) & (result.frame.measure == "chance")]
        table.append({**row, "chance": chance.value.iloc[0]})
    return pd.DataFrame(table).astype({"best_layer": "Int64"})


def in_words(result: Result) -> list[str]:
    """Per model where the answer is read best; then whether the control that can only guess did."""
    table = summary_table(result)
    sentences = []
    read = result.frame[result.frame.measure == "accuracy"].groupby("model").size()
    for model, rows in table.groupby("model", sort=False):
        best = rows.loc[rows.accuracy.idxmax()]
        where = "" if pd.isna(best.best_layer) else f" after layer {best.best_layer}"
        where = " in front of the first block" if not pd.isna(best.best_layer) and best.best_layer < 0 else where
        how = "read best" if read[model] > 1 else "read"
        sentence = (
            f"{model}: {_asked(result)} is {how} from {_name(best.role)}{where}, in {best.accuracy:.1%} of images "
            f"(always naming the most frequent: {best.chance:.1%}"
        )
        if "random_weights" in rows and not pd.isna(best.random_weights):
            sentence += f"; from the same place in a model of random weights: {best.random_weights:.1%}"
        sentences.append(f"{sentence}).")
    permuted = result.frame[result.frame.measure == "permuted"]
    if len(permuted):
        chance = result.frame[result.frame.measure == "chance"].set_index("model")["value"]
        uniform = 1 / len(result.meta["classes"])
        level = permuted.model.map(chance)
        # A probe that can only guess is as often right as one of its guesses is frequent: between these two.
        outside = permuted[(permuted.low > level.clip(lower=uniform)) | (permuted.high < level.clip(upper=uniform))]
        within = f"{len(permuted) - len(outside)} of {counted(len(permuted), 'site')}"
        sentence = f"Probes of permuted labels are at chance, within their single intervals, at {within}"
        places = [f"{r.model} {_name(r.role)} layer {r.layer}" for r in outside.head(5).itertuples()]
        sentences.append(sentence + (f"; not at {', '.join(places)}." if places else "."))
    return sentences


def _asked(result: Result) -> str:
    target = str(result.meta["target"])
    if target == "dataset":
        return "the data set an image is from"
    column, presence, value = target.partition("=")
    return f"whether {column} is {value}" if presence else f"the {column}"


def _chance(fig: go.Figure, rows: pd.DataFrame, at: Place) -> None:
    level(fig, at, span(rows), value_of(rows, "chance"), CHANCE_LABEL)


def _sites(result: Result) -> Iterator[tuple[Any, Any, pd.DataFrame]]:
    for (model, role), rows in result.frame.dropna(subset="role").groupby(["model", "role"], sort=False):
        yield model, role, rows


def _in_layers(rows: pd.DataFrame) -> pd.DataFrame:
    return rows.dropna(subset="layer")


def _roles(result: Result) -> dict[str, str]:
    """Roles in the order they occur, each with its colour."""
    roles = list(dict.fromkeys(result.frame.role.dropna()))
    others = [role for role in roles if role not in COLOURS]
    return {role: COLOURS.get(role) or MORE[others.index(role) % len(MORE)] for role in roles}


def _name(role: str) -> str:
    return NAMES.get(role, role.replace("_", " "))
