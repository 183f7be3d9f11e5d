"""The pictures, the table and the sentences of `context_tokens`."""

from __future__ import annotations

import pandas as pd
import plotly.graph_objects as go

from analyses.figures.panels import boxes, curve, level, panels, place, stars
from analyses.results import Result

COLOURS = {"context": "#1f77b4", "class": "#ff7f0e"}
ALPHA = 0.05


def groups_figure(result: Result) -> go.Figure:
    """Distribution of r in class and context tokens at every block, starred where class is above context."""
    frame = result.frame
    models = list(frame.model.unique())
    test = "300 shuffles over all tokens" if result.meta["repro"] else "labels shuffled within images, Holm over blocks"
    fig = panels(
        models,
        "Is the class more identifiable on the object than around it?",
        f"quartiles of r over images × tokens, whiskers 1.5 times as long; ★ class above context, p < .05 ({test})",
        x="block (0: embedding)",
        y="class identifiability r",
        y_range=(-0.02, 1.16),
    )
    fig.update_layout(boxmode="group")
    for number, model in enumerate(models):
        at, rows = place(fig, number), frame[frame.model == model]
        for group, colour in COLOURS.items():
            boxes(fig, at, rows[rows.tokens == group], f"{group} tokens", colour)
        tests = rows[rows.measure == "difference"]
        clear = tests[(tests.p_adjusted < ALPHA) & (tests.value > 0)]
        stars(fig, at, clear.layer + 1, "black")
    return fig


def difference_figure(result: Result) -> go.Figure:
    """Mean difference of r between class and context tokens of the same image, per block."""
    frame = result.frame
    models = list(frame.model.unique())
    fig = panels(
        models,
        "How much more identifiable is the class on the object?",
        "r of class tokens minus r of context tokens, mean over images with both; 95 % intervals over images",
        x="block (0: embedding)",
        y="difference of r",
        y_range=None,
    )
    for number, model in enumerate(models):
        at = place(fig, number)
        rows = frame[(frame.model == model) & (frame.measure == "difference")].sort_values("layer")
        if len(rows):
            curve(fig, at, rows.layer.astype(int) + 1, rows, "class minus context", COLOURS["class"])
            level(fig, at, [-0.3, int(rows.layer.max()) + 1.3], 0.0, "no difference")
    return fig


def summary_table(frame: pd.DataFrame) -> pd.DataFrame:
    """One row per model: images and tokens that count, the largest difference and its block, and the starred blocks."""
    table = []
    for model, rows in frame.groupby("model", sort=False):
        counts = rows[rows.layer.isna()].set_index("measure").value
        row = {
            "model": model,
            "images": int(counts["images"]),
            "with_both": int(counts["with_both"]),
            "without_class_tokens": int(counts["without_class_tokens"]),
            "without_context_tokens": int(counts["without_context_tokens"]),
            "class_share_of_tokens": counts["class_tokens"] / counts["tokens"],
            "unlabelled_share_of_tokens": counts["unlabelled_tokens"] / counts["tokens"],
        }
        tests = rows[rows.measure == "difference"]
        clear = tests[(tests.p_adjusted < ALPHA) & (tests.value > 0)]
        row |= {
            "largest_difference": float(tests.value.max()) if len(tests) else None,
            "at_block": int(tests.layer[tests.value.idxmax()]) + 1 if len(tests) else None,
            "class_above_context": _blocks(clear),
            # the test asks for more, not for less: an interval below 0 says that
            "class_below_context": _blocks(tests[tests.high < 0] if "high" in tests else tests[:0]),
        }
        table.append(row)
    return pd.DataFrame(table)


def _blocks(rows: pd.DataFrame) -> str:
    return ", ".join(str(int(layer) + 1) for layer in sorted(rows.layer))


def in_words(result: Result) -> list[str]:
    """One sentence per model."""
    sentences = []
    for row in result.meta["table"]:
        if row["largest_difference"] is None:
            sentences.append(f"{row['model']}: no image has both class and context tokens at this resolution.")
            continue
        where = f"in blocks {row['class_above_context']}" if row["class_above_context"] else "in no block"
        sentences.append(
            f"{row['model']}: class tokens are more identifiable than context tokens {where} (0 is the embedding); the "
            f"difference is largest at block {row['at_block']}, {row['largest_difference']:+.3f} of r, over "
            f"{row['with_both']} images with both."
        )
        if row["class_below_context"]:
            sentences.append(f"{row['model']}: they are less identifiable in blocks {row['class_below_context']}.")
    return sentences


def notes(result: Result) -> list[str]:
    """What was left out, and what to keep in mind."""
    found = [
        f"{row['model']}: {row['without_class_tokens']} of {row['images']} images have no class token and "
        f"{row['without_context_tokens']} no context token at this resolution; {row['class_share_of_tokens']:.0%} of "
        f"the tokens lie on the class, {row['unlabelled_share_of_tokens']:.0%} have no label."
        for row in result.meta["table"]
    ]
    if result.meta["repro"]:
        return [*found, "The settings are those of the published code, errors included; see the analysis' description."]
    return [*found, "Neighbouring tokens are alike, which a shuffle of labels within an image does not respect; the "
            "sign-flip test over images (p_sign_flip) does not depend on it."]  # fmt: skip
