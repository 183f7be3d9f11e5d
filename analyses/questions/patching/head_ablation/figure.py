"""The maps, the curve, the table and the sentences of `head_ablation`."""

from __future__ import annotations

from typing import Any

import pandas as pd
import plotly.graph_objects as go

from analyses.drawing.colours import BLUE, MIDGREY, ORANGE, UNTOUCHED
from analyses.drawing.panels import add, curve, level, panels, place, whole_numbers
from analyses.drawing.rows import by_model, head_notes, in_a_row, layers_in, model_names, picked, value_of
from analyses.questions.patching.head_ablation.ablation import WAYS
from analyses.running.results import Result
from hooked_vit.config.showing import counted

COLOURS = "RdBu_r"
SPOKEN = {"zero": "zero", "mean": "mean over images", "resample": "another image's"}


def main_figure(result: Result) -> go.Figure:
    """Layers down, heads and the MLP across, a column of maps per way: the total effect on the margin."""
    return _maps(result, "total", "Which heads and MLPs does the answer need?")


def direct_figure(result: Result) -> go.Figure:
    """The same maps of the direct effect."""
    return _maps(result, "direct", "Which heads and MLPs does the readout hear directly?")


def together_figure(result: Result) -> go.Figure:
    """Accuracy against the number of heads ablated together: in the order of importance, and at random."""
    names = model_names(result)
    fig = panels(
        [f"{name}: {SPOKEN[way]}" for name in names for way in WAYS],
        "How much do the heads that matter most cost together, against as many at random?",
        "The order is that of the total effect on every second image; the curves are measured on the others. Bars: "
        "95 % intervals, of random heads the widest of several draws.",
        x="heads ablated together", y="accuracy",
    )  # fmt: skip
    for i, (_, rows) in enumerate(by_model(result)):
        for j, way in enumerate(WAYS):
            at, mine = place(fig, i * len(WAYS) + j), picked(rows, measure="together_accuracy", way=way)
            curve(fig, at, picked(mine, order="ranked"), "in the order of their effect", BLUE, x="k")
            curve(fig, at, picked(mine, order="random"), "at random", ORANGE, x="k")
            most = int(mine.k.max())
            ends = [1, most] if most > 1 else [0.5, 1.5]
            level(fig, at, ends, value_of(rows, "accuracy"), "nothing ablated", UNTOUCHED)
            whole_numbers(fig, most, **at)
    return fig


def _maps(result: Result, effect: str, question: str) -> go.Figure:
    names = model_names(result)
    fig = panels(
        [f"{name}: {SPOKEN[way]}" for name in names for way in WAYS],
        question,
        f"Colour: what ablation takes from the margin (logit of the right class minus the others' mean), {effect} "
        "effect; red: the part helps, blue: it stands in the way. One scale per model. Grey dots: the 95 % interval "
        "includes 0.",
        x="head", y="layer", y_range=None,
    )  # fmt: skip
    for i, (_, rows) in enumerate(by_model(result)):
        drops = picked(rows, measure="drop", effect=effect)
        widest = float(drops.value.abs().max()) or 1.0
        for j, way in enumerate(WAYS):
            at = place(fig, i * len(WAYS) + j)
            mine = picked(drops, way=way)
            mine = mine.assign(across=mine["head"].map(lambda h: "MLP" if pd.isna(h) else str(h)))
            table = mine.pivot(index="layer", columns="across", values="value")[list(mine["across"].unique())]
            heat = go.Heatmap(
                z=table.to_numpy(float), x=list(table.columns), y=list(map(str, table.index)), colorscale=COLOURS,
                zmin=-widest, zmax=widest, showscale=j == len(WAYS) - 1,
                hovertemplate="layer %{y}, head %{x}: %{z:.3f}<extra></extra>",
            )  # fmt: skip
            add(fig, at, heat, None)
            unsure = mine[~((mine.low > 0) | (mine.high < 0))]  # those without an interval too
            marker = {"color": MIDGREY, "size": 4}
            dots = go.Scatter(x=unsure["across"], y=unsure.layer.astype(str), mode="markers", marker=marker)
            add(fig, at, dots.update(hoverinfo="skip"), None)
    fig.update_xaxes(type="category")
    fig.update_yaxes(type="category", autorange="reversed", dtick=1)  # layers left out take no room
    return _side_scales(fig, len(names))


def _side_scales(fig: go.Figure, n_models: int) -> go.Figure:
    """One colour scale beside each row of maps."""
    fig.update_layout(margin_r=90)
    for heat in fig.data:
        if heat.type == "heatmap" and heat.showscale:
            low, high = fig.layout[f"yaxis{heat.yaxis[1:]}"].domain
            heat.colorbar = {"y": (low + high) / 2, "len": (high - low) * 1.05, "thickness": 12}
    return fig


def summary_table(result: Result) -> pd.DataFrame:
    """One row per model and way.

    `most` is the head with the largest total drop, and `drop` that in shares of the margin; `stability` the rank
    correlation between halves of the images; `direct` that between total and direct effect; `ranked` and `random` the
    accuracy with half of the heads ablated together, in the order of their effect and at random.
    """
    table = []
    for name, rows in by_model(result):
        whole = value_of(rows, "margin")
        for way in WAYS:
            drops = picked(rows, measure="drop", effect="total", way=way, part="head")
            top = drops.loc[drops.value.idxmax()]
            together = picked(rows, measure="together_accuracy", way=way)
            half = together[together.k == together.k.max()]
            table.append(
                {
                    "model": name,
                    "way": way,
                    "accuracy": value_of(rows, "accuracy"),
                    "most": f"L{top['layer']}H{top['head']}",
                    "drop": float(top["value"]) / whole if whole else None,
                    "stability": value_of(rows, "stability", way=way, effect="total"),
                    "direct": value_of(rows, "effect_agreement", way=way),
                    "heads": int(together.k.max()),
                    "ranked": float(picked(half, order="ranked").value.mean()),
                    "random": float(picked(half, order="random").value.mean()),
                }
            )
    return pd.DataFrame(table)


def in_words(result: Result) -> tuple[list[str], list[str]]:
    """What was found, and what to keep in mind."""
    found = [
        _sentence(row, _the_head(result, row["model"]))
        for row in summary_table(result).to_dict("records")
        if row["way"] == "mean"
    ]
    notes = [
        "Ablating one part leaves those that could stand in for it: a head without an effect here may still have one "
        "together with others.",
        *head_notes(result.meta),
    ]
    return found, notes


def _the_head(result: Result, name: str) -> str:
    """ "the head that matters most", and of which layers where others were not looked at"""
    layers = layers_in(result.frame[result.frame.model == name])
    of_all = len(layers) == result.meta["models"][name]["n_layers"]
    return "the head that matters most" if of_all else f"of the heads of {in_a_row(layers)} the one that matters most"


def _sentence(row: dict[str, Any], head: str) -> str:
    def told(column: str, text: str, form: str = ".2f") -> str:
        return "" if pd.isna(row[column]) else text.format(f"{row[column]:{form}}")

    drop = told("drop", " (a mean in its place takes {} of the margin)", ".0%")
    held = told("stability", "; two halves of the images agree on the order with {}")
    direct = told("direct", "; total and direct effect with {}")
    return (
        f"{row['model']}: {head} is {row['most']}{drop}{held}{direct}; "
        f"{counted(row['heads'], 'head')} set to the mean: an accuracy of {row['ranked']:.1%} in that order and "
        f"{row['random']:.1%} at random (untouched {row['accuracy']:.1%})."
    )
