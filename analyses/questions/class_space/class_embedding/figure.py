"""The figure and the table of the class-embedding study: the main numbers of its parts, then all their figures."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pandas as pd
import plotly.graph_objects as go

from analyses.drawing.colours import BLUE, SOFT_GREY
from analyses.drawing.panels import bars, panels, place
from analyses.reproductions.figures import comparison_figure
from analyses.running.catalogue import get_analysis
from analyses.running.results import Result

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
    fig = panels(
        list(shown.values()),
        "How many image tokens know the class behind the last layer?",
        "Share of image tokens, or of images, with the true class first and alone; blue: trained, grey: random weights",
        x="model",
        y="share",
        y_range=(0, 1.12),
        height=400,
    )
    for number, column in enumerate(shown):
        kinds = (("trained", BLUE, column), ("random weights", SOFT_GREY, f"{column}_random"))
        for name, colour, key in kinds:
            if key in table:
                values = table[key]
                written = [f"{v:.0%}" for v in values]
                rows = pd.DataFrame({"value": values})
                bars(fig, place(fig, number), table["model"], rows, name, colour, text=written, textposition="outside")
    return fig.update_yaxes(tickformat=".0%", title_standoff=4)


def figures_of_parts(result: Result) -> dict[str, Callable[[Result], go.Figure]]:
    """Heading and drawing function of every figure of every part of this result."""
    found: dict[str, Callable[[Result], go.Figure]] = {}
    if result.meta.get("published"):
        # the figure of published values makes texts plain itself, so it takes them as they are
        found["Published values and ours"] = partial(_beside, pd.DataFrame(result.meta["published"]))
    for name in result.meta["parts"]:
        entry = get_analysis(name)
        drawn = {entry.summary: entry.figure, **entry.figures(result.part(name))}
        for heading, draw in drawn.items():
            if draw is not None:
                # Several parts have a figure called "The same, token by token".
                title = heading if heading == entry.summary else f"{name.replace('-', ' ').capitalize()}: {heading}"
                found[title] = partial(_drawn, name, draw)
    return found


def _beside(published: pd.DataFrame, result: Result) -> go.Figure:
    return comparison_figure(published)


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
