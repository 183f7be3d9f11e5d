"""One model and its copy with random weights: what CLS attends to in every block, one value per image."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from analyses.activations.class_masks import Labelling, counts_of, mask_columns, patch_labels
from analyses.activations.layers import stop_behind
from analyses.data import ImageData
from analyses.probes.ridge import GramRidge, RidgeProbe
from analyses.questions.looking.cls_attention.shape import (
    centre_distance,
    head_diversity,
    normalised_entropy,
    object_shares,
    over_patches,
    spread,
)
from analyses.running.notes import progress_batches
from analyses.statistics.intervals import CHANGE, RATE, Bounds, mean_intervals, rate_row
from analyses.statistics.ranks import correct, rank
from hooked_vit import HookedViT

TRAINED, RANDOM, UNIFORM = "trained", "random weights", "uniform attention"
RANDOM_UNIFORM, OTHER_MASKS = "random weights, uniform attention", "masks of other images"
CONTROLS = {TRAINED: UNIFORM, RANDOM: RANDOM_UNIFORM}
"""The copy of each model whose CLS looks at all patches alike."""
BOUNDS: dict[str, Bounds | None] = {
    **dict.fromkeys(("patch_mass", "entropy", "head_diversity", "object_mass", "class_probe"), RATE),
    **dict.fromkeys(("object_excess", "class_gain"), CHANGE),
    **dict.fromkeys(("spread", "centre_distance", "object_lift")),
}
Key = tuple[str, str, int]
"""What is measured, of which variant, in which layer."""


class Looked(NamedTuple):
    """Of one block: CLS's attention to the patches, and their values as its heads and as equal weights gather them."""

    attention: Float[Tensor, "b h n"]
    gathered: Float[Tensor, "b hd"]
    mean: Float[Tensor, "b hd"]


@torch.no_grad()
def look(model: HookedViT, pixels: Float[Tensor, "b c h w"], layers: Sequence[int]) -> dict[int, Looked]:
    """In these blocks the attention of CLS to the patches; attention to other tokens is left out of what it gathers."""
    layout = model.layout_for(*pixels.shape[2:])
    cls, patches = int(layout.mask("cls").nonzero()), layout.mask("patches")
    values: list[Tensor] = []
    found: dict[int, Looked] = {}

    def keep(v: Tensor, hook: object) -> None:
        values[:] = [v[:, patches]]

    def read(pattern: Tensor, hook: Any) -> None:
        attention, (v,) = pattern[:, :, cls, patches], values
        weights = attention / attention.sum(-1, keepdim=True)
        gathered = torch.einsum("bhn,bnhd->bhd", weights, v)
        found[hook.layer()] = Looked(attention, gathered.flatten(1), v.mean(1).flatten(1))

    hooks = [
        (f"blocks.{layer}.attn.hook_{what}", hook)
        for layer in layers
        for what, hook in (("v", keep), ("pattern", read))
    ]
    model.run_with_hooks(pixels, fwd_hooks=hooks, stop_at_layer=stop_behind(model, layers))
    return found


class AttentionStudy:
    """The measurements of `cls_attention` on one model; afterwards `columns` hold one value per image."""

    def __init__(
        self,
        name: str,
        model: HookedViT,
        control: HookedViT,
        labelling: Labelling | None,
        n_classes: int,
        layers: Sequence[int],
    ) -> None:
        self.name, self.labelling, self.n_classes, self.layers = name, labelling, n_classes, layers
        self.models = {TRAINED: model, RANDOM: control}
        self.probes: dict[str, dict[str, RidgeProbe]] = {}
        self.counts = np.zeros(n_classes, int)
        self.masks: dict[str, int] = defaultdict(int)
        self._kept: dict[Key, list[Tensor]] = defaultdict(list)
        self.constant: dict[Key, float] = {}

    def fit(self, data: ImageData, batch_size: int) -> None:
        """Probes of the class on what CLS gathers from the patches, and on what equal weights would."""
        ridges = {variant: GramRidge(self.n_classes, name=f"{self.name}, {variant}") for variant in self.models}
        for batch in progress_batches(data, batch_size, f"{self.name}: fitting probes", into=[ridges]):
            pixels = self.models[TRAINED].preprocess(batch.images)
            for variant, model in self.models.items():
                ridges[variant].update(_features(look(model, pixels, self.layers), variant), batch.labels)
        self.probes = {variant: ridge.fit() for variant, ridge in ridges.items()}

    def measure(self, data: ImageData, batch_size: int) -> None:
        """Everything, image by image."""
        extra = mask_columns(data) if self.labelling is not None else []
        what, into = f"{self.name}: attention of CLS", (self.counts, self.masks, self._kept)
        for batch in progress_batches(data, batch_size, what, extra=extra, least=2, into=into):
            pixels = self.models[TRAINED].preprocess(batch.images)
            self.counts += np.bincount(batch.labels.numpy(), minlength=self.n_classes)
            labels = None
            if self.labelling is not None:
                labels = patch_labels(self.models[TRAINED], pixels, batch, self.labelling)
                for of, n in counts_of(labels).items():
                    self.masks[of] += n
            grid = self.models[TRAINED].layout_for(*pixels.shape[2:]).grid
            for variant, model in self.models.items():
                looked = look(model, pixels, self.layers)
                self._classes(variant, looked, batch.labels)
                for layer, one in looked.items():
                    weights, share = over_patches(one.attention)
                    self._add("patch_mass", variant, layer, share)
                    self._shape(variant, layer, weights, grid)
                    if labels is not None:
                        self._objects(variant, layer, weights, labels)

    def _shape(self, variant: str, layer: int, weights: Tensor, grid: tuple[int, int]) -> None:
        self._add("entropy", variant, layer, normalised_entropy(weights))
        self._add("spread", variant, layer, spread(weights, grid))
        self._add("centre_distance", variant, layer, centre_distance(weights, grid))
        self._add("head_diversity", variant, layer, head_diversity(weights))
        if variant == TRAINED:
            n, heads = weights.shape[-1], weights.shape[1]
            equal = torch.full((1, 1, n), 1 / n, dtype=torch.float64)
            told = {"centre_distance": float(centre_distance(equal, grid))}
            told |= {"entropy": 1.0, "spread": 1.0} if n > 1 else {}
            told |= {"head_diversity": 0.0} if heads > 1 else {}
            self.constant |= {(measure, UNIFORM, layer): value for measure, value in told.items()}

    def _objects(self, variant: str, layer: int, weights: Tensor, labels: Int[Tensor, "b n"]) -> None:
        mass, area = object_shares(weights, labels)
        self._add("object_mass", variant, layer, mass)
        self._add("object_excess", variant, layer, mass - area)
        self._add("object_lift", variant, layer, mass / area)
        if variant == TRAINED:
            self._add("object_mass", UNIFORM, layer, area)
            # where objects lie in other images too, such as in the middle; one image has no other
            moved = labels.roll(1, 0) if len(labels) > 1 else torch.full_like(labels, -1)
            there, of_theirs = object_shares(weights, moved)
            self._add("object_mass", OTHER_MASKS, layer, there)
            self._add("object_excess", OTHER_MASKS, layer, there - of_theirs)
            self._add("object_lift", OTHER_MASKS, layer, there / of_theirs)

    def _classes(self, variant: str, looked: Mapping[int, Looked], labels: Int[Tensor, "b"]) -> None:
        features = _features(looked, variant)
        for layer in self.layers:
            right = {}
            for how in (variant, CONTROLS[variant]):
                site = f"{how} {layer}"
                scores = self.probes[variant][site].scores(features[site]).cpu()
                right[how] = correct(rank(scores, labels)).double()
                self._add("class_probe", how, layer, right[how])
            self._add("class_gain", variant, layer, right[variant] - right[CONTROLS[variant]])

    def _add(self, measure: str, variant: str, layer: int, values: Tensor) -> None:
        self._kept[measure, variant, layer].append(values)

    @property
    def columns(self) -> dict[Key, np.ndarray]:
        """One value per image, in the order of the images; NaN where an image has none."""
        return {key: torch.cat(parts).numpy() for key, parts in self._kept.items()}

    @property
    def no_objects(self) -> str:
        """Why nothing can be said of objects; "" where it can."""
        if self.labelling is None:
            return "the data have no masks"
        known = np.isfinite(self.columns["object_mass", TRAINED, self.layers[0]]).sum()
        return "" if known > 1 else "no two images have patches on an object and beside it"

    def about(self) -> dict[str, Any]:
        """What a result's `meta` says of the model, beyond what it is."""
        model = self.models[TRAINED]
        return {"masks": dict(self.masks), "no_objects": self.no_objects, "cls_read": "cls" in model.cfg.sources}

    def rows(self) -> Iterator[dict[str, Any]]:
        """The frame's rows of this model, without its name and without what claims compare."""
        columns, n = self.columns, int(self.counts.sum())
        for measure, bounds in BOUNDS.items():
            known = {key: values[np.isfinite(values)] for key, values in columns.items() if key[0] == measure}
            mine = {key: values for key, values in known.items() if len(values)}
            for key, (low, high) in mean_intervals(mine, bounds=bounds).items():
                yield {**_place(key), "value": mine[key].mean(), "low": low, "high": high, "n": len(mine[key])}
        for key, value in self.constant.items():
            yield {**_place(key), "value": value, "n": n}
        yield {"measure": "chance", **rate_row(int(self.counts.max()), n)}


def _place(key: Key) -> dict[str, Any]:
    return dict(zip(("measure", "variant", "layer"), key, strict=True))


def _features(looked: Mapping[int, Looked], variant: str) -> dict[str, Tensor]:
    """What probes read: of every block, patches as CLS weighs them and as equal weights do."""
    own = {f"{variant} {layer}": one.gathered for layer, one in looked.items()}
    return {**own, **{f"{CONTROLS[variant]} {layer}": one.mean for layer, one in looked.items()}}
