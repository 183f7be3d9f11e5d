"""The curves, the graph and the sentences of `circuit_discovery`."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from analyses.drawing.colours import BLUE, CHANCE, GREEN, MIDGREY, ORANGE, RED
from analyses.drawing.panels import curve, level, panels, place
from analyses.drawing.rows import picked
from analyses.running.results import Result
from analyses.running.shown import small
from hooked_vit.config.showing import counted

ORDERS = {
    "score": ("by score", BLUE),
    "exact": ("by exact cuts", GREEN),
    "size": ("by how much they move their reader's input", MIDGREY),
    "random": ("at random", ORANGE),
}
SHOWN = 40
ENOUGH = 0.8


def faithfulness_figure(result: Result) -> go.Figure:
    """Faithfulness against the number of edges kept, beside random edges, the largest, and the exact order."""
    frame = result.part("faithfulness").frame
    fig = panels(
        [f"{result.meta['model']['name']}, cut edges: {result.meta['ablation']}"],
        "How few edges suffice?",
        "0: as if every edge was cut, 1: the whole model; on pairs the scores have not seen. Bars: 95 % intervals over "
        "pairs, of random edges the widest of several draws.",
        x="edges kept", y=str(frame.metric.iloc[0]), y_range=None, columns=1, height=420,
    )  # fmt: skip
    at, kept = place(fig, 0), frame[frame.edges > 0]
    for order, (label, colour) in ORDERS.items():
        curve(fig, at, picked(kept, order=order), label, colour, x="edges")
    ends = [int(kept.edges.min()), int(kept.edges.max())]
    level(fig, at, ends, 1.0, "the whole model", CHANCE)
    return fig.update_xaxes(type="log")


def graph_figure(result: Result, n_edges: int = SHOWN) -> go.Figure:
    """The strongest edges as a graph: layers from the bottom up, heads beside each other, the MLP to their right.

    >>> graph_figure(result, n_edges=20)  # doctest: +SKIP

    Raises ValueError for fewer than one edge.
    """
    if n_edges < 1:
        raise ValueError(f"a graph has at least one edge; got {n_edges}")
    edges = result.part("edges").frame
    shown = edges.iloc[np.argsort(-edges.score.abs().to_numpy(), kind="stable")[:n_edges]]
    n_heads, n_layers = result.meta["model"]["n_heads"], result.meta["model"]["n_layers"]
    fig = go.Figure()
    widest = float(shown.score.abs().max()) or 1.0
    for row in shown.iloc[::-1].to_dict("records"):
        ends = [_spot(row[end], n_heads, n_layers) for end in ("sender", "receiver")]
        share = abs(row["score"]) / widest
        line = {"color": RED if row["score"] < 0 else BLUE, "width": 0.8 + 5 * share}
        said = f"{row['sender']} → {row['receiver']}: {row['score']:.3g}"
        (x0, y0), (x1, y1) = ends
        middle = (x0 + x1) / 2 + 0.15 * np.sign(x1 - x0 or 1) * (y1 - y0 > 1), (y0 + y1) / 2
        drawn = go.Scatter(
            x=[x0, middle[0], x1], y=[y0, middle[1], y1], mode="lines", line={**line, "shape": "spline"},
            opacity=0.25 + 0.7 * share, hoverinfo="text", text=[said] * 3, showlegend=False,
        )  # fmt: skip
        fig.add_trace(drawn)
    names = sorted({re.sub(r"\.[qkv]$", "", name) for name in [*shown.sender, *shown.receiver]})
    spots = [_spot(name, n_heads, n_layers) for name in names]
    fig.add_trace(
        go.Scatter(
            x=[x for x, _ in spots],
            y=[y for _, y in spots],
            mode="markers+text",
            text=names,
            showlegend=False,
            textposition="middle right",
            hoverinfo="skip",
            marker={"size": 11, "color": "white", "line": {"width": 2}},
        )
    )
    title = f"Which parts of {result.meta['model']['name']} speak to which?"
    said = f"the {len(shown)} strongest of {len(edges)}; red: cutting lowers {result.meta['metric']}, blue: raises it"
    fig.update_xaxes(visible=False, range=[-0.7, n_heads + 1.2])
    fig.update_yaxes(visible=False)
    height = 160 + 62 * (n_layers + 2)
    return fig.update_layout(template="plotly_white", title=f"{title}<br>{small(said)}", width=900, height=height)


def _spot(name: str, n_heads: int, n_layers: int) -> tuple[float, float]:
    """Where a part stands: what is written later stands higher."""
    if name == "embed":
        return (n_heads - 1) / 2, -1.0
    if name == "logits":
        return (n_heads - 1) / 2, float(n_layers)
    layer = int(re.match(r"L(\d+)", name)[1])  # type: ignore[index]
    head = re.match(r"L\d+H(\d+)", name)
    return (float(head[1]), float(layer)) if head else (float(n_heads), layer + 0.45)


def summary_table(result: Result) -> pd.DataFrame:
    """One row per order and number of edges: mean faithfulness over draws, and the interval, the widest of theirs."""
    frame = result.part("faithfulness").frame
    groups = frame.groupby(["order", "edges"], sort=False)
    return groups.agg(value=("value", "mean"), low=("low", "min"), high=("high", "max"), n=("n", "max")).reset_index()


def in_words(result: Result) -> tuple[list[str], list[str]]:
    """What was found, and what to keep in mind."""
    meta, table = result.meta, summary_table(result)
    tried = [order for order in ORDERS if order in set(table.order)]
    found = [_enough(table, order, meta["n_edges"]) for order in tried]
    agreed = meta["agreement"]
    if agreed["exact"] is not None:
        told = f"scores and {agreed['n_exact']} exact cuts have a rank correlation of {agreed['exact']:.2f}"
        found.append(f"{told}, and a mean distance of {agreed['mean_error']:.3g}.")
    halves = "no rank correlation" if agreed["halves"] is None else f"a rank correlation of {agreed['halves']:.2f}"
    shared = f"share {agreed['shared']:.0%} of their first tenth of the edges"
    found.append(f"scores from two halves of the pairs have {halves} and {shared}.")
    notes = ["Faithfulness may exceed 1 or fall between two sizes: edges that work against the answer are edges too."]
    if meta["n_dropped"]:
        all_pairs = meta["n_pairs"] + meta["n_dropped"]
        notes.append(
            f"for {meta['n_dropped']} of {counted(all_pairs, 'pair')} cutting every edge changes nothing: left out."
        )
    return found, notes


def _enough(table: pd.DataFrame, order: str, n_edges: int) -> str:
    label = ORDERS[order][0]
    rows: Any = table[(table.order == order) & (table.value >= ENOUGH)]
    if rows.empty:
        return f"{label}: no number of edges tried brings back {ENOUGH:.0%}."
    first = rows.sort_values("edges").iloc[0]
    return (
        f"{label}: {int(first.edges)} of {counted(n_edges, 'edge')} are the fewest tried that bring back {ENOUGH:.0%}."
    )
