"""Scenes as a model that counts is given them: pairs that differ in one object, and the groups of tokens in them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from PIL import Image
from torch import Tensor

from analyses.activations.token_groups import aligned_masks, object_groups
from analyses.data import ImageData
from analyses.data.sets import two_sets
from analyses.questions.patching.patch_sites import pair_pixels
from analyses.running.notes import progress_batches
from hooked_vit import HookedViT

COLUMNS = ("mask", "pair", "removed", "count")


def paired_sets(data: Any, fit_data: Any) -> tuple[ImageData, ImageData, str]:
    """What to measure on, and what to fit probes on; both with masks and pairs."""
    measured, fitted, note = two_sets(data, fit_data)
    for part, columns in ((measured, COLUMNS), (fitted, ("mask", "removed", "count"))):
        if missing := [c for c in columns if c not in part.columns]:
            raise ValueError(
                f"the counting study needs the columns {', '.join(columns)}, as digit_scenes has them; {part.name} "
                f"lacks {', '.join(missing)}"
            )
    return measured, fitted, note


def count_ids(model: HookedViT, name: str = "the model") -> dict[int, int]:
    """Count -> class of the head: by class names where they are numbers, by class number otherwise.

    Raises ValueError for a model whose head answers nothing.
    """
    if model.cfg.is_feature_model or model.cfg.n_classes is None or model.cfg.outputs != "classes":
        raise ValueError(
            f"{name} has no classifier, so it counts nothing; use a counting model, such as zoo:vit-count, "
            "or fit a head to images labelled by their count: analyses.with_ridge_head(model, images)"
        )
    names = model.cfg.class_names or ()
    if names and all(n.strip().isdigit() for n in names):
        return {int(n): i for i, n in enumerate(names)}
    return {i: i for i in range(model.cfg.n_classes)}


class SceneBatch(NamedTuple):
    """A batch: the pictures and their numbers, clean and corrupt pixels, counts, and token groups."""

    images: list[Image.Image]
    places: Int[Tensor, "b"]
    clean: Float[Tensor, "b c h w"]
    corrupt: Float[Tensor, "b c h w"] | None
    counts: Int[Tensor, "b"]
    groups: dict[str, Bool[Tensor, "b t"]]
    inside: float
    first: int


@dataclass(frozen=True, eq=False)
class Scenes:
    """How one model is shown scenes; `ids` are the classes of its counts."""

    name: str
    model: HookedViT
    ids: dict[int, int]
    threshold: int
    seed: int

    def walk(
        self, data: ImageData, batch_size: int, what: str, into: Sequence[Any], paired: bool
    ) -> Iterator[SceneBatch]:
        """The scenes batch by batch, with their pairs where they are `paired`.

        Raises ValueError for a count the model has no class for.
        """
        extra = COLUMNS if paired else ("mask", "removed", "count")
        for batch in progress_batches(data, batch_size, f"{self.name}: {what}", extra=extra, into=into):
            counts = torch.tensor(batch.extra["count"])
            if strange := set((counts - 1).clamp(min=0).tolist() + counts.tolist()) - set(self.ids):
                raise ValueError(f"{self.name} knows the counts {sorted(self.ids)}; {data.name} has {sorted(strange)}")
            if paired:
                clean, corrupt = pair_pixels(self.model, batch.images, batch.extra["pair"])
            else:
                clean, corrupt = self.model.preprocess(batch.images), None
            objects = aligned_masks(self.model, batch.extra["mask"])
            groups = object_groups(
                objects,
                torch.tensor(batch.extra["removed"]),
                self.model.layout_for(*clean.shape[2:]),
                threshold=self.threshold,
                seed=self.seed,
                index=batch.index,
            )
            inside = float("nan") if corrupt is None else _inside(clean - corrupt, groups["removed"], self.model)
            yield SceneBatch(batch.images, batch.index, clean, corrupt, counts, groups, inside, batch.first)


def mean_of(x: Float[Tensor, "b t d"], mask: Bool[Tensor, "b t"]) -> Float[Tensor, "b d"]:
    """The mean over the tokens of a group, per image; 0 where it has none."""
    weight = mask.to(x)
    return torch.einsum("btd,bt->bd", x, weight) / weight.sum(1, keepdim=True).clamp(min=1)


def _inside(change: Float[Tensor, "b c h w"], removed: Bool[Tensor, "b t"], model: HookedViT) -> float:
    """Share of the squared pixel difference of pairs that lies in the removed object's patches."""
    layout, p = model.layout_for(*change.shape[2:]), model.cfg.patch_size
    energy = torch.nn.functional.avg_pool2d(change.square().sum(1, keepdim=True), p).flatten(1).cpu()
    return float((energy * removed[:, layout.mask("patches")]).sum() / energy.sum().clamp(min=1e-12))
