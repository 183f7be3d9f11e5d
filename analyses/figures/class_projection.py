"""The pictures, the table and the sentences of `class_projection`."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from analyses.figures.panels import (
    COLOURS,
    MODELS,
    NAMES,
    bars,
    boxes,
    curve,
    level,
    over_seeds,
    panels,
    place,
    stars,
)
from analyses.results import Result

ENDS = {"value": "", "low": "_low", "high": "_high"}
NORMALISED = 12
ALPHA = 0.05


def evolution_figure(result: Result) -> go.Figure:
    """Mean identifiability of CLS and of image tokens over normalised blocks, one line per model (Vilas et al. fig. 2).

    Blocks of a model with more than 12 are averaged in 12 equal groups; those of a shallower one stand where they end.
    """
    frame = result.frame
    kinds = [kind for kind in ("cls", "patches") if (frame.tokens == kind).any()]
    fig = panels(
        [NAMES[kind] for kind in kinds],
        "When does the class of the image appear in its tokens?",
        "r = 1 − rank of the true class / classes, mean over images, 95 % intervals; solid: trained, dotted: random",
        x="normalised block (1 to 12)",
        y="class identifiability r",
        columns=2,
        y_range=(0.3, 1.03),
        height=380,
    )
    for number, kind in enumerate(kinds):
        at = place(fig, number)
        for expected in sorted({_chance(frame, model) for model in frame.model.unique()}):
            level(fig, at, [0.5, NORMALISED + 0.5], expected, "chance")
        for model, colour in zip(frame.model.unique(), _cycle(frame.model.nunique()), strict=True):
            for control, label, dash in (("trained", model, "solid"), ("random", f"{model}, random weights", "dot")):
                rows = pick(frame, model=model, measure="identifiability", tokens=kind, control=control)
                rows = normalised(over_seeds(rows[(rows.site == "resid_post") & (rows.layer >= 0)]))
                if len(rows):
                    curve(fig, at, rows.block, rows, label, colour, dash=dash, symbol="star")
    return fig


def box_figure(result: Result) -> go.Figure:
    """Distribution of r over images and tokens at every block of every model, CLS beside image tokens."""
    frame = result.frame
    models = list(frame.model.unique())
    test = "Wilcoxon over tokens" if result.meta["repro"] else "sign flips per image, Holm over blocks"
    fig = panels(
        models,
        "How far up the ranking is the true class, token by token?",
        f"quartiles of r over images × tokens, whiskers 1.5 times as long; ★ above random weights, p < .05 ({test})",
        x="block (0: embedding)",
        y="class identifiability r",
        y_range=(-0.02, 1.16),
    )
    fig.update_layout(boxmode="group")
    for number, model in enumerate(models):
        at = place(fig, number)
        layers = sorted(pick(frame, model=model, measure="median", control="trained", site="resid_post").layer.unique())
        level(fig, at, [layers[0] + 0.5, layers[-1] + 1.5], _chance(frame, model), "chance")
        for kind, colour in COLOURS.items():
            rows = pick(frame, model=model, tokens=kind, control="trained", site="resid_post")
            boxes(fig, at, rows, NAMES[kind], colour)
            tests = rows[rows.measure == "above_random"]
            clear = tests[tests.p_adjusted < ALPHA]
            stars(fig, at, clear.layer + (0.8 if kind == "cls" else 1.2), colour)
    return fig


def rate_figure(result: Result) -> go.Figure:
    """Table 1 as bars: identifiability rate, images with a token that names the class, accuracy, and the controls."""
    table = pd.DataFrame(result.meta["table"])
    shown = {
        "accuracy": ("accuracy of the model", "#1f78b4"),
        "rate": ("image tokens of the last block that put the class first", COLOURS["patches"]),
        "at_least_one": ("images with at least one such token", "#e31a1c"),
        "rate_random": ("such tokens, random weights", "#d9d9d9"),
        "at_least_one_random": ("images with one, random weights", "#969696"),
        "at_least_one_chance": ("images with one, tokens guessing independently", "#525252"),
    }
    fig = panels(
        ["last block"],
        "Do image tokens of the last block already name the class?",
        "share of tokens, or of images, with the true class first and alone; 95 % intervals over images",
        x="model",
        y="share",
        y_range=(0, 1.05),
        height=380,
    )
    for key, (label, colour) in shown.items():
        rows = pd.DataFrame({part: table.get(f"{key}{end}", float("nan")) for part, end in ENDS.items()})
        bars(fig, place(fig, 0), table.model, rows, label, colour)
    fig.update_layout(barmode="group")
    return fig


def change_figure(result: Result) -> go.Figure:
    """Share of tokens whose score of the true class grows through each block (methods §11)."""
    frame = result.frame
    models = list(frame.model.unique())
    fig = panels(
        models,
        "Through which blocks does the score of the true class grow?",
        "share of (image, token) pairs whose true-class score is higher after the block than before it; 95 % intervals",
        x="block",
        y="share of tokens that gain",
    )
    for number, model in enumerate(models):
        at = place(fig, number)
        for kind, colour in COLOURS.items():
            rows = pick(frame, model=model, measure="change_rate", tokens=kind, control="trained").sort_values("layer")
            if len(rows):
                curve(fig, at, rows.layer.astype(int) + 1, rows, NAMES[kind], colour)
        n = int(frame.loc[frame.model == model, "layer"].max())
        level(fig, at, [0.7, n + 1.3], 0.5, "as often up as down")
    return fig


def normalised(rows: pd.DataFrame) -> pd.DataFrame:
    """Curves over layers brought to blocks 1 to 12: deeper models averaged in groups, shallower ones spread out."""
    n = int(rows.layer.max()) + 1 if len(rows) else 1
    block = np.ceil((rows.layer.astype(int) + 1) * NORMALISED / n)
    return rows.assign(block=block).groupby("block")[["value", "low", "high"]].mean().reset_index()


def summary_table(frame: pd.DataFrame) -> pd.DataFrame:
    """One row per model, of the last block: Table 1 of Vilas et al. with its controls.

    `above_random_from`: the first block from which image tokens are above the random model at every later block too.
    """
    table = []
    for model, rows in frame.groupby("model", sort=False):
        last = int(rows.layer.max())
        row: dict[str, Any] = {"model": model}
        end = rows[(rows.layer == last) & (rows.site == "resid_post") & (rows.tokens == "patches")]
        parts = {"accuracy": rows[rows.measure == "accuracy"]}
        for measure in ("rate", "at_least_one", "identifiability"):
            parts[measure] = end[(end.measure == measure) & (end.control == "trained")]
        for name, part in parts.items():
            row |= {name: part.value.mean(), f"{name}_low": part.low.min(), f"{name}_high": part.high.max()}
        for measure in ("rate", "at_least_one"):
            for control, short in (("random", "random"), ("permuted_head", "permuted")):
                row[f"{measure}_{short}"] = end[(end.measure == measure) & (end.control == control)].value.mean()
            row[f"{measure}_chance"] = pick(rows, measure=measure, control="chance").value.mean()
        wrong = rows[rows.measure == "at_least_one_when_wrong"]
        row |= {"at_least_one_when_wrong": wrong.value.mean(), "n_wrong": int(wrong.n.sum())}
        tests = rows[(rows.measure == "above_random") & (rows.tokens == "patches") & (rows.layer >= 0)]
        late = [
            int(layer)
            for layer in sorted(tests.layer)
            if ((tests.p_adjusted < ALPHA) & (tests.value > 0))[tests.layer >= layer].all()
        ]
        row["above_random_from"] = late[0] + 1 if late else None
        table.append(row)
    return pd.DataFrame(table)


def in_words(result: Result) -> list[str]:
    """One sentence or two per model."""
    sentences = []
    for row in result.meta["table"]:
        beyond = "more than" if row["at_least_one"] > row["accuracy"] else "not more than"
        sentences.append(
            f"{row['model']}: {row['rate']:.1%} of the image tokens of the last block put the true class first (random "
            f"weights {row['rate_random']:.1%}, guessing {row['rate_chance']:.1%}); {row['at_least_one']:.1%} of the "
            f"images have at least one such token, {beyond} the {row['accuracy']:.1%} the model answers right."
        )
        if row["at_least_one_when_wrong"] is not None:
            sentences.append(
                f"{row['model']}: of the {row['n_wrong']} images it answers wrongly, "
                f"{row['at_least_one_when_wrong']:.1%} hold an image token that names the right class."
            )
        since = row["above_random_from"]
        sentences.append(
            f"{row['model']}: image tokens are above the random model from block {since} on."
            if since is not None
            else f"{row['model']}: image tokens of the last block are not above the random model."
        )
    return sentences


def pick(frame: pd.DataFrame, **equal: Any) -> pd.DataFrame:
    """The rows whose columns hold these values."""
    for column, value in equal.items():
        frame = frame[frame[column] == value]
    return frame


def _chance(frame: pd.DataFrame, model: str) -> float:
    return float(pick(frame, model=model, measure="identifiability", control="chance").value.iloc[0])


def _cycle(n: int) -> list[str]:
    return [MODELS[i % len(MODELS)] for i in range(n)]
