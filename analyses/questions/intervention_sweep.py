"""Any list of interventions over any data: accuracy under each, and how often the answer changes.

Rows are written to a file as they are measured, so that a long sweep can be interrupted and taken up again where it
stopped; a file of another sweep is refused.
"""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import plotly.express as px
import plotly.graph_objects as go
from torch import Tensor
from tqdm.auto import tqdm

from analyses.data import ImageData, as_data, load_data
from analyses.probes.classifier_heads import Answers, own_head
from analyses.running.registry import analysis
from analyses.running.results import Result
from analyses.statistics.intervals import wilson
from analyses.statistics.ranks import correct, rank
from hooked_vit import HookedViT
from interventions import Intervention, grid, readout, shuffle_cls, sweep

COUNTS = ("n", "correct", "changed")
CLEAN = "unperturbed"


def bars(result: Result) -> go.Figure:
    """Accuracy under every intervention, with its interval."""
    frame = result.frame.assign(up=lambda f: f.high - f.accuracy, down=lambda f: f.accuracy - f.low)
    figure = px.bar(
        frame, x="intervention", y="accuracy", color="model", barmode="group", error_y="up", error_y_minus="down"
    )
    return figure.update_layout(template="plotly_white", yaxis_range=[0, 1], xaxis_title="")


@analysis(figure=bars)
def intervention_sweep(
    models: Mapping[str, HookedViT],
    data: ImageData | Any = None,
    *,
    interventions: Sequence[Intervention] | None = None,
    file: str | None = None,
    batch_size: int = 64,
) -> Result:
    """What does each of these interventions cost?

    >>> result = intervention_sweep({"vit": model}, data, ...)  # doctest: +SKIP

    Without `interventions`, CLS is shuffled after each layer in turn. With `file`, rows (JSON lines, one per batch and
    intervention) are appended as they are measured; called again after an interruption with the same arguments, the
    sweep goes on behind the last complete batch. Random draws are those of separate runs on the same batches.

    The frame has one row per model and intervention: `accuracy` with its 95 % Wilson interval, and `changed`, the share
    of images whose answer differs from the unperturbed one. Raises ValueError for a file another sweep has written,
    naming both fingerprints, and for a model without a head for the data's classes.
    """
    data = load_data("scenes:test", n=1000) if data is None else as_data(data)
    chosen = {name: _chosen(model, interventions) for name, model in models.items()}
    answers = {name: _answers(name, model, data) for name, model in models.items()}
    mark = _fingerprint(models, data, chosen, batch_size)
    journal = Journal(None if file is None else Path(file), mark)
    rows = []
    for name, model in models.items():
        counts = _counts(name, model, answers[name], data, chosen[name], journal, batch_size)
        for intervention, (n, hits, changed) in counts.items():
            accuracy, low, high = wilson(hits, n)
            rows.append(
                {
                    "model": name,
                    "intervention": intervention,
                    "accuracy": accuracy,
                    "low": low,
                    "high": high,
                    "changed": changed / n,
                    "n": n,
                }
            )
    meta = {
        "models": {name: {"architecture": m.cfg.architecture, "checkpoint": m.cfg.name} for name, m in models.items()},
        "data": {"name": data.name, "n": data.n, "fingerprint": data.fingerprint()},
        "interventions": {name: [iv.to_dict() for iv in ivs] for name, ivs in chosen.items()},
        "fingerprint": mark,
        "batch_size": batch_size,
    }
    return Result(pd.DataFrame(rows), meta)


class Journal:
    """Rows on disk, one JSON object a line behind a line with the fingerprint; a torn last batch is measured again."""

    def __init__(self, path: Path | None, fingerprint: str) -> None:
        self.path = path
        self.rows: list[dict[str, Any]] = []
        if path is None:
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists() and path.stat().st_size:
            self._read(path, fingerprint)
        else:
            path.write_text(json.dumps({"fingerprint": fingerprint}) + "\n", encoding="utf-8")

    def _read(self, path: Path, fingerprint: str) -> None:
        lines = path.read_text(encoding="utf-8").split("\n")
        try:
            found = json.loads(lines[0])["fingerprint"]
        except (ValueError, KeyError, TypeError):
            raise ValueError(f"{path} was not written by a sweep; give another file") from None
        if found != fingerprint:
            raise ValueError(
                f"{path} belongs to another sweep: its fingerprint is {found}, this one's {fingerprint}. Other models, "
                "data, interventions or batch size; give another file"
            )
        kept = [line for line in lines[1:-1] if line]  # what has no line end was being written
        self.rows = [json.loads(line) for line in kept]
        path.write_text("\n".join([lines[0], *kept, ""]), encoding="utf-8")

    def batch(self, model: str, index: int, size: int) -> list[dict[str, Any]] | None:
        """The rows of a batch, where all `size` of them are there."""
        rows = [row for row in self.rows if row["model"] == model and row["batch"] == index]
        return rows if len(rows) == size else None

    def add(self, row: dict[str, Any]) -> None:
        """One more row, on disk at once."""
        if self.path is not None:
            with self.path.open("a", encoding="utf-8") as out:
                out.write(json.dumps(row) + "\n")


def _counts(
    name: str,
    model: HookedViT,
    answers: Answers,
    data: ImageData,
    interventions: list[Intervention],
    journal: Journal,
    batch_size: int,
) -> dict[str, list[int]]:
    totals: dict[str, list[int]] = defaultdict(lambda: [0, 0, 0])
    n_batches = None if data.n is None else -(-data.n // batch_size)
    for i, batch in enumerate(tqdm(data.batches(batch_size), total=n_batches, desc=f"{name}: sweep", leave=False)):
        rows = journal.batch(name, i, len(interventions))
        if rows is None:
            rows = _measure(name, i, model, answers, batch, interventions)
            for row in rows:
                journal.add(row)
        for row in rows:
            total = totals[row["intervention"]]
            total[:] = [have + row[count] for have, count in zip(total, COUNTS, strict=True)]
    return totals


def _measure(
    name: str, index: int, model: HookedViT, answers: Answers, batch: Any, interventions: list[Intervention]
) -> list[dict[str, Any]]:
    labels = answers.labels(batch.labels)
    rows: list[dict[str, Any]] = []
    clean: Tensor | None = None
    for intervention, logits in sweep(model, model.preprocess(batch.images), interventions):
        logits = logits.cpu()
        clean = logits if clean is None else clean  # the first variant is the model as it is
        rows.append(
            {
                "model": name,
                "batch": index,
                "intervention": repr(intervention) if rows else CLEAN,
                "n": len(labels),
                "correct": int(correct(rank(logits, labels)).sum()),
                "changed": int((logits.argmax(-1) != clean.argmax(-1)).sum()),
            }
        )
    return rows


def _chosen(model: HookedViT, interventions: Sequence[Intervention] | None) -> list[Intervention]:
    """The model as it is, then the interventions, all of which this model must be able to have."""
    if interventions is None:
        interventions = grid(shuffle_cls, layer=range(model.cfg.n_layers))
    if len(set(interventions)) < len(interventions):
        raise ValueError("every intervention of a sweep is there once; some are given twice")
    for intervention in interventions:
        intervention.hooks(model)
    return [readout("full"), *(iv for iv in interventions if iv != readout("full"))]


def _answers(name: str, model: HookedViT, data: ImageData) -> Answers:
    answers = own_head(model, data)
    if answers is None:
        raise ValueError(f"{name} has no head for the classes of {data.name}; give it one with model.set_head_(...)")
    return answers


def _fingerprint(
    models: Mapping[str, HookedViT], data: ImageData, chosen: Mapping[str, list[Intervention]], batch_size: int
) -> str:
    weights = {name: [p.detach().double().abs().sum().item() for p in m.parameters()] for name, m in models.items()}
    keys = {name: [iv.key for iv in ivs] for name, ivs in chosen.items()}
    text = json.dumps([weights, data.fingerprint(), keys, batch_size], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
