"""The picture, the table and the sentences of `token_removal`."""

from __future__ import annotations

from itertools import product

import pandas as pd
import plotly.graph_objects as go

from analyses.drawing.colours import DARK_BLUE, SOFT_GREY
from analyses.drawing.panels import bars, curve, each_panel, model_panels, sentence
from analyses.drawing.rows import last_layer
from analyses.questions.class_space.measures.behind import ONE_LAYER, behind_the_last, over_layers, read_elsewhere
from analyses.running.results import Result
from hooked_vit.config.showing import counted

BARS = {
    "clean": ("untouched image", DARK_BLUE),
    "removed": ("all other image tokens removed", "#e31a1c"),
    "random": ("as many removed at random", SOFT_GREY),
}
DASHES = {"class": "solid", "context": "dot"}
GROUPS = {"class": "class tokens,<br>context removed", "context": "context tokens,<br>class removed"}


def removal_figure(result: Result) -> go.Figure:
    """One panel per model: rate of the tokens that stay, and accuracy, clean, removed and at random."""
    fig = model_panels(
        result,
        "Do tokens on the object and tokens around it need each other?",
        "Share of the tokens that stay which put the class first behind the last layer, and accuracy; 95 % intervals "
        f"over images{read_elsewhere(result)}",
        x="",
        y="share",
        columns=2,
        height=360,
    )
    for at, _, rows in each_panel(fig, result):
        for control, (label, colour) in BARS.items():
            parts = []
            for kept, name in GROUPS.items():
                for measure, what in (("rate", name), ("accuracy", f"accuracy,<br>{name.partition('>')[2]}")):
                    part = _pick(rows, measure, control, kept)
                    if len(part):
                        ends = {"value": part.value.mean(), "low": part.low.min(), "high": part.high.max()}
                        parts.append({"x": what, **ends})
            if parts:
                table = pd.DataFrame(parts)
                bars(fig, at, table.x, table, label, colour)
    return fig.update_layout(barmode="group")


def layers_figure(result: Result) -> go.Figure:
    """One panel per model: the tokens that put the class first, layer by layer, of each group that stays."""
    rates = result.frame[result.frame.measure == "rate"]
    if not over_layers(rates):
        return sentence(ONE_LAYER)
    fig = model_panels(
        result,
        "Behind which layers do tokens miss those that were removed?",
        "Share of the tokens that stay which put the class first, with 95 % intervals over images; solid: class "
        "tokens, context removed; dotted: context tokens, class removed",
        y="share of tokens",
    )
    for at, model, _ in each_panel(fig, result):
        for (control, (label, colour)), (kept, dash) in product(BARS.items(), DASHES.items()):
            rows = rates[(rates.model == model) & (rates.control == control) & (rates.kept == kept)]
            curve(fig, at, rows, label, colour, dash=dash)
    return fig


def summary_table(frame: pd.DataFrame) -> pd.DataFrame:
    """One row per model and kept group: rates and accuracies, clean, removed and at random, and the images skipped.

    Rates are those behind the last `layer` that is read.
    """
    table = []
    for (model, kept), rows in frame.groupby(["model", "kept"], sort=False):
        row = {"model": model, "kept": kept, "layer": last_layer(rows)}
        for measure in ("rate", "rate_micro", "accuracy"):
            for control in ("clean", "removed", "random"):
                part = _pick(rows, measure, control, kept)
                row[f"{measure}_{control}"] = float(part.value.mean()) if len(part) else None
        change = _pick(rows, "rate_change", "removed", kept)
        row["p_adjusted"] = float(change.p_adjusted.iloc[0]) if len(change) else None
        row["skipped"] = int(rows[rows.measure == "skipped"].value.sum())
        row["images"] = int(_pick(rows, "accuracy", "clean", kept).n.max()) if row["rate_clean"] is not None else 0
        table.append(row)
    return pd.DataFrame(table).astype(object).where(lambda t: t.notna(), None)


def in_words(result: Result) -> list[str]:
    """One sentence per model and group."""
    sentences = []
    for row in result.meta["table"]:
        other = "context" if row["kept"] == "class" else "class"
        if row["rate_clean"] is None:
            sentences.append(f"{row['model']}: no image has {row['kept']} tokens beside others.")
            continue
        random = "" if row["rate_random"] is None else f" (as many at random: {row['rate_random']:.1%})"
        sentences.append(
            f"{row['model']}: without {other} tokens, {row['kept']} tokens that put the class first behind layer "
            f"{row['layer']} go from {row['rate_clean']:.1%} to {row['rate_removed']:.1%}{random}; accuracy from "
            f"{row['accuracy_clean']:.1%} to {row['accuracy_removed']:.1%} (at random {row['accuracy_random']:.1%})."
        )
    return sentences


def notes(result: Result) -> list[str]:
    """What was left out, and what to keep in mind."""
    found = [
        f"{row['model']}: {counted(row['skipped'], 'image was', 'images were')} skipped, with no {row['kept']} "
        "token or with no other."
        for row in result.meta["table"]
        if row["skipped"]
    ]
    if result.meta["repro"]:
        found.append(
            "As published, the removed run averages tokens per image with CLS among them and the clean run pools "
            "tokens without CLS: the two are not the same quantity."
        )
    return found


def _pick(rows: pd.DataFrame, measure: str, control: str, kept: str) -> pd.DataFrame:
    return behind_the_last(rows[(rows.measure == measure) & (rows.control == control) & (rows.kept == kept)])
