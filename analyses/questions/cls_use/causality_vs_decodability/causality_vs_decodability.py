"""Per layer: what a probe can read from CLS, what the model loses without it, and how far the two are apart.

The summary of `cls_causality` in one figure and one table, on the same images for both, so that their gap has an
interval: what is decodable is not thereby used. methods sections 1, 2 and 28.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from analyses.activations.layers import measured_layers
from analyses.activations.streams import read_stream
from analyses.controls.shuffle_floors import batch_seed, check_shuffles, exchange_batches, expected_hits
from analyses.data import ImageData
from analyses.data.batches import Batch
from analyses.drawing.colours import NAMES
from analyses.pages.album import Album
from analyses.probes.classifier_heads import Answers
from analyses.probes.opening import open_study
from analyses.probes.ridge import RidgeProbe
from analyses.probes.role_probes import check_role, fit_role_probes, read_role
from analyses.questions.cls_use.causality_vs_decodability.figure import (
    in_words,
    main_figure,
    one_axis_figure,
    summary_table,
)
from analyses.running.registry import analysis
from analyses.running.results import Result
from analyses.statistics.intervals import CHANGE, mean_intervals, rate_row
from analyses.statistics.ranks import correct, rank
from analyses.statistics.significance import uncorrected
from hooked_vit import HookedViT
from interventions import Intervention, shuffle_tokens, sweep
from interventions.catalogue.shuffling import BY_CLASS


@analysis(figure=main_figure, more_figures={"The gap of all models on one axis": one_axis_figure})
def causality_vs_decodability(
    models: Mapping[str, HookedViT],
    data: ImageData | Any = None,
    *,
    fit_data: ImageData | Any = None,
    tokens: str = "cls",
    seeds: int = 3,
    batch_size: int = 128,
    among: str = "batch",
    head: str = "auto",
    layers: tuple[int, ...] | None = None,
) -> Result:
    """How much of what is decodable from CLS at each layer does the model use?

    >>> result = causality_vs_decodability({"vit": zoo.load("vit")})  # doctest: +SKIP
    >>> result.frame.query("measure == 'gap'")  # doctest: +SKIP

    After every block, or those of `layers` alone, and for the tokens of the role `tokens` (their mean, where they are
    several):

    `decodability`: accuracy of a ridge probe fitted on `fit_data`. `probe_floor`: what the same probe would score on
    another image's tokens, exactly, over all permutations. `causal_effect`: accuracy of the model minus its accuracy
    with these tokens exchanged between images (`among` as in `shuffle_tokens`, the mean of `seeds` permutations).
    `gap`: decodability − probe_floor − causal_effect, which compares like with like: what the probe and what the model
    lose when the tokens are another image's. It is 0 where all that is decodable is used, above 0 where some is not,
    below 0 where the model loses more than a linear probe reads.
    All are shares of images; the last two have paired intervals over images, the first is a rate with its
    Wilson interval. Without a layer: `clean`, and `chance` (the most frequent class). `shuffled`, per seed, is the
    accuracy the effect comes from; `shuffle_floor` is what it would be if the model's answer were another image's.

    Memory grows with the images by a few numbers per layer. Raises ValueError for a role a model has not, batches a
    shuffle cannot be drawn for, fewer than two classes, and labels a head does not know.
    """
    opening = open_study(models, data, fit_data, head)
    check_shuffles(opening.measured, batch_size, seeds, among)
    for name, model in models.items():
        check_role(name, model, tokens, "shuffle")
    rows: list[dict[str, Any]] = []
    about: dict[str, Any] = {}
    pictures: list[dict[str, Any]] = []
    for name, model in models.items():
        chosen = measured_layers(model, layers)
        probes, answers = fit_role_probes(name, model, opening, batch_size, tokens, chosen)
        album = Album(name, answers.model.cfg.class_names, opening.measured.name_of, len(models))
        study = _Study(answers, probes, tokens, among, seeds, album)
        what, into = f"{name}: shuffling {tokens}", (study.columns, study.shuffled, study.labels, album)
        for batch in exchange_batches(opening.measured, batch_size, what, among, into=into):
            study.add(batch)
        rows += [{"model": name, "architecture": model.cfg.architecture, **row} for row in study.rows()]
        about[name] = answers.about()
        pictures += album.entries()
    frame = pd.DataFrame(rows).astype({"layer": "Int64", "seed": "Int64"})
    meta = {
        "models": about,
        **opening.about(n=int(frame.n.max())),
        "tokens": tokens,
        "seeds": seeds,
        "batch_size": batch_size,
        "among": among,
        "interventions": [f"shuffle_tokens(layer=…, tokens={tokens!r}, among={among!r}, seed=…)"],
        "pictures": pictures,
    }
    result = Result(frame, meta)
    result.meta["table"] = summary_table(result).to_dict("records")
    result.meta["summary"], result.meta["notes"] = in_words(result)
    result.meta["corrected"] = [uncorrected("losing tokens costs more than five in a hundred", "layers and models")]
    return result


class _Study:
    """One model: right or wrong per image, for every probe and under every shuffle."""

    def __init__(
        self, answers: Answers, probes: Mapping[int, RidgeProbe], tokens: str, among: str, seeds: int, album: Album
    ) -> None:
        self.answers, self.probes, self.tokens, self.among, self.seeds = answers, probes, tokens, among, seeds
        self.album = album
        self.layers = list(probes)
        self.columns: dict[tuple[str, int | None], list[Tensor]] = defaultdict(list)
        self.shuffled: dict[tuple[int, int], int] = defaultdict(int)
        self.labels: list[Tensor] = []

    def add(self, batch: Batch) -> None:
        """Take in one batch."""
        model, labels = self.answers.model, batch.labels
        pixels, heads_labels = model.preprocess(batch.images), self.answers.labels(labels)
        logits, at_layer = read_stream(model, pixels, read_role(model, self.tokens), layers=self.layers)
        self.album.open(batch.images, batch.index, heads_labels, logits)
        clean = correct(rank(logits.cpu(), heads_labels))
        self._keep("clean", None, clean)
        self._keep("shuffle_floor", None, expected_hits(logits.argmax(-1), heads_labels, self.among))
        self.labels.append(labels)
        for layer, x in zip(self.layers, at_layer, strict=True):
            scores = self.probes[layer].scores(x).cpu()
            self._keep("decodability", layer, correct(rank(scores, labels)))
            self._keep("probe_floor", layer, expected_hits(scores.argmax(-1), labels, self.among))
        variants = {(layer, seed): self._shuffle(layer, seed, batch.number, labels) for layer, seed in self._cells()}
        lost = {layer: clean.float() for layer in self.layers}
        for (layer, seed), (_, out) in zip(variants, sweep(model, pixels, variants.values()), strict=True):
            right = correct(rank(out.cpu(), heads_labels))
            self.album.compare(out, f"{NAMES.get(self.tokens, self.tokens)} exchanged behind layer {layer}")
            self.shuffled[layer, seed] += int(right.sum())
            lost[layer] = lost[layer] - right.float() / self.seeds
        for layer, loss in lost.items():
            self._keep("causal_effect", layer, loss)

    def _cells(self) -> Iterator[tuple[int, int]]:
        yield from ((layer, seed) for seed in range(self.seeds) for layer in self.layers)

    def _shuffle(self, layer: int, seed: int, index: int, labels: Tensor) -> Intervention:
        # another permutation for every batch, the same for every layer
        drawn, known = batch_seed(seed, index), labels if self.among in BY_CLASS else None
        return shuffle_tokens(layer=layer, tokens=self.tokens, seed=drawn, among=self.among, labels=known)

    def _keep(self, measure: str, layer: int | None, values: Tensor) -> None:
        self.columns[measure, layer].append(values.float().cpu())

    def rows(self) -> Iterator[dict[str, Any]]:
        labels = torch.cat(self.labels)
        n = len(labels)
        columns = {key: torch.cat(parts).double().numpy() for key, parts in self.columns.items()}
        for layer in self.layers:
            read, luck = columns["decodability", layer], columns["probe_floor", layer]
            columns["gap", layer] = read - luck - columns["causal_effect", layer]
        estimated = {key: values for key, values in columns.items() if key[0] in ("causal_effect", "gap")}
        intervals: dict[Any, tuple[float, float]] = {}
        for measure, bounds in (("causal_effect", CHANGE), ("gap", None)):
            intervals |= mean_intervals({k: x for k, x in estimated.items() if k[0] == measure}, bounds=bounds)
        for (measure, behind), values in columns.items():
            at = {"measure": measure, "layer": behind, "seed": None}
            mean = float(values.mean())
            if measure in ("clean", "decodability"):
                yield {**at, **rate_row(int(values.sum()), n)}
            else:
                low, high = intervals.get((measure, behind), (mean, mean))
                yield {**at, "value": mean, "low": low, "high": high, "n": n}
        for (after, seed), hits in self.shuffled.items():
            yield {"measure": "shuffled", "layer": after, "seed": seed, **rate_row(hits, n)}
        chance = float(np.bincount(labels.numpy()).max()) / n
        yield {
            "measure": "chance", "layer": None, "seed": None, "value": chance, "low": chance, "high": chance, "n": n
        }  # fmt: skip
