"""The pictures, the table and the sentences of `attention_knockouts`."""

from __future__ import annotations

import pandas as pd
import plotly.graph_objects as go

from analyses.figures.panels import GREY, MODELS, bars, curve, over_seeds, panels, place, says
from analyses.results import Result

WHAT = {
    "self_only": "image tokens see only themselves",
    "img2img_zero": "image tokens do not see one another",
    "img2img_renorm": "the same, rows summing to one",
    "no_cls": "image tokens do not see CLS",
    "cls_no_img": "CLS does not see image tokens",
    "both": "neither sees the other",
}
SERIES = {
    ("rate", "knockout"): ("image tokens that put the class first", "#fc8d62"),
    ("rate", "random"): ("the same, random keys cut", "#fddbc7"),
    ("accuracy", "knockout"): ("accuracy of the model", "#1f78b4"),
    ("accuracy", "random"): ("the same, random keys cut", "#a6cee3"),
}


def knockout_figure(result: Result) -> go.Figure:
    """One panel per model: what is left of the class in the image tokens and in the answers after every knockout."""
    frame = _everywhere(result.frame)
    models = list(frame.model.unique())
    fig = panels(
        models,
        "What is left of the class when attention is cut in all blocks?",
        "bars: after the knockout, and with as much attention taken from the same tokens at random; lines: untouched",
        x="",
        y="share",
        columns=2,
        height=380,
    )
    for number, model in enumerate(models):
        at, rows = place(fig, number), frame[frame.model == model]
        names = [name for name in rows.variant.unique() if name != "none"]
        for (measure, control), (label, colour) in SERIES.items():
            label = label if control == "knockout" else f"{SERIES[measure, 'knockout'][0]}, random keys cut instead"
            part = over_seeds(_of(rows, measure, control), "variant").set_index("variant").reindex(names)
            bars(fig, at, names, part, label, colour)
            if control == "knockout":
                clean = _of(rows, measure, "clean").value.mean()
                fig.add_hline(y=clean, line={"color": colour, "dash": "dash", "width": 2}, **at)
    fig.update_layout(barmode="group")
    return fig


def places_figure(result: Result) -> go.Figure:
    """How much a knockout in a window of blocks, or in one head, takes from the image tokens."""
    frame = result.frame[(result.frame.measure == "rate_change") & (result.frame.control == "knockout")]
    frame = frame[frame.tokens == "patches"]
    full = frame.groupby("model").layer_last.transform("max")
    inside = frame[(frame.layer_first > 0) | (frame.layer_last < full) | frame["head"].notna()]
    if not len(inside):
        return says(
            "Only all blocks and heads at once were cut; give window=1 or by_head=True (--window 1, --by-head)."
        )
    models = list(inside.model.unique())
    by_head = inside["head"].notna()
    kinds = [("window of blocks", True)] if (~by_head).any() else []
    kinds += [("head, in all blocks", False)] if by_head.any() else []
    fig = panels(
        [f"{model}: {what}" for model in models for what, _ in kinds],
        "Where does cutting attention take the class from image tokens?",
        "change of the share of image tokens that put the class first, against the untouched run; 95 % intervals",
        x="first block of the window, or head",
        y="change of the share",
        columns=2,
        y_range=None,
    )
    number = 0
    for model in models:
        for _, by_window in kinds:
            at = place(fig, number)
            number += 1
            rows = inside[(inside.model == model) & (inside["head"].isna() == by_window)]
            for name, colour in zip(rows.variant.unique(), MODELS, strict=False):
                part = rows[rows.variant == name]
                x = (part.layer_first + 1) if by_window else part["head"]
                label = WHAT.get(name, name)
                curve(fig, at, x.astype(int), part, label, colour)
            fig.add_hline(y=0, line={"color": GREY, "width": 1}, **at)
    return fig


def summary_table(frame: pd.DataFrame) -> pd.DataFrame:
    """One row per model and knockout of all blocks: rate of image tokens and accuracy, clean, cut, and at random."""
    frame = _everywhere(frame)
    table = []
    for model, rows in frame.groupby("model", sort=False):
        for name in rows.variant.unique():
            if name == "none":
                continue
            part = rows[rows.variant == name]
            row = {"model": model, "knockout": name, "attention_cut": _value(part, "attention_mass", "clean")}
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
        f"{row['model']}, {WHAT.get(row['knockout'], row['knockout'])}: image tokens that put the class first go from "
        f"{row['rate_clean']:.1%} to {row['rate_knockout']:.1%}, accuracy from {row['accuracy_clean']:.1%} to "
        f"{row['accuracy_knockout']:.1%}; as much attention cut at random leaves {row['rate_random']:.1%} and "
        f"{row['accuracy_random']:.1%} ({row['attention_cut']:.0%} of the attention of these tokens)."
        for row in result.meta["table"]
    ]


def _everywhere(frame: pd.DataFrame) -> pd.DataFrame:
    """Rows of knockouts in all blocks and heads."""
    whole = (frame.layer_first == 0) & (frame.layer_last == frame.groupby("model").layer_last.transform("max"))
    return frame[whole & frame["head"].isna()]


def _of(rows: pd.DataFrame, measure: str, control: str) -> pd.DataFrame:
    rows = rows[(rows.measure == measure) & (rows.control == control)]
    return rows[rows.tokens.isna() | (rows.tokens == "patches")]


def _value(rows: pd.DataFrame, measure: str, control: str, column: str = "value") -> float:
    return float(_of(rows, measure, control)[column].mean())
