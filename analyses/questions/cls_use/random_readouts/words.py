"""What a result of `random_readouts` says in sentences: findings, from closed forms alone, and what to keep in mind."""

from __future__ import annotations

import pandas as pd

from analyses.data import ImageData
from analyses.drawing.rows import ranges
from analyses.questions.cls_use.random_readouts.arms import BELOW, ENDED, SETTLED
from analyses.questions.cls_use.random_readouts.tokens import ARMS, BASE, TOKENS
from analyses.running.results import Result
from hooked_vit.config.showing import counted

LOWER_BOUNDS = (
    "All trained readouts, null too, are lower bounds: a longer or better training could read more, so that one reads "
    "less than another says nothing of the block."
)
SAID = ("replace_mean_cls", "replace_one_normal", "replace_mean_patch", "augment_mean_cls")


def in_words(result: Result) -> list[str]:
    """Per model a sentence of what the closed forms show, and one of what the trained readouts are worth."""
    sentences = []
    for name, rows in result.frame.groupby("model", sort=False):
        said = [
            f"{TOKENS[ARMS[arm].token]} {'in its place' if ARMS[arm].placement == 'replace' else 'beside it'} {found}"
            for arm in SAID
            if (found := _against_own(rows, f"{arm} - {BASE}"))
        ]
        if said:
            sentences.append(f"{name}, against the block's own CLS: {'; '.join(said)}.")
        if result.meta["modes"]["trained"]:
            sentences.append(f"{name}: {_trained(rows)}")
    return sentences


def _against_own(rows: pd.DataFrame, mode: str) -> str:
    """Where a closed form reads more or less than the block's own CLS with every draw."""
    each = rows[(rows.measure == "difference") & (rows["mode"] == mode)]
    if each.empty:
        return ""
    by = each.groupby("layer").agg({"low": "min", "high": "max"})
    ways = {"better": by.index[by.low > 0], "worse": by.index[by.high < 0]}
    found = [f"is read {way} at {_layers([int(i) for i in at])}" for way, at in ways.items() if len(at)]
    return " and ".join(found) or "is read neither clearly better nor worse at any layer"


def _trained(rows: pd.DataFrame) -> str:
    each = rows[(rows.measure == "accuracy") & (rows.split == "test") & rows.status.ne("closed form")]
    unsettled = each[each.status.ne(SETTLED)]
    told = f"{len(each) - len(unsettled)} of {counted(len(each), 'trained readout is', 'trained readouts are')} settled"
    for status, why in (
        (BELOW, "read less than a closed form they could have come to"),
        (ENDED, "had not stopped improving when their epochs were used up"),
    ):
        of_this = unsettled[unsettled.status == status]
        where = [
            f"{mode} at {_layers(sorted({int(i) for i in some.layer}))}"
            for mode, some in of_this.groupby("mode", sort=False)
        ]
        if where:
            told += f"; unsettled, since they {why}: {', '.join(where)}"
    return f"{told}. All are lower bounds."


def _layers(numbers: list[int]) -> str:
    return f"layer{'s' * (len(numbers) > 1)} {', '.join(ranges(numbers))}"


def about_readouts(result: Result, fit_data: ImageData, validation_data: ImageData) -> list[str]:
    """What a reader has to know of all readouts."""
    meta, training = result.meta, result.meta["training"]
    fit, validation = len(fit_data), len(validation_data)
    notes = [
        f"Closed forms are read by a ridge probe fitted on all {counted(fit + validation, 'fit image')}; nothing of "
        f"them depends on an optimiser. Random tokens are drawn with {counted(len(meta['seeds']), 'seed')}.",
        "What is read is the block's output at the token in CLS's place, with augment at the one that was added. A "
        "token reaches it along the skip path too, so noise drawn for every image is read with it; one draw for all "
        "images (one_normal, one_gaussian) is not noise to the probe.",
        "Intervals are over images: they hold the fitted readouts fixed.",
        "The probe and the decoder read the block's output without the model's final norm.",
    ]
    if meta["modes"]["trained"]:
        notes.append(LOWER_BOUNDS)
        notes.append(
            f"Readouts were trained on {counted(fit, 'image')} and chosen on {counted(validation, 'other')}: at "
            f"learning rate{'s' * (len(training['lr']) > 1)} {', '.join(f'{lr:g}' for lr in training['lr'])}, until "
            f"{training['patience']} epochs brought nothing better, {training['epochs']} at the most. Validation "
            "accuracy chose epoch and rate, so it flatters a little; test accuracy did not."
        )
        notes.append(
            "Settled is a readout whose validation accuracy no longer improved when it ended, and whose test accuracy "
            "is not below that of the closed forms it could have come to (null: own CLS; replace, augment: mean CLS "
            "and Gaussian; deterministic: mean CLS). Everything else is unsettled, and no finding."
        )
        rates = result.frame[result.frame.measure == "learning_rate"]
        if len(training["lr"]) > 1 and (at_end := int((rates.value == max(training["lr"])).sum())):
            notes.append(
                f"{at_end} of {counted(len(rates), 'trained readout was', 'trained readouts were')} best at the "
                "highest learning rate that was tried; a higher `lr` may read more."
            )
    labels = fit_data.labels
    if labels is not None and (missing := meta["n_classes"] - len(labels.unique())):
        notes.append(
            f"{missing} of {counted(meta['n_classes'], 'class has', 'classes have')} no training image, so no readout "
            "can name them."
        )
    return notes
