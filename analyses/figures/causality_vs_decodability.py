"""The pictures, the table and the sentences of `causality_vs_decodability`."""

from __future__ import annotations

import pandas as pd
import plotly.colors
import plotly.graph_objects as go

from analyses.figures.curves import BLUE, GREY, ORANGE, PURPLE, add_curve, add_level, panel, panel_grid
from analyses.results import Result

USED = 0.05
"""An effect whose interval lies above this counts as use in the sentences: five points of accuracy."""


def main_figure(result: Result) -> go.Figure:
    """One panel per model: decodable (blue), used (orange), and the gap between them (purple)."""
    fig = panel_grid(
        list(result.frame.model.unique()),
        int(result.frame.layer.max()),
        "share of images",
        y_range=(-0.12, 1.02),
        title=f"What is decodable from {_tokens(result)} at each layer, and what does the model lose without it?<br>"
        "<sup>Purple at 0: all that is decodable is used. Purple high: it is there, and the model does not need it."
        "</sup>",
    )
    fig.update_yaxes(zeroline=True, zerolinecolor=GREY, zerolinewidth=1)
    curves = {
        "decodability": (f"ridge probe on {_tokens(result)}: accuracy", BLUE, "solid"),
        "probe_floor": ("the same probe on another image's", BLUE, "dot"),
        "causal_effect": (f"accuracy the model loses when {_tokens(result)} is another image's", ORANGE, "solid"),
        "gap": ("gap: blue − dotted blue − orange", PURPLE, "solid"),
    }
    for place, (_, rows) in enumerate(result.frame.groupby("model", sort=False)):
        at, last = panel(place), int(rows.layer.max())
        for measure, label, dash in (("clean", "the model's accuracy", "dash"), ("chance", "chance", "dot")):
            value = rows.loc[rows.measure == measure, "value"].iloc[0]
            add_level(fig, value, last, label, at, show=place == 0, dash=dash)
        for measure, (label, colour, dash) in curves.items():
            add_curve(fig, rows[rows.measure == measure], label, colour, at, show=place == 0, dash=dash)
    return fig


def one_axis_figure(result: Result) -> go.Figure:
    """The gap of every model against relative depth, in one panel."""
    fig = go.Figure()
    colours = plotly.colors.qualitative.D3
    for k, (name, rows) in enumerate(result.frame[result.frame.measure == "gap"].groupby("model", sort=False)):
        error = {"type": "data", "symmetric": False, "array": rows.high - rows.value, "thickness": 1, "width": 2}
        fig.add_trace(
            go.Scatter(
                x=(rows.layer.astype(int) + 1) / (rows.layer.max() + 1),
                y=rows.value,
                error_y={**error, "arrayminus": rows.value - rows.low},
                mode="lines+markers",
                name=str(name),
                line={"color": colours[k % len(colours)]},
            )
        )
    fig.add_hline(y=0, line={"color": GREY, "width": 1})
    fig.update_xaxes(title_text="depth (share of the blocks passed)", showgrid=False)
    fig.update_yaxes(title_text="gap (share of images)", gridcolor="#eeeeee")
    fig.update_layout(
        template="plotly_white",
        title=f"How much more is decodable from {_tokens(result)} than is used? 0: all of it is used",
        height=440,
        width=1080,
        margin={"l": 60, "r": 20, "t": 60, "b": 60},
    )
    return fig


def summary_table(result: Result) -> pd.DataFrame:
    """One row per model and layer: the three numbers, their controls, and the gap's interval."""
    frame = result.frame[result.frame.layer.notna() & result.frame.seed.isna()]
    table = []
    for (name, layer), rows in frame.groupby(["model", "layer"], sort=False):
        by = rows.set_index("measure")
        table.append(
            {
                "model": name,
                "layer": int(layer),
                **{measure: by.value[measure] for measure in ("decodability", "probe_floor", "causal_effect", "gap")},
                "gap_low": by.low["gap"],
                "gap_high": by.high["gap"],
            }
        )
    return pd.DataFrame(table)


def in_words(result: Result) -> tuple[list[str], list[str]]:
    """Findings, and what to keep in mind."""
    found = []
    for name, rows in result.frame.groupby("model", sort=False):
        gap, effect = (rows[rows.measure == m].set_index("layer") for m in ("gap", "causal_effect"))
        widest = gap.value.idxmax()
        used = [int(layer) for layer in effect.index if effect.low[layer] > USED]
        where = f"at {_layers(used)}" if used else "at no layer"
        found.append(
            f"{name}: accuracy {rows[rows.measure == 'clean'].value.iloc[0]:.1%}; losing {_tokens(result)} costs more "
            f"than {USED:.0%} of the images {where}. The gap is widest at layer {widest}: {gap.value[widest]:.1%} of "
            f"the images ({gap.low[widest]:.1%} to {gap.high[widest]:.1%}) are decodable beyond what is used; at the "
            f"last layer it is {gap.value.iloc[-1]:.1%} ({gap.low.iloc[-1]:.1%} to {gap.high.iloc[-1]:.1%})."
        )
    notes = [
        "Gap: probe accuracy − what that probe reads from another image's tokens − accuracy the model loses when it "
        "is given another image's tokens. Intervals resample images; images of one batch exchange tokens, which they "
        "do not reflect.",
        *(
            f"{name}: its readout reads {about['readout']}, so {_tokens(result)} of the last layer cannot matter."
            for name, about in result.meta["models"].items()
            if result.meta["tokens"] not in about["readout"].split(" and ")
        ),
        *(
            f"{name} answers by {about['head']}."
            for name, about in result.meta["models"].items()
            if about["head_fitted"]
        ),
    ]
    return found, notes


def _tokens(result: Result) -> str:
    tokens = result.meta["tokens"]
    return "CLS" if tokens == "cls" else f"the {tokens} tokens"


def _layers(layers: list[int]) -> str:
    """ "layers 3–5 and 7" """
    runs: list[list[int]] = []
    for layer in layers:
        if runs and layer == runs[-1][-1] + 1:
            runs[-1].append(layer)
        else:
            runs.append([layer])
    parts = [str(run[0]) if len(run) == 1 else f"{run[0]}–{run[-1]}" for run in runs]
    return ("layer " if len(layers) == 1 else "layers ") + " and ".join(parts)
