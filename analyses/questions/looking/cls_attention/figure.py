"""The pictures of `cls_attention`."""

from __future__ import annotations

import pandas as pd
import plotly.graph_objects as go

from analyses.drawing.colours import BLUE, CHANCE, DARK, GREEN, MODELS, ORANGE, PURPLE, SHAPES
from analyses.drawing.panels import (
    Place,
    add,
    curve,
    each_panel,
    layer_ticks,
    level,
    model_panels,
    note,
    panels,
    place,
)
from analyses.drawing.rows import by_model, model_names, picked, value_of
from analyses.questions.looking.cls_attention.claims import BROAD, CLAIMS, DISCRIMINATES, LEAST, OBJECTS, thirds
from analyses.questions.looking.cls_attention.study import OTHER_MASKS, RANDOM, RANDOM_UNIFORM, TRAINED, UNIFORM
from analyses.running.results import Result

LINES = {
    TRAINED: (BLUE, "solid"),
    RANDOM: (ORANGE, "solid"),
    UNIFORM: (DARK, "dash"),
    OTHER_MASKS: (PURPLE, "dot"),
    RANDOM_UNIFORM: (GREEN, "dot"),
}
"""Colour and dash of every variant."""
SHOWN = {
    BROAD: ("entropy", "broad early"),
    OBJECTS: ("object_mass", "objects mid"),
    DISCRIMINATES: ("class_probe", "classes late"),
}
"""The measure that is drawn for a claim, and the claim in a panel's title."""


def main_figure(result: Result) -> go.Figure:
    """Per model three panels, one per claim: entropy, mass on the object, what a probe reads from what CLS gathers."""
    verdicts = {(row["model"], row["claim"]): row["verdict"] for row in result.meta["table"]}
    names = model_names(result)
    fig = panels(
        [f"{name} · {SHOWN[claim][1]}: {verdicts[name, claim]}" for name in names for claim in CLAIMS],
        "Is attention of CLS broad early, on objects midway, and on what tells classes late?",
        "Left: entropy of CLS's attention over patches, 1 is uniform. Middle: share of it on the object. Right: "
        "accuracy of probes on what CLS gathers from the patches. Dotted lines divide early, middle and late; 95 % "
        "intervals over images",
        y="share",
    )  # fmt: skip
    fig.update_annotations(font_size=12)
    for number, (name, rows) in enumerate(by_model(result)):
        deep = result.meta["models"][name]["n_layers"]
        for column, claim in enumerate(CLAIMS):
            at = place(fig, len(CLAIMS) * number + column)
            some = picked(rows, measure=SHOWN[claim][0])
            layer_ticks(fig, rows, **at)
            _variants(fig, at, some)
            _depth(fig, at, deep)
            if some.empty:
                note(fig, at, result.meta["models"][name]["no_objects"])
            if claim == DISCRIMINATES:
                level(fig, at, [0, deep - 1], value_of(rows, "chance"), "chance", {**CHANCE, "width": 1})
    return fig


def contrast_figure(result: Result) -> go.Figure:
    """Every part of every claim, model by model, with the intervals that verdicts are made from."""
    rows = result.frame[result.frame.measure == "contrast"]
    asked = [*dict.fromkeys(rows.part)]
    fig = panels(
        [""],
        f"What the claims compare: a claim is supported where all its parts lie above {LEAST}",
        f"Means over images of differences of early, middle and late layers, with intervals that hold together: "
        f"all {result.meta['n_tests']} at 95 % (Bonferroni)",
        x="difference, as a share", y="", y_range=None, left=400, height=160 + 44 * max(len(asked), 1),
    )  # fmt: skip
    at = place(fig, 0)
    if not asked:
        deep = max(about["n_layers"] for about in result.meta["models"].values())
        note(fig, at, "no model has three blocks" if deep < 3 else "nothing can be compared among the layers measured")
        return fig
    names = model_names(result)
    for number, name in enumerate(names):
        mine = rows[rows.model == name]
        step = 0.6 * (number - (len(names) - 1) / 2) / len(names)
        colour = MODELS[number % len(MODELS)]
        drawn = go.Scatter(
            x=mine.value,
            y=[asked.index(what) + step for what in mine.part],
            mode="markers",
            marker={"color": colour, "symbol": SHAPES[colour], "size": 7},
            error_x={
                **{"type": "data", "symmetric": False, "thickness": 1, "width": 2},
                **{"array": (mine.high - mine.value).fillna(0), "arrayminus": (mine.value - mine.low).fillna(0)},
            },
        )
        add(fig, at, drawn, name)
    fig.add_vline(x=LEAST, line=CHANCE, **at)
    fig.update_yaxes(tickvals=[*range(len(asked))], ticktext=asked, range=[len(asked) - 0.5, -0.5])
    return fig


def spread_figure(result: Result) -> go.Figure:
    """Per model and layer, how far apart what CLS looks at lies."""
    return _curves(
        result,
        "spread",
        "How far apart are the places CLS looks at?",
        "Mean distance of two patches drawn by a head's attention, over that of any two patches; mean over heads",
        y="distance, uniform = 1",
    )


def diversity_figure(result: Result) -> go.Figure:
    """Per model and layer, how much heads differ in where they look."""
    return _curves(
        result,
        "head_diversity",
        "Do the heads of CLS look at different places?",
        "Jensen-Shannon divergence of the attention of two heads, the mean over all pairs: 0 where they look alike",
        y="divergence, bits",
    )


def patch_figure(result: Result) -> go.Figure:
    """Per model and layer, how much of its attention CLS gives to patches at all."""
    return _curves(
        result,
        "patch_mass",
        "How much of its attention does CLS give to patches?",
        "The rest goes to CLS itself and to other tokens in front of the patches; mean over heads",
        y="share",
        y_range=(0, 1.03),
    )


def _curves(
    result: Result,
    measure: str,
    question: str,
    explained: str,
    *,
    y: str,
    y_range: tuple[int | float, int | float] | None = None,
) -> go.Figure:
    fig = model_panels(result, question, f"{explained}; 95 % intervals over images", y=y, y_range=y_range)
    fig.update_yaxes(rangemode="tozero")
    for at, name, rows in each_panel(fig, result):
        some = picked(rows, measure=measure)
        _variants(fig, at, some)
        _depth(fig, at, result.meta["models"][name]["n_layers"])
        if some.empty:
            note(fig, at, "not defined for this model")
    return fig


def _variants(fig: go.Figure, at: Place, rows: pd.DataFrame) -> None:
    for variant, (colour, dash) in LINES.items():
        curve(fig, at, picked(rows, variant=variant), variant, colour, dash=dash, bare=dash != "solid")


def _depth(fig: go.Figure, at: Place, n_layers: int) -> None:
    """The whole depth, whatever was measured of it, and lines between early, middle and late layers."""
    # nothing to be seen: a panel without any trace has no axes, and its note lands in another panel
    add(fig, at, go.Scatter(x=[0, n_layers - 1], y=[None, None], mode="lines", hoverinfo="skip"), None)
    for third in [*thirds(n_layers).values()][1:]:
        fig.add_vline(x=third[0] - 0.5, line={"color": DARK, "dash": "dot", "width": 1}, opacity=0.5, **at)
