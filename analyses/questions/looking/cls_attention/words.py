"""The table and the sentences of `cls_attention`."""

from __future__ import annotations

import pandas as pd

from analyses.drawing.rows import by_model, picked, value_of
from analyses.questions.looking.cls_attention.claims import EARLY, LATE, LEAST, MIDDLE, thirds
from analyses.questions.looking.cls_attention.study import OTHER_MASKS, RANDOM, TRAINED, UNIFORM
from analyses.running.results import Result

SHOWN = {"entropy": "entropy", "object_mass": "mass on the object", "class_gain": "accuracy gained over uniform"}


def in_words(result: Result) -> tuple[list[str], list[str]]:
    """What was found, and what to keep in mind."""
    found = [f"{row['model']}: {row['claim']}: {row['verdict']} ({row['why']})." for row in result.meta["table"]]
    notes = []
    for name, rows in by_model(result):
        about = result.meta["models"][name]
        found += [f"{name}: {sentence}" for sentence in _levels(rows, about["n_layers"])]
        if about["no_objects"]:
            notes.append(f"{name}: nothing is said of objects: {about['no_objects']}.")
        if not about["cls_read"]:
            notes.append(f"{name} does not answer from CLS: its attention may serve nothing that the answer needs.")
    notes += [
        "A verdict is of these images and of one copy with random weights; probes are fitted once. A "
        f"difference of shares counts from {LEAST} on, as far as these sentences print: with random weights all images "
        "may differ the same way by less. How large each is stands in brackets.",
        "Tokens with outlier norms (analysis registers) are patches here as any other, and may hold much of late "
        "attention.",
        "Accuracy is that of a probe on the values CLS gathers from patches alone. What it gains over equal weights on "
        "the same values is what the choice of patches adds; where equal weights read the class as well there is "
        "nothing left to gain, and that is no sign of attention to the wrong places.",
    ]
    return found, notes


def _levels(rows: pd.DataFrame, n_layers: int) -> list[str]:
    """The means of early, middle and late layers, in words; none of fewer than three blocks."""
    layers = thirds(n_layers)
    if not layers:
        return []
    told = []
    for measure, words in SHOWN.items():
        some = picked(rows, measure=measure, variant=TRAINED)
        if len(some):
            means = [float(some[some.layer.isin(layers[third])].value.mean()) for third in (EARLY, MIDDLE, LATE)]
            told.append(f"{words} {', '.join(f'{mean:.3f}' for mean in means)}")
    beside = [
        f"{variant} {value:.3f}"
        for variant in (UNIFORM, OTHER_MASKS, RANDOM)
        if (value := _middle(rows, variant, layers[MIDDLE])) is not None
    ]
    objects = f"; on objects in the middle, {', '.join(beside)}" if beside else ""
    chance = value_of(rows, "chance")
    return [f"in early, middle and late layers {'; '.join(told)}{objects}; chance {chance:.3f}."]


def _middle(rows: pd.DataFrame, variant: str, layers: list[int]) -> float | None:
    some = picked(rows, measure="object_mass", variant=variant)
    return None if some.empty else float(some[some.layer.isin(layers)].value.mean())
