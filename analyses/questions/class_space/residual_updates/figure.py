"""The pictures, the table and the sentences of `residual_updates`."""

from __future__ import annotations

from typing import Any

import pandas as pd
import plotly.graph_objects as go

from analyses.drawing.colours import (
    DARK_BLUE,
    DARK_GREEN,
    LIGHT_BLUE,
    LIGHT_GREEN,
    NAMES,
    SOFT_BLUE,
    SOFT_GREEN,
    SOFT_GREY,
    SOFT_YELLOW,
)
from analyses.drawing.panels import add, bars, curve, each_panel, level, model_panels
from analyses.drawing.rows import by_model, head_notes, last_layer, span
from analyses.drawing.side_by_side import beside
from analyses.running.results import Result

PAIRED = {
    ("attn", "cls"): ("attention update of CLS", LIGHT_BLUE),
    ("attn", "patches"): ("attention update of image tokens", DARK_BLUE),
    ("mlp", "cls"): ("MLP update of CLS", LIGHT_GREEN),
    ("mlp", "patches"): ("MLP update of image tokens", DARK_GREEN),
}
MATCH = {
    "prev": ("the stream before", SOFT_GREEN),
    "attn": ("the attention update", SOFT_BLUE),
    "mlp": ("the MLP update", SOFT_YELLOW),
    "composition": ("none of these", SOFT_GREY),
}
PARTITION = {
    "prev only": ("the stream before alone", SOFT_GREEN),
    "attn only": ("the attention update alone", SOFT_BLUE),
    "mlp only": ("the MLP update alone", SOFT_YELLOW),
    "several": ("several of these", "#e78ac3"),
    "composition": ("none of these", SOFT_GREY),
}


def similarity_figure(result: Result) -> go.Figure:
    """One panel per model: how often each update alone scores the true class higher than what it was computed from."""
    against = "the block's input" if result.meta["reference"] == "block_input" else "its input"
    fig = model_panels(
        result,
        f"Does an update alone score the image's class higher than {against} does?",
        "Share of tokens where it does, with 95 % intervals over images; thin dotted lines: random weights and head",
        y="share of tokens",
    )
    for at, _, rows in each_panel(fig, result):
        level(fig, at, span(rows), 0.5, "chance")
        for (part, tokens), (label, colour) in PAIRED.items():
            mine = rows[(rows.measure == "class_similarity") & (rows.part == part) & (rows.tokens == tokens)]
            curve(fig, at, mine[mine.control == "trained"], label, colour)
            curve(fig, at, mine[mine.control == "random"], None, colour, dash="dot", bare=True)
    return fig


def composition_figure(result: Result) -> go.Figure:
    """One panel per model: grouped bars per block over all tokens; they overlap, so that they do not sum to one."""
    if result.meta["repro"]:
        fig = _bars(result, "match", MATCH, "Stacked as published: MLP-only matches count as none, and bars pass 1")
        return fig.update_layout(barmode="stack").update_yaxes(range=None)
    fig = _bars(
        result,
        "match",
        MATCH,
        "Share of all tokens; some in several bars. Black: the same with another image's sources",
    )
    return fig.update_layout(barmode="group")


def partition_figure(result: Result) -> go.Figure:
    """One panel per model: exclusive parts, which sum to one; empty where the published bars were asked for."""
    fig = _bars(result, "partition", PARTITION, "Share of all tokens, every token in one part")
    return fig.update_layout(barmode="stack")


def _bars(result: Result, measure: str, parts: dict[str, tuple[str, str]], explained: str) -> go.Figure:
    question = "Whose top class is the top class behind a layer?"
    fig = model_panels(result, question, explained, y="share of tokens")
    overlapping = measure == "match" and not result.meta["repro"]
    for at, _, rows in each_panel(fig, result):
        here = rows[(rows.measure == measure) & (rows.tokens == "all")]
        for k, (part, (label, colour)) in enumerate(parts.items()):
            mine = here[here.part == part]
            trained, luck = mine[mine.control == "trained"], mine[mine.control == "chance"]
            middle, width = beside(k, len(parts)) if overlapping else beside(0, 1)
            # plotly stacks no bar that has an offset
            room = {"width": width} | ({"offset": middle - width / 2} if overlapping else {})
            bars(fig, at, trained.layer.astype(int), trained[["value"]], label, colour, **room)
            if overlapping and len(luck):
                add(fig, at, _marks(luck, middle, width), "expected of another image")
    return fig


def _marks(luck: pd.DataFrame, middle: float, width: float) -> go.Scatter:
    """A short black line at the height of chance, over the bars that stand so far from their layer."""
    x: list[float | None] = []
    y: list[float | None] = []
    for layer, value in zip(luck.layer, luck.value, strict=True):
        left = layer + middle - width / 2
        x += [left, left + width, None]
        y += [value, value, None]
    return go.Scatter(x=x, y=y, mode="lines", line={"color": "black", "width": 1.5}, hoverinfo="skip")


def summary_table(result: Result) -> list[dict[str, Any]]:
    """Per model and kind of token: where each update raises the class most, and whose the last block's top class is."""
    table = []
    trained = result.frame[(result.frame.control == "trained") & (result.frame.tokens != "all")]
    for (name, tokens), rows in trained.groupby(["model", "tokens"], sort=False):
        row: dict[str, Any] = {"model": name, "tokens": tokens}
        for part in ("attn", "mlp"):
            rate = rows[(rows.measure == "class_similarity") & (rows.part == part)].set_index("layer")["value"]
            row |= {f"{part}_highest": float(rate.max()), f"{part}_at_layer": int(rate.idxmax())}
        last = rows[(rows.measure == "match") & (rows.layer == rows.layer.max())].set_index("part")["value"]
        table.append(row | {f"last_layer_{part}": float(last[part]) for part in MATCH})
    return table


def in_words(result: Result) -> tuple[list[str], list[str]]:
    """What was found, and what to keep in mind."""
    found = [_sentence(row) for row in summary_table(result) if row["tokens"] != "registers"]
    found += [_of_composition(name, rows) for name, rows in by_model(result)]
    notes = [
        "An update is projected alone, through the final norm, which makes a small one as long as a large one: the "
        "rates say where updates point, not how much they move."
    ]
    if result.meta["repro"]:
        notes.append(
            "Published setting: both updates are compared with the block's input, tokens that only the MLP matches "
            "count as composition, and the first block is left out."
        )
    return found, notes + head_notes(result.meta)


def _sentence(row: dict[str, Any]) -> str:
    return (
        f"{row['model']}, {NAMES[row['tokens']]}: attention's update scores the true class higher than its reference "
        f"in at most {row['attn_highest']:.0%} (layer {row['attn_at_layer']}), the MLP's in at most "
        f"{row['mlp_highest']:.0%} (layer {row['mlp_at_layer']}); chance is 50%."
    )


def _of_composition(name: str, rows: pd.DataFrame) -> str:
    mine = rows[(rows.measure == "match") & (rows.tokens == "all") & (rows.layer == rows.layer.max())]
    share = {control: part.set_index("part")["value"] for control, part in mine.groupby("control")}
    says = ", ".join(
        f"{label} {share['trained'][part]:.0%}"
        + (f" (of another image {share['chance'][part]:.0%})" if "chance" in share else "")
        for part, (label, _) in MATCH.items()
    )
    return f"{name}: behind layer {last_layer(rows)} the top class is that of: {says}."
