"""Where is the number of objects decodable, and which tokens does a counting model use at which depth?

Pairs of scenes that differ in one object. Per group of tokens and depth of the residual stream: how well a ridge probe
reads the count from the group's mean, and how much of the difference between the two answers comes back when the
group is patched from the scene with the object into the scene without it (*denoise*: is it enough?) or the other way
round (*noise*: is it needed?). The control is a random group of patches as large as the removed object's.
methods section 24, after Huang & Chang 2025 (arXiv 2510.09794).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import Any

import pandas as pd
import torch
from jaxtyping import Int
from torch import Tensor

from analyses.activations.layers import measured_layers
from analyses.activations.streams import read_layers, read_stream
from analyses.data import ImageData
from analyses.pages.album import Album
from analyses.probes.ridge import GramRidge, RidgeProbe
from analyses.questions.patching.counting.figure import (
    GROUPS,
    cumulative_figure,
    in_words,
    main_figure,
    summary_table,
)
from analyses.questions.patching.counting.scenes import SceneBatch, Scenes, count_ids, mean_of, paired_sets
from analyses.questions.patching.pair_tally import Tally
from analyses.questions.patching.patch_sites import list_patches
from analyses.questions.patching.patched_runs import patched_runs
from analyses.questions.patching.patching_metrics import EPS, METRICS, reference
from analyses.running.notes import about_data, about_model
from analyses.running.registry import analysis
from analyses.running.results import Result
from analyses.statistics.intervals import mean_intervals, rate_row
from hooked_vit import HookedViT, zoo

MEASURES = ("recovery", "flip_rate", "expected_value")
WAYS = [(way, cumulative) for way in ("denoise", "noise") for cumulative in (False, True)]


@analysis(
    figure=main_figure,
    more_figures={"Patched at a depth and at every depth before it": cumulative_figure},
    zoo_target="count",
)
def counting(
    models: Mapping[str, HookedViT] | None = None,
    data: ImageData | Any = None,
    *,
    fit_data: ImageData | Any = None,
    max_pairs: int = 500,
    threshold: int = 0,
    eps: float = EPS,
    seed: int = 0,
    batch_size: int = 64,
    layers: tuple[int, ...] | None = None,
    embedding: bool = False,
) -> Result:
    """Which tokens does a counting model use at which depth, and where is the count only decodable?

    >>> result = counting()  # the zoo's counting model on scenes:test  # doctest: +SKIP
    >>> result.frame.query("measure == 'recovery' and group == 'cls' and direction == 'denoise'")  # doctest: +SKIP

    A model's class is a count. Data has the columns of `digit_scenes`: besides the image its `count`, an object
    `mask`, and `pair`, the image without object `removed`. Only pairs whose two members are both counted right are
    patched, at most `max_pairs` of them. A patch belongs to an object with more than `threshold` pixels in it. Probes
    are fitted on clean scenes of `fit_data` (scenes: the train split; otherwise half of `data`) and measured on all
    of `data`. `layers` are the blocks behind which that is done, each at a depth one more than its own number; depth 0,
    in front of the first block, is among them where none are named, or with `embedding`.

    One row per model, token group, depth (0: behind the embedding, to n_layers) and measure. `recovery` (of logit k −
    logit k−1), `flip_rate`, `expected_value` for each `direction`, and patched at that depth alone or, `cumulative`,
    there and at every depth before, named or not; `probe_accuracy` and `probe_mae`. Without group: `pairs_right`,
    `accuracy`, `chance` (the most frequent count) and `chance_mae` (the best constant). Pairs in which a group has no
    token are left out of its rows. Raises ValueError for data without pairs, pairs of two shapes, and models that do
    not count.
    """
    models = {"vit-count": zoo.load("vit-count")} if models is None else dict(models)
    data, fit_data, split_note = paired_sets(data, fit_data)
    if max_pairs < 1:
        raise ValueError(f"patching needs pairs: max_pairs is at least 1, got {max_pairs}")
    ids = {name: count_ids(model, name) for name, model in models.items()}
    rows: list[dict[str, Any]] = []
    about: dict[str, Any] = {}
    pictures: list[dict[str, Any]] = []
    for name, model in models.items():
        scenes = Scenes(name, model, ids[name], threshold, seed)
        album = Album(name, model.cfg.class_names, data.name_of, len(models))
        study = _Study(scenes, eps, album, measured_layers(model, layers), embedding or layers is None)
        study.fit_probes(fit_data, batch_size)
        study.measure(data, batch_size, max_pairs)
        rows += [{"model": name, "architecture": model.cfg.architecture, **row} for row in study.rows()]
        about[name] = study.describe()
        pictures += study.pictures()
    frame = pd.DataFrame(rows).astype({"depth": "Int64", "cumulative": "boolean"})
    meta = {
        "models": about,
        "data": about_data(data),
        "fit_data": about_data(fit_data, split_note),
        "max_pairs": max_pairs,
        "threshold": threshold,
        "eps": eps,
        "seeds": [seed],
        "batch_size": batch_size,
        "site": "the residual stream by depth: 0 behind the embedding, n_layers behind the last block",
        "pictures": pictures,
    }
    result = Result(frame, meta)
    result.meta["summary"], result.meta["notes"] = in_words(result)
    table = summary_table(result).astype(object)
    result.meta["table"] = table.where(table.notna(), None).to_dict("records")
    return result


class _Study:
    """One model: probes, then patches, gathered batch by batch."""

    def __init__(self, scenes: Scenes, eps: float, album: Album, layers: list[int], embedding: bool) -> None:
        self.scenes, self.name, self.model = scenes, scenes.name, scenes.model
        self.n_counts = max(scenes.ids) + 1
        self.layers, self.embedding = layers, embedding
        self.depths = [*[0] * embedding, *(layer + 1 for layer in layers)]
        self.answered, self.patched_ones = album, album.fresh()
        self.tally = Tally([METRICS[m] for m in MEASURES], eps)
        self.probes: dict[str, dict[int, RidgeProbe]] = {}
        self.errors: dict[tuple[str, int], list[Tensor]] = defaultdict(list)
        self.counts: list[int] = []
        self.right: list[Tensor] = []
        self.right_pairs: list[Tensor] = []
        self.sizes: dict[str, list[float]] = defaultdict(list)
        self.inside: list[float] = []

    def fit_probes(self, data: ImageData, batch_size: int) -> None:
        """A ridge probe of the count for every group and depth, from one pass over clean scenes."""
        ridges: dict[str, GramRidge] = {}
        for scenes in self.scenes.walk(data, batch_size, "fitting probes", [ridges], False):
            streams = read_layers(self.model, scenes.clean, layers=self.layers, embedding=self.embedding)
            for group, mask in scenes.groups.items():
                rows = mask.any(1)
                at_depth = zip(self.depths, streams, strict=True)
                means = {str(depth): mean_of(x, mask)[rows] for depth, x in at_depth}
                ridge = ridges.setdefault(group, GramRidge(self.n_counts, name=f"{self.name}, {group} by depth"))
                ridge.update(means, scenes.counts[rows])
        for group, ridge in ridges.items():
            self.probes[group] = {int(depth): probe for depth, probe in ridge.fit().items()}

    def measure(self, data: ImageData, batch_size: int, max_pairs: int) -> None:
        """Probes on every clean scene, patches on the pairs whose members are both counted right."""
        into = (self.errors, self.counts, self.right, self.right_pairs, self.answered)
        for scenes in self.scenes.walk(data, batch_size, "probing", into, True):
            assert scenes.corrupt is not None
            logits, streams = read_stream(self.model, scenes.clean, layers=self.layers, embedding=self.embedding)
            for group, mask in scenes.groups.items():
                self._probe(group, mask, streams, scenes.counts)
            self.counts += scenes.counts.tolist()
            classes = self._classes(scenes.counts)
            self.answered.open(scenes.images, scenes.places, classes[0], logits)
            self.right.append(right := logits.argmax(-1).cpu() == classes[0])
            with torch.no_grad():
                self.right_pairs.append(right & (self.model(scenes.corrupt).argmax(-1).cpu() == classes[1]))
        pairs = torch.cat(self.right_pairs).nonzero().flatten()[:max_pairs]
        if not len(pairs):
            raise ValueError(
                f"{self.name} counts no pair of {data.name} right ({int(torch.cat(self.right).sum())} of "
                f"{len(self.counts)} scenes), so there is nothing to patch; use a counting model, such as zoo:vit-count"
            )
        self._patch_pairs(data, batch_size, pairs)

    def _patch_pairs(self, data: ImageData, batch_size: int, pairs: Int[Tensor, "n"]) -> None:
        """Patch the pairs of these numbers: which they are is known once all have been counted."""
        into = (self.tally, self.sizes, self.inside, self.patched_ones)
        for scenes in self.scenes.walk(data, batch_size, "patching", into, True):
            assert scenes.corrupt is not None
            here = (pairs >= scenes.first) & (pairs < scenes.first + len(scenes.counts))
            if len(chosen := pairs[here] - scenes.first):
                self.inside.append(scenes.inside)
                groups = {group: mask[chosen] for group, mask in scenes.groups.items()}
                classes = [c[chosen] for c in self._classes(scenes.counts)]
                self._patch(scenes, chosen, classes, groups)
        self.patched = len(pairs)

    def _classes(self, counts: Int[Tensor, "b"]) -> list[Tensor]:
        """The head's classes of these counts, and of one less."""
        return [torch.tensor([self.scenes.ids[int(k)] for k in counts - less]) for less in (0, 1)]

    def _probe(self, group: str, mask: Tensor, streams: list[Tensor], counts: Tensor) -> None:
        rows = mask.any(1)
        for depth, x in zip(self.depths, streams, strict=True):
            predicted = self.probes[group][depth].predict(mean_of(x, mask)[rows]).cpu()
            self.errors[group, depth].append((predicted - counts[rows]).abs())

    def _patch(self, scenes: SceneBatch, chosen: Tensor, classes: list[Tensor], groups: dict[str, Tensor]) -> None:
        assert scenes.corrupt is not None
        clean, corrupt = scenes.clean[chosen], scenes.corrupt[chosen]
        n_removed = groups["removed"].sum(1)
        left_out = {group: ~mask.any(1) for group, mask in groups.items()}
        left_out["random"] |= groups["random"].sum(1) < n_removed  # too few other patches to draw from
        for group, mask in groups.items():
            self.sizes[group] += mask.sum(1)[~left_out[group]].tolist()
        patches = list_patches(self.model, "resid", self.depths, groups)
        for way, cumulative in WAYS:
            base, donor = (corrupt, clean) if way == "denoise" else (clean, corrupt)
            shown: slice | None = None
            for run in patched_runs(self.model, base, donor, patches, groups, cumulative=cumulative):
                part = classes[0][run.images], classes[1][run.images]
                if way == "noise" and not cumulative:
                    if run.images != shown:
                        shown, here = run.images, chosen[run.images]
                        images = [scenes.images[i] for i in here.tolist()]
                        self.patched_ones.open(images, scenes.places[here], part[0], run.base)
                    self.patched_ones.compare(
                        run.logits,
                        f"{GROUPS.get(run.patch.group, run.patch.group)} of the other scene at depth {run.patch.layer}",
                    )
                key = (run.patch.group, run.patch.layer, way, cumulative)
                ref = reference(way, run.base, run.donor, part)
                self.tally.add(key, run.logits, ref, left_out[run.patch.group][run.images])

    def rows(self) -> Iterator[dict[str, Any]]:
        nothing = {"group": None, "depth": None, "direction": None, "cumulative": None}
        for (group, depth, way, cumulative), row in self.tally.rows():
            place = {"group": group, "depth": depth, "direction": way, "cumulative": cumulative}
            yield {"measure": row.pop("metric"), **place, **row}
        errors = {key: torch.cat(parts).double().numpy() for key, parts in self.errors.items()}
        intervals = mean_intervals(errors)
        for key, error in errors.items():
            place = {**nothing, "group": key[0], "depth": key[1]}
            yield {"measure": "probe_accuracy", **place, **rate_row(int((error == 0).sum()), len(error))}
            low, high = intervals[key]
            yield {"measure": "probe_mae", **place, "value": error.mean(), "low": low, "high": high, "n": len(error)}
        counts = torch.tensor(self.counts)
        frequent = int(counts.bincount().max())
        constant = (counts - counts.median()).abs().double().mean().item()
        yield {"measure": "accuracy", **nothing, **rate_row(int(torch.cat(self.right).sum()), len(counts))}
        yield {"measure": "pairs_right", **nothing, **rate_row(int(torch.cat(self.right_pairs).sum()), len(counts))}
        yield {"measure": "chance", **nothing, **rate_row(frequent, len(counts))}
        yield {
            "measure": "chance_mae",
            **nothing,
            **{"value": constant, "low": constant, "high": constant, "n": len(counts)},
        }

    def pictures(self) -> list[dict[str, Any]]:
        """Of the patched scenes those that moved most, of all those counted wrongly."""
        return [*self.patched_ones.entries(), *self.answered.entries()]

    def describe(self) -> dict[str, Any]:
        right, right_pairs = (float(torch.cat(parts).double().mean()) for parts in (self.right, self.right_pairs))
        return {
            **about_model(self.model), "scenes": len(self.counts), "accuracy": right, "pairs_right": right_pairs,
            "pairs_patched": self.patched,
            "tokens_per_group": {group: sum(sizes) / len(sizes) for group, sizes in self.sizes.items() if sizes},
            "change_inside_removed": sum(self.inside) / len(self.inside),
        }  # fmt: skip
