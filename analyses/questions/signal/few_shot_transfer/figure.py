"""The pictures, the table and the sentences of `few_shot_transfer`."""

from __future__ import annotations

from typing import Any

import pandas as pd
import plotly.graph_objects as go

from analyses.activations.sites import LABELS
from analyses.drawing.colours import BLUE, ORANGE, READ_FROM
from analyses.drawing.panels import bars, each_panel, level, model_panels
from analyses.drawing.rows import between, by_model, over_seeds, picked, value_of
from analyses.running.results import Result
from analyses.statistics.moments import FEW
from hooked_vit.config.showing import counted

SHOWN = {
    "learned": "learned",
    "normal": "drawn",
    "zeros": "zeros",
    "matched": "moved",
    "random weights": "untrained",
}
DOMAINS = {"target": ("the other domain", BLUE), "source": ("the model's own domain", ORANGE)}


def main_figure(result: Result) -> go.Figure:
    """Per model, the accuracy of prototypes of every kind of token, by what stands in for the CLS embedding."""
    meta = result.meta
    fig = model_panels(
        result,
        "Are few-shot classes of another domain told apart better without the learned CLS embedding?",
        f"{meta['ways']}-way {meta['shots']}-shot accuracy of prototypes on {meta['data']['name']}, by what stands in "
        "the place of the CLS embedding. Drawn: N(0, 0.02²); moved: the learned one, as far along a random direction; "
        "untrained: a model of random weights. 95 % intervals over groups of images that share none, of draws the "
        "widest",
        x="in the place of the CLS embedding",
        y="accuracy",
    )
    for at, _, rows in each_panel(fig, result):
        some = picked(rows, measure="accuracy", domain="target")
        for token in (token for token in LABELS if (some.token == token).any()):
            of = over_seeds(picked(some, token=token), "variant").set_index("variant").reindex([*SHOWN])
            bars(fig, at, [*SHOWN.values()], of, LABELS[token], READ_FROM[token])
        level(fig, at, _ends([*SHOWN.values()]), value_of(rows, "chance"), "chance")
    return fig


def gain_figure(result: Result) -> go.Figure:
    """Per model, what prototypes of CLS gain with other embeddings in its place, on each domain."""
    fig = model_panels(
        result,
        "What do prototypes of CLS gain with another embedding in the place of the learned one?",
        "Accuracy minus that with the learned embedding, paired over groups of images, 95 % intervals. Published is a "
        "gain of the drawn one, N(0, 0.02²), on other domains; where the learned one, moved as far, gains as much, it "
        "is no sign of what it holds",
        x="in the place of the CLS embedding",
        y="gain in accuracy",
        y_range=None,
    )
    names = [SHOWN[variant] for variant in ("normal", "zeros", "matched")]
    for at, _, rows in each_panel(fig, result):
        gains = picked(rows, measure="gain", token="cls")
        for domain, (label, colour) in DOMAINS.items():
            some = picked(gains, domain=domain)
            bars(fig, at, [SHOWN[variant] for variant in some.variant], some, label, colour)
        level(fig, at, _ends(names), 0.0, "no gain")
    return fig


def _ends(names: list[str]) -> list[str]:
    return [names[0], names[-1]]


def summary_table(result: Result) -> pd.DataFrame:
    """One row per model: accuracies of prototypes of CLS, and what a drawn embedding gains."""
    table = []
    for name, rows in by_model(result):
        cls = picked(rows, token="cls", domain="target")
        row: dict[str, Any] = {"model": name}
        for variant in SHOWN:
            row[variant] = _mean(picked(cls, measure="accuracy", variant=variant))
        row["mean patch"] = _mean(picked(rows, token="patches", domain="target", measure="accuracy", variant="learned"))
        for measure in ("gain", "gain_over_matched", "gain_beyond_source"):
            row[measure] = value_of(cls, measure, variant="normal")
        table.append(row)
    return pd.DataFrame(table)


def _mean(rows: pd.DataFrame) -> float | None:
    return None if rows.empty else float(rows.value.mean())


def in_words(result: Result) -> tuple[list[str], list[str]]:
    """What was found, and what to keep in mind."""
    meta, found = result.meta, []
    for name, rows in by_model(result):
        cls = picked(rows, token="cls", domain="target")
        of = {variant: _mean(picked(cls, measure="accuracy", variant=variant)) for variant in SHOWN}
        sentence = (
            f"{name}: {meta['ways']}-way {meta['shots']}-shot accuracy of prototypes of CLS is {of['learned']:.1%} "
            f"with the learned CLS embedding and {of['normal']:.1%} with N(0, 0.02²) in its place: "
            f"{_told(cls, 'gain')}, and against the learned one moved as far {_told(cls, 'gain_over_matched')}"
        )
        if len(picked(cls, measure="gain_beyond_source")):
            sentence += f"; against the gain on its own domain {_told(cls, 'gain_beyond_source')}"
        found.append(
            f"{sentence}. With random weights it is {of['random weights']:.1%}, chance {1 / meta['ways']:.1%}."
        )
    groups = picked(result.frame, measure="accuracy").n_groups
    if (fewest := int(groups.min())) <= FEW:
        found.append(
            f"These intervals are over no more than {counted(fewest, 'group')} of images that share none: with so few "
            "they are wide, and whether they hold 0 says little. More images of each class make more groups."
        )
    notes = [
        f"Intervals are over groups of images that share none ({_counts(groups)}), with episodes drawn within each: "
        "episodes of one pool share images, and more of them say nothing more of other images.",
    ]
    for domain, out in meta["left_out"].items():
        if out["classes"]:
            each = meta["shots"] + meta["queries"]
            notes.append(
                f"{domain}: classes with fewer than {counted(each, 'image')} are left out: {_listed(out['classes'])}."
            )
        if out["copies"]:
            notes.append(
                f"{domain}: {counted(out['copies'], 'image has', 'images have')} the pixels of another one: left out."
            )
    return found, notes


def _told(rows: pd.DataFrame, measure: str) -> str:
    some = picked(rows, measure=measure, variant="normal").iloc[0]
    return f"{some['value']:+.1%} ({between(some['low'], some['high'], '+.1%')})"


def _counts(groups: pd.Series) -> str:
    return " and ".join(str(int(n)) for n in sorted(groups.dropna().unique(), reverse=True))


def _listed(classes: list[int]) -> str:
    shown = ", ".join(map(str, classes[:10]))
    return f"{shown} …, {len(classes)} of them" if len(classes) > 10 else shown
