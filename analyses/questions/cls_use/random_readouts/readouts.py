"""All the readouts of one model: its streams on disk, every training in its order, and the rows they give."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch

from analyses.data import ImageData
from analyses.questions.cls_use.random_readouts.frozen import FrozenBlock, Placement
from analyses.questions.cls_use.random_readouts.networks import (
    Decoder,
    FixedToken,
    RandomToken,
    TokenReadout,
    make_decoder,
)
from analyses.questions.cls_use.random_readouts.store import Plan, Stream, streams
from analyses.questions.cls_use.random_readouts.training import Draws, Training, evaluate, train
from analyses.statistics.intervals import RATE, mean_intervals, paired_difference, rate_row
from hooked_vit import HookedViT

PLACEMENTS: dict[str, Placement] = {
    "null": "null",
    "null_de_novo": "null",
    "replace": "replace",
    "augment": "augment",
    "deterministic": "replace",
}
COMPARED = (("replace", "null"), ("replace", "null_de_novo"), ("augment", "replace"), ("replace", "deterministic"))
CACHING = 128  # images at a time through the whole model


class Layers(NamedTuple):
    """The blocks that are read, in order of depth, and the one whose training begins from scratch."""

    all: list[int]
    start: int


class ModelReadouts:
    """One model: its streams on disk, then every readout of every layer."""

    def __init__(
        self, name: str, model: HookedViT, layers: Layers, n_classes: int, decoder: Decoder, repro: bool, draws: int
    ) -> None:
        self.name, self.model, self.layers, self.draws = name, model, layers, draws
        self.n_classes, self.decoder, self.batch_norm = n_classes, decoder, repro
        self.streams: dict[str, dict[int, Stream]] = {}
        self.rows: list[dict[str, Any]] = []

    def cache(self, plans: Mapping[str, Plan], splits: Mapping[str, ImageData]) -> list[str]:
        notes: list[str] = []
        for split, data in splits.items():
            what = f"{self.name}: caching {split}"
            self.streams[split], more = streams(plans[split], self.model, data, batch_size=CACHING, what=what)
            notes += more
        for split in ("validation", "test"):
            labels = next(iter(self.streams[split].values())).labels
            share = labels.bincount().max().item() / len(labels)
            self._add("chance", split, {"value": share, "n": len(labels)})
        return notes

    def forget(self, plans: Mapping[str, Plan]) -> None:
        self.streams.clear()
        for each in plans.values():
            for path in each.paths.values():
                path.unlink()

    def run(self, settings: Training, folder: Path | None) -> list[str]:
        """Train and measure every readout; the layer others start from comes first."""
        notes: list[str] = []
        warm: dict[str, TokenReadout] = {}
        order = [self.layers.start, *(layer for layer in self.layers.all if layer != self.layers.start)]
        for place, layer in enumerate(order):
            tested: dict[str, Draws] = {}
            for i, mode in enumerate(PLACEMENTS):
                if mode == "null_de_novo" and layer == self.layers.start:
                    tested[mode] = tested["null"]
                    self.rows += [{**row, "mode": mode} for row in self._of(layer, "null", settings.seed)]
                    continue
                done_of_all = f"{place * len(PLACEMENTS) + i + 1} of {len(order) * len(PLACEMENTS)}"
                block = FrozenBlock(self.model, layer, PLACEMENTS[mode], tokens=self.streams["fit"][layer].layout)
                begun = warm.get(mode) or self._fresh(mode, settings.seed)
                done = train(
                    begun, block, self.streams["fit"][layer], self.streams["validation"][layer], settings,
                    checkpoint=folder and folder / f"{slug(self.name)}-layer{layer}-{mode}",
                    what=f"{self.name}: layer {layer}, {mode} ({done_of_all})",
                )  # fmt: skip
                notes += done.notes
                if layer == self.layers.start and mode != "null_de_novo":
                    warm[mode] = done.readout
                tested[mode] = self._measure(layer, mode, done.readout, block, settings.seed)
                for epoch, row in enumerate(done.history, start=1):
                    for measure, value in row.items():
                        split = "validation" if measure.startswith("validation") else "fit"
                        number = {"value": value, "n": len(self.streams[split][layer].labels)}
                        self._add(measure, split, number, layer=layer, mode=mode, seed=settings.seed, epoch=epoch)
            self._compare(layer, tested, settings.seed)
        return notes

    def _fresh(self, mode: str, seed: int) -> TokenReadout:
        """An untrained readout, the same for the same seed."""
        d = self.model.cfg.d_model
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            decoder = make_decoder(self.decoder, d, self.n_classes)
            token: RandomToken | FixedToken | None = None
            if mode == "deterministic":
                token = FixedToken(d)
            elif PLACEMENTS[mode] != "null":
                token = RandomToken(d, batch_norm=self.batch_norm)
        return TokenReadout(token, decoder).to(self.model.embed.patch.weight.device)

    def _measure(self, layer: int, mode: str, readout: TokenReadout, block: FrozenBlock, seed: int) -> Draws:
        random = isinstance(readout.token, RandomToken)
        place = {"layer": layer, "mode": mode, "seed": seed}
        with block.ready():
            validated = evaluate(readout, block, self.streams["validation"][layer], seed=seed)
            tested = evaluate(readout, block, self.streams["test"][layer], seed=seed, draws=self.draws if random else 1)
        for split, drawn in (("validation", validated), ("test", tested)):
            self._add("accuracy", split, rate_row(int(drawn.one.sum()), len(drawn.one)), **place)
        if random:
            mean = rate_row(int(tested.mean.sum()), len(tested.mean))
            self._add("accuracy_mean_of_draws", "test", mean, **place)
            agreement = tested.agreement.double().numpy()
            low, high = mean_intervals({0: agreement}, bounds=RATE)[0]
            number = {"value": agreement.mean(), "low": low, "high": high, "n": len(agreement)}
            self._add("agreement", "test", number, **place)
        return tested

    def _compare(self, layer: int, tested: Mapping[str, Draws], seed: int) -> None:
        for a, b in COMPARED:
            value, low, high = paired_difference(tested[a].one.double(), tested[b].one.double())
            number = {"value": value, "low": low, "high": high, "n": len(tested[a].one)}
            self._add("difference", "test", number, layer=layer, mode=f"{a} - {b}", seed=seed)

    def _of(self, layer: int, mode: str, seed: int) -> list[dict[str, Any]]:
        return [row for row in self.rows if (row["layer"], row["mode"], row["seed"]) == (layer, mode, seed)]

    def _add(self, measure: str, split: str, number: dict[str, Any], **place: Any) -> None:
        nowhere = {"layer": None, "mode": None, "seed": None, "epoch": None}
        exact = {"low": number["value"], "high": number["value"]}  # where there is no interval
        self.rows.append({"measure": measure, "split": split, **nowhere, **place, **exact, **number})


def slug(name: str) -> str:
    """A model's name as part of a file's.

    >>> slug("google/vit-base")
    'google-vit-base'
    """
    return re.sub(r"[^\w.-]+", "-", name)
