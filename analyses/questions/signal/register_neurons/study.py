"""One model: the norms of its tokens, its answers and what probes read, with neurons moved and in the controls."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from typing import Any

import numpy as np
from torch import Tensor

from analyses.activations.streams import read_stream
from analyses.data import ImageData
from analyses.pages.album import Album
from analyses.probes.classifier_heads import Answers
from analyses.probes.ridge import GramRidge, RidgeProbe
from analyses.questions.signal.norms import token_norms
from analyses.questions.signal.register_neurons.search import Search
from analyses.running.notes import progress_batches
from analyses.statistics.intervals import RATE, mean_intervals, rate_row
from analyses.statistics.ranks import correct, rank
from interventions import Intervention, ablate_neurons, add_registers, apply

UNTOUCHED, MOVED, RANDOM, EMPTY, OFF = "untouched", "register neurons", "random neurons", "empty token", "switched off"
SAID = {MOVED: "register neurons moved", RANDOM: "random neurons moved", EMPTY: "an empty token added"}
SAID |= {OFF: "register neurons switched off"}
Variant = tuple[str, int | None]
"""What is done, and which draw of it."""


class MovedNeurons:
    """The measurements of `register_neurons` on one model."""

    def __init__(
        self, name: str, answers: Answers, search: Search, k: int, n_registers: int, seeds: int, seed: int,
        album: Album, layers: Sequence[int],
    ) -> None:  # fmt: skip
        self.layers, self.probes_last = layers, layers[-1] == answers.model.cfg.n_layers - 1
        self.name, self.answers, self.model = name, answers, answers.model
        self.search, self.k, self.seed, self.album = search, k, seed, album
        top = search.top(k)
        self.variants: dict[Variant, Intervention | None] = {
            (UNTOUCHED, None): None,
            (MOVED, None): add_registers(top, n=n_registers),
            **{(RANDOM, s): add_registers(search.at_random(k, seed + s), n=n_registers) for s in range(seeds)},
            (EMPTY, None): add_registers([], n=n_registers),
            (OFF, None): _off(top),
        }
        self.columns: dict[tuple, list[np.ndarray]] = defaultdict(list)
        self.hits: dict[tuple[str, str | None, Variant], int] = defaultdict(int)
        self.labels: list[Tensor] = []

    @property
    def n(self) -> int:
        """Images measured."""
        return sum(map(len, self.labels))

    def run(self, pixels: Tensor, variant: Variant) -> tuple[Tensor, list[dict[str, Tensor]], dict[str, Tensor]]:
        """Logits; per measured layer the norms [b, k] of each role's tokens; behind the last of them, their means."""
        model, edit = self.model, self.variants[variant]
        norms: list[dict[str, Tensor]] = []
        vectors: dict[str, Tensor] = {}

        def read(resid: Tensor) -> Tensor:
            roles = {role: model.tokens.mask(role) for role in model.tokens.roles}
            # of the last layer what is left when all have been read
            vectors.update({role: resid[:, here].mean(1) for role, here in roles.items()})
            norms.append({role: token_norms(resid[:, here]) for role, here in roles.items()})
            return resid[:0]

        with nullcontext() if edit is None else apply(model, edit):
            logits, _ = read_stream(model, pixels, read, layers=self.layers)
        return logits, norms, vectors

    def fit(self, data: ImageData, n_classes: int, batch_size: int) -> None:
        """Probes of the class on the mean token of each role behind the model's last layer, of every variant."""
        self.probes: dict[str, RidgeProbe] = {}
        if not self.probes_last:
            return
        ridge = GramRidge(n_classes, name=self.name)
        for batch in progress_batches(data, batch_size, f"{self.name}: fitting probes", into=[ridge]):
            pixels = self.model.preprocess(batch.images)
            sites: dict[str, Tensor] = {}
            for variant in self.variants:
                sites |= {_site(variant, role): x for role, x in self.run(pixels, variant)[2].items()}
            ridge.update(sites, batch.labels)
        self.probes = ridge.fit()

    def measure(self, data: ImageData, batch_size: int) -> None:
        """Norms, answers and probes on every image."""
        into = (self.columns, self.hits, self.labels, self.album)
        for batch in progress_batches(data, batch_size, f"{self.name}: moving neurons", into=into):
            pixels = self.model.preprocess(batch.images)
            self.labels.append(batch.labels)
            for variant in self.variants:
                logits, norms, vectors = self.run(pixels, variant)
                classes = self.answers.labels(batch.labels)
                self._hit(("accuracy", None, variant), logits, classes)
                if variant[0] == UNTOUCHED:
                    self.album.open(batch.images, batch.index, classes, logits)
                else:
                    self.album.compare(logits, SAID.get(variant[0], variant[0]))
                for role, x in vectors.items() if self.probes_last else ():
                    scores = self.probes[_site(variant, role)].scores(x)
                    self._hit(("probe", role, variant), scores, batch.labels)
                for layer, of_roles in zip(self.layers, norms, strict=True):
                    self._norms(variant, layer, of_roles)

    def _norms(self, variant: Variant, layer: int, norms: dict[str, Tensor]) -> None:
        rule = self.search.rule
        median = rule.median[layer]
        found = {("token_norm", role): x.mean(1) / median for role, x in norms.items()}
        found["largest_norm", "patches"] = norms["patches"].amax(1) / median
        found["outlier_share", "patches"] = rule.outliers(norms["patches"], layer).double().mean(1)
        for (measure, role), values in found.items():
            self.columns[measure, role, layer, variant].append(values.numpy())

    def _hit(self, key: tuple[str, str | None, Variant], scores: Tensor, labels: Tensor) -> None:
        self.hits[key] += int(correct(rank(scores.cpu(), labels)).sum())

    def rows(self) -> Iterator[dict[str, Any]]:
        """The frame's rows of this model, without its name."""
        columns = {key: np.concatenate(parts) for key, parts in self.columns.items()}
        shares = {key: values for key, values in columns.items() if key[0] == "outlier_share"}
        intervals = mean_intervals(columns) | mean_intervals(shares, bounds=RATE)
        for key, values in columns.items():
            measure, role, layer, (variant, seed) = key
            low, high = intervals[key]
            numbers = {"value": values.mean(), "low": low, "high": high, "n": len(values)}
            yield {"measure": measure, "variant": variant, "token": role, "layer": layer, "seed": seed, **numbers}
        last = self.layers[-1]
        for (measure, role, (variant, seed)), hits in self.hits.items():
            where = {"token": role, "layer": last if measure == "probe" else None}
            yield {"measure": measure, "variant": variant, "seed": seed, **where, **rate_row(hits, self.n)}
        chosen = enumerate(self.search.neurons[: self.k])
        for place, neuron in ((place, one) for place, one in chosen if one.layer in self.layers):
            which = {"layer": neuron.layer, "neuron": neuron.unit, "rank": place}
            yield {"measure": "activation", **which, "value": neuron.there}
            yield {"measure": "activation_elsewhere", **which, "value": neuron.elsewhere}


def _site(variant: Variant, role: str) -> str:
    """What is read, as notes of its probe name it."""
    what, draw = variant
    return f"{role} ({what})" if draw is None else f"{role} ({what}, draw {draw})"


def _off(neurons: list[tuple[int, int]]) -> Intervention:
    """The neurons at 0 on patches."""
    layers = sorted({layer for layer, _ in neurons})
    each = [ablate_neurons(l, [i for of, i in neurons if of == l], tokens="patches") for l in layers]
    whole = each[0]
    for part in each[1:]:
        whole = whole + part
    return whole
