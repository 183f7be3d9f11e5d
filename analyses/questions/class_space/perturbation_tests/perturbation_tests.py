"""Does what is called important matter? Accuracy while image tokens are deleted in the order of their importance.

Negative: the least important first, so that a good order keeps accuracy high. Positive: the most important first, so
that a good order loses it fast. Orders: gradient maps (methods §21), the rules of others, ranks of 10-shot probes and
of the class projection at each token (§23), and random order (§22).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from analyses.activations.relevance import (
    attention_patterns,
    gradient_weighted,
    raw_attention,
    read_row,
    rollout,
)
from analyses.data import ImageData
from analyses.data.batches import Batch
from analyses.data.sets import classes_to_learn, two_sets
from analyses.probes.classifier_heads import Answers
from analyses.probes.opening import answering
from analyses.processes.walking import Step, Walk
from analyses.questions.class_space.measures.explanations import check_asked, check_explainable, gradient_maps
from analyses.questions.class_space.perturbation_tests.figure import (
    areas_figure,
    cautions,
    curves_figure,
    in_words,
    probes_figure,
    summary_table,
)
from analyses.questions.class_space.perturbation_tests.lrp import check_propagates, lrp_rollout
from analyses.questions.class_space.perturbation_tests.perturbation import (
    area,
    around_published_area,
    permutations,
    published_area,
    ranked,
    removal_grid,
    right_after_removal,
)
from analyses.questions.class_space.perturbation_tests.position_probes import (
    SITES,
    Batches,
    Positions,
    measure_positions,
)
from analyses.running.notes import about_data, progress_batches
from analyses.running.registry import analysis
from analyses.running.results import Result
from analyses.statistics.intervals import CHANGE, RATE, mean_intervals, paired_difference, rate_row
from analyses.statistics.significance import corrected, holm, sign_flip_test
from hooked_vit import HookedViT
from hooked_vit.config.showing import counted

ORDERS = ("gradient", "chefer", "rollout", "attention_last", "attention_mean", "projection", "probe")
OPTIONAL = ("lrp",)
BY_POSITION = ("projection", "probe")
DIRECTIONS = ("negative", "positive")
RANDOM = "random"
COLUMNS = ["model", "architecture", "measure", "order", "direction", "removed", "fraction", "site", "layer", "tokens"]
COLUMNS += ["value", "low", "high", "n", "spread", "p"]


@analysis(
    figure=curves_figure,
    more_figures={
        "Areas under the curves": areas_figure,
        "10-shot probes and the class projection, token by token": probes_figure,
    },
)
def perturbation_tests(
    models: Mapping[str, HookedViT], data: ImageData | Any = None, *,
    fit_data: ImageData | Any = None, head: str = "auto", orders: tuple[str, ...] = ORDERS, site: str = "attn_out",
    seeds: int = 10, points: int = 20, shots: int = 10, batch_size: int = 64, seed: int = 0, repro: bool = False,
) -> Result:  # fmt: skip
    """How fast does accuracy fall when image tokens are deleted, the most or the least important first?

    >>> result = perturbation_tests({"vit": zoo.load("vit")}, load_data("scenes:test", n=200))  # doctest: +SKIP
    >>> result.frame.query("measure == 'auc' and direction == 'negative'")  # doctest: +SKIP

    Importance is for each image's label. `orders`: "gradient" (the global map, `site` as in `gradient_maps`), "chefer"
    (attention times its gradient, ICCV 2021), "rollout", "attention_last" and "attention_mean" (what CLS attends to),
    "projection" and "probe" (at each token the position of the label among the classes, summed over blocks, from the
    model's head and from ridge probes on `shots` images per class of `fit_data`; scenes: the train split, otherwise
    half of `data`); where asked for "lrp" (propagated relevance times gradient, CVPR 2021), which needs a
    model that reads CLS through one head. Beside them `seeds` random orders, other ones for every image. Images of more
    than 49 tokens lose them in `points` steps. `repro=True`: the softmax taken twice in the gradient, and random orders
    that all images share.

    Measures: `accuracy` after `removed` tokens (`fraction` of them), `auc`, the area under it over fractions, and
    `auc_published`, by the formula of the published code; `auc_minus_random` and `auc_minus_gradient` with their paired
    intervals and `p` (sign flips, Holm); `probe_accuracy` and `projection_accuracy` by `site` and `layer`, averaged
    over `tokens` ("patches" or "cls"), with the spread over positions. Unit of all intervals is the image.
    A model whose `head` knows none of the classes gets a ridge head, fitted on all of `fit_data`. Raises ValueError
    for a model without CLS, a head that does not know the labels, an unknown order, and classes of too few images.
    """
    if unknown := [order for order in orders if order not in (*ORDERS, *OPTIONAL)]:
        known = ", ".join((*ORDERS, *OPTIONAL))
        raise ValueError(f"orders are {known}, and random always; got {', '.join(unknown)}")
    if seeds < 1:
        raise ValueError(f"the control needs at least one random order; got seeds={seeds}")
    data, fitted, note = two_sets(data, fit_data, n=200, n_fit=500)
    few = fitted.per_class(shots, seed) if any(order in BY_POSITION for order in orders) else None
    n_classes = classes_to_learn(data, fitted)
    for name, model in models.items():
        check_asked(model, name, site)
        removal_grid(model, 1, points)
    found = answering(models, data, fitted, head=head, batch_size=batch_size)
    for name, its in (answers := found.by_name).items():
        check_explainable(its.model, name, site=site)
        if "lrp" in orders:
            check_propagates(its.model, name)
    rows: list[dict[str, Any]] = []
    for name, its in answers.items():
        study = _Study(name, its, orders, site, seeds, points, seed, repro)
        positions = study.positions(data, few, n_classes, batch_size) if few is not None else None
        study.delete(data, batch_size, positions)
        rows += [{"model": name, "architecture": its.model.cfg.architecture, **row} for row in study.rows(positions)]
    frame = pd.DataFrame(rows, columns=COLUMNS).astype({"removed": "Int64", "layer": "Int64"})
    meta = {
        "models": {name: its.about() for name, its in answers.items()},
        **found.about,
        "fit_data": None if few is None else about_data(few, f"{counted(shots, 'image')} per class from: {note}"),
        "n_classes": n_classes,
        "orders": [*orders, RANDOM],
        **{"site": site, "repro": repro, "seeds": list(range(seeds)), "batch_size": batch_size},
        "interventions": ["image tokens deleted behind the position embedding, prefix tokens kept"],
    }
    result = Result(frame, meta)
    result.meta["table"] = summary_table(result)
    differences = "auc_minus_random and auc_minus_gradient"
    result.meta["corrected"] = [corrected(differences, "Holm", "all orders and directions of one model")]
    result.meta["summary"], result.meta["notes"] = in_words(result), cautions(answers, repro, few is not None)
    return result


@dataclass(eq=False)
class _Study:
    """One model: whether each image is right, for every order and every number of deleted tokens."""

    name: str
    answers: Answers
    orders: tuple[str, ...]
    site: str
    seeds: int
    points: int
    seed: int
    repro: bool
    right: dict[tuple[str, str | None], list[np.ndarray]] = field(default_factory=lambda: defaultdict(list))
    labels: list[int] = field(default_factory=list)
    grid: list[int] = field(default_factory=list)
    n_patches: int = 0

    @property
    def model(self) -> HookedViT:
        return self.answers.model

    def positions(self, data: ImageData, few: ImageData, n_classes: int, batch_size: int) -> Positions:
        """Probes and projection at every token."""

        def passes(images: ImageData, what: str) -> Batches:
            def start(into: Sequence[Any]) -> Iterator[Step[tuple[Tensor, Tensor]]]:
                for batch in progress_batches(images, batch_size, f"{self.name}: {what}", into=into):
                    yield Step(batch.number, batch.first, (self.model.preprocess(batch.images), batch.labels))

            return lambda: Walk(start)

        fit, read = passes(few, "fitting probes at every token"), passes(data, "reading every token")
        return measure_positions(self.model, fit, read, n_classes, self.answers.labels)

    def delete(self, data: ImageData, batch_size: int, positions: Positions | None) -> None:
        """Order the tokens of every image in every way, and delete them."""
        into = (self.right, self.labels)
        for batch in progress_batches(data, batch_size, f"{self.name}: deleting tokens", into=into):
            pixels = self.model.preprocess(batch.images)
            labels = self.answers.labels(batch.labels)
            n = int(self.model.layout_for(*pixels.shape[2:]).mask("patches").sum())
            self.n_patches, self.grid = n, removal_grid(self.model, n, self.points)
            rows = slice(batch.first, batch.first + len(batch))
            orders = self._orders(batch, pixels, labels, n, positions, rows)
            found = right_after_removal(self.model, pixels, labels, orders, self.grid)
            for direction in DIRECTIONS:
                for order in self.orders:
                    self.right[order, direction].append(found[f"{order} {direction}"].numpy())
            draws = [found[f"{RANDOM} {seed}"].double() for seed in range(self.seeds)]
            self.right[RANDOM, None].append(torch.stack(draws).mean(0).numpy())
            self.labels += batch.labels.tolist()

    def _orders(
        self, batch: Batch, pixels: Tensor, labels: Tensor, n: int, positions: Positions | None, rows: slice
    ) -> dict[str, Tensor]:
        importance = self._importance(pixels, labels, positions, rows)
        orders: dict[str, Tensor] = {}
        for order in self.orders:
            least_first = ranked(importance[order](), batch.index, self.seed)
            orders |= {f"{order} negative": least_first, f"{order} positive": least_first.flip(1)}
        for seed in range(self.seeds):
            drawn = self.seed * 1_000_003 + seed
            orders[f"{RANDOM} {seed}"] = permutations(n, batch.index, drawn, shared=self.repro)
        return orders

    def _importance(
        self, pixels: Tensor, labels: Tensor, positions: Positions | None, rows: slice
    ) -> dict[str, Callable[[], Float[Tensor, "b n"]]]:
        model, layout = self.model, self.model.layout_for(*pixels.shape[2:])
        attends = {"rollout", "attention_last", "attention_mean"} & set(self.orders)
        patterns = attention_patterns(model, pixels) if attends else []

        def gradient() -> Tensor:
            return gradient_maps(model, pixels, labels, site=self.site, double_softmax=self.repro).sum((1, 2))

        def ranks(kind: str) -> Callable[[], Tensor]:
            # the best position is 0, so the least sum is the most important
            return lambda: -positions.ranks[kind][rows]  # type: ignore[union-attr]

        return {
            "gradient": gradient,
            "chefer": lambda: read_row(model, layout, gradient_weighted(model, pixels, labels)),
            "lrp": lambda: read_row(model, layout, lrp_rollout(model, pixels, labels)),
            "rollout": lambda: read_row(model, layout, rollout(patterns)),
            "attention_last": lambda: raw_attention(patterns, layout),
            "attention_mean": lambda: raw_attention(patterns, layout, last=False),
            "projection": ranks("projection"),
            "probe": ranks("probe"),
        }

    def rows(self, positions: Positions | None) -> Iterator[dict[str, Any]]:
        right = {key: np.concatenate(parts).astype(float) for key, parts in self.right.items()}
        yield from self._curves(right)
        yield from self._areas(right)
        if positions is not None:
            yield from self._positions(positions)
        counts = np.bincount(self.labels)
        yield {"measure": "chance", **rate_row(int(counts.max()), len(self.labels))}

    def _curves(self, right: dict[tuple[str, str | None], np.ndarray]) -> Iterator[dict[str, Any]]:
        n = len(self.labels)
        for (order, direction), hits in right.items():
            columns = dict(enumerate(hits.T))
            drawn = mean_intervals(columns, bounds=RATE) if order == RANDOM else {}
            for step, k in enumerate(self.grid):
                place = {"order": order, "direction": direction, "removed": k, "fraction": k / self.n_patches}
                rate = rate_row(int(hits[:, step].sum()), n)
                if order == RANDOM:
                    low, high = drawn[step]
                    rate = {"value": hits[:, step].mean(), "low": low, "high": high, "n": n}
                yield {"measure": "accuracy", **place, **rate}
        start = next(iter(right.values()))
        yield {"measure": "clean", **rate_row(int(start[:, 0].sum()), n)}
        if self.grid[-1] == self.n_patches:
            yield {"measure": "prefix_only", **rate_row(int(start[:, -1].sum()), n)}

    def _areas(self, right: dict[tuple[str, str | None], np.ndarray]) -> Iterator[dict[str, Any]]:
        n, fractions = len(self.labels), np.array(self.grid) / self.n_patches
        areas = {key: area(hits, fractions) for key, hits in right.items()}
        intervals = mean_intervals(areas, bounds=RATE)
        for key, hits in right.items():
            place = {"order": key[0], "direction": key[1], "n": n}
            low, high = intervals[key]
            yield {"measure": "auc", **place, "value": areas[key].mean(), "low": low, "high": high}
            value = float(published_area(hits.mean(0), self.grid, self.n_patches))
            ends = dict(zip(("low", "high"), around_published_area(hits, self.grid, self.n_patches), strict=True))
            yield {"measure": "auc_published", **place, "value": value, **ends}
        differences = list(self._differences(areas))
        for row, p in zip(differences, holm([row["p"] for row in differences]), strict=True):
            yield {**row, "p": p}

    def _differences(self, areas: dict[tuple[str, str | None], np.ndarray]) -> Iterator[dict[str, Any]]:
        for (order, direction), values in areas.items():
            for other in (RANDOM, "gradient"):
                reference = areas.get((other, None if other == RANDOM else direction))
                if reference is None or order in (other, RANDOM):
                    continue
                value, low, high = paired_difference(values, reference, bounds=CHANGE)
                p = sign_flip_test(values - reference, seed=self.seed, alternative="two-sided", bounds=CHANGE)
                place = {"measure": f"auc_minus_{other}", "order": order, "direction": direction}
                yield {**place, "value": value, "low": low, "high": high, "n": len(values), "p": p}

    def _positions(self, found: Positions) -> Iterator[dict[str, Any]]:
        columns = {("patches", *key): values for key, values in found.right.items()}
        columns |= {("cls", *key): values for key, values in found.cls.items()}
        intervals = mean_intervals(columns, bounds=RATE)
        for (tokens, kind, site, layer), values in columns.items():
            low, high = intervals[tokens, kind, site, layer]
            place = {"measure": f"{kind}_accuracy", "site": SITES[site], "layer": layer, "tokens": tokens}
            spread = found.by_position[kind, site, layer].std(ddof=1) if tokens == "patches" else np.nan
            yield {**place, "value": values.mean(), "low": low, "high": high, "n": len(values), "spread": spread}
