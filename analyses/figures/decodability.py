"""The pictures, the table and the sentences of `decodability`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pandas as pd
import plotly.graph_objects as go
from plotly.colors import sample_colorscale

from analyses.figures.curves import BLUE, GREEN, GREY, ORANGE, PURPLE, add_curve, add_level, panel, panel_grid
from analyses.results import Result

COLOURS = {"cls": BLUE, "dist": PURPLE, "registers": GREEN, "patches": ORANGE, "random_patch": "#8c564b"}
MORE = ("#e377c2", "#7f7f7f", "#bcbd22", "#17becf", "#d62728")
NAMES = {
    "cls": "CLS",
    "dist": "distillation token",
    "registers": "mean register",
    "patches": "mean patch",
    "random_patch": "one random patch",
    "head_input": "what the head reads",
}


def main_figure(result: Result) -> go.Figure:
    """One panel per model: accuracy by role, with random weights, and where probes of permuted labels fall."""
    fig = _grid(result, f"What can a {result.meta['probe']} probe tell about {_asked(result)} from each kind of token?")
    shown: set[str] = set()
    for place, rows in _by_model(result):
        at = panel(place)
        _band(fig, rows, at, shown)
        for role, colour in _roles(result).items():
            mine = rows[rows.role == role]
            for measure, dash, what in (("accuracy", "solid", ""), ("random_weights", "dot", ", random weights")):
                part = _in_layers(mine[mine.measure == measure])
                if len(part):
                    label = f"{_name(role)}{what}"
                    add_curve(fig, part, label, colour, at, show=not what and _first(label, shown), dash=dash)
        _chance(fig, rows, at, shown)
    if (result.frame.measure == "random_weights").any():
        dotted = {"color": "black", "dash": "dot"}
        label = "dotted: the same token in models of random weights"
        fig.add_trace(go.Scatter(x=[None], y=[None], mode="lines", line=dotted, name=label), row=1, col=1)
    return fig


def control_figure(result: Result) -> go.Figure:
    """One panel per model: on its first role, accuracy, from few components, and what the probe memorises."""
    role = next(iter(_roles(result)))
    fig = _grid(result, f"How much is the probe's own doing? Probes on {_name(role)}")
    shown: set[str] = set()
    k = result.meta["components"]
    for place, rows in _by_model(result):
        at = panel(place)
        mine = rows[rows.role == role]
        for measure, label, colour, dash in (
            ("accuracy", "accuracy on new images", BLUE, "solid"),
            ("pca", f"the same from {k} principal components", BLUE, "dash"),
            ("control_task", "accuracy on random labels, on the images it was fitted on", ORANGE, "solid"),
            ("selectivity", "selectivity: the first less the third", GREEN, "solid"),
        ):
            part = _in_layers(mine[mine.measure == measure])
            if len(part):
                add_curve(fig, part, label, colour, at, show=_first(label, shown), dash=dash)
        _chance(fig, rows, at, shown)
    return fig


def curve_figure(result: Result) -> go.Figure:
    """One panel per model: accuracy on its first role against the images fitted on, a line per layer."""
    role = next(iter(_roles(result)))
    rows = result.frame[result.frame.measure == "learning_curve"]
    fig = panel_grid(
        list(result.frame.model.unique()), 99, "accuracy", x_title="images fitted on (each step doubles them)",
        title=f"How many images does a probe on {_name(role)} need? Light: early layers, dark: late",
    )  # fmt: skip
    fig.update_xaxes(type="log", dtick=None, tickvals=sorted(rows.n_fit.dropna().astype(int).unique()))
    shown: set[str] = set()
    last = max(1, int(rows.layer.max())) if len(rows) else 1
    for place, mine in _by_model(result):
        at = panel(place)
        curves = mine[(mine.measure == "learning_curve") & (mine.role == role)]
        for layer, line in curves.groupby("layer"):
            colour = sample_colorscale("Blues", 0.25 + 0.75 * max(0, int(layer)) / last)[0]
            label = "embedding" if layer < 0 else f"layer {layer}"
            add_curve(fig, line, label, colour, at, show=_first(label, shown), x="n_fit")
        chance = mine.loc[mine.measure == "chance", "value"]
        if len(curves) and len(chance):
            fig.add_hline(y=chance.iloc[0], line={"color": GREY, "dash": "dash", "width": 1.5}, **at)
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
    for model, rows in table.groupby("model", sort=False):
        best = rows.loc[rows.accuracy.idxmax()]
        where = "" if pd.isna(best.best_layer) else f" after layer {best.best_layer}"
        where = " in front of the first block" if not pd.isna(best.best_layer) and best.best_layer < 0 else where
        sentence = (
            f"{model}: {_asked(result)} is read best from {_name(best.role)}{where}, in {best.accuracy:.1%} of images "
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
        sentence = (
            f"Probes of permuted labels are at chance, within their interval, at {len(permuted) - len(outside)} of "
        )
        sentence += f"{len(permuted)} sites"
        places = [f"{r.model} {_name(r.role)} layer {r.layer}" for r in outside.head(5).itertuples()]
        sentences.append(sentence + (f"; not at {', '.join(places)}." if places else "."))
    return sentences


def _asked(result: Result) -> str:
    target = str(result.meta["target"])
    if target == "dataset":
        return "the data set an image is from"
    column, presence, value = target.partition("=")
    return f"whether {column} is {value}" if presence else f"the {column}"


def _grid(result: Result, title: str) -> go.Figure:
    layers = result.frame.layer.dropna()
    last = int(layers.max()) if len(layers) else 0
    low = min(0.0, float(result.frame.loc[result.frame.measure == "selectivity", "low"].min()))
    y_range = (0.0 if pd.isna(low) else low, 1.02)
    y_range = y_range if "own doing" in title else (0.0, 1.02)
    return panel_grid(list(result.frame.model.unique()), last, "accuracy", y_range=y_range, title=title)


def _band(fig: go.Figure, rows: pd.DataFrame, at: dict[str, int], shown: set[str]) -> None:
    """Between which accuracies probes of permuted labels fall, whatever they read."""
    permuted = _in_layers(rows[rows.measure == "permuted"])
    if permuted.empty:
        return
    bounds = permuted.groupby("layer").agg(low=("low", "min"), high=("high", "max")).reset_index()
    label = "probes of permuted labels: where another would fall"
    x = [*bounds.layer.astype(int), *bounds.layer.astype(int)[::-1]]
    y = [*bounds.high, *bounds.low[::-1]]
    fig.add_trace(
        go.Scatter(
            x=x, y=y, fill="toself", fillcolor="rgba(120,120,120,0.25)", line={"width": 0}, mode="lines",
            name=label, legendgroup=label, showlegend=_first(label, shown), hoverinfo="skip",
        ),
        **at,
    )  # fmt: skip


def _chance(fig: go.Figure, rows: pd.DataFrame, at: dict[str, int], shown: set[str]) -> None:
    value = rows.loc[rows.measure == "chance", "value"].iloc[0]
    layers = rows.layer.dropna()
    label = "always the most frequent"
    last = int(layers.max()) if len(layers) else 0
    add_level(fig, value, last, label, at, show=_first(label, shown), dash="dash")


def _by_model(result: Result) -> Iterator[tuple[int, pd.DataFrame]]:
    for place, (_, rows) in enumerate(result.frame.groupby("model", sort=False)):
        yield place, rows


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


def _first(label: str, shown: set[str]) -> bool:
    new = label not in shown
    shown.add(label)
    return new
