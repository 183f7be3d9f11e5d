"""The pictures, the table and the sentences of `attention_knockouts`."""

from __future__ import annotations

from itertools import cycle
from textwrap import wrap

import pandas as pd
import plotly.graph_objects as go

from analyses.drawing.colours import CHANCE, DARK_BLUE, LIGHT_BLUE, MODELS, SOFT_ORANGE, UNTOUCHED
from analyses.drawing.panels import bars, curve, each_panel, level, model_panels, panels, place, sentence
from analyses.drawing.rows import last_layer, over_seeds
from analyses.questions.class_space.measures.behind import ONE_LAYER, behind_the_last, over_layers, read_elsewhere
from analyses.running.results import Result

WHAT = {
    "self_only": "image tokens see only themselves",
    "img2img_zero": "image tokens do not see one another",
    "img2img_renorm": "the same, rows summing to one",
    "no_cls": "image tokens do not see CLS",
    "cls_no_img": "CLS does not see image tokens",
    "both": "neither sees the other",
}
SERIES = {
    "rate": ("image tokens that put the class first", SOFT_ORANGE, "#fddbc7"),
    "accuracy": ("accuracy of the model", DARK_BLUE, LIGHT_BLUE),
}


def knockout_figure(result: Result) -> go.Figure:
    """One panel per model: what is left of the class in image tokens and in the answers after every knockout."""
    everywhere = _everywhere(result.frame)
    fig = model_panels(
        result,
        "What is left of the class when attention is cut in all layers?",
        "Dark bars: after the knockout; light bars: with as much attention taken from the same tokens at random; "
        f"dashed lines: untouched. 95 % intervals over images{read_elsewhere(result)}",
        x="",
        y="share",
        columns=2,
        height=400,
    )
    for at, model, _ in each_panel(fig, result):
        rows = everywhere[everywhere.model == model]
        names = [name for name in rows.variant.unique() if name != "none"]
        ticks = ["<br>".join(wrap(WHAT.get(name, name), 13)) for name in names]
        for measure, (label, dark, light) in SERIES.items():
            for control, colour, what in (("knockout", dark, label), ("random", light, f"{label}, random keys cut")):
                part = over_seeds(_of(rows, measure, control), "variant").set_index("variant").reindex(names)
                bars(fig, at, ticks, part, what, colour)
            fig.add_hline(y=_of(rows, measure, "clean").value.mean(), line={**CHANCE, "color": dark}, **at)
    return fig.update_layout(barmode="group").update_xaxes(tickangle=0, tickfont_size=11)


def places_figure(result: Result) -> go.Figure:
    """How much a knockout in a window of blocks, or in one head, takes from the image tokens."""
    frame = result.frame[(result.frame.measure == "rate_change") & (result.frame.control == "knockout")]
    frame = behind_the_last(frame[frame.tokens == "patches"])
    full = frame.groupby("model").layer_last.transform("max")
    inside = frame[(frame.layer_first > 0) | (frame.layer_last < full) | frame["head"].notna()]
    if not len(inside):
        return sentence(
            "Only all layers and heads at once were cut; give window=1 or by_head=True (--window 1, --by-head)."
        )
    by_head = inside["head"].notna()
    kinds = [("first layer of the window", "layer_first")] if (~by_head).any() else []
    kinds += [("head, cut in all layers", "head")] if by_head.any() else []
    cells = [(model, what, x) for model in inside.model.unique() for what, x in kinds]
    fig = panels(
        [model for model, _, _ in cells],
        "Where does cutting attention take the class from image tokens?",
        "Change of the share of image tokens that put the class first, against the untouched run; 95 % intervals over "
        f"images{read_elsewhere(result)}",
        y="change of the share",
        columns=2,
        y_range=None,
    )
    colours = dict(zip(inside.variant.unique(), MODELS, strict=False))
    for number, (model, what, x) in enumerate(cells):
        at = place(fig, number)
        rows = inside[(inside.model == model) & (by_head == (x == "head"))]
        level(fig, at, [0, int(rows[x].max())], 0.0, "no change")
        for name in rows.variant.unique():
            curve(fig, at, rows[rows.variant == name], WHAT.get(name, name), colours[name], x=x)
        fig.update_xaxes(title_text=what, tickmode="linear", dtick=1, **at)
    return fig


def layers_figure(result: Result) -> go.Figure:
    """One panel per model: the image tokens that put the class first, layer by layer, under every knockout."""
    rates = _everywhere(result.frame)
    rates = rates[(rates.measure == "rate") & (rates.tokens == "patches")]
    if not over_layers(rates):
        return sentence(ONE_LAYER)
    fig = model_panels(
        result,
        "Behind which layers do image tokens lose the class when attention is cut in all layers?",
        "Share of image tokens that put the class first, with 95 % intervals over images; thin dotted lines: with as "
        "much attention taken from the same tokens at random",
        y="share of image tokens",
    )
    for at, model, _ in each_panel(fig, result):
        rows = rates[rates.model == model]
        curve(fig, at, rows[rows.control == "clean"], "untouched", UNTOUCHED["color"])
        names = [name for name in rows.variant.unique() if name != "none"]
        for name, colour in zip(names, cycle(MODELS), strict=False):
            mine = rows[rows.variant == name]
            curve(fig, at, mine[mine.control == "knockout"], WHAT.get(name, name), colour)
            curve(fig, at, mine[mine.control == "random"], None, colour, dash="dot", bare=True)
    return fig


def summary_table(frame: pd.DataFrame) -> pd.DataFrame:
    """One row per model and knockout of all layers: rate of image tokens and accuracy, clean, cut, and at random.

    The rate is that behind the last `layer` that is read.
    """
    frame = _everywhere(frame)
    table = []
    for model, rows in frame.groupby("model", sort=False):
        for name in rows.variant.unique():
            if name == "none":
                continue
            part = rows[rows.variant == name]
            row = {"model": model, "knockout": name, "layer": last_layer(rows)}
            row["attention_cut"] = _value(part, "attention_mass", "clean")
            for measure in ("rate", "accuracy"):
                row[f"{measure}_clean"] = _of(rows, measure, "clean").value.mean()
                for control in ("knockout", "random"):
                    row[f"{measure}_{control}"] = _of(part, measure, control).value.mean()
            row["rate_p"] = _value(part, "rate_change", "knockout", "p_adjusted")
            table.append(row)
    return pd.DataFrame(table)


def in_words(result: Result) -> list[str]:
    """One sentence per model and knockout."""
    return [
        f"{row['model']}, {WHAT.get(row['knockout'], row['knockout'])}: image tokens that put the class first behind "
        f"layer {row['layer']} go from {row['rate_clean']:.1%} to {row['rate_knockout']:.1%}, accuracy from "
        f"{row['accuracy_clean']:.1%} to {row['accuracy_knockout']:.1%}; as much attention cut at random leaves "
        f"{row['rate_random']:.1%} and {row['accuracy_random']:.1%} ({row['attention_cut']:.0%} of the attention of "
        "these tokens)."
        for row in result.meta["table"]
    ]


def _everywhere(frame: pd.DataFrame) -> pd.DataFrame:
    """Rows of knockouts in all layers and heads."""
    whole = (frame.layer_first == 0) & (frame.layer_last == frame.groupby("model").layer_last.transform("max"))
    return frame[whole & frame["head"].isna()]


def _of(rows: pd.DataFrame, measure: str, control: str) -> pd.DataFrame:
    rows = rows[(rows.measure == measure) & (rows.control == control)]
    return behind_the_last(rows[rows.tokens.isna() | (rows.tokens == "patches")])


def _value(rows: pd.DataFrame, measure: str, control: str, column: str = "value") -> float:
    return float(_of(rows, measure, control)[column].mean())
