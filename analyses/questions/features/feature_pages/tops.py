"""One pass for how often each feature is active, and one for the images in which some of them are largest."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from analyses.data import ImageData
from analyses.drawing.pictures import colours_of
from analyses.running.notes import progress_batches
from hooked_vit import HookedViT, TokenLayout
from interventions import Sae


@dataclass
class Use:
    """Of every feature, over the tokens of one role: tokens, tokens it is active at, its sum, and its largest."""

    n: int = 0
    active: Tensor | float = 0.0
    total: Tensor | float = 0.0
    largest: Tensor | float = 0.0

    def update(self, acts: Float[Tensor, "n f"]) -> None:
        """Take in activations."""
        self.n += len(acts)
        self.active = self.active + (acts != 0).sum(0).cpu()
        self.total = self.total + acts.sum(0).double().cpu()
        if len(acts):
            self.largest = torch.maximum(torch.as_tensor(self.largest), acts.amax(0).double().cpu())


@dataclass(frozen=True)
class Seen:
    """An image in which a feature is large: where in it, and what the model saw."""

    value: float
    number: int
    label: str
    map: Float[Tensor, "rows columns"]
    colours: NDArray[np.uint8]


@dataclass
class Tops:
    """The images a feature is largest in, the largest first; equal ones in the order of the data."""

    most: int
    seen: list[Seen] = field(default_factory=list)

    def wants(self, value: float) -> bool:
        """Whether an image in which the feature is this large is among the largest so far."""
        return value > 0 and (len(self.seen) < self.most or value > self.seen[-1].value)

    def add(self, one: Seen) -> None:
        """Keep an image."""
        self.seen = sorted([*self.seen, one], key=lambda seen: -seen.value)[: self.most]


def activations(
    model: HookedViT, sae: Sae, host: str, data: ImageData, batch_size: int, what: str
) -> Iterator[tuple[Any, Tensor, TokenLayout, Float[Tensor, "b t f"]]]:
    """(batch, pixels, tokens, activations of the features) of every batch."""
    layer = int(host.split(".")[1])
    for batch in progress_batches(data, batch_size, what):
        pixels = model.preprocess(batch.images)
        kept: list[Tensor] = []
        with torch.no_grad(), model.hooks([(host, lambda act, hook, kept=kept: kept.append(act))]):
            model(pixels, stop_at_layer=layer + 1)
        yield batch, pixels, model.layout_for(*pixels.shape[2:]), sae.encode(kept[0].flatten(2))


def use_by_role(model: HookedViT, sae: Sae, host: str, data: ImageData, batch_size: int) -> dict[str, Use]:
    """How every feature is used, by role of token."""
    found: dict[str, Use] = {}
    for _, _, layout, acts in activations(model, sae, host, data, batch_size, "how often features are active"):
        for role in layout.roles:
            found.setdefault(role, Use()).update(acts[:, layout.mask(role).to(acts.device)].flatten(0, 1))
    return found


def top_images(
    model: HookedViT, sae: Sae, host: str, data: ImageData, features: Sequence[int], most: int, batch_size: int
) -> dict[int, Tops]:
    """The images in a patch of which each of these features is largest."""
    tops = {feature: Tops(most) for feature in features}
    names, first = data.class_names, 0
    for batch, pixels, layout, acts in activations(model, sae, host, data, batch_size, "where features are largest"):
        maps = acts[:, layout.mask("patches").to(acts.device)][..., list(features)].float().cpu()
        for i in range(len(pixels)):
            label = "" if batch.labels is None else _label(names, int(batch.labels[i]))
            for j, feature in enumerate(features):
                here = maps[i, :, j].reshape(layout.grid)
                if tops[feature].wants(value := float(here.max())):
                    tops[feature].add(Seen(value, first + i, label, here, colours_of(model, model.covered(pixels[i]))))
        first += len(pixels)
    return tops


def _label(names: Sequence[str] | None, label: int) -> str:
    return str(label) if names is None else str(names[label])
