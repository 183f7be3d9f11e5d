"""All the readouts of one model: its streams on disk, the closed forms, every training in its order, and their rows."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool
from torch import Tensor

from analyses.data import ImageData
from analyses.questions.cls_use.random_readouts.arms import (
    BELOW,
    COMPARED,
    COUNTERPARTS,
    ENDED,
    EXACT,
    OF_SOURCE,
    PLACEMENTS,
    SETTLED,
    Chosen,
    told,
)
from analyses.questions.cls_use.random_readouts.closed_form import read_closed_form
from analyses.questions.cls_use.random_readouts.frozen import FrozenBlock
from analyses.questions.cls_use.random_readouts.looked import LookedStream, looked_at
from analyses.questions.cls_use.random_readouts.networks import Decoder, RandomToken, TokenReadout
from analyses.questions.cls_use.random_readouts.starting import begin_as_published, begin_at_cls
from analyses.questions.cls_use.random_readouts.streams import Plan, Stream, stored_streams, streams
from analyses.questions.cls_use.random_readouts.tokens import ARMS, BASE, RANDOM, ClsDistribution
from analyses.questions.cls_use.random_readouts.training import (
    Draws,
    Trained,
    Training,
    evaluate,
    train_at_best_rate,
)
from analyses.statistics.intervals import RATE, mean_intervals, paired_difference, rate_row
from hooked_vit import HookedViT


class Layers(NamedTuple):
    """The blocks that are read, in order of depth, and the one whose training the others start from, if any does."""

    all: list[int]
    start: int | None


class ModelReadouts:
    """One model: its streams on disk, then every readout of every layer.

    With `repro` trainings go as published: a generator with batch norms, the block's raw output, warm starts.
    """

    def __init__(
        self,
        name: str,
        model: HookedViT,
        layers: Layers,
        chosen: Chosen,
        n_classes: int,
        decoder: Decoder,
        repro: bool,
        draws: int,
        folder: Path,
    ) -> None:
        self.name, self.model, self.layers, self.chosen, self.draws = name, model, layers, chosen, draws
        self.n_classes, self.decoder, self.repro = n_classes, decoder, repro
        self.folder = folder
        self.streams: dict[str, dict[int, Stream]] = {}
        self.looked: dict[str, LookedStream] = {}
        self.cls: dict[int, ClsDistribution] = {}
        self.read: dict[tuple[int, str], list[Bool[Tensor, "n"]]] = {}  # a closed form's answers for every seed
        self.rows: list[dict[str, Any]] = []

    def cache(self, plans: Mapping[str, Plan], sets: Mapping[str, Mapping[str, ImageData]]) -> list[str]:
        """Have the streams of every part of every set of images: of its plan, or from stored activations without."""
        notes: list[str] = []
        for name, parts in sets.items():
            if name not in plans:
                self.streams |= {
                    split: stored_streams(self.model, data, self.layers.all) for split, data in parts.items()
                }
                continue
            found, more = streams(plans[name], self.model, parts, what=f"{self.name}: caching {name}")
            self.streams |= found
            notes += more
        for split in ("validation", "test"):
            labels = next(iter(self.streams[split].values())).labels
            share = labels.bincount().max().item() / len(labels)
            self._add("chance", split, {"value": share, "n": len(labels)})
        self.cls = {layer: ClsDistribution.of(self._fitting(layer)) for layer in self.layers.all}
        return notes

    def forget(self, plans: Mapping[str, Plan]) -> None:
        self.streams.clear()
        for each in plans.values():
            shutil.rmtree(each.folder)

    def closed_forms(self, seeds: Sequence[int]) -> list[str]:
        """Measure the arms in closed form; what is drawn is drawn once for every seed."""
        said: dict[str, list[str]] = {}
        for layer in self.layers.all:
            with self._looking(layer):
                for name in self.chosen.closed:
                    for seed in seeds if ARMS[name].token in RANDOM else [None]:
                        if note := self._closed_form(layer, name, seed):
                            said.setdefault(note, []).append(name)
        return [f"{self.name}: at some layer {note} ({', '.join(dict.fromkeys(arms))})." for note, arms in said.items()]

    def train(self, settings: Training, rates: Sequence[float], folder: Path | None) -> list[str]:
        """Train and measure every readout; the layer others start from comes first."""
        notes: list[str] = []
        warm: dict[str, TokenReadout] = {}
        start, modes = self.layers.start, self.chosen.trained
        order = sorted(self.layers.all, key=lambda layer: layer != start)
        for place, layer in enumerate(order):
            tested: dict[str, tuple[Draws, str]] = {}
            with self._looking(layer):
                for i, mode in enumerate(modes):
                    if mode == OF_SOURCE and layer == start and "null" in tested:
                        tested[mode] = tested["null"]
                        self.rows += [{**row, "mode": mode} for row in self._of(layer, "null", settings.seed)]
                        continue
                    block = FrozenBlock(self.model, layer, PLACEMENTS[mode], tokens=self.looked["fit"].layout)
                    done = train_at_best_rate(
                        warm.get(mode) or self._begin(layer, mode, block, settings.seed),
                        block, self.looked["fit"], self.looked["validation"], settings, rates,
                        checkpoint=folder and folder / f"{slug(self.name)}-layer{layer}-{mode}",
                        what=f"{self.name}: layer {layer}, {mode} ({place * len(modes) + i + 1} of "
                        f"{len(order) * len(modes)})",
                    )  # fmt: skip
                    notes += done.notes
                    if layer == start and mode != OF_SOURCE:
                        warm[mode] = done.readout
                    tested[mode] = self._measure(layer, mode, done, block, settings.seed)
            self._compare(layer, tested, settings.seed)
        return notes

    @contextmanager
    def _looking(self, layer: int) -> Iterator[None]:
        """Meanwhile `looked` has the streams as this block sees them."""
        streams = {split: each[layer] for split, each in self.streams.items()}
        with looked_at(self.model, layer, streams, self.folder, f"{self.name}: layer {layer}, its keys") as self.looked:
            yield
        self.looked = {}

    def _closed_form(self, layer: int, name: str, seed: int | None) -> str | None:
        """Measure one arm with one seed; what its probe has to say, if anything."""
        right, probe = read_closed_form(
            self.model, layer, ARMS[name], [self.looked["fit"], self.looked["validation"]], self.looked["test"],
            self.cls[layer], self.n_classes, seed=seed or 0, what=f"{self.name}: layer {layer}, {name}",
        )  # fmt: skip
        place = {"layer": layer, "mode": name, "seed": seed, "status": EXACT}
        self._add("accuracy", "test", rate_row(int(right.sum()), len(right)), **place)
        self._add("penalty", "fit", {"value": probe.alpha, "n": probe.n}, **place)
        self.read.setdefault((layer, name), []).append(right)
        if name != BASE:
            self._difference(layer, (name, right), (BASE, self.read[layer, BASE][0]), seed, EXACT)
        return probe.note and probe.note.replace(f", {probe.alpha:g},", "")

    def _fitting(self, layer: int) -> list[Stream]:
        return [self.streams[split][layer] for split in ("fit", "validation")]

    def _begin(self, layer: int, mode: str, block: FrozenBlock, seed: int) -> TokenReadout:
        """An untrained readout, the same for the same seed."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            if self.repro:
                return begin_as_published(mode, block, self.decoder, self.n_classes)
            fit = self.looked["fit"]
            return begin_at_cls(mode, block, self.decoder, self.n_classes, self.cls[layer], fit, seed)

    def _measure(self, layer: int, mode: str, done: Trained, block: FrozenBlock, seed: int) -> tuple[Draws, str]:
        readout = done.readout
        random = isinstance(readout.token, RandomToken)
        with block.ready():
            validated = evaluate(readout, block, self.looked["validation"], seed=seed)
            tested = evaluate(readout, block, self.looked["test"], seed=seed, draws=self.draws if random else 1)
        status = self._status(layer, mode, done, tested)
        place = {"layer": layer, "mode": mode, "seed": seed, "status": status}
        for split, drawn in (("validation", validated), ("test", tested)):
            self._add("accuracy", split, rate_row(int(drawn.one.sum()), len(drawn.one)), **place)
        if random:
            mean = rate_row(int(tested.mean.sum()), len(tested.mean))
            self._add("accuracy_mean_of_draws", "test", mean, **place)
            agreement = tested.agreement.double().numpy()
            low, high = mean_intervals({0: agreement}, bounds=RATE)[0]
            number = {"value": agreement.mean(), "low": low, "high": high, "n": len(agreement)}
            self._add("agreement", "test", number, **place)
        self._add("learning_rate", "validation", {"value": done.lr, "n": len(validated.one)}, **place)
        for epoch, row in enumerate(done.history, start=1):
            for measure, value in row.items():
                split = "validation" if measure.startswith("validation") else "fit"
                number = {"value": value, "n": len(self.looked[split].labels)}
                self._add(measure, split, number, epoch=epoch, **place)
        return tested, status

    def _status(self, layer: int, mode: str, done: Trained, tested: Draws) -> str:
        """Whether a training has measured the block: it has stopped by itself, and not below what needs no training."""
        if not done.stopped:
            return ENDED
        closed = [torch.stack(self.read[layer, arm]).double().mean() for arm in COUNTERPARTS[mode]]
        return BELOW if tested.one.double().mean() < max(closed) else SETTLED

    def _compare(self, layer: int, tested: Mapping[str, tuple[Draws, str]], seed: int) -> None:
        for mode, (drawn, status) in tested.items():
            for arm in COUNTERPARTS[mode]:
                self._difference(layer, (mode, drawn.one), (arm, self.read[layer, arm][0]), seed, told(status, EXACT))
        for a, b in COMPARED:
            if a in tested and b in tested:
                status = told(tested[a][1], tested[b][1])
                self._difference(layer, (a, tested[a][0].one), (b, tested[b][0].one), seed, status)

    def _difference(
        self, layer: int, a: tuple[str, Tensor], b: tuple[str, Tensor], seed: int | None, status: str
    ) -> None:
        value, low, high = paired_difference(a[1].double(), b[1].double())
        number = {"value": value, "low": low, "high": high, "n": len(a[1])}
        self._add("difference", "test", number, layer=layer, mode=f"{a[0]} - {b[0]}", seed=seed, status=status)

    def _of(self, layer: int, mode: str, seed: int) -> list[dict[str, Any]]:
        return [row for row in self.rows if (row["layer"], row["mode"], row["seed"]) == (layer, mode, seed)]

    def _add(self, measure: str, split: str, number: dict[str, Any], **place: Any) -> None:
        nowhere = {"layer": None, "mode": None, "seed": None, "epoch": None, "status": None}
        exact = {"low": number["value"], "high": number["value"]}  # where there is no interval
        self.rows.append({"measure": measure, "split": split, **nowhere, **place, **exact, **number})


def slug(name: str) -> str:
    """A model's name as part of a file's.

    >>> slug("google/vit-base")
    'google-vit-base'
    """
    return re.sub(r"[^\w.-]+", "-", name)
