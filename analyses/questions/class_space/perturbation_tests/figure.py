"""Deletion curves, the areas under them, probes beside projection, and what they say in words."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import product
from typing import Any

import pandas as pd
import plotly.graph_objects as go

from analyses.drawing.colours import BLUE, BROWN, CYAN, GREEN, OLIVE, ORANGE, PINK, PURPLE, RED, UNTOUCHED
from analyses.drawing.panels import Place, add, band, curve, level, panels, place, sentence
from analyses.drawing.rows import last_layer, model_names, picked
from analyses.probes.classifier_heads import Answers
from analyses.running.results import Result

ORDERS = {
    "gradient": ("gradient map", BLUE),
    "chefer": ("attention × gradient (Chefer)", ORANGE),
    "lrp": ("LRP × gradient (Chefer)", BROWN),
    "rollout": ("attention rollout", PURPLE),
    "attention_last": ("attention of CLS, last block", PINK),
    "attention_mean": ("attention of CLS, mean of blocks", OLIVE),
    "projection": ("ranks of the class projection", CYAN),
    "probe": ("ranks of 10-shot probes", RED),
    "random": ("random order", GREEN),
}
DIRECTIONS = {"negative": "least important first", "positive": "most important first"}
SITES = {
    "resid_post": ("block output", BLUE),
    "attn_out": ("attention's update", ORANGE),
    "mlp_out": ("MLP's update", GREEN),
}


def curves_figure(result: Result) -> go.Figure:
    """Accuracy by share of image tokens deleted, least and most important first."""
    fig = _grid(
        result,
        list(DIRECTIONS.values()),
        "Does what is called important matter? Accuracy while image tokens are deleted",
        "Least important first: the longer a curve stays up, the better the order; most important first: the sooner it "
        "falls. Bands: 95 % intervals over images",
        x="image tokens deleted (%)",
        y="accuracy",
    )
    for at, name, direction in _cells(fig, result, DIRECTIONS):
        rows = picked(result.frame, model=name, measure="accuracy")
        level(fig, at, [0, 100], _value(result, name, "clean"), "nothing deleted", UNTOUCHED)
        level(fig, at, [0, 100], _value(result, name, "chance"), "chance: always the most frequent class")
        for order, (label, colour) in ORDERS.items():
            here = rows[(rows.order == order) & (rows.direction.isna() | (rows.direction == direction))]
            here = here.assign(percent=100 * here.fraction)
            red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
            band(fig, at, here, None, f"rgba({red},{green},{blue},0.12)", x="percent")
            curve(fig, at, here, label, colour, x="percent", bare=True)
    return fig


def areas_figure(result: Result) -> go.Figure:
    """Area under each deletion curve, with its interval; random order as the line to beat."""
    fig = _grid(
        result,
        [f"{says}: {'higher' if d == 'negative' else 'lower'} is better" for d, says in DIRECTIONS.items()],
        "Which order of importance beats a random one?",
        "Area under the accuracy curve while tokens are deleted, 95 % intervals over images; green: random order",
        x="area under the accuracy curve",
        y="",
        y_range=None,
        left=230,
    )
    for at, name, direction in _cells(fig, result, DIRECTIONS):
        rows = picked(result.frame, model=name, measure="auc")
        luck, here = rows[rows.order == "random"].iloc[0], rows[rows.direction == direction].iloc[::-1]
        error = {"type": "data", "symmetric": False, "array": here.high - here.value}
        error |= {"arrayminus": here.value - here.low, "thickness": 1.5, "width": 4}
        points = go.Scatter(
            x=here.value,
            y=[ORDERS[o][0] for o in here.order],
            mode="markers",
            error_x=error,
            marker={"size": 10, "color": [ORDERS[o][1] for o in here.order]},
        )
        add(fig, at, points, None)
        fig.add_vrect(luck.low, luck.high, fillcolor=GREEN, opacity=0.2, line_width=0, **at)
        fig.add_vline(luck.value, line={"color": GREEN, "dash": "dot"}, **at)
    return fig.update_xaxes(range=[0, 1.02], gridcolor="#eeeeee", showgrid=True)


def probes_figure(result: Result) -> go.Figure:
    """How often probes and the class projection put the label first at an image token, by block and site."""
    frame = result.frame[(result.frame.tokens == "patches") & result.frame.layer.notna()]
    if frame.empty:
        return sentence("Neither probes nor the class projection were asked for.")
    kinds = {"probe_accuracy": "ridge probes on a few images per class", "projection_accuracy": "class projection"}
    fig = _grid(
        result,
        list(kinds.values()),
        "Is the label read from single image tokens?",
        "Share of image tokens at which the label comes first, mean over positions; 95 % intervals over images",
        y="share of image tokens",
        last=last_layer(result.frame),
    )
    for at, name, measure in _cells(fig, result, kinds):
        rows = frame[frame.model == name]
        chance = _value(result, name, "chance")
        level(fig, at, [0, int(rows.layer.max())], chance, "chance: always the most frequent class")
        for site, (label, colour) in SITES.items():
            curve(fig, at, rows[(rows.measure == measure) & (rows.site == site)], label, colour)
    return fig


def _grid(result: Result, columns: list[str], question: str, explained: str, **kw: Any) -> go.Figure:
    """A row of panels per model, a panel per column."""
    names = model_names(result)
    titles = [f"{name}: {says}" if len(names) > 1 else says for name in names for says in columns]
    return panels(titles, question, explained, columns=len(columns), height=370, **kw)


def _cells(fig: go.Figure, result: Result, columns: Iterable[str]) -> Iterator[tuple[Place, str, str]]:
    """(place, model, column) of every panel of `_grid`."""
    for number, (name, column) in enumerate(product(model_names(result), columns)):
        yield place(fig, number), name, column


def summary_table(result: Result) -> list[dict[str, Any]]:
    """One row per model and order: both areas, the published ones, and the differences from random order."""
    table = []
    for name in result.frame.model.unique():
        rows = result.frame[result.frame.model == name]
        for order in result.meta["orders"]:
            row: dict[str, Any] = {"model": name, "order": order}
            for measure in ("auc", "auc_published", "auc_minus_random"):
                for direction in DIRECTIONS:
                    here = rows[(rows.measure == measure) & (rows.order == order)]
                    here = here[here.direction.isna() | (here.direction == direction)]
                    row[f"{direction}_{measure}"] = float(here.value.iloc[0]) if len(here) else None
            table.append(row)
    return table


def in_words(result: Result) -> list[str]:
    """What was found: per model the best orders, and which are no better than random."""
    found = []
    for name in result.frame.model.unique():
        rows = result.frame[result.frame.model == name]
        areas = rows[rows.measure == "auc"]
        luck = float(areas[areas.order == "random"].value.iloc[0])
        for direction, says in DIRECTIONS.items():
            here = areas[areas.direction == direction].sort_values("value", ascending=direction == "positive")
            if here.empty:
                continue
            ranking = ", ".join(f"{ORDERS[r.order][0]} {r.value:.3f}" for r in here.itertuples())
            found.append(f"{name}, {says}: area under the accuracy curve {ranking}; random order {luck:.3f}.")
            better = rows[(rows.measure == "auc_minus_random") & (rows.direction == direction)]
            sign = 1 if direction == "negative" else -1
            poor = [ORDERS[r.order][0] for r in better.itertuples() if not (r.p < 0.05 and sign * r.value > 0)]
            if poor:
                found.append(f"{name}, {says}: not better than random order (p ≥ 0.05 or worse): {', '.join(poor)}.")
        found += _like_for_like(rows, name)
    return found


def cautions(answers: Mapping[str, Answers], repro: bool, by_position: bool) -> list[str]:
    """What to keep in mind."""
    notes = [
        "Every order but raw attention, rollout and random uses the label: what is measured is how well importance for "
        "the true class is ordered, not how well a label could be found.",
        "The order called chefer is their rule for attention and its gradient (ICCV 2021), which the published "
        "comparison runs; the LRP rule it cites (CVPR 2021) is the order lrp, where asked for.",
    ]
    if by_position:
        notes.append(
            "Gradients use the label through the model's head and through what moving attention would do; ranks of "
            "probes and projection say only how well the label can be read at a token. The like-for-like pair is probe "
            "against projection: both are ranks of the label, summed over blocks, one from a probe on few images, one "
            "from the head that answers."
        )
    for name, its in answers.items():
        sources = its.model.cfg.sources
        if "cls" not in sources:
            notes.append(
                f"{name}: the readout averages image tokens and never reads CLS. Gradient maps and raw attention are "
                "still those of CLS, rollout and the Chefer rule those of the mean over image tokens; one image token "
                "always stays."
            )
        elif "patches" in sources:
            notes.append(f"{name}: the readout reads image tokens beside CLS, so that one of them always stays.")
    if repro:
        notes.append(
            "Published setting: the softmax is taken twice in the gradient and all images share the random orders; "
            "accuracies and both areas are computed as always."
        )
    return notes


def _like_for_like(rows: pd.DataFrame, name: str) -> list[str]:
    areas = rows[(rows.measure == "auc")].set_index(["order", "direction"])["value"]
    if not {("probe", d) for d in DIRECTIONS} | {("projection", d) for d in DIRECTIONS} <= set(areas.index):
        return []
    return [
        f"{name}, like for like: ordered by ranks of the label from probes the areas are "
        f"{areas['probe', 'negative']:.3f} (negative) and {areas['probe', 'positive']:.3f} (positive), from the class "
        f"projection {areas['projection', 'negative']:.3f} and {areas['projection', 'positive']:.3f}."
    ]


def _value(result: Result, model: str, measure: str) -> float:
    rows = result.frame
    return float(rows.loc[(rows.model == model) & (rows.measure == measure), "value"].iloc[0])
