"""Linear probes on every token position from a few images per class, beside the model's own class projection (§23)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Float64, Int
from numpy.typing import NDArray
from torch import Tensor

from analyses.probes.ridge import GramRidge
from analyses.processes.walking import filling
from analyses.questions.class_space.measures.projection import AS_TRAINED, Rules, project_tokens, token_ranks
from analyses.statistics.ranks import correct
from hooked_vit import HookedViT

SITES = {"block": "resid_post", "attn": "attn_out", "mlp": "mlp_out"}
"""What is read: the stream behind a block, and what attention and MLP add to it."""

ALPHA = 1.0
MEMORY = 2 * 2**30  # bytes of probes held at once

Place = tuple[str, int]
Batches = Callable[[], Iterable[tuple[Tensor, Tensor]]]
"""Starts a new pass over batches of pixels [b, c, h, w] and labels [b]."""


@dataclass(frozen=True, eq=False)
class PositionProbe:
    """One ridge classifier per token position, for the same classes."""

    weight: Float64[Tensor, "t c d"]
    bias: Float64[Tensor, "t c"]

    def scores(self, x: Float[Tensor, "b t d"]) -> Float64[Tensor, "b t c"]:
        """Each position's scores by its own probe, about −1 to 1."""
        return torch.einsum("btd,tcd->btc", x.to(self.weight), self.weight) + self.bias


def places(model: HookedViT) -> list[Place]:
    """Every (site, layer) there are probes for."""
    return [(site, layer) for site in SITES for layer in range(model.cfg.n_layers)]


def fit_position_probes(
    model: HookedViT, shots: Batches, n_classes: int, where: Iterable[Place], *, alpha: float = ALPHA
) -> dict[Place, PositionProbe]:
    """A ridge probe for every place and token position, from one pass over few images of each class.

    >>> fit_position_probes(model, shots, 10, [("block", 3)])["block", 3].weight.shape  # doctest: +SKIP
    torch.Size([37, 10, 96])

    Features as they are, without a norm; targets +1 for the class and −1 for every other, penalty `alpha`, intercept
    not penalised. Raises what `GramRidge` raises. Source: Vilas et al. 2023, section 8; methods §23.
    """
    where = list(where)
    ridges = {(site, layer): GramRidge(n_classes, name=f"{site} {layer}, by token position") for site, layer in where}
    for pixels, labels in filling(shots(), ridges):
        for place, x in _read(model, pixels, where).items():
            ridges[place].update({str(t): x[:, t] for t in range(x.shape[1])}, labels)
    probes = {}
    for place in where:
        fitted = list(ridges.pop(place).fit(alphas=alpha).values())
        probes[place] = PositionProbe(torch.stack([p.weight for p in fitted]), torch.stack([p.bias for p in fitted]))
    return probes


@dataclass(eq=False)
class Positions:
    """What probes and projection find on N images with n patches.

    `right[kind, site, layer]` is the share of an image's patches at which the class comes first, [N];
    `by_position` the share of images at each patch, [n]; `cls` whether it comes first at CLS, [N]. `kind` is "probe" or
    "projection". `ranks[kind]` [N, n] sums, over blocks, the position of the class at the block's output (0: first).
    """

    right: dict[tuple[str, str, int], NDArray[np.float64]]
    by_position: dict[tuple[str, str, int], NDArray[np.float64]]
    cls: dict[tuple[str, str, int], NDArray[np.float64]]
    ranks: dict[str, Float64[Tensor, "images n"]]


def measure_positions(
    model: HookedViT,
    shots: Batches,
    images: Batches,
    n_classes: int,
    classes: Callable[[Int[Tensor, "_"]], Int[Tensor, "_"]] | None = None,
    *,
    rules: Rules = AS_TRAINED,
    alpha: float = ALPHA,
    memory: int = MEMORY,
) -> Positions:
    """Probes fitted on `shots` and the class projection, both measured on `images`.

    >>> found = measure_positions(model, shots, images, n_classes=10)  # doctest: +SKIP
    >>> found.right["probe", "block", 7].mean(), -found.ranks["probe"]  # doctest: +SKIP

    `classes` translates labels of the data into classes of the head, where they differ. At most `memory` bytes of
    probes are held at once; beyond that more passes are made, each over some of the places.
    """
    right: dict[tuple[str, str, int], list[Tensor]] = {}
    ranks: dict[str, list[Tensor]] = {}
    for part in _parts(model, n_classes, memory):
        probes = fit_position_probes(model, shots, n_classes, part, alpha=alpha)
        summed: dict[str, list[Tensor]] = {"probe": [], "projection": []}
        for pixels, labels in filling(images(), right, summed):
            layout = model.layout_for(*pixels.shape[2:])
            head_labels = labels if classes is None else classes(labels)
            total = {kind: torch.zeros(len(labels), int(layout.mask("patches").sum())).double() for kind in summed}
            for place, x in _read(model, pixels, part).items():
                found = {
                    "probe": token_ranks(probes[place].scores(x), labels),
                    "projection": token_ranks(project_tokens(model, x, layout, rules), head_labels),
                }
                for kind, pos in found.items():
                    right.setdefault((kind, *place), []).append(correct(pos))
                    if place[0] == "block":
                        total[kind] += pos[:, layout.mask("patches")]
            for kind in summed:
                summed[kind].append(total[kind])
        for kind, batches in summed.items():
            ranks.setdefault(kind, []).append(torch.cat(batches))
    patches, cls = layout.mask("patches"), layout.mask("cls", missing_ok=True)
    hits = {key: torch.cat(values).double() for key, values in right.items()}
    return Positions(
        right={key: x[:, patches].mean(1).numpy() for key, x in hits.items()},
        by_position={key: x[:, patches].mean(0).numpy() for key, x in hits.items()},
        cls={key: x[:, cls].squeeze(1).numpy() for key, x in hits.items()} if cls.any() else {},
        ranks={kind: torch.stack(values).sum(0) for kind, values in ranks.items()},
    )


def _parts(model: HookedViT, n_classes: int, memory: int) -> Iterator[list[Place]]:
    cfg = model.cfg
    # each position's scatter, and its classes' sums or weights
    per_place = model.tokens.n_tokens * cfg.d_model * (cfg.d_model + n_classes) * 8
    at_once = max(1, memory // per_place)
    every = places(model)
    for first in range(0, len(every), at_once):
        yield every[first : first + at_once]


@torch.no_grad()
def _read(model: HookedViT, pixels: Tensor, where: list[Place]) -> dict[Place, Float[Tensor, "b t d"]]:
    names = {place: f"blocks.{place[1]}.hook_{SITES[place[0]]}" for place in where}
    deepest = max(layer for _, layer in where) + 1
    _, cache = model.run_with_cache(pixels, names_filter=list(names.values()), stop_at_layer=deepest)
    return {place: cache[name] for place, name in names.items()}
