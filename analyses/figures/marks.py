"""What figures and sentences of updates and memories share: names and colours of sub-layers, controls, stars."""

from __future__ import annotations

from typing import Any

import pandas as pd
import plotly.graph_objects as go

PART_NAMES = {"attn": "attention", "mlp": "MLP"}
COLOURS = {"attn": "#1f77b4", "mlp": "#ff7f0e"}
LIGHT = {"attn": "#aec7e8", "mlp": "#ffbb78"}
LEVEL = 0.05


def dotted(fig: go.Figure, at: dict[str, int], rows: pd.DataFrame, colour: str, label: str | None = None) -> None:
    """A thin dotted line through `value`, for a control; in the legend where it has a label, once."""
    shown = label is not None and not any(trace.name == label for trace in fig.data)
    line = go.Scatter(
        x=rows.layer, y=rows.value, mode="lines", line={"color": colour, "dash": "dot", "width": 1.5}, name=label,
        legendgroup=label, showlegend=shown, hoverinfo="skip",
    )  # fmt: skip
    fig.add_trace(line, **at)


def stars(fig: go.Figure, at: dict[str, int], rows: pd.DataFrame, above: float, colour: str) -> None:
    """A star over the interval of every row."""
    marks = go.Scatter(
        x=rows.layer, y=rows.high.fillna(rows.value) + above, mode="markers", hoverinfo="skip", showlegend=False,
        marker={"symbol": "star", "size": 7, "color": colour},
    )  # fmt: skip
    fig.add_trace(marks, **at)


def head_notes(meta: dict[str, Any]) -> list[str]:
    """A sentence for every model whose classes are not those of its training."""
    fitted = [name for name, about in meta["models"].items() if about["head_fitted"]]
    return [f"{name}: the classes are those of a ridge head fitted here, not of its training." for name in fitted]
