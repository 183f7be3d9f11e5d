"""At which layers is the label decodable from the CLS token, and at which layers does the model use it?

Blue: accuracy of a ridge probe on the CLS token after each block, which says what is there to be read. Orange: accuracy
of the model when CLS tokens are exchanged between images after that block, which says what is used. Green: the same
with the readout restricted to CLS, for families that read more than CLS. Further down: what the model's own final norm
and head read from CLS at every depth (Vilas et al., NeurIPS 2023).
"""

from __future__ import annotations

import inspect
import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from analyses.activations.layers import measured_layers
from analyses.controls.shuffle_floors import (
    batch_seed,
    check_exchange,
    check_shuffles,
    exchange_batches,
    expected_hits,
)
from analyses.data import ImageData
from analyses.drawing.rows import at_the_end, from_layer, layers_in, reached
from analyses.pages.album import Album
from analyses.probes.classifier_heads import Answers, by_readout
from analyses.probes.opening import open_study
from analyses.probes.ridge import RidgeProbe
from analyses.probes.role_probes import fit_role_probes, read_role
from analyses.questions.cls_use.cls_causality.figure import lens_figure, main_figure, summary_table
from analyses.running.registry import analysis
from analyses.running.results import Result
from analyses.statistics.intervals import RATE, mean_row, rate_row
from analyses.statistics.ranks import correct, identifiability, rank
from hooked_vit import HookedViT
from interventions import Intervention, readout, shuffle_cls, sweep
from interventions.catalogue.shuffling import BY_CLASS

Disturbance = Callable[[int, int, Tensor | None], Intervention]


@analysis(figure=main_figure, more_figures={"The model's own head on CLS, against the probe": lens_figure})
def cls_causality(
    models: Mapping[str, HookedViT],
    data: ImageData | Any = None,
    *,
    fit_data: ImageData | Any = None,
    seeds: int = 3,
    batch_size: int = 128,
    among: str = "batch",
    head: str = "auto",
    reads: tuple[str, ...] = ("auto",),
    layers: tuple[int, ...] | None = None,
    disturb: Callable[..., Intervention] | None = None,
    activations: tuple[str, ...] | None = None,
) -> Result:
    """Where in each model is the label decodable from CLS, and where is CLS used?

    >>> result = cls_causality({"vit": zoo.load("vit")}, load_data("scenes:test", n=500))  # doctest: +SKIP
    >>> result.frame.query("measure == 'shuffled'")  # doctest: +SKIP

    Probes are fitted on `fit_data` (one pass, all layers), everything else is measured on `data`; without
    `fit_data` half of `data`, by class, is set aside for it (scenes: the train split). CLS is exchanged within
    batches of `batch_size` (`among` as in `shuffle_cls`), with `seeds` different permutations. A model whose `head`
    knows none of the data's classes gets a ridge head on what its checkpoint reads, and `meta` says so. `reads` names
    what ridge heads read, each of them for every model: besides "auto", "own" (what the model gives out: CLIP's
    projected CLS, where its family's classifier averages the patches) and tokens, such as "cls+patches". `layers` are
    those measured, of every model: on a CPU fewer cost as much less. `disturb` puts another intervention in place of
    `shuffle_cls`: it is called with the layer, and with a seed where it takes one.
    With `activations`, folders that `store_activations` filled, nothing runs for the probes.

    The frame has one row per model, layer, measure and seed: `value`, its 95 % Wilson interval, and `n` images.
    Measures: probe, shuffled, shuffled_cls_readout, head_on_cls, identifiability; without a layer: clean,
    clean_cls_readout, floor (a readout that sees another image's CLS), chance (the most frequent class).
    Raises ValueError for a model without CLS, fewer than two classes, data in the order of their classes, or labels a
    head does not know.
    """
    if seeds < 1:
        raise ValueError(f"at least one permutation is needed, got seeds={seeds}")
    done = "CLS exchanged" if disturb is None else "disturbed"
    plan = _Plan(_disturbance(disturb, among), seeds, batch_size, among, done)
    models, read = by_readout(models, reads)
    for name, model in models.items():
        _check(name, model, plan, layers)
    opening = open_study(models, data, fit_data, head, read)
    if disturb is None:
        check_shuffles(opening.measured, batch_size, seeds, among)
    else:
        check_exchange(opening.measured, batch_size, among)
    rows: list[dict[str, Any]] = []
    notes: dict[str, Any] = {}
    pictures: list[dict[str, Any]] = []
    for name, model in models.items():
        probes, answers = fit_role_probes(name, model, opening, batch_size, layers=measured_layers(model, layers))
        album = Album(name, answers.model.cfg.class_names, opening.measured.name_of, len(models))
        tally = _measure(name, answers, probes, opening.measured, plan, album)
        rows += [{"model": name, "architecture": model.cfg.architecture, **row} for row in tally.rows()]
        pictures += album.entries()
        notes[name] = _describe(name, answers)
    frame = pd.DataFrame(rows).astype({"layer": "Int64", "seed": "Int64"})
    meta = {
        "models": notes,
        **opening.about(n=tally.n),
        "seeds": seeds,
        "batch_size": batch_size,
        "interventions": [_at_any_layer(plan, next(iter(models.values())), layers), repr(readout("cls"))],
        "pictures": pictures,
    }
    result = Result(frame, meta)
    result.meta["summary"], result.meta["notes"] = _in_words(result), [n["green"] for n in notes.values() if n["green"]]
    result.meta["table"] = summary_table(result).to_dict("records")
    return result


def _disturbance(disturb: Callable[..., Intervention] | None, among: str) -> Disturbance:
    """What is done to CLS after a layer: `shuffle_cls`, or the caller's own intervention."""
    if disturb is not None:
        takes_seed = "seed" in inspect.signature(disturb).parameters
        return lambda layer, seed, labels: disturb(layer=layer, **({"seed": seed} if takes_seed else {}))
    by_class = among in BY_CLASS
    return lambda layer, seed, labels: shuffle_cls(
        layer=layer, seed=seed, among=among, labels=labels if by_class else None
    )


@dataclass(frozen=True)
class _Plan:
    """What is done to every model."""

    disturbed: Disturbance
    seeds: int
    batch_size: int
    among: str
    done: str
    """In words."""


def _at_any_layer(plan: _Plan, model: HookedViT, layers: Sequence[int] | None) -> str:
    """What was done behind every layer measured, in words."""
    (first, *_) = measured_layers(model, layers)
    return re.sub(r"\blayer=-?\d+", "layer=…", repr(plan.disturbed(first, 0, None)))


def _check(name: str, model: HookedViT, plan: _Plan, layers: Sequence[int] | None) -> None:
    if not model.cfg.has_cls:
        raise ValueError(
            f"{name} has no CLS token (it has {', '.join(model.tokens.roles)}): there is nothing to shuffle"
        )
    (first, *_) = measured_layers(model, layers)
    plan.disturbed(first, 0, torch.zeros(0, dtype=torch.long)).hooks(model)  # refuses here what this model cannot have


def _measure(
    name: str, answers: Answers, probes: Mapping[int, RidgeProbe], data: ImageData, plan: _Plan, album: Album
) -> _Tally:
    model, tally = answers.model, _Tally()
    layers, read = list(probes), read_role(model)
    readouts = {"shuffled": readout("full")}
    if _cls_readout(model) == "differs":
        readouts["shuffled_cls_readout"] = readout("cls")
    cls: dict[int, Tensor] = {}

    def keep(layer: int, resid: Tensor) -> None:
        if layer in probes:
            cls[layer] = read(resid)

    clean_of = {"shuffled": "clean", "shuffled_cls_readout": "clean_cls_readout"}
    batches = exchange_batches(data, plan.batch_size, f"{name}: shuffling CLS", plan.among, into=[tally, album])
    for batch in batches:
        pixels = model.preprocess(batch.images)
        labels, heads_labels = batch.labels, answers.labels(batch.labels)
        tally.add_counts(labels)
        variants: dict[tuple[str, int | None, int | None], Intervention] = {}
        for measure, restricted in readouts.items():
            variants[clean_of[measure], None, None] = restricted
            for seed in range(plan.seeds):
                for layer in layers:
                    # another permutation for every batch, the same for every layer and readout
                    shuffled = plan.disturbed(layer, batch_seed(seed, batch.number), labels)
                    variants[measure, layer, seed] = shuffled + restricted
        outputs = sweep(model, pixels, variants.values(), undisturbed=keep)
        for key, (_, out) in zip(variants, outputs, strict=True):
            tally.add(*key, out.cpu(), heads_labels)
            if key[0] == "clean":
                tally.add_floor(out.argmax(-1).cpu(), heads_labels)
                album.open(batch.images, batch.index, heads_labels, out)
            elif key[0] == "shuffled":
                album.compare(out, f"{plan.done} behind layer {key[1]}")
        for layer in layers:
            tally.add("probe", layer, None, probes[layer].scores(cls[layer]).cpu(), labels)
            scores = model.project(cls[layer], "cls").cpu()
            tally.add("head_on_cls", layer, None, scores, heads_labels)
            tally.add_mean("identifiability", layer, identifiability(rank(scores, heads_labels), scores.shape[-1]))
    return tally


class _Tally:
    """Counts that stream: nothing here grows with the number of images."""

    def __init__(self) -> None:
        self.hits: dict[tuple, int] = defaultdict(int)
        self.sums: dict[tuple, np.ndarray] = defaultdict(lambda: np.zeros(3))
        self.n = 0
        self.expected_by_luck = 0.0
        self.per_class: dict[int, int] = defaultdict(int)

    def add(self, measure: str, layer: int | None, seed: int | None, scores: Tensor, labels: Tensor) -> None:
        self.hits[measure, layer, seed] += int(correct(rank(scores, labels)).sum())

    def add_mean(self, measure: str, layer: int, values: Tensor) -> None:
        self.sums[measure, layer, None] += [float(values.pow(k).sum()) for k in (1, 2, 3)]

    def add_floor(self, predicted: Tensor, labels: Tensor) -> None:
        """P(prediction for image j is the label of image i), i and j uniform: a readout of a random image's CLS."""
        self.expected_by_luck += float(expected_hits(predicted, labels).sum())

    def add_counts(self, labels: Tensor) -> None:
        self.n += len(labels)
        for label in labels.tolist():
            self.per_class[label] += 1

    def rows(self) -> Iterator[dict[str, Any]]:
        for (measure, layer, seed), hits in self.hits.items():
            yield {"measure": measure, "layer": layer, "seed": seed, **rate_row(hits, self.n)}
        for (measure, layer, seed), (total, squares, cubes) in self.sums.items():
            yield {
                "measure": measure,
                "layer": layer,
                "seed": seed,
                **mean_row(total, squares, cubes, self.n, bounds=RATE),
            }
        for measure, value in (
            ("floor", self.expected_by_luck / self.n),
            ("chance", max(self.per_class.values()) / self.n),
        ):
            yield {
                "measure": measure,
                "layer": None,
                "seed": None,
                "value": value,
                "low": value,
                "high": value,
                "n": self.n,
            }


def _cls_readout(model: HookedViT) -> str:
    """How a CLS-only readout relates to the full one."""
    if model.cfg.sources == ("cls",):
        return "same"
    return "differs" if "cls" in model.cfg.pooled_roles else "none"


def _describe(name: str, answers: Answers) -> dict[str, Any]:
    cfg = answers.model.cfg
    reads = " and ".join(cfg.sources)
    never = "by one probe" if "cls" in cfg.sources else "never CLS"
    green = {
        "same": f"{name}: its readout is CLS alone, so the green curve would be the orange one",
        "differs": "",
        "none": f"{name}: its readout reads {reads}, {never}, so there is no CLS-only readout to show",
    }[_cls_readout(answers.model)]
    return {
        **answers.about(),
        "green": green,
    }


def _in_words(result: Result) -> list[str]:
    """One sentence per model: where the label becomes decodable, and where shuffling CLS begins to cost accuracy."""
    sentences = []
    for row in summary_table(result).to_dict("records"):
        rows = result.frame[result.frame.model == row["model"]]
        layers, n = layers_in(rows), result.meta["models"][row["model"]]["n_layers"]
        decodable = (
            "no probe on CLS beats chance"
            if pd.isna(row["decodable_from"])
            else f"{reached(row['decodable_from'], layers, n)} a probe reads "
            + (f"{row['best_probe']:.1%}" if len(layers) == 1 else "at least half of what the best one does")
        )
        used = (
            f"shuffling CLS does not cost five points at {at_the_end(rows, n)}"
            if pd.isna(row["used_from"])
            else f"{from_layer(row['used_from'], layers, n)} shuffling CLS{' always' * (len(layers) > 1)} costs more "
            "than five points"
        )
        sentences.append(f"{row['model']}: accuracy {row['clean']:.1%} unperturbed; {decodable}; {used}.")
    return sentences
