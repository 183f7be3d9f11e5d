"""The table and the sentences of `cls_attention`."""

from __future__ import annotations

import pandas as pd

from analyses.drawing.rows import by_model, layers_in, picked, ranges, value_of
from analyses.questions.looking.cls_attention.claims import LEAST, MIDDLE, thirds
from analyses.questions.looking.cls_attention.study import OTHER_MASKS, RANDOM, TRAINED, UNIFORM
from analyses.running.results import Result
from hooked_vit.config.showing import counted

SHOWN = {"entropy": "entropy", "object_mass": "mass on the object", "class_gain": "accuracy gained over uniform"}


def in_words(result: Result) -> tuple[list[str], list[str]]:
    """What was found, and what to keep in mind."""
    found = [f"{row['model']}: {row['claim']}: {row['verdict']} ({row['why']})." for row in result.meta["table"]]
    notes = []
    for name, rows in by_model(result):
        about = result.meta["models"][name]
        measured = layers_in(rows)
        found += [f"{name}: {sentence}" for sentence in _levels(rows, about["n_layers"], measured)]
        if (missing := about["n_layers"] - len(measured)) and about["n_layers"] >= 3:
            notes.append(
                f"{name}: {counted(missing, 'layer was', 'layers were')} not measured: early, middle and late are "
                "means over those that were, and a claim is judged only where it has one of each third it compares."
            )
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


def _levels(rows: pd.DataFrame, n_layers: int, measured: list[int]) -> list[str]:
    """The means of early, middle and late layers that were measured, in words; none of fewer than three blocks."""
    layers, whole = thirds(n_layers, measured), thirds(n_layers)
    if not layers:
        return []
    told = []
    for measure, words in SHOWN.items():
        some = picked(rows, measure=measure, variant=TRAINED)
        if len(some):
            means = [float(some[some.layer.isin(of)].value.mean()) for of in layers.values()]
            told.append(f"{words} {', '.join(f'{mean:.3f}' for mean in means)}")
    beside = [
        f"{variant} {value:.3f}"
        for variant in (UNIFORM, OTHER_MASKS, RANDOM)
        if (value := _middle(rows, variant, layers.get(MIDDLE, []))) is not None
    ]
    objects = f"; on objects in the middle, {', '.join(beside)}" if beside else ""
    chance = value_of(rows, "chance")
    *first, last = [
        third if of == whole[third] else f"{third} ({', '.join(ranges(of))})" for third, of in layers.items()
    ]
    names = f"{', '.join(first)} and {last}" if first else last
    return [f"in the network's {names} part {'; '.join(told)}{objects}; chance {chance:.3f}."]


def _middle(rows: pd.DataFrame, variant: str, layers: list[int]) -> float | None:
    some = picked(rows, measure="object_mass", variant=variant)
    some = some[some.layer.isin(layers)]
    return None if some.empty else float(some.value.mean())
