"""The pictures, the table and the sentences of `class_projection`."""

from __future__ import annotations

from itertools import cycle
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from analyses.drawing.colours import DARK_BLUE, MODELS, NAMES, TOKENS
from analyses.drawing.panels import bars, curve, each_panel, level, model_panels, panels, place, stars
from analyses.drawing.rows import LEVEL, from_layer, layers_in, over_seeds, picked, span
from analyses.drawing.side_by_side import BOX_ROOM, beside, boxes
from analyses.questions.class_space.measures.projection import EMBEDDING
from analyses.running.results import Result
from hooked_vit.config.showing import counted

ENDS = {"value": "", "low": "_low", "high": "_high"}
NORMALISED = 12


def evolution_figure(result: Result) -> go.Figure:
    """Mean identifiability of CLS and of image tokens over normalised depth, one line per model (Vilas et al. fig. 2).

    Blocks of a model with more than 12 are averaged in 12 equal groups; those of a shallower one stand where they end.
    """
    frame = result.frame
    kinds = [kind for kind in ("cls", "patches") if (frame.tokens == kind).any()]
    fig = panels(
        [NAMES[kind] for kind in kinds],
        "When does the class of the image appear in its tokens?",
        "r = 1 − rank of the true class / classes, mean over images: 1 where the class comes first; 95 % "
        "intervals over images; solid: trained, dotted: random weights",
        x="depth, in twelfths of all layers",
        y="class identifiability r",
        columns=2,
        y_range=(0.3, 1.03),
        height=380,
    )
    for number, kind in enumerate(kinds):
        at = place(fig, number)
        for expected in sorted({_chance(frame, model) for model in frame.model.unique()}):
            level(fig, at, [0.5, NORMALISED + 0.5], expected, "chance")
        for model, colour in zip(frame.model.unique(), cycle(MODELS), strict=False):
            for control, label, dash in (("trained", model, "solid"), ("random", f"{model}, random weights", "dot")):
                rows = picked(frame, model=model, measure="identifiability", tokens=kind, control=control)
                rows = over_seeds(rows[(rows.site == "resid_post") & (rows.layer >= 0)])
                rows = normalised(rows, result.meta["models"][model]["n_layers"])
                curve(fig, at, rows, label, colour, x="block", dash=dash)
    return fig


def box_figure(result: Result) -> go.Figure:
    """Distribution of r over images and tokens at every block of every model, CLS beside image tokens."""
    frame = result.frame
    test = "Wilcoxon over tokens" if result.meta["repro"] else "sign flips per image, Holm over layers"
    fig = model_panels(
        result,
        "How far up the ranking is the true class, token by token?",
        f"r = 1 − rank of the true class / classes. Boxes: quartiles over images × tokens, whiskers 1.5 times as long; "
        f"★ above random weights, p < .05 ({test})",
        x="layer (−1: embedding)" if (frame.layer == EMBEDDING).any() else "layer",
        y="class identifiability r",
        y_range=(-0.02, 1.16),
    )
    for at, model, _ in each_panel(fig, result):
        layers = frame[(frame.model == model) & (frame.measure == "median") & (frame.site == "resid_post")].layer
        level(fig, at, [layers.min() - 0.5, layers.max() + 0.5], _chance(frame, model), "chance")
        kinds = [kind for kind in TOKENS if (frame.tokens[frame.model == model] == kind).any()]
        for number, kind in enumerate(kinds):
            rows = picked(frame, model=model, tokens=kind, control="trained", site="resid_post")
            boxes(fig, at, rows, NAMES[kind], TOKENS[kind], number, len(kinds))
            tests = rows[rows.measure == "above_random"]
            clear = tests[tests.p_adjusted < LEVEL]
            stars(fig, at, clear.layer + beside(number, len(kinds), BOX_ROOM)[0], [1.1] * len(clear), TOKENS[kind])
    return fig


def rate_figure(result: Result) -> go.Figure:
    """Table 1 as bars: identifiability rate, images with a token that names the class, accuracy, and the controls."""
    table = pd.DataFrame(result.meta["table"])
    shown = {
        "accuracy": ("accuracy of the model", DARK_BLUE),
        "rate": ("image tokens of the last layer that put the class first", TOKENS["patches"]),
        "at_least_one": ("images with at least one such token", "#e31a1c"),
        "rate_random": ("such tokens, random weights", "#d9d9d9"),
        "at_least_one_random": ("images with one, random weights", "#969696"),
        "at_least_one_chance": ("images with one, tokens guessing independently", "#525252"),
    }
    fig = panels(
        [""],
        "Do image tokens behind the last layer already name the class?",
        "Share of tokens, or of images, with the true class first and alone; 95 % intervals over images",
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
    fig = model_panels(
        result,
        "Through which layers does the score of the true class grow?",
        "Share of (image, token) pairs whose true-class score is higher behind the layer than in front of it; 95 % "
        "intervals over images",
        y="share of tokens that gain",
    )
    for at, model, mine in each_panel(fig, result):
        level(fig, at, span(mine[mine.layer >= 0]), 0.5, "as often up as down")
        for kind, colour in TOKENS.items():
            rows = picked(frame, model=model, measure="change_rate", tokens=kind, control="trained")
            curve(fig, at, rows, NAMES[kind], colour)
    return fig


def normalised(rows: pd.DataFrame, n_layers: int) -> pd.DataFrame:
    """Curves over twelfths of the depth, 1 to 12: deeper models averaged in groups, shallower ones spread out."""
    block = np.ceil((rows.layer.astype(int) + 1) * NORMALISED / n_layers)
    return rows.assign(block=block).groupby("block")[["value", "low", "high"]].mean().reset_index()


def summary_table(frame: pd.DataFrame) -> pd.DataFrame:
    """One row per model, of the last layer: Table 1 of Vilas et al. with its controls.

    `above_random_from`: the first layer from which image tokens are above the random model at every later one too.
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
            row[f"{measure}_chance"] = picked(rows, measure=measure, control="chance").value.mean()
        wrong = rows[rows.measure == "at_least_one_when_wrong"]
        row |= {"at_least_one_when_wrong": wrong.value.mean(), "n_wrong": int(wrong.n.sum())}
        tests = rows[(rows.measure == "above_random") & (rows.tokens == "patches") & (rows.layer >= 0)]
        late = [
            int(layer)
            for layer in sorted(tests.layer)
            if ((tests.p_adjusted < LEVEL) & (tests.value > 0))[tests.layer >= layer].all()
        ]
        row["above_random_from"] = late[0] if late else None
        table.append(row)
    return pd.DataFrame(table)


def in_words(result: Result) -> list[str]:
    """One sentence or two per model."""
    sentences = []
    for row in result.meta["table"]:
        beyond = "more than" if row["at_least_one"] > row["accuracy"] else "not more than"
        sentences.append(
            f"{row['model']}: {row['rate']:.1%} of the image tokens of the last layer put the true class first (random "
            f"weights {row['rate_random']:.1%}, guessing {row['rate_chance']:.1%}); {row['at_least_one']:.1%} of the "
            f"images have at least one such token, {beyond} the {row['accuracy']:.1%} the model answers right."
        )
        if row["at_least_one_when_wrong"] is not None:
            sentences.append(
                f"{row['model']}: of the {counted(row['n_wrong'], 'image')} it answers wrongly, "
                f"{row['at_least_one_when_wrong']:.1%} hold an image token that names the right class."
            )
        if told := _tested(result.frame, row["model"]):
            sentences.append(told)
        since, tests = row["above_random_from"], picked(result.frame, model=row["model"], measure="above_random")
        n_layers = result.meta["models"][row["model"]]["n_layers"]
        sentences.append(
            f"{row['model']}: image tokens are above the random model {from_layer(since, layers_in(tests), n_layers)}."
            if since is not None
            else f"{row['model']}: image tokens of the last layer are not above the random model."
        )
    return sentences


def _tested(frame: pd.DataFrame, model: str) -> str:
    """What of the last layer's rates is above random weights and chance; nothing where it was not tested."""
    told = []
    for measure, name in (("rate", "image tokens that put the class first"), ("at_least_one", "images with one")):
        for control, other in (("random", "random weights"), ("chance", "chance")):
            rows = picked(frame, model=model, measure=f"{measure}_above_{control}", tokens="patches")
            if len(rows):
                p = rows.loc[rows.layer.idxmax(), "p_adjusted"]
                told.append(f"{name} are {'' if p < LEVEL else 'not '}above {other} (p = {p:.3f} after Holm)")
    return f"{model}, last layer: {'; '.join(told)}." if told else ""


def _chance(frame: pd.DataFrame, model: str) -> float:
    return float(picked(frame, model=model, measure="identifiability", control="chance").value.iloc[0])
