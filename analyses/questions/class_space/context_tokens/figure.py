"""The pictures, the table and the sentences of `context_tokens`."""

from __future__ import annotations

import pandas as pd
import plotly.graph_objects as go

from analyses.drawing.colours import BLUE, ORANGE, PART_NAMES, PARTS
from analyses.drawing.panels import curve, each_panel, level, model_panels, stars
from analyses.drawing.rows import LEVEL, over_seeds, span
from analyses.drawing.side_by_side import boxes
from analyses.questions.class_space.measures.projection import EMBEDDING
from analyses.running.results import Result
from hooked_vit.config.showing import counted

GROUPS = {"context": BLUE, "class": ORANGE}


def _all_layers(frame: pd.DataFrame) -> bool:
    """Whether none were named, as the embedding is one then."""
    return bool((frame.layer == EMBEDDING).any())


def _axis(result: Result) -> str:
    return "layer (−1: embedding)" if _all_layers(result.frame) else "layer"


def _in(layers: str, frame: pd.DataFrame) -> str:
    if layers:
        return f"in layer{'s' * (',' in layers)} {layers}"
    return "in no layer" if _all_layers(frame) else "in no layer measured"


def groups_figure(result: Result) -> go.Figure:
    """Distribution of r in class and context tokens at every layer, starred where class is above context."""
    test = "300 shuffles over all tokens" if result.meta["repro"] else "labels shuffled within images, Holm over layers"
    fig = model_panels(
        result,
        "Is the class more identifiable on the object than around it?",
        "r = 1 − rank of the true class / classes. Boxes: quartiles over images × tokens, whiskers 1.5 times as long; "
        f"★ class above context, p < .05 ({test})",
        x=_axis(result),
        y="class identifiability r",
        y_range=(-0.02, 1.16),
    )
    for at, _, rows in each_panel(fig, result):
        for number, (group, colour) in enumerate(GROUPS.items()):
            boxes(fig, at, rows[rows.tokens == group], f"{group} tokens", colour, number, len(GROUPS))
        clear = _clear(rows)
        stars(fig, at, clear.layer, [1.1] * len(clear), "black")
    return fig


def difference_figure(result: Result) -> go.Figure:
    """Mean difference of r between class and context tokens of the same image, per layer."""
    fig = model_panels(
        result,
        "How much more identifiable is the class on the object?",
        "r of class tokens minus r of context tokens, mean over images with both; 95 % intervals over images",
        x=_axis(result),
        y="difference of r",
        y_range=None,
    )
    for at, _, rows in each_panel(fig, result):
        some = rows[rows.measure == "difference"]
        if len(some):
            level(fig, at, _wider(some), 0.0, "no difference")
        curve(fig, at, some, "class minus context", GROUPS["class"])
    return fig


def change_figure(result: Result) -> go.Figure:
    """Class minus context tokens: how much higher the true class scores in each update than in what it read."""
    frame = result.frame[result.frame.measure == "logit_change"]
    test = "300 shuffles over all tokens" if result.meta["repro"] else "sign flips of images, Holm over layers"
    fig = model_panels(
        result,
        "Which updates point more to the class on the object than around it?",
        "Score of the true class in the update alone minus that in its input; class minus context tokens, mean over "
        f"images, 95 % intervals; ★ p < .05 ({test})",
        y="difference of score changes (logits)",
        y_range=None,
        shared=False,
    )
    for at, model, mine in each_panel(fig, result):
        level(fig, at, _wider(mine[mine.layer != EMBEDDING]), 0.0, "no difference")
        for part, label in PART_NAMES.items():
            rows = frame[(frame.model == model) & (frame.part == part)] if "part" in frame else frame[:0]
            curve(fig, at, rows, label, PARTS[part])
            clear = over_seeds(rows[rows.p_adjusted < LEVEL] if len(rows) else rows)
            stars(fig, at, clear.layer, clear.high.fillna(clear.value), PARTS[part])
    return fig


def _wider(rows: pd.DataFrame) -> list[float]:
    first, last = span(rows)
    return [first - 0.3, last + 0.3]


def summary_table(frame: pd.DataFrame) -> pd.DataFrame:
    """One row per model: images and tokens that count, the largest difference and its layer, and the starred layers."""
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
        row |= {
            "largest_difference": float(tests.value.max()) if len(tests) else None,
            "at_layer": int(tests.layer[tests.value.idxmax()]) if len(tests) else None,
            "class_above_context": _layers(_clear(rows)),
            # the test asks for more, not for less: an interval below 0 says that
            "class_below_context": _layers(tests[tests.high < 0] if "high" in tests else tests[:0]),
        }
        table.append(row)
    return pd.DataFrame(table)


def _clear(rows: pd.DataFrame) -> pd.DataFrame:
    """Layers at which class tokens are above context tokens."""
    tests = rows[rows.measure == "difference"]
    # where no image has both kinds of token there was nothing to test
    return tests[(tests.p_adjusted < LEVEL) & (tests.value > 0)] if len(tests) else tests


def _layers(rows: pd.DataFrame) -> str:
    return ", ".join(str(int(layer)) for layer in sorted(rows.layer))


def in_words(result: Result) -> list[str]:
    """One sentence per model."""
    sentences = []
    for row in result.meta["table"]:
        if row["largest_difference"] is None:
            sentences.append(f"{row['model']}: no image has both class and context tokens at this resolution.")
            continue
        where = _in(row["class_above_context"], result.frame)
        where += " (−1 is the embedding)" if _all_layers(result.frame) else ""
        sentences.append(
            f"{row['model']}: class tokens are more identifiable than context tokens {where}; the difference is "
            f"largest at layer {row['at_layer']}, {row['largest_difference']:+.3f} of r, over "
            f"{counted(row['with_both'], 'image')} with both."
        )
        if below := row["class_below_context"]:
            sentences.append(f"{row['model']}: they are less identifiable {_in(below, result.frame)}.")
        sentences += _of_changes(result, row["model"])
    return sentences


def _of_changes(result: Result, model: str) -> list[str]:
    """One sentence per sub-layer: where its update tells class from context tokens."""
    frame, found = result.frame, []
    for part, label in PART_NAMES.items():
        rows = frame[(frame.model == model) & (frame.measure == "logit_change") & (frame.get("part") == part)]
        if rows.empty:
            continue
        more, less = (_layers(rows[(rows.p_adjusted < LEVEL) & (sign * rows.value > 0)]) for sign in (1, -1))
        found.append(
            f"{model}: the update of {label} raises the score of the class over its input's more in class than in "
            f"context tokens {_in(more, frame)}, less {_in(less, frame)}."
        )
    return found


def notes(result: Result) -> list[str]:
    """What was left out, and what to keep in mind."""
    found = [
        f"{row['model']}: {row['without_class_tokens']} of {counted(row['images'], 'image has', 'images have')} no "
        f"class token and {row['without_context_tokens']} no context token at this resolution; "
        f"{row['class_share_of_tokens']:.0%} of the tokens lie on the class, {row['unlabelled_share_of_tokens']:.0%} "
        "have no label."
        for row in result.meta["table"]
    ]
    if result.meta["repro"]:
        return [*found, "The settings are those of the published code, errors included; see the analysis' description."]
    return [*found, "Neighbouring tokens are alike, which a shuffle of labels within an image does not respect; the "
            "sign-flip test over images (p_sign_flip) does not depend on it."]  # fmt: skip
