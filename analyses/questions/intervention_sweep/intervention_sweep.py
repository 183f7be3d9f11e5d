"""Any list of interventions over any data: accuracy under each, and how often the answer changes.

Rows are written to a file as they are measured, so that a long sweep can be interrupted and taken up again where it
stopped; a file of another sweep is refused.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from torch import Tensor

from analyses.controls.shuffle_floors import check_exchange, exchange_batches
from analyses.data import ImageData
from analyses.data.batches import Batch
from analyses.data.sets import one_set
from analyses.drawing.colours import MODELS
from analyses.drawing.panels import bars, panels, place
from analyses.pages.album import Album
from analyses.probes.classifier_heads import Answers
from analyses.probes.opening import answering
from analyses.processes.group import leads
from analyses.questions.intervention_sweep.journal import Journal
from analyses.running.fingerprint import fingerprint
from analyses.running.locks import hold_file
from analyses.running.notes import progress_batches
from analyses.running.registry import analysis
from analyses.running.results import Result
from analyses.statistics.intervals import wilson
from analyses.statistics.ranks import correct, rank
from hooked_vit import HookedViT
from hooked_vit.config.showing import counted
from interventions import Intervention, grid, readout, shuffle_cls, sweep
from interventions.catalogue.shuffling import BY_CLASS

COUNTS = ("n", "correct", "changed")
CLEAN = "unperturbed"


def bars_figure(result: Result) -> go.Figure:
    """Accuracy under every intervention, with its interval."""
    frame, explained = result.frame, "Share of images answered right, with its 95 % Wilson interval"
    over = f" over {counted(int(frame.n.iloc[0]), 'image')}" if frame.n.nunique() == 1 and len(frame) else ""
    fig = panels(
        [""],
        "What does each of these interventions cost?",
        explained + over,
        x="intervention",
        y="accuracy",
        columns=1,
    )
    for number, (name, rows) in enumerate(frame.groupby("model", sort=False)):
        drawn = rows.rename(columns={"accuracy": "value"})
        bars(fig, place(fig, 0), rows.intervention, drawn, str(name), MODELS[number % len(MODELS)])
    return fig


@analysis(figure=bars_figure)
def intervention_sweep(
    models: Mapping[str, HookedViT],
    data: ImageData | Any = None,
    *,
    fit_data: ImageData | Any = None,
    head: str = "auto",
    interventions: Sequence[Intervention] | None = None,
    file: str | None = None,
    batch_size: int = 64,
) -> Result:
    """What does each of these interventions cost?

    >>> result = intervention_sweep({"vit": model}, data, ...)  # doctest: +SKIP

    Without `interventions`, CLS is shuffled after each layer in turn. A model whose `head` knows none of the data's
    classes gets a ridge head, fitted on `fit_data`. With `file`, rows (JSON lines, one per batch and
    intervention) are appended as they are measured; called again after an interruption with the same arguments, the
    sweep goes on behind the last complete batch. Rows that were changed since, or measured on other images or labels,
    are measured anew, which `meta["notes"]` says. Random draws are those of separate runs on the same batches.

    The frame has one row per model and intervention: `accuracy` with its 95 % Wilson interval, and `changed`, the share
    of images whose answer differs from the unperturbed one. Raises ValueError for a file another sweep has written,
    naming what differs, for images that cannot exchange tokens (`check_exchange`) where an intervention does, and for
    labels a head does not know; InUseError for a file somebody else is writing.
    """
    data = one_set(data)
    chosen = {name: _chosen(model, interventions) for name, model in models.items()}
    among = _exchanged(iv for ivs in chosen.values() for iv in ivs)
    if among is not None:
        check_exchange(data, batch_size, among)
    found = answering(models, data, fit_data, head=head, batch_size=batch_size)
    answers, data = found.by_name, found.data
    models = {name: its.model for name, its in answers.items()}  # a fitted head is one of the weights
    mark = fingerprint(models, {"data": data}, {"interventions": chosen, "batch size": batch_size})
    rows = []
    pictures: list[dict[str, Any]] = []
    path = None if file is None else Path(file).expanduser()
    with hold_file(path, "--file") if path is not None and leads() else nullcontext():
        journal = Journal(path, mark)
        for name, model in models.items():
            album = Album(name, model.cfg.class_names, data.name_of, len(models))
            counts = _counts(name, model, answers[name], data, chosen[name], journal, batch_size, among, album)
            for intervention, (n, hits, changed) in counts.items():
                accuracy, low, high = wilson(hits, n)
                row = {"accuracy": accuracy, "low": low, "high": high, "changed": changed / n, "n": n}
                rows.append({"model": name, "intervention": intervention, **row})
            pictures += album.entries() if path is None else []  # what a file holds was measured without pictures
    meta = {
        "models": {name: its.about() for name, its in answers.items()},
        **found.about,
        "interventions": {name: [iv.to_dict() for iv in ivs] for name, ivs in chosen.items()},
        "fingerprint": mark.key,
        "batch_size": batch_size,
        "notes": journal.notes,
        "pictures": pictures,
    }
    return Result(pd.DataFrame(rows), meta)


def _counts(
    name: str,
    model: HookedViT,
    answers: Answers,
    data: ImageData,
    interventions: list[Intervention],
    journal: Journal,
    batch_size: int,
    among: str | None,
    album: Album,
) -> dict[str, list[int]]:
    totals: dict[str, np.ndarray] = defaultdict(lambda: np.zeros(3, int))
    what, into = f"{name}: sweep", [totals, album]
    batches = (
        progress_batches(data, batch_size, what, into=into)
        if among is None
        else exchange_batches(data, batch_size, what, among, into=into)
    )
    for batch in batches:
        rows = journal.batch(name, batch.number, batch, _names(interventions))
        if rows is None:
            rows = _measure(name, model, answers, batch, interventions, album)
            journal.add(batch, rows)
        for row in rows:
            totals[row["intervention"]] += [row[count] for count in COUNTS]
    return {what: total.tolist() for what, total in totals.items()}


def _measure(
    name: str, model: HookedViT, answers: Answers, batch: Batch, interventions: list[Intervention], album: Album
) -> list[dict[str, Any]]:
    labels = answers.labels(batch.labels)
    rows: list[dict[str, Any]] = []
    clean: Tensor | None = None
    named = zip(_names(interventions), sweep(model, model.preprocess(batch.images), interventions), strict=True)
    for what, (_, logits) in named:
        logits = logits.cpu()
        if clean is None:  # the first variant is the model as it is
            clean = logits
            album.open(batch.images, batch.index, labels, logits)
        else:
            album.compare(logits, what)
        rows.append(
            {
                "model": name,
                "batch": batch.number,
                "intervention": what,
                "n": len(labels),
                "correct": int(correct(rank(logits, labels)).sum()),
                "changed": int((logits.argmax(-1) != clean.argmax(-1)).sum()),
            }
        )
    return rows


def _exchanged(interventions: Iterable[Intervention]) -> str | None:
    """Among which images tokens are exchanged, by the rule that asks most of their order; None where none are."""
    rules = {part.params["among"] for iv in interventions for part in iv.parts if "among" in part.params}
    return next(iter(rules - {*BY_CLASS}), next(iter(rules), None))


def _names(interventions: list[Intervention]) -> list[str]:
    return [CLEAN, *map(repr, interventions[1:])]


def _chosen(model: HookedViT, interventions: Sequence[Intervention] | None) -> list[Intervention]:
    """The model as it is, then the interventions, all of which this model must be able to have."""
    if interventions is None:
        interventions = grid(shuffle_cls, layer=range(model.cfg.n_layers))
    if len(set(interventions)) < len(interventions):
        raise ValueError("every intervention of a sweep is there once; some are given twice")
    for intervention in interventions:
        intervention.hooks(model)
    return [readout("full"), *(iv for iv in interventions if iv != readout("full"))]
