"""Which heads and MLPs does the answer need, and does the order of their importance hold?

Every head and every MLP is taken out by itself, in three ways: its output set to zero, to its mean over other images at
the same token, or to what another image has there. The *total* effect lets everything behind it go on from there, the
*direct* one reaches the readout alone. Beside the maps stands what they are worth: how well the order agrees between
halves of the images, other draws, and ways to ablate; and what it costs to ablate the first k heads of that order
together, on images the order has not seen, against k heads drawn at random. Michel et al. 2019, Wang et al. 2022.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from analyses.activations.layers import measured_layers
from analyses.activations.store.stats import means_over
from analyses.controls.shuffle_floors import batch_order, check_shuffles, exchange_batches
from analyses.data import ImageData
from analyses.data.batches import Batch
from analyses.pages.album import Album
from analyses.probes.classifier_heads import Answers, fit_head
from analyses.probes.opening import open_study
from analyses.questions.patching.head_ablation.ablation import (
    EFFECTS,
    WAYS,
    Outputs,
    Part,
    clean_run,
    direct_logits,
    margin,
    outputs_of,
    parts_of,
    total_logits,
)
from analyses.questions.patching.head_ablation.figure import (
    direct_figure,
    in_words,
    main_figure,
    summary_table,
    together_figure,
)
from analyses.questions.patching.head_ablation.ranking import sizes, stability_rows
from analyses.running.registry import analysis
from analyses.running.results import Result
from analyses.statistics.intervals import CHANGE, Bounds, mean_intervals, rate_row
from analyses.statistics.ranks import correct, rank
from analyses.statistics.significance import uncorrected
from hooked_vit import HookedViT

SPLITS = 50
N, N_FIT = 64, 256

Key = tuple[str, str, int | None, Part]
"""(effect, way, seed, part)"""


@analysis(
    figure=main_figure,
    more_figures={
        "The direct effect: the readout alone misses the part": direct_figure,
        "The first k heads of the order together, against k heads at random": together_figure,
    },
    zoo_models=("vit",),
)
def head_ablation(
    models: Mapping[str, HookedViT], data: ImageData | Any = None, *, fit_data: ImageData | Any = None,
    seeds: int = 2, draws: int = 5, head: str = "auto", seed: int = 0, batch_size: int = 32,
    layers: tuple[int, ...] | None = None, activations: tuple[str, ...] | None = None,
) -> Result:  # fmt: skip
    """Which heads and MLPs does the answer need: zeroed, set to their mean, or given another image's output?

    >>> result = head_ablation({"vit": zoo.load("vit")})  # doctest: +SKIP
    >>> result.frame.query("measure == 'drop' and way == 'mean' and effect == 'total'")  # doctest: +SKIP

    Means are over `fit_data`, at every token; other images are drawn within batches, `seeds` times. A model whose
    `head` knows none of the data's classes gets a ridge head on what its checkpoint reads, fitted on `fit_data`. With
    `layers` there are the heads and MLPs of those alone, and what is said of an order or of heads together is of them.
    With `activations`, folders that `store_activations` filled with the sites "z" and "mlp_out" of every token (the
    role "all"), nothing runs for means and heads.

    The frame: `drop`, what ablating a part (`layer` and `head`; no head: the MLP) takes from the margin, the logit of
    the right class minus the mean of the others, with a 95 % interval over images, and `accuracy_drop`; for
    every `way` and `effect`, resampling averaged over seeds. `stability` and the agreements are rank correlations over
    heads (see `stability_rows`). `together_drop` and `together_accuracy` ablate `k` heads at once in the `order`
    "ranked" (by the total drop on every second image) or "random" (`draws` of them), measured on the other images.
    Without a part: `margin` and `accuracy` of the model as it is.
    Memory grows with the images by a number per part, way and effect. Raises ValueError for batches of one image, a
    model whose norms stand behind its branches, and labels a head does not know.
    """
    for model in models.values():
        model.require_branches_are_sums("head ablation")
    if seeds < 1 or draws < 1:
        raise ValueError(f"at least one draw is needed; got seeds={seeds} and draws={draws}")
    opening = open_study(models, data, fit_data, head, n=N, n_fit=N_FIT)
    check_shuffles(opening.measured, batch_size, seeds, "others")
    rows: list[dict[str, Any]] = []
    about: dict[str, Any] = {}
    pictures: list[dict[str, Any]] = []
    n = 0
    for name, model in models.items():
        own = opening.heads[name]
        answers = own or fit_head(name, model, opening.fitted, opening.n_classes, batch_size)
        album = Album(name, answers.model.cfg.class_names, opening.measured.name_of, len(models))
        parts = parts_of(answers.model, measured_layers(model, layers))
        study = _Study(name, answers, parts, seeds, draws, seed, batch_size, album)
        study.measure(opening.measured, opening.fitted)
        rows += [{"model": name, "architecture": model.cfg.architecture, **row} for row in study.rows()]
        pictures += album.entries()
        about[name] = answers.about()
        n = study.n
    frame = pd.DataFrame(rows).astype(dict.fromkeys(("layer", "head", "k", "seed"), "Int64"))
    meta = {
        "models": about,
        **opening.about(n=n),
        "seeds": seeds,
        "draws": draws,
        "seed": seed,
        "batch_size": batch_size,
        "interventions": ["ablate_heads", "ablate_branch", "patch_heads", "patch_branch"],
        "pictures": pictures,
    }
    result = Result(frame, meta)
    table = summary_table(result).astype(object)
    result.meta["table"] = table.where(table.notna(), None).to_dict("records")
    result.meta["summary"], result.meta["notes"] = in_words(result)
    result.meta["corrected"] = [uncorrected("dots, an interval that holds 0", "heads, layers, ways and models")]
    return result


class _Study:
    """One model: the drop of every part per image, then heads together in the order that came out."""

    def __init__(
        self, name: str, answers: Answers, parts: list[Part], seeds: int, draws: int, seed: int, batch_size: int,
        album: Album,
    ) -> None:  # fmt: skip
        self.name, self.answers, self.model = name, answers, answers.model
        self.seeds, self.draws, self.seed, self.batch_size = seeds, draws, seed, batch_size
        self.album = album
        self.parts = parts
        self.heads = [part for part in self.parts if part.head is not None]
        self.drops: dict[Key, list[Tensor]] = defaultdict(list)
        self.lost: dict[Key, list[Tensor]] = defaultdict(list)
        self.together: dict[tuple[str, str, int, int | None], list[tuple[Tensor, Tensor]]] = defaultdict(list)
        self.clean: list[tuple[Tensor, Tensor]] = []

    @property
    def n(self) -> int:
        """Images measured."""
        return sum(len(margins) for margins, _ in self.clean)

    def measure(self, data: ImageData, fit_data: ImageData) -> None:
        """All parts by themselves, then heads together."""
        hooks, what = list(dict.fromkeys(part.hook for part in self.parts)), f"{self.name}: mean outputs"
        self.mean = means_over(self.model, fit_data, hooks, batch_size=self.batch_size, what=what)
        into = (self.clean, self.drops, self.lost, self.album)
        for batch in self._exchanging(data, "ablating one by one", into):
            self._one_by_one(batch.number, batch)
        groups = self._groups()
        for batch in self._exchanging(data, "ablating together", [self.together]):
            held_out = torch.arange(batch.first, batch.first + len(batch)) % 2 == 1
            if held_out.any():
                self._together(batch.number, self.model.preprocess(batch.images), batch.labels, held_out, groups)

    def _exchanging(self, data: ImageData, what: str, into: Sequence[Any]) -> Iterator[Batch]:
        return exchange_batches(data, self.batch_size, f"{self.name}: {what}", "others", into=into)

    def _values(self, batch: int, outputs: Outputs, labels: Tensor) -> Iterator[tuple[str, int | None, Outputs | None]]:
        """(way, seed, what is put in) for every way."""
        yield "zero", None, None
        yield "mean", None, self.mean
        for seed in range(self.seeds):
            order = batch_order(self.seed + seed, batch, "others", labels)
            yield "resample", seed, {hook: x[order.to(x.device)] for hook, x in outputs.items()}

    def _one_by_one(self, number: int, batch: Batch) -> None:
        pixels, labels = self.model.preprocess(batch.images), batch.labels
        classes = self.answers.labels(labels)
        logits, final, outputs = clean_run(self.model, pixels, self.parts)
        before = _judged(logits, classes)
        self.clean.append(before)
        self.album.open(batch.images, batch.index, classes, logits)
        for way, seed, values in self._values(number, outputs, labels):
            total = total_logits(self.model, pixels, [[part] for part in self.parts], values)
            direct = direct_logits(self.model, pixels, final, outputs, self.parts, values)
            for effect, found in (("total", total), ("direct", direct)):
                for part, out in zip(self.parts, found, strict=True):
                    after = _judged(out, classes)
                    self.drops[effect, way, seed, part].append(before[0] - after[0])
                    self.lost[effect, way, seed, part].append(before[1] - after[1])
                    if effect == "total":
                        self.album.compare(out, f"{part} ablated, {way}")

    def _groups(self) -> dict[tuple[str, str, int, int | None], list[Part]]:
        """(way, order, k, seed) -> the heads to ablate together."""
        rng = np.random.default_rng(self.seed)
        shuffled = [[self.heads[i] for i in rng.permutation(len(self.heads))] for _ in range(self.draws)]
        groups: dict[tuple[str, str, int, int | None], list[Part]] = {}
        for way in WAYS:
            drops = self._table("total", way, self.seed_of(way))[::2].mean(0)
            ranked = [self.heads[i] for i in np.argsort(-drops, kind="stable")]
            for k in sizes(len(self.heads)):
                groups[way, "ranked", k, None] = ranked[:k]
                groups |= {(way, "random", k, s): order[:k] for s, order in enumerate(shuffled)}
        return groups

    def _together(
        self, batch: int, pixels: Tensor, labels: Tensor, held_out: Tensor, groups: dict[Any, list[Part]]
    ) -> None:
        classes = self.answers.labels(labels[held_out])
        outputs = outputs_of(self.model, pixels, self.heads)
        for way, seed, values in self._values(batch, outputs, labels):
            if seed != self.seed_of(way):
                continue
            if values is not None and values is not self.mean:
                values = {hook: x[held_out.to(x.device)] for hook, x in values.items()}
            mine = {key: parts for key, parts in groups.items() if key[0] == way}
            found = total_logits(self.model, pixels[held_out], list(mine.values()), values)
            for key, out in zip(mine, found, strict=True):
                self.together[key].append(_judged(out, classes))

    def seed_of(self, way: str) -> int | None:
        """The first draw, where a way draws."""
        return 0 if way == "resample" else None

    def _table(self, effect: str, way: str, seed: int | None) -> np.ndarray:
        """Drop per image and head."""
        return torch.stack([torch.cat(self.drops[effect, way, seed, part]) for part in self.heads], 1).numpy()

    def rows(self) -> Iterator[dict[str, Any]]:
        margins, right = (torch.cat(parts) for parts in zip(*self.clean, strict=True))
        yield from _described({("margin",): margins.numpy()}, ("measure",))
        yield {"measure": "accuracy", **rate_row(int(right.sum()), len(right))}
        for measure, kept, bounds in (("drop", self.drops, None), ("accuracy_drop", self.lost, CHANGE)):
            columns = {
                (measure, effect, way, part.kind, part.layer, part.head): self._over_seeds(kept, effect, way, part)
                for effect in EFFECTS
                for way in WAYS
                for part in self.parts
            }
            yield from _described(columns, ("measure", "effect", "way", "part", "layer", "head"), bounds)
        seeds = [(way, seed) for way in WAYS for seed in (range(self.seeds) if way == "resample" else [None])]
        tables = {(effect, *of): self._table(effect, *of) for effect in EFFECTS for of in seeds}
        if len(self.heads) > 1:
            yield from stability_rows(tables, self.seeds, SPLITS, self.seed)
        untouched = margins[1::2]
        names = ("measure", "way", "order", "k", "seed")
        drops = {("together_drop", *key): (untouched - _joined(v, 0)).numpy() for key, v in self.together.items()}
        yield from _described(drops, names)
        for key, judged in self.together.items():
            hits = _joined(judged, 1)
            at = dict(zip(names, ("together_accuracy", *key), strict=True))
            yield {**at, **rate_row(int(hits.sum()), len(hits))}

    def _over_seeds(self, kept: dict[Key, list[Tensor]], effect: str, way: str, part: Part) -> np.ndarray:
        """Per image, the mean over the draws."""
        drawn = range(self.seeds) if way == "resample" else [None]
        return torch.stack([torch.cat(kept[effect, way, seed, part]) for seed in drawn]).mean(0).numpy()


def _judged(logits: Tensor, classes: Tensor) -> tuple[Tensor, Tensor]:
    """(margin, whether the answer is right) per image."""
    return margin(logits, classes), correct(rank(logits.cpu(), classes)).double()


def _joined(judged: list[tuple[Tensor, Tensor]], which: int) -> Tensor:
    return torch.cat([pair[which] for pair in judged])


def _described(
    columns: dict[Any, np.ndarray], names: tuple[str, ...], bounds: Bounds | None = None
) -> Iterator[dict[str, Any]]:
    """Mean over images and its interval, one row per column."""
    intervals = mean_intervals(columns, bounds=bounds)
    for key, values in columns.items():
        low, high = intervals[key]
        at = dict(zip(names, key, strict=True))
        yield {**at, "value": float(values.mean()), "low": low, "high": high, "n": len(values)}
