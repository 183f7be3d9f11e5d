"""The pictures, the table and the sentences of `register_controls`."""

from __future__ import annotations

from typing import Any

import pandas as pd
import plotly.graph_objects as go

from analyses.drawing.colours import BLUE, GREEN, NAMES, ORANGE, PURPLE, UNTOUCHED
from analyses.drawing.panels import bars, each_panel, level, model_panels
from analyses.drawing.rows import by_model, head_notes, picked, value_of
from analyses.questions.signal.register_controls.replaced import CONTROL, WAYS
from analyses.running.results import Result

COLOURS = {"registers": GREEN, "cls": BLUE, "dist": PURPLE, CONTROL: ORANGE}
SPOKEN = {**NAMES, CONTROL: CONTROL}


def main_figure(result: Result) -> go.Figure:
    """Per model, the accuracy with tokens replaced behind every block, by what stands in their place."""
    fig = model_panels(
        result,
        "Does the model need what these tokens hold, or only something like it?",
        "Accuracy with tokens replaced behind every block; 95 % intervals over images, of draws the widest",
        x="replaced by", y="accuracy",
    )  # fmt: skip
    for at, _, rows in each_panel(fig, result):
        _bars(fig, at, rows, "accuracy")
        level(fig, at, [WAYS[0], WAYS[-1]], _untouched(rows), "nothing replaced", UNTOUCHED)
        level(fig, at, [WAYS[0], WAYS[-1]], value_of(rows, "chance"), "chance")
    return fig


def cosine_figure(result: Result) -> go.Figure:
    """Per model, how far the patches behind the last block are from those of the untouched run."""
    fig = model_panels(
        result,
        "How far do the patches move?",
        "Mean cosine of the patches behind the last block with those of the untouched run; patches that were replaced "
        "themselves left out",
        x="replaced by", y="cosine", y_range=None,
    )  # fmt: skip
    for at, _, rows in each_panel(fig, result):
        _bars(fig, at, rows, "patch_cosine")
    return fig


def _bars(fig: go.Figure, at: Any, rows: pd.DataFrame, measure: str) -> None:
    for token, colour in COLOURS.items():
        some = picked(rows, measure=measure, token=token)
        some = some.groupby("replaced", sort=False)[["value", "low", "high"]].agg(
            {"value": "mean", "low": "min", "high": "max"}
        )
        bars(fig, at, list(some.index), some, SPOKEN[token], colour)


def _untouched(rows: pd.DataFrame) -> float:
    return float(rows[(rows.measure == "accuracy") & rows.token.isna()].value.iloc[0])


def summary_table(result: Result) -> pd.DataFrame:
    """One row per model and kind of token: accuracy and patch cosine by what stands in their place; draws averaged."""
    table = []
    for name, rows in by_model(result):
        for token in COLOURS:
            some = picked(rows, token=token)
            if len(some):
                row: dict[str, Any] = {"model": name, "token": token, "untouched": _untouched(rows)}
                for measure, suffix in (("accuracy", ""), ("patch_cosine", "_cosine")):
                    means = picked(some, measure=measure).groupby("replaced").value.mean()
                    row |= {f"{way}{suffix}": float(means[way]) for way in WAYS}
                table.append(row)
    return pd.DataFrame(table)


def in_words(result: Result) -> tuple[list[str], list[str]]:
    """What was found, and what to keep in mind."""
    found = []
    for row in summary_table(result).to_dict("records"):
        told = ", ".join(f"{row[way]:.1%} by {way} (cosine of the patches {row[f'{way}_cosine']:.2f})" for way in WAYS)
        found.append(f"{row['model']}: accuracy {row['untouched']:.1%}; with {SPOKEN[row['token']]} replaced {told}.")
    notes = [
        f"{name} has no registers: what is replaced is {', '.join(about['prefix'])}."
        for name, about in result.meta["models"].items()
        if "registers" not in about["prefix"]
    ]
    notes.append(
        "A token replaced behind the last block too is lost to a readout of that token, whatever stands in its place."
    )
    return found, [*notes, *head_notes(result.meta)]
