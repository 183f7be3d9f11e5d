"""One model: its answers and its patches with some tokens replaced behind every block."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from functools import reduce
from operator import add
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from analyses.activations.streams import read_stream
from analyses.controls.shuffle_floors import batch_seed, exchange_batches
from analyses.data import ImageData
from analyses.drawing.colours import NAMES
from analyses.pages.album import Album
from analyses.probes.classifier_heads import Answers
from analyses.probes.passes import clean_streams
from analyses.running.notes import progress_batches
from analyses.statistics.intervals import mean_intervals, rate_row
from analyses.statistics.ranks import correct, rank
from hooked_vit import TokenLayout
from interventions import Intervention, apply, mean_tokens, set_tokens, shuffle_tokens, zero_tokens
from interventions.vocabulary import generator_of

CONTROL = "as many patches"
PUT = {"zero": "zero", "mean": "the mean", "noise": "noise", "shuffle": "another image's"}
WAYS = tuple(PUT)
DRAWN = ("noise", "shuffle")
Case = tuple[str, str, int | None]
"""Which tokens, what is put in their place, and which draw of it."""


class ReplacedTokens:
    """The measurements of `register_controls` on one model."""

    def __init__(self, name: str, answers: Answers, seeds: int, seed: int, album: Album) -> None:
        self.name, self.answers, self.model, self.seeds, self.seed = name, answers, answers.model, seeds, seed
        self.album = album
        self.layers = range(self.model.cfg.n_layers)
        self.targets: dict[str, list[int]] = {}
        self.patches: Tensor
        self.hits: dict[Case, int] = defaultdict(int)
        self.clean: list[int] = []
        self.cosines: dict[Case, list[np.ndarray]] = defaultdict(list)

    def fit(self, data: ImageData, batch_size: int) -> None:
        """Mean and variance of every token behind every block."""
        sums: dict[str, Any] = {}
        read = clean_streams(self.model, data, self.layers, self._tokens)
        for batch in progress_batches(data, batch_size, f"{self.name}: mean tokens", into=[sums]):
            pixels = self.model.preprocess(batch.images)
            layout = self.model.layout_for(*pixels.shape[2:])
            self.targets, self.patches = self.targets or targets_of(layout, self.seed), layout.mask("patches")
            stream = torch.stack(read(pixels, batch.first)[1])  # [layers, b, tokens, d]
            for name, more in (("n", len(pixels)), ("total", stream.sum(1)), ("square", stream.square().sum(1))):
                sums[name] = sums.get(name, 0) + more
        self.mean = sums["total"] / sums["n"]
        self.spread = (sums["square"] / sums["n"] - self.mean.square()).clamp(min=0).sqrt()

    def _tokens(self, resid: Tensor) -> Tensor:
        return resid[:, [place for places in self.targets.values() for place in places]].cpu().double()

    def edit(self, case: Case, batch: int, n_images: int) -> Intervention:
        """The tokens of a case, replaced behind every block."""
        token, way, seed = case
        tokens = self.targets[token]
        first = sum(len(places) for places in [*self.targets.values()][: [*self.targets].index(token)])
        here = slice(first, first + len(tokens))
        drawn = 0 if seed is None else batch_seed(self.seed + seed, batch)
        generator = generator_of(drawn)

        def noise(layer: int) -> Intervention:
            mean, spread = self.mean[layer, here], self.spread[layer, here]
            standard = torch.randn(n_images, *mean.shape, generator=generator, dtype=torch.float64)
            return set_tokens(layer, tokens, vector=(mean + spread * standard).float())

        make: dict[str, Callable[[int], Intervention]] = {
            "zero": lambda layer: zero_tokens(layer, tokens),
            "mean": lambda layer: mean_tokens(layer, tokens, mean=self.mean[layer, here][None].float()),
            "noise": noise,
            "shuffle": lambda layer: shuffle_tokens(layer, tokens, seed=drawn * len(self.layers) + layer),
        }
        return reduce(add, map(make[way], self.layers))

    def cases(self) -> Iterator[Case]:
        """Everything that is done."""
        for token in self.targets:
            for way in WAYS:
                yield from ((token, way, seed) for seed in (range(self.seeds) if way in DRAWN else [None]))

    @torch.no_grad()
    def measure(self, data: ImageData, batch_size: int, n_classes: int) -> None:
        """Answers and patches of every case."""
        self.counts = np.zeros(n_classes, int)
        into = (self.counts, self.clean, self.hits, self.cosines, self.album)
        untouched = clean_streams(self.model, data, self.layers[-1:], self._patches, answers=True)
        for batch in exchange_batches(data, batch_size, f"{self.name}: replacing tokens", into=into):
            pixels, labels = self.model.preprocess(batch.images), self.answers.labels(batch.labels)
            self.counts += np.bincount(batch.labels.numpy(), minlength=n_classes)
            logits, (before,) = untouched(pixels, batch.first)
            assert logits is not None
            self.clean.append(_hits(logits, labels))
            self.album.open(batch.images, batch.index, labels, logits)
            for case in self.cases():
                with apply(self.model, self.edit(case, batch.number, len(pixels))):
                    logits, (after,) = read_stream(self.model, pixels, self._patches, layers=self.layers[-1:])
                self.hits[case] += _hits(logits, labels)
                self.album.compare(logits, f"{NAMES.get(case[0], case[0])} replaced by {PUT[case[1]]}")
                alike = F.cosine_similarity(after, before, dim=-1)
                # patches that were themselves replaced say nothing of the others
                alike = alike[:, [p for p in range(alike.shape[1]) if p not in self._own_patches(case[0])]]
                self.cosines[case].append(alike.mean(1).cpu().double().numpy())

    def _patches(self, resid: Tensor) -> Tensor:
        return resid[:, self.patches]

    def _own_patches(self, token: str) -> set[int]:
        return {place - len(self.model.cfg.prefix) for place in self.targets[token]} if token == CONTROL else set()

    def rows(self) -> Iterator[dict[str, Any]]:
        """The frame's rows of this model, without its name."""
        n = int(self.counts.sum())
        columns = {case: np.concatenate(parts) for case, parts in self.cosines.items()}
        intervals = mean_intervals(columns)
        yield {"measure": "accuracy", **rate_row(sum(self.clean), n)}
        yield {"measure": "chance", **rate_row(int(self.counts.max()), n)}
        for case, hits in self.hits.items():
            at = dict(zip(("token", "replaced", "seed"), case, strict=True))
            yield {"measure": "accuracy", **at, **rate_row(hits, n)}
            low, high = intervals[case]
            yield {"measure": "patch_cosine", **at, "value": columns[case].mean(), "low": low, "high": high, "n": n}


def _hits(logits: Tensor, labels: Tensor) -> int:
    return int(correct(rank(logits.cpu(), labels)).sum())


def targets_of(layout: TokenLayout, seed: int) -> dict[str, list[int]]:
    """What is replaced: each role in front of the patches, and as many patches as registers (or one) at random places.

    >>> list(targets_of(TokenLayout.native(("cls", "registers", "registers"), (2, 2)), seed=0))
    ['registers', 'cls', 'as many patches']
    """
    roles = sorted((role for role in layout.roles if role != "patches"), key=lambda role: role != "registers")
    found = {role: layout.mask(role).nonzero().flatten().tolist() for role in roles}
    patches = layout.mask("patches").nonzero().flatten().numpy()
    k = min(len(found.get("registers", [0])), len(patches) - 1)
    drawn = np.random.default_rng(seed).permutation(patches)[:k]
    return {**found, CONTROL: sorted(int(place) for place in drawn)}
