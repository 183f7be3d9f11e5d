"""The bars, the table and the sentences of `sparse_features`."""

from __future__ import annotations

from typing import Any

import pandas as pd
import plotly.graph_objects as go

from analyses.drawing.colours import BLUE, MIDGREY, NAMES, ORANGE
from analyses.drawing.panels import bars, panels, place
from analyses.drawing.rows import by_model, picked
from analyses.running.results import Result
from hooked_vit.config.showing import counted

COLOURS = {"examined": BLUE, "principal components": ORANGE, "random directions": MIDGREY}
DIRECTIONS = {"own": BLUE, "random": MIDGREY}
MEASURES = {
    "explained_variance": "explained variance",
    "loss_recovered": "loss recovered (against the mean)",
}


def main_figure(result: Result) -> go.Figure:
    """Explained variance and loss recovered, by role of token, a row of panels per model and place."""
    spots = _spots(result)
    fig = panels(
        [f"{name}, {site} {layer}: {said}" for name, layer, site, _ in spots for said in MEASURES.values()],
        "How much of the stream does the dictionary hold?",
        "Loss recovered is 1 − D(dictionary in the place of these tokens) / D(their mean in their place), D the "
        "distance from the clean answer. Random directions are as many, and as sparse. Bars: 95 % intervals.",
        x="tokens", y="share", columns=2, y_range=None,
    )  # fmt: skip
    for i, (_, _, _, rows) in enumerate(spots):
        for j, measure in enumerate(MEASURES):
            for which, colour in COLOURS.items():
                mine = picked(rows, measure=measure, dictionary=which)
                mine = mine[mine.ablation.isna() | (mine.ablation == "mean")]
                bars(fig, place(fig, 2 * i + j), [NAMES.get(r, r) for r in mine.role], mine, which, colour)
    return fig


def effects_figure(result: Result) -> go.Figure:
    """How far the answer moves when a feature is taken out or pushed, against a random direction."""
    spots = [spot for spot in _spots(result) if not picked(spot[3], measure="effect").empty]
    fig = panels(
        [f"{name}, {site} {layer}: {edit}" for name, layer, site, _ in spots for edit in ("ablated", "steered")],
        "What do the largest features do to the answer?",
        "Distance from the clean answer after a feature is set to zero, or raised by its largest activation, along its "
        "own direction and along a random one of the same length. Bars: 95 % intervals over images.",
        x="feature", y="distance", columns=2, y_range=None, shared=False,
    )  # fmt: skip
    for i, (_, _, _, rows) in enumerate(spots):
        for j, edit in enumerate(("ablated", "steered")):
            for direction, colour in DIRECTIONS.items():
                mine = picked(rows, measure="effect", edit=edit, direction=direction)
                bars(fig, place(fig, 2 * i + j), [str(f) for f in mine.feature], mine, f"{direction} direction", colour)
    fig.update_xaxes(type="category")
    return fig


def _spots(result: Result) -> list[tuple[str, int, str, pd.DataFrame]]:
    """(model, layer, site, rows) of every place a dictionary was examined at."""
    return [
        (name, int(layer), str(site), part)
        for name, rows in by_model(result)
        for (layer, site), part in rows.groupby(["layer", "site"], sort=False)
    ]


def summary_table(result: Result) -> pd.DataFrame:
    """One row per model and place, of all tokens: the dictionary's numbers, and those of random directions beside."""
    table = []
    for name, layer, site, rows in _spots(result):
        row: dict[str, Any] = {"model": name, "layer": layer, "site": site}
        for which, short in (("examined", ""), ("random directions", "random_")):
            mine = picked(rows, dictionary=which, role="all")
            for measure in ("explained_variance", "l0", "dead"):
                row[short + measure] = _value(picked(mine, measure=measure))
            for ablation in ("zero", "mean"):
                told = picked(mine, measure="loss_recovered", ablation=ablation)
                row[f"{short}recovered_{ablation}"] = _value(told)
        table.append(row)
    return pd.DataFrame(table)


def _value(rows: pd.DataFrame) -> float | None:
    return None if rows.empty or pd.isna(rows.value.iloc[0]) else float(rows.value.iloc[0])


def in_words(result: Result) -> tuple[list[str], list[str]]:
    """What was found, and what to keep in mind."""
    found = [_sentence(row) for row in summary_table(result).to_dict("records")]
    dropped = picked(result.frame, measure="loss_recovered")
    n = int(dropped.value.isna().sum())
    notes = [
        "A feature that is never active on these images may be active on others: dead is said of these images.",
    ]
    if n:
        notes.append(
            f"In {n} of {counted(len(dropped), 'case')} ablation does not move the answer: there is no loss to recover."
        )
    if result.meta["dictionary"] != "given":
        notes.append(
            "No dictionary was given: principal components of the stream stand in for one. They are a base that a "
            "trained dictionary has to beat, not features."
        )
    return found, notes


def _sentence(row: dict[str, Any]) -> str:
    def told(column: str) -> str:
        value = row[column]
        return "—" if value is None or pd.isna(value) else f"{value:.2f}"

    return (
        f"{row['model']}, {row['site']} of block {row['layer']}: {told('l0')} active features a token explain "
        f"{told('explained_variance')} of the variance (random directions {told('random_explained_variance')}) and "
        f"recover {told('recovered_mean')} of the loss against the mean, {told('recovered_zero')} against zero (random "
        f"directions {told('random_recovered_mean')} and {told('random_recovered_zero')}); {told('dead')} of the "
        "features are dead here."
    )
