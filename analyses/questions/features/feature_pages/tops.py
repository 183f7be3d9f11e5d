"""One pass for how often each feature is active, and one for the images in which some of them are largest."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from analyses.activations.store.serving import Serving, Tokens, in_use
from analyses.data import ImageData
from analyses.data.sets import unread_batches
from analyses.drawing.pictures import colours_of
from analyses.running.notes import progress_batches
from hooked_vit import HookedViT, TokenLayout
from hooked_vit.loading.progress import tqdm
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


@dataclass(frozen=True)
class Active:
    """One batch: its labels, what features are at every token, which tokens these are, and a picture as it was seen."""

    labels: Tensor | None
    layout: TokenLayout
    acts: Float[Tensor, "b t f"]
    pixels: Callable[[int], Float[Tensor, "c h w"]]


def activations(model: HookedViT, sae: Sae, host: str, data: ImageData, batch_size: int, what: str) -> Iterator[Active]:
    """What features are on every image: of a store in use, where nothing runs and a picture is opened to be shown."""
    used = in_use()
    if used is not None and (serving := used.serving(model, data)) is not None:
        yield from _stored(serving, sae, host, batch_size, what)
        return
    layer = int(host.split(".")[1])
    for batch in progress_batches(data, batch_size, what):
        pixels = model.preprocess(batch.images)
        kept: list[Tensor] = []
        with torch.no_grad(), model.hooks([(host, lambda act, hook, kept=kept: kept.append(act))]):
            model(pixels, stop_at_layer=layer + 1)
        acts = sae.encode(kept[0].flatten(2))
        yield Active(batch.labels, model.layout_for(*pixels.shape[2:]), acts, pixels.__getitem__)


def _stored(serving: Serving, sae: Sae, host: str, batch_size: int, what: str) -> Iterator[Active]:
    model, data = serving.model, serving.data
    name, layout = serving.whole(host)
    tokens, total = Tokens(serving, name), -(-len(data) // batch_size)
    for batch in tqdm(unread_batches(data, batch_size), total=total, desc=what, leave=False):
        acts = sae.encode(tokens[torch.arange(batch.first, batch.first + len(batch))].to(model.device))

        def pixels(i: int, first: int = batch.first) -> Tensor:
            return model.preprocess(next(data.only([first + i]).batches(1)).images)[0]

        yield Active(batch.labels, layout, acts, pixels)


def use_by_role(model: HookedViT, sae: Sae, host: str, data: ImageData, batch_size: int) -> dict[str, Use]:
    """How every feature is used, by role of token."""
    found: dict[str, Use] = {}
    for one in activations(model, sae, host, data, batch_size, "how often features are active"):
        for role in one.layout.roles:
            mine = one.acts[:, one.layout.mask(role).to(one.acts.device)]
            found.setdefault(role, Use()).update(mine.flatten(0, 1))
    return found


def top_images(
    model: HookedViT, sae: Sae, host: str, data: ImageData, features: Sequence[int], most: int, batch_size: int
) -> dict[int, Tops]:
    """The images in a patch of which each of these features is largest."""
    tops = {feature: Tops(most) for feature in features}
    names, first = data.class_names, 0
    for one in activations(model, sae, host, data, batch_size, "where features are largest"):
        patches = one.layout.mask("patches").to(one.acts.device)
        maps = one.acts[:, patches][..., list(features)].float().cpu()
        for i in range(len(maps)):
            label = "" if one.labels is None else _label(names, int(one.labels[i]))
            for j, feature in enumerate(features):
                here = maps[i, :, j].reshape(one.layout.grid)
                if tops[feature].wants(value := float(here.max())):
                    colours = colours_of(model, model.covered(one.pixels(i)))
                    tops[feature].add(Seen(value, first + i, label, here, colours))
        first += len(maps)
    return tops


def _label(names: Sequence[str] | None, label: int) -> str:
    return str(label) if names is None else str(names[label])
