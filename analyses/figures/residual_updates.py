"""The pictures, the table and the sentences of `residual_updates`."""

from __future__ import annotations

from typing import Any

import pandas as pd
import plotly.graph_objects as go

from analyses.figures.marks import dotted, head_notes
from analyses.figures.panels import BLUE, GREEN, GREY, NAMES, YELLOW, curve, level, over_seeds, panels, place
from analyses.results import Result

PAIRED = {
    ("attn", "cls"): ("attention update of [CLS]", "#a6cee3"),
    ("attn", "patches"): ("attention update of image tokens", "#1f78b4"),
    ("mlp", "cls"): ("MLP update of [CLS]", "#b2df8a"),
    ("mlp", "patches"): ("MLP update of image tokens", "#33a02c"),
}
MATCH = {
    "prev": ("the stream before", GREEN),
    "attn": ("the attention update", BLUE),
    "mlp": ("the MLP update", YELLOW),
    "composition": ("none of these", GREY),
}
PARTITION = {
    "prev only": ("the stream before alone", GREEN),
    "attn only": ("the attention update alone", BLUE),
    "mlp only": ("the MLP update alone", YELLOW),
    "several": ("several of these", "#e78ac3"),
    "composition": ("none of these", GREY),
}


def similarity_figure(result: Result) -> go.Figure:
    """One panel per model: how often each update alone scores the true class higher than what it was computed from."""
    against = "the block's input" if result.meta["reference"] == "block_input" else "its input"
    fig = panels(
        list(result.frame.model.unique()),
        f"Does an update alone score the image's class higher than {against} does?",
        "Share of tokens where it does, with 95 % intervals over images; thin dotted lines: random weights and head",
        x="layer",
        y="share of tokens",
    )
    for i, (_, rows) in enumerate(result.frame.groupby("model", sort=False)):
        at, layers = place(fig, i), sorted(rows.layer.unique())
        level(fig, at, layers, 0.5, "chance")
        for (part, tokens), (label, colour) in PAIRED.items():
            mine = rows[(rows.measure == "class_similarity") & (rows.part == part) & (rows.tokens == tokens)]
            trained, random = mine[mine.control == "trained"], over_seeds(mine[mine.control == "random"])
            if len(trained):
                curve(fig, at, trained.layer, trained, label, colour)
            if len(random):
                dotted(fig, at, random, colour)
    return fig


def composition_figure(result: Result) -> go.Figure:
    """One panel per model: grouped bars per block over all tokens; they overlap, so that they do not sum to one."""
    if result.meta["repro"]:
        fig = _bars(result, "match", MATCH, "Stacked as published: MLP-only matches count as none, and bars pass 1")
        return fig.update_layout(barmode="stack").update_yaxes(range=None)
    fig = _bars(
        result, "match", MATCH, "Share of all tokens; bars overlap. Black: the same with another image's sources"
    )
    return fig.update_layout(barmode="group", bargap=0.15)


def partition_figure(result: Result) -> go.Figure:
    """One panel per model: exclusive parts, which sum to one; empty where the published bars were asked for."""
    fig = _bars(result, "partition", PARTITION, "Share of all tokens, every token in one part")
    return fig.update_layout(barmode="stack")


def _bars(result: Result, measure: str, parts: dict[str, tuple[str, str]], explained: str) -> go.Figure:
    question = "Whose top class is the top class after a block?"
    fig = panels(list(result.frame.model.unique()), question, explained, x="layer", y="share of tokens")
    rows = result.frame[(result.frame.measure == measure) & (result.frame.tokens == "all")]
    overlapping = measure == "match" and not result.meta["repro"]
    for i, name in enumerate(result.frame.model.unique()):
        for k, (part, (label, colour)) in enumerate(parts.items()):
            mine = rows[(rows.model == name) & (rows.part == part)]
            trained, luck = mine[mine.control == "trained"], mine[mine.control == "chance"]
            bar = go.Bar(
                x=trained.layer, y=trained.value, name=label, legendgroup=label, showlegend=i == 0,
                marker_color=colour, offsetgroup=part if overlapping else None,
            )  # fmt: skip
            fig.add_trace(bar, **place(fig, i))
            if overlapping and len(luck):
                fig.add_trace(_marks(luck, k, len(parts), show=i == 0 and k == 0), **place(fig, i))
    return fig


def _marks(luck: pd.DataFrame, k: int, n: int, *, show: bool) -> go.Scatter:
    """A short black line at the height of chance, over bar k of n."""
    width = (1 - 0.15) / n
    x: list[float | None] = []
    y: list[float | None] = []
    for layer, value in zip(luck.layer, luck.value, strict=True):
        left = layer - (1 - 0.15) / 2 + k * width
        x += [left, left + width, None]
        y += [value, value, None]
    return go.Scatter(
        x=x, y=y, mode="lines", line={"color": "black", "width": 1.5}, name="expected of another image",
        legendgroup="chance", showlegend=show, hoverinfo="skip",
    )  # fmt: skip


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
    found += [_of_composition(str(name), rows) for name, rows in result.frame.groupby("model", sort=False)]
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
    return f"{name}: after the last block the top class is that of: {says}."
