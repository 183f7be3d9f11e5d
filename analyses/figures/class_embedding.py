"""The figure and the table of the class-embedding study: the main numbers of its parts, then all their figures."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from analyses.registry import get_analysis
from analyses.results import Result

# of the tables of the parts: which rows, and which columns under which name (what selected the row is added)
TAKEN: dict[str, tuple[dict[str, tuple[str, ...]], dict[str, str]]] = {
    "class-projection": (
        {},
        {c: c for c in ("rate", "at_least_one", "accuracy", "rate_random", "at_least_one_random")},
    ),
    "attention-knockouts": ({"knockout": ("self_only", "no_cls")}, {"rate_knockout": "rate"}),
    "token-removal": ({"kept": ("class", "context")}, {"rate_clean": "rate_of", "rate_removed": "rate_of_only"}),
    "perturbation-tests": (
        {"order": ("gradient", "chefer", "random")},
        {"negative_auc": "negative_auc", "positive_auc": "positive_auc"},
    ),
}


COLUMNS = {
    "rate": "image tokens with the true class first",
    "at_least_one": "images with such a token",
    "accuracy": "images answered right",
}


def overview_figure(result: Result) -> go.Figure:
    """Per model: image tokens that know the class, images that hold one, accuracy; beside the same untrained."""
    table = pd.DataFrame(result.meta["table"])
    shown = {column: says for column, says in COLUMNS.items() if column in table}
    fig = make_subplots(cols=max(1, len(shown)), rows=1, subplot_titles=list(shown.values()), shared_yaxes=True)
    for i, column in enumerate(shown, start=1):
        for name, colour, values in (
            ("trained", "#1f77b4", table[column]),
            ("random weights", "#b3b3b3", table.get(f"{column}_random")),
        ):
            if values is not None:
                fig.add_bar(
                    x=table["model"], y=values, marker_color=colour, name=name, legendgroup=name, showlegend=i == 1,
                    text=[f"{v:.1%}" for v in values], textposition="outside", row=1, col=i,
                )  # fmt: skip
    fig.update_yaxes(range=[0, 1.12], tickformat=".0%")
    fig.update_layout(
        template="plotly_white", height=420, width=1080, legend={"orientation": "h", "y": -0.15},
        title="How many image tokens know the class behind the last block?",
    )  # fmt: skip
    return fig


def figures_of_parts(result: Result) -> dict[str, Callable[[Result], go.Figure]]:
    """Heading and drawing function of every figure of every part of this result."""
    found: dict[str, Callable[[Result], go.Figure]] = {}
    for name in result.meta["parts"]:
        entry = get_analysis(name)
        drawn = {entry.summary: entry.figure, **entry.figures(result.part(name))}
        for heading, draw in drawn.items():
            if draw is not None:
                # Several parts have a figure called "The same, token by token".
                title = heading if heading == entry.summary else f"{name.replace('-', ' ').capitalize()}: {heading}"
                found[title] = partial(_drawn, name, draw)
    return found


def _drawn(name: str, draw: Callable[[Result], go.Figure], result: Result) -> go.Figure:
    return draw(result.part(name))


def overview_table(result: Result) -> list[dict[str, Any]]:
    """A row per model: the published table, and what is left of the first number after knockouts and removal."""
    return [{"model": model, **_row(result.meta["parts"], model)} for model in result.meta["models"]]


def _row(parts: dict[str, Any], model: str) -> dict[str, Any]:
    row: dict[str, Any] = {}
    for name, (where, wanted) in TAKEN.items():
        table = parts.get(name, {}).get("meta", {}).get("table", [])
        for found in table:
            if found["model"] == model and all(found.get(key) in values for key, values in where.items()):
                place = "_".join(str(found[key]) for key in where)
                row |= {"_".join(filter(None, (wanted[c], place))): found[c] for c in wanted if c in found}
    return row
