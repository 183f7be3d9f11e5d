"""The pictures, the table and the sentences of `causality_vs_decodability`."""

from __future__ import annotations

import pandas as pd
import plotly.graph_objects as go

from analyses.drawing.colours import BLUE, CHANCE, MODELS, ORANGE, PURPLE, UNTOUCHED
from analyses.drawing.panels import curve, each_panel, level, model_panels, panels, place
from analyses.drawing.rows import LAST, at_the_end, between, by_model, in_a_row, span, value_of
from analyses.running.results import Result

USED = 0.05
"""An effect whose interval lies above this counts as use in the sentences: five points of accuracy."""
NO_GAP = CHANCE | {"color": PURPLE, "width": 1}


def main_figure(result: Result) -> go.Figure:
    """One panel per model: decodable (blue), used (orange), and the gap between them (purple)."""
    tokens = _tokens(result)
    fig = model_panels(
        result,
        f"What is decodable from {tokens} at each layer, and what does the model lose without it?",
        "Purple at 0: all that is decodable is used. Purple high: it is there, and the model does not need it. "
        "95 % intervals over images",
        y="share of images",
        y_range=(-0.12, 1.02),
    )
    curves = {
        "decodability": (f"ridge probe on {tokens}: accuracy", BLUE, "solid"),
        "probe_floor": ("the same probe on another image's", BLUE, "dot"),
        "causal_effect": (f"accuracy lost when {tokens} is another image's", ORANGE, "solid"),
        "gap": ("gap: blue − dotted blue − orange", PURPLE, "solid"),
    }
    for at, _, rows in each_panel(fig, result):
        ends = span(rows)
        level(fig, at, ends, value_of(rows, "clean"), "the model's accuracy", UNTOUCHED)
        level(fig, at, ends, value_of(rows, "chance"), "chance: always the most frequent class")
        level(fig, at, ends, 0.0, "no gap", NO_GAP)
        for measure, (label, colour, dash) in curves.items():
            curve(fig, at, rows[rows.measure == measure], label, colour, dash=dash)
    return fig


def one_axis_figure(result: Result) -> go.Figure:
    """The gap of every model against relative depth, in one panel."""
    fig = panels(
        [""],
        f"How much more is decodable from {_tokens(result)} than is used?",
        "Gap: accuracy of a probe, less its floor, less what the model loses; 0: all of it is used. 95 % intervals "
        "over images",
        x="depth (share of the blocks passed)",
        y="gap (share of images)",
        y_range=None,
        height=440,
    )
    at = place(fig, 0)
    for (name, rows), colour in zip(by_model(result), _cycle(result), strict=True):
        gap = rows[rows.measure == "gap"]
        depth = (gap.layer.astype(int) + 1) / result.meta["models"][name]["n_layers"]
        curve(fig, at, gap.assign(depth=depth), name, colour, x="depth")
    fig.add_hline(y=0, line=CHANCE)
    return fig.update_xaxes(range=[0, 1.03])  # of one layer plotly would show shares above 1


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
        where = f"at {in_a_row(used)}" if used else "at no layer" + " measured" * bool(result.meta.get("layers"))
        there, at_end = (
            f"{gap.value[layer]:.1%} of the images ({between(gap.low[layer], gap.high[layer], '.1%')})"
            for layer in (widest, gap.index[-1])
        )
        apart = f"At layer {widest} {there} are decodable beyond what is used."
        if len(gap) > 1:
            end = at_the_end(rows, result.meta["models"][name]["n_layers"])
            apart = (
                f"The gap is widest at layer {widest}: {there} are decodable beyond what is used; at {end} it is "
                f"{at_end}."
            )
        found.append(
            f"{name}: accuracy {rows[rows.measure == 'clean'].value.iloc[0]:.1%}; losing {_tokens(result)} costs more "
            f"than {USED:.0%} of the images {where}. {apart}"
        )
    notes = [
        "Gap: probe accuracy − what that probe reads from another image's tokens − accuracy the model loses when it "
        "is given another image's tokens. Intervals resample images; images of one batch exchange tokens, which they "
        "do not reflect.",
        *(
            f"{name}: its readout reads {about['readout']}, so {_tokens(result)} of the last layer cannot matter."
            for name, about in result.meta["models"].items()
            if result.meta["tokens"] not in about["readout"].split(" and ")
            and at_the_end(result.frame[result.frame.model == name], about["n_layers"]) == LAST
        ),
        *(
            f"{name} answers by {about['head']}."
            for name, about in result.meta["models"].items()
            if about["head_fitted"]
        ),
    ]
    return found, notes


def _cycle(result: Result) -> list[str]:
    return [MODELS[k % len(MODELS)] for k in range(result.frame.model.nunique())]


def _tokens(result: Result) -> str:
    tokens = result.meta["tokens"]
    return "CLS" if tokens == "cls" else f"the {tokens} tokens"
