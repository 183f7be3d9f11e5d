"""The pictures, the table and the sentences of `key_values`."""

from __future__ import annotations

from typing import Any

import pandas as pd
import plotly.graph_objects as go

from analyses.drawing.colours import CHANCE, LIGHT_PARTS, NAMES, PART_NAMES, PARTS
from analyses.drawing.panels import add, curve, each_panel, layer_ticks, level, model_panels, note, panels, stars
from analyses.drawing.rows import LEVEL, by_model, head_notes, span
from analyses.running.results import Result
from hooked_vit.config.showing import counted


def agreement_figure(result: Result) -> go.Figure:
    """One panel per model: agreement by definition A over all tokens, with both controls."""
    top = result.meta["top"]
    return _agreement(
        result,
        "A",
        f"Are the {top} most active memories of a token those that promote the image's class most?",
        f"Share of tokens with one among the class's best {top}, mean over classes; dots: single classes; "
        "dotted: wrong classes; dashed: random memories",
    )


def text_figure(result: Result) -> go.Figure:
    """One panel per model: agreement by definition B over all tokens, with both controls."""
    top = result.meta["top"]
    return _agreement(
        result,
        "B",
        f"Is the image's class among the {top} that one of the {top} most active memories promotes most?",
        "Share of tokens, mean over classes; dotted: wrong classes; dashed: random memories (many if classes are few)",
    )


def _agreement(result: Result, definition: str, question: str, explained: str) -> go.Figure:
    fig = model_panels(result, question, explained, y="share of tokens")
    for at, _, rows in each_panel(fig, result):
        mine = rows[(rows.definition == definition) & (rows.tokens == "all")]
        for part, label in PART_NAMES.items():
            shown = mine[(mine.part == part) & (mine.measure == "agreement")]
            of = dict(list(shown.groupby("control")))
            dots = mine[(mine.part == part) & (mine.measure == "agreement_of_class")]
            shift = -0.12 if part == "attn" else 0.12
            faint = {"size": 4, "color": LIGHT_PARTS[part]}
            add(fig, at, go.Scatter(x=dots.layer + shift, y=dots.value, mode="markers", marker=faint), None)
            curve(fig, at, of["trained"], label, PARTS[part])
            curve(fig, at, of["random_class"], f"{label}, wrong classes", PARTS[part], dash="dot", bare=True)
            line = CHANCE | {"color": PARTS[part], "width": 1.5}
            luck = float(of["chance"].value.iloc[0])
            level(fig, at, span(mine), luck, f"{label}, random memories", line)
    return fig


def difference_figure(result: Result) -> go.Figure:
    """One panel per model: agreement in images answered right minus wrong, for CLS and image tokens."""
    rows = result.frame[result.frame.measure == "right_minus_wrong"]
    known = rows.dropna(subset=["value"])
    reach = 1.15 * max(0.1, known.high.fillna(known.value).max(), -known.low.fillna(known.value).min())
    fig = panels(
        [_sizes(name, mine[mine.measure == "right_minus_wrong"]) for name, mine in by_model(result)],
        "Are the class's memories more active in images the model gets right?",
        "Share of tokens whose most active memories are among the class's best: right minus wrong images, 95 % "
        "intervals; stars: p < .05"
        + (" (published test)" if result.meta["repro"] else ", permutation of images, Holm over layers"),
        y="difference of shares",
        y_range=(-reach, reach) if reach == reach else (-1.0, 1.0),
    )
    for at, _, mine in each_panel(fig, result):
        mine = mine[mine.measure == "right_minus_wrong"]
        layer_ticks(fig, mine, **at)
        level(fig, at, span(mine), 0.0, "no difference")
        if mine.value.isna().all():
            note(fig, at, "nothing to compare")
        for tokens, colours in (("cls", LIGHT_PARTS), ("patches", PARTS), ("first", PARTS)):
            for part, label in PART_NAMES.items():
                one = mine[(mine.part == part) & (mine.tokens == tokens)].dropna(subset=["value"])
                said = "first token" if tokens == "first" else NAMES[tokens]
                curve(fig, at, one, f"{label}, {said}", colours[part])
                clear = one[(one.p if result.meta["repro"] else one.p_adjusted) < LEVEL]
                stars(fig, at, clear.layer, clear.high.fillna(clear.value) + 0.05 * reach, colours[part])
    return fig


def match_figure(result: Result) -> go.Figure:
    """One panel per model: how often a sub-layer predicts what one of its active memories promotes most."""
    fig = model_panels(
        result,
        "Is what a sub-layer predicts the class of one active memory, or a mixture?",
        f"Share of all tokens where it is the first class of one of the {result.meta['top']} most active memories; "
        "dotted: of as many random memories",
        y="share of tokens",
    )
    for at, _, rows in each_panel(fig, result):
        mine = rows[(rows.measure == "match") & (rows.tokens == "all")]
        for part, label in PART_NAMES.items():
            one = mine[mine.part == part]
            curve(fig, at, one[one.control == "trained"], label, PARTS[part])
            random = one[one.control == "random_memories"]
            curve(fig, at, random, f"{label}, random memories", PARTS[part], dash="dot", bare=True)
    return fig


def _sizes(name: Any, rows: pd.DataFrame) -> str:
    first = rows.iloc[0]
    return f"{name}: {first.n_right} right, {first.n_wrong} wrong"


def summary_table(result: Result) -> list[dict[str, Any]]:
    """Per model and part: where agreement (A) is highest, beside its controls, and where a memory's class matches."""
    table = []
    rows = result.frame[result.frame.tokens == "all"]
    for (name, part), mine in rows.groupby(["model", "part"], sort=False):
        agree = mine[(mine.measure == "agreement") & (mine.definition == "A")]
        of = {control: each.set_index("layer").value for control, each in agree.groupby("control")}
        best = int(of["trained"].idxmax())
        match = mine[mine.measure == "match"]
        found = {control: each.set_index("layer").value for control, each in match.groupby("control")}
        at = int(found["trained"].idxmax())
        table.append(
            {
                "model": name,
                "part": part,
                "agreement": float(of["trained"][best]),
                "at_layer": best,
                "wrong_classes": float(of["random_class"][best]),
                "random_memories": float(of["chance"][best]),
                "match": float(found["trained"][at]),
                "match_at_layer": at,
                "match_random": float(found["random_memories"][at]),
            }
        )
    return table


def in_words(result: Result) -> tuple[list[str], list[str]]:
    """What was found, and what to keep in mind."""
    found = [
        f"{row['model']}, {PART_NAMES[row['part']]}: active memories promote the image's class (A) in at most "
        f"{row['agreement']:.0%} of tokens (layer {row['at_layer']}), wrong classes {row['wrong_classes']:.0%}, "
        f"random memories {row['random_memories']:.0%}; one of them promotes what the layer predicts in at most "
        f"{row['match']:.0%} (layer {row['match_at_layer']}), random memories {row['match_random']:.0%}."
        for row in summary_table(result)
    ]
    rows = result.frame[result.frame.measure == "right_minus_wrong"]
    for name, mine in rows.groupby("model", sort=False):
        found.append(_of_difference(str(name), mine, bool(result.meta["repro"])))
    return found, _notes(result)


def _of_difference(name: str, rows: pd.DataFrame, repro: bool) -> str:
    sizes = f"{counted(int(rows.n_right.iloc[0]), 'image')} right and {int(rows.n_wrong.iloc[0])} wrong"
    known = rows[rows.tokens != "all"].dropna(subset=["value"])
    if known.empty:
        return f"{name}: {sizes}, so that there is nothing to compare."
    best = known.loc[known.value.idxmax()]
    p = f"p = {best.p:.3f}" if repro else f"p = {best.p_adjusted:.3f} after Holm"
    tokens = "the first token" if best.tokens == "first" else NAMES[best.tokens]
    return (
        f"{name}: of {sizes}, agreement differs most in the {PART_NAMES[best.part]} of layer {best.layer} at {tokens}: "
        f"{best.value:+.0%} ({p})."
    )


def _notes(result: Result) -> list[str]:
    notes = [
        "A layer with fewer memories agrees more by chance (about top²/memories by definition A): compare each curve "
        "with its own dashed line."
    ]
    crowded = result.frame[
        (result.frame.definition == "B") & (result.frame.control == "chance") & (result.frame.value > 0.5)
    ]
    if len(crowded):
        notes.append(
            f"Definition B says little for {', '.join(crowded.model.unique())}: with so few classes random memories "
            "agree in most tokens; a smaller `top` tells more."
        )
    for name, about in result.meta["models"].items():
        if about["tied"] > 0:
            notes.append(
                f"{name}: in {about['tied']:.1%} of cases coefficients tie, and which memories count is chance."
            )
    if result.meta["repro"]:
        notes.append(
            "Published setting: MLP coefficients in front of the nonlinearity; right and wrong images are compared at "
            "token 0 alone, which is CLS only where there is one, with 300 relabelings and p-values that can be 0."
        )
    return notes + head_notes(result.meta)
