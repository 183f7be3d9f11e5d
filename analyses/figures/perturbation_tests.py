"""Deletion curves, the areas under them, probes beside projection, and what they say in words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from analyses.results import Result
from hooked_vit import HookedViT

GREY = "#8a8a8a"
ORDERS = {
    "gradient": ("gradient map", "#1f77b4"),
    "chefer": ("attention × gradient (Chefer)", "#ff7f0e"),
    "lrp": ("LRP × gradient (Chefer)", "#8c564b"),
    "rollout": ("attention rollout", "#9467bd"),
    "attention_last": ("attention of CLS, last block", "#e377c2"),
    "attention_mean": ("attention of CLS, mean of blocks", "#bcbd22"),
    "projection": ("ranks of the class projection", "#17becf"),
    "probe": ("ranks of 10-shot probes", "#d62728"),
    "random": ("random order", "#2ca02c"),
}
DIRECTIONS = {"negative": "least important first", "positive": "most important first"}
SITES = {
    "resid_post": ("block output", "#1f77b4"),
    "attn_out": ("attention's update", "#ff7f0e"),
    "mlp_out": ("MLP's update", "#2ca02c"),
}


def curves_figure(result: Result) -> go.Figure:
    """Accuracy by share of image tokens deleted, least and most important first."""
    names = list(result.frame.model.unique())
    fig = make_subplots(
        rows=len(names), cols=2, shared_yaxes=True, horizontal_spacing=0.04, vertical_spacing=0.25 / len(names),
        subplot_titles=[_titled(names, name, f"{d}: {says}") for name in names for d, says in DIRECTIONS.items()],
    )  # fmt: skip
    for r, name in enumerate(names, start=1):
        rows = result.frame[(result.frame.model == name) & (result.frame.measure == "accuracy")]
        for c, direction in enumerate(DIRECTIONS, start=1):
            show = (r, c) == (1, 1)
            for measure, label, dash in (
                ("clean", "nothing deleted", "dash"),
                ("chance", "most frequent class", "dot"),
            ):
                fig.add_trace(_flat([0, 100], _value(result, name, measure), label, dash, show), row=r, col=c)
            for order, (label, colour) in ORDERS.items():
                here = rows[(rows.order == order) & (rows.direction.isna() | (rows.direction == direction))]
                if len(here):
                    band, line = _curve(here.sort_values("removed"), label, colour, show)
                    fig.add_trace(band, row=r, col=c)
                    fig.add_trace(line, row=r, col=c)
    fig.update_xaxes(title_text="image tokens deleted, %", showgrid=False)
    fig.update_yaxes(range=[0, 1.02], gridcolor="#eeeeee")
    fig.update_yaxes(title_text="accuracy", col=1)
    return _dressed(fig, "Does what is called important matter? Accuracy while image tokens are deleted", len(names))


def areas_figure(result: Result) -> go.Figure:
    """Area under each deletion curve, with its interval; random order as the line to beat."""
    names = list(result.frame.model.unique())
    fig = make_subplots(
        rows=len(names), cols=2, shared_yaxes=True, horizontal_spacing=0.04, vertical_spacing=0.25 / len(names),
        subplot_titles=[
            _titled(names, name, f"{d}: {'higher' if d == 'negative' else 'lower'} is better")
            for name in names for d in DIRECTIONS
        ],
    )  # fmt: skip
    for r, name in enumerate(names, start=1):
        rows = result.frame[(result.frame.model == name) & (result.frame.measure == "auc")]
        luck = rows[rows.order == "random"].iloc[0]
        for c, direction in enumerate(DIRECTIONS, start=1):
            here = rows[rows.direction == direction].iloc[::-1]
            error = {"type": "data", "symmetric": False, "array": here.high - here.value}
            error |= {"arrayminus": here.value - here.low, "thickness": 1.5, "width": 4}
            trace = go.Scatter(
                x=here.value, y=[ORDERS[o][0] for o in here.order], mode="markers", error_x=error, showlegend=False,
                marker={"size": 10, "color": [ORDERS[o][1] for o in here.order]},
            )  # fmt: skip
            fig.add_trace(trace, row=r, col=c)
            fig.add_vrect(luck.low, luck.high, fillcolor=ORDERS["random"][1], opacity=0.2, line_width=0, row=r, col=c)
            fig.add_vline(luck.value, line={"color": ORDERS["random"][1], "dash": "dot"}, row=r, col=c)
    fig.update_xaxes(title_text="area under the accuracy curve, over shares deleted", gridcolor="#eeeeee")
    fig.update_layout(legend={"visible": False})
    return _dressed(
        fig, "Areas under the deletion curves, 95 % intervals over images (green: random order)", len(names), left=230
    )


def probes_figure(result: Result) -> go.Figure:
    """How often probes and the class projection put the label first at an image token, by block and site."""
    frame = result.frame[(result.frame.tokens == "patches") & result.frame.layer.notna()]
    if frame.empty:
        return go.Figure(layout={"title": "Neither probes nor projection were asked for", "height": 120})
    names = list(frame.model.unique())
    kinds = {"probe_accuracy": "ridge probes on a few images per class", "projection_accuracy": "class projection"}
    fig = make_subplots(
        rows=len(names), cols=2, shared_yaxes=True, horizontal_spacing=0.04, vertical_spacing=0.25 / len(names),
        subplot_titles=[_titled(names, name, says) for name in names for says in kinds.values()],
    )  # fmt: skip
    for r, name in enumerate(names, start=1):
        rows = frame[frame.model == name]
        for c, measure in enumerate(kinds, start=1):
            show = (r, c) == (1, 1)
            span = [0, int(rows.layer.max())]
            chance = _value(result, name, "chance")
            fig.add_trace(_flat(span, chance, "most frequent class", "dot", show), row=r, col=c)
            for site, (label, colour) in SITES.items():
                here = rows[(rows.measure == measure) & (rows.site == site)].sort_values("layer")
                error = {"type": "data", "symmetric": False, "array": here.high - here.value, "thickness": 1}
                error |= {"arrayminus": here.value - here.low, "width": 2}
                line = go.Scatter(
                    x=here.layer.astype(int), y=here.value, error_y=error, mode="lines+markers", name=label,
                    legendgroup=label, showlegend=show, line={"color": colour}, marker={"size": 5},
                )  # fmt: skip
                fig.add_trace(line, row=r, col=c)
    fig.update_xaxes(title_text="block", dtick=1 if frame.layer.max() < 13 else None, showgrid=False)
    fig.update_yaxes(range=[0, 1.02], gridcolor="#eeeeee")
    fig.update_yaxes(title_text="image tokens with the label first", col=1)
    return _dressed(fig, "Is the label read from single image tokens? Mean over positions", len(names))


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


def cautions(models: Mapping[str, HookedViT], repro: bool, by_position: bool) -> list[str]:
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
            "from the model's own head."
        )
    for name, model in models.items():
        if "cls" not in model.cfg.sources:
            notes.append(
                f"{name}: the readout averages image tokens and never reads CLS. Gradient maps and raw attention are "
                "still those of CLS, rollout and the Chefer rule those of the mean over image tokens; one image token "
                "always stays."
            )
        elif "patches" in model.cfg.sources:
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


def _titled(names: list[str], name: str, says: str) -> str:
    return f"{name}: {says}" if len(names) > 1 else says


def _dressed(fig: go.Figure, title: str, n: int, left: int = 60) -> go.Figure:
    fig.update_annotations(font_size=13)
    fig.update_layout(
        title=title, template="plotly_white", width=1080, height=360 * n + 190,
        margin={"l": left, "r": 20, "t": 90, "b": 120},
    )  # fmt: skip
    fig.update_layout(legend={"orientation": "h", "y": -0.22 / n, "x": 0, "yanchor": "top"})
    return fig


def _flat(span: list[int], value: float, label: str, dash: str, show: bool) -> go.Scatter:
    return go.Scatter(
        x=span, y=[value, value], mode="lines", name=label, legendgroup=label, showlegend=show,
        line={"color": GREY, "dash": dash, "width": 1.5},
    )  # fmt: skip


def _curve(rows: pd.DataFrame, label: str, colour: str, show: bool) -> tuple[go.Scatter, go.Scatter]:
    """A line and the band of its intervals."""
    x = 100 * rows.fraction
    red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    band = go.Scatter(
        x=[*x, *x[::-1]], y=[*rows.high, *rows.low[::-1]], fill="toself", mode="lines", line={"width": 0},
        fillcolor=f"rgba({red},{green},{blue},0.12)", legendgroup=label, showlegend=False, hoverinfo="skip",
    )  # fmt: skip
    line = go.Scatter(
        x=x, y=rows.value, mode="lines", name=label, legendgroup=label, showlegend=show, line={"color": colour}
    )
    return band, line
