"""How fast is the label written into CLS again after its content was destroyed?

CLS is exchanged between images after block ℓ, and a probe reads it after block p: a matrix of shuffled layer × probed
layer, beside the row without a shuffle. Columns before the shuffled layer cannot change, the diagonal is a probe that
reads another image's CLS, and what comes back to the right of it was read anew from the other tokens. methods
section 5.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

import pandas as pd
import torch
from torch import Tensor

from analyses.activations.layers import measured_layers
from analyses.activations.sites import Site, SiteReader
from analyses.activations.store.serving import Tokens, stored_tokens
from analyses.controls.shuffle_floors import batch_order, check_shuffles, exchange_batches, expected_hits
from analyses.data import ImageData
from analyses.data.batches import Batch
from analyses.drawing.colours import NAMES
from analyses.pages.album import Album
from analyses.probes.opening import open_study
from analyses.probes.passes import read_images
from analyses.probes.ridge import GramRidge, RidgeProbe
from analyses.probes.role_probes import check_role, read_role
from analyses.questions.cls_use.restoration.figure import (
    in_words,
    main_figure,
    panels_figure,
    restored_figure,
    summary_table,
)
from analyses.questions.cls_use.restoration.walk import shuffled_streams
from analyses.running.notes import PROBES_READ, about_model
from analyses.running.registry import analysis
from analyses.running.results import Result
from analyses.statistics.comparisons import ratio_interval
from analyses.statistics.intervals import rate_row
from analyses.statistics.ranks import correct, rank
from hooked_vit import HookedViT
from interventions import shuffle_tokens

LEAST_LOSS = 0.05  # a probe that a shuffle costs less than this has nothing that could be restored
FIT_SEED = 0

Place = tuple[int | None, int]
Sites = tuple[Tensor, dict[int | None, dict[str, Tensor]]]
"""(shuffled layer or None, probed layer)"""


@analysis(
    figure=main_figure,
    more_figures={
        "How much comes back: 0 is another image's token, 1 is no shuffle": restored_figure,
        "One panel per probed layer": panels_figure,
    },
)
def restoration(
    models: Mapping[str, HookedViT], data: ImageData | Any = None, *,
    fit_data: ImageData | Any = None, probe_fit: Literal["clean", "refit"] = "clean", tokens: str = "cls",
    probe_tokens: str | None = None, seeds: int = 3, batch_size: int = 64, among: str = "batch", repro: bool = False,
    layers: tuple[int, ...] | None = None, activations: tuple[str, ...] | None = None,
) -> Result:  # fmt: skip
    """How fast is the label rewritten into CLS after it was exchanged between images?

    >>> result = restoration({"vit": zoo.load("vit")})  # doctest: +SKIP
    >>> result.frame.query("measure == 'accuracy' and shuffled_layer == 3 and probe_layer == 5")  # doctest: +SKIP

    Tokens of the role `tokens` are exchanged within batches of `batch_size` after one block at a time (`among` as in
    `shuffle_tokens`, `seeds` permutations), and ridge probes read `probe_tokens` (the same role unless said otherwise;
    the mean of several) after every block. With `probe_fit="clean"` they were fitted on runs without a shuffle, and ask
    whether the information is back in its original code; with "refit" on runs with the same shuffle, and ask whether it
    is linearly there in any code. `repro` is the published figure's setting: refit, one permutation. With `layers`
    tokens are exchanged behind those alone, and probes read from the first of them on.

    The frame: `accuracy` by `shuffled_layer` (missing: none), `probe_layer` and `seed`, with its 95 % Wilson interval;
    `restoration` (M[ℓ,p] − M[p,p]) / (M[none,p] − M[p,p]) for p > ℓ, over all seeds, with an interval over
    images, left out where the denominator is below 0.05; `floor`, what M[p,p] is on average over all permutations,
    exactly; and `chance` (the most frequent class). Where the two roles differ, M[p,p] loses nothing, and the floor
    takes its place. With `activations`, folders that `store_activations` filled, nothing runs for clean probes, nor
    without a shuffle where they hold every token of the images that are measured, at the layers read.
    Memory grows with the images by a number per cell of the matrix.
    Raises ValueError for a role a model has not, batches a shuffle cannot be drawn for, and fewer than two classes.
    """
    if repro:
        probe_fit, seeds = "refit", 1
    if probe_fit not in ("clean", "refit"):
        raise ValueError(f"probe_fit is clean or refit; got {probe_fit!r}")
    opening = open_study({}, data, fit_data)
    check_shuffles(opening.measured, batch_size, seeds, among)
    probe_tokens = probe_tokens or tokens
    for name, model in models.items():
        check_role(name, model, tokens, "shuffle")
        check_role(name, model, probe_tokens, "probe")
    if probe_fit == "refit":
        check_shuffles(opening.fitted, batch_size, 1, among)
    rows: list[dict[str, Any]] = []
    pictures: list[dict[str, Any]] = []
    for name, model in models.items():
        chosen = measured_layers(model, layers)
        matrix = _Matrix(name, model, tokens, probe_tokens, among, batch_size, chosen, probe_fit == "refit")
        matrix.fit(opening.fitted, opening.n_classes)
        album = Album(f"{name}, its last probe", opening.measured.class_names, opening.measured.name_of, len(models))
        matrix.measure(opening.measured, seeds, album)
        pictures += album.entries()
        rows += [{"model": name, "architecture": model.cfg.architecture, **row} for row in matrix.rows()]
    frame = pd.DataFrame(rows).astype({"shuffled_layer": "Int64", "probe_layer": "Int64", "seed": "Int64"})
    meta = {
        "models": {name: about_model(model, PROBES_READ) for name, model in models.items()},
        **opening.about(n=int(frame.n.max())),
        "probe_fit": probe_fit,
        "tokens": tokens,
        "probe_tokens": probe_tokens,
        "seeds": seeds,
        "batch_size": batch_size,
        "among": among,
        "interventions": [f"shuffle_tokens(layer=…, tokens={tokens!r}, among={among!r}, seed=…)"],
        "pictures": pictures,
    }
    result = Result(frame, meta)
    table = summary_table(result).astype(object)
    result.meta["table"] = table.where(table.notna(), None).to_dict("records")
    result.meta["summary"], result.meta["notes"] = in_words(result)
    return result


class _Matrix:
    """One model: probes, then hits per cell and image, gathered batch by batch.

    What a probe reads right behind a shuffle is gathered of every layer probed: restoration is measured from there.
    """

    def __init__(
        self, name: str, model: HookedViT, tokens: str, probe_tokens: str, among: str, batch_size: int,
        layers: list[int], refit: bool,
    ) -> None:  # fmt: skip
        self.name, self.model, self.tokens, self.among, self.batch_size = name, model, tokens, among, batch_size
        self.read, self.probe_tokens = read_role(model, probe_tokens), probe_tokens
        self.same_role = tokens == probe_tokens
        shuffle_tokens(layer=0, tokens=tokens).hooks(model)  # refuses here what this model cannot have
        self.layers, self.probed, self.refit = layers, range(layers[0], model.cfg.n_layers), refit
        self.probes: dict[Place, RidgeProbe] = {}
        self.counts: dict[tuple[int | None, int, int | None], int] = defaultdict(int)
        self.hits: dict[Place, list[Tensor]] = defaultdict(list)
        self.luck: dict[int, list[Tensor]] = defaultdict(list)
        self.labels: list[Tensor] = []

    def fit(self, data: ImageData, n_classes: int) -> None:
        """A probe per layer, or per cell of the matrix where they are fitted under each shuffle."""
        ridges: dict[int | None, GramRidge] = {}
        what = f"{self.name}: fitting probes"
        into = [ridges]
        for labels, sites in self._refitting(data, what, into) if self.refit else self._clean(data, what, into):
            for shuffled, features in sites.items():
                under = "" if shuffled is None else f", shuffled behind {shuffled}"
                ridge = ridges.setdefault(shuffled, GramRidge(n_classes, name=f"{self.name}{under}"))
                ridge.update(features, labels)
        for shuffled, ridge in ridges.items():
            self.probes |= {(shuffled, int(probed)): probe for probed, probe in ridge.fit().items()}

    def _clean(self, data: ImageData, what: str, into: Sequence[Any]) -> Iterator[Sites]:
        """Labels, and what a clean run holds behind every block, batch by batch."""
        reader = SiteReader(self.model, (self.probe_tokens,), layers=self.probed)
        for reading in read_images(reader, data, self.batch_size, what, into=into):
            features = {str(layer): reading.features[str(Site(self.probe_tokens, layer))] for layer in self.probed}
            yield reading.batch.labels, {None: features}

    def _refitting(self, data: ImageData, what: str, into: Sequence[Any]) -> Iterator[Sites]:
        """The same of every shuffled run too, by the block it is shuffled behind."""
        for batch in self._exchanging(data, what, into):
            orders = {FIT_SEED: batch_order(FIT_SEED, batch.number, self.among, batch.labels)}
            sites: dict[int | None, dict[str, Tensor]] = defaultdict(dict)
            for shuffled, _, probed, x in self._walk(batch, orders):
                sites[shuffled][str(probed)] = x
            yield batch.labels, sites

    def measure(self, data: ImageData, seeds: int, album: Album) -> None:
        """Whether every probe reads every image right, under every shuffle and under none."""
        self.seeds = seeds
        into = (self.counts, self.hits, self.luck, self.labels, album)
        stored = stored_tokens(self.model, data, self.probed)
        for batch in self._exchanging(data, f"{self.name}: shuffling {self.tokens}", into):
            orders = {seed: batch_order(seed, batch.number, self.among, batch.labels) for seed in range(seeds)}
            shares: dict[Place, Tensor] = {}
            last: list[tuple[int | None, Tensor]] = []  # what the last probe reads, the clean run at the end
            for shuffled, seed, probed, x in self._walk(batch, orders, stored):
                scores = self._probe(shuffled, probed).scores(x).cpu()
                right = correct(rank(scores, batch.labels))
                self.counts[shuffled, probed, seed] += int(right.sum())
                share = right.float() / (1 if seed is None else seeds)
                shares[shuffled, probed] = shares.get((shuffled, probed), 0.0) + share
                if probed == self.probed[-1] and shuffled in (None, *self.layers):
                    last.append((shuffled, scores))
                if shuffled is None:
                    read = scores if not self.refit else self._probe(probed, probed).scores(x).cpu()
                    self.luck[probed].append(expected_hits(read.argmax(-1), batch.labels, self.among))
            for place, share in shares.items():
                self.hits[place].append(share)
            self.labels.append(batch.labels)
            album.open(batch.images, batch.index, batch.labels, dict(last)[None])
            for shuffled, scores in last:
                if shuffled is not None:
                    album.compare(scores, f"{NAMES.get(self.tokens, self.tokens)} exchanged behind layer {shuffled}")

    def _exchanging(self, data: ImageData, what: str, into: Sequence[Any]) -> Iterator[Batch]:
        return exchange_batches(data, self.batch_size, what, self.among, into=into)

    def _walk(
        self, batch: Batch, orders: Mapping[int, Tensor], stored: Mapping[int, Tokens] | None = None
    ) -> Iterator[tuple[int | None, int | None, int, Tensor]]:
        rows = torch.arange(batch.first, batch.first + len(batch))
        known = None if stored is None else lambda layer: stored[layer][rows]
        pixels = self.model.preprocess(batch.images)
        return shuffled_streams(self.model, pixels, self.tokens, orders, self.read, known, self.layers)

    def _probe(self, shuffled: int | None, probed: int) -> RidgeProbe:
        return self.probes[shuffled if self.refit else None, probed]

    def rows(self) -> Iterator[dict[str, Any]]:
        labels = torch.cat(self.labels)
        n = len(labels)
        nothing = {"shuffled_layer": None, "probe_layer": None, "seed": None}
        for probed in self.probed:
            at = {"shuffled_layer": None, "probe_layer": probed, "seed": None}
            yield {"measure": "accuracy", **at, **rate_row(self.counts[None, probed, None], n)}
        for shuffled in self.layers:
            for probed in self.probed:
                for seed in range(self.seeds):
                    # what lies before the shuffle has not seen it
                    place = (shuffled, probed, seed) if probed >= shuffled else (None, probed, None)
                    at = {"shuffled_layer": shuffled, "probe_layer": probed, "seed": seed}
                    yield {"measure": "accuracy", **at, **rate_row(self.counts[place], n)}
        for (shuffled, probed), (value, low, high) in self._restored().items():
            at = {"shuffled_layer": shuffled, "probe_layer": probed, "seed": None}
            yield {"measure": "restoration", **at, "value": value, "low": low, "high": high, "n": n}
        for shuffled in self.layers:
            floor = float(torch.cat(self.luck[shuffled]).mean())
            at = {"shuffled_layer": shuffled, "probe_layer": shuffled, "seed": None}
            yield {"measure": "floor", **at, "value": floor, "low": floor, "high": floor, "n": n}
        chance = int(labels.bincount().max()) / n
        yield {"measure": "chance", **nothing, "value": chance, "low": chance, "high": chance, "n": n}

    def _restored(self) -> dict[tuple[int, int], tuple[float, float, float]]:
        """Restoration and its interval for every cell right of the diagonal whose probe had something to lose."""
        hits = {place: torch.cat(parts).double().numpy() for place, parts in self.hits.items()}
        luck = {probed: torch.cat(parts).numpy() for probed, parts in self.luck.items()}
        cells = {}
        for shuffled in self.layers:
            for probed in range(shuffled + 1, self.probed.stop):
                floor = hits[probed, probed] if self.same_role else luck[probed]
                over, under = hits[shuffled, probed] - floor, hits[None, probed] - floor
                if under.mean() >= LEAST_LOSS:
                    cells[shuffled, probed] = (over, under)
        return {place: ratio_interval(*pair)[:3] for place, pair in cells.items()}
