"""The neurons that are active where an image has a token of outlier norm, and neurons at random beside them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from analyses.activations.streams import read_layers
from analyses.data import ImageData
from analyses.questions.signal.norms import NormRule, token_norms
from analyses.running.notes import progress_batches
from hooked_vit import HookedViT


class Neuron(NamedTuple):
    """A neuron, and its mean magnitude at the tokens of outlier norm and at the other patches of the same images."""

    layer: int
    unit: int
    there: float
    elsewhere: float


class Search:
    """What a model's own norms say, on the first images of those to fit on: the rule, the layer, the neurons.

    `layer` is the one behind which outliers are most frequent. Where none has any, `outliers` is false, `layer` the one
    whose largest norms stand out most from the median, and the token of the largest norm of each image is taken
    instead.
    """

    def __init__(
        self, name: str, model: HookedViT, data: ImageData, *, z: float, cutoff: float | None, n: int, batch_size: int
    ) -> None:
        self.name, self.model = name, model
        self._pixels = list(_first(model, data, n, batch_size, f"{name}: norms"))
        norms = [torch.stack(self._norms(pixels)) for pixels in self._pixels]  # [layers, b, patches]
        together = torch.cat(norms, dim=1)
        self.rule = NormRule(together.flatten(1), z, cutoff)
        shares = torch.stack([self.rule.outliers(x, l).double().mean() for l, x in enumerate(together)])
        self.outliers = bool(shares.max() > 0)
        stands_out = together.amax(2).mean(1) / self.rule.median
        self.standing_out = shares if self.outliers else stands_out
        self.layer = int(self.standing_out.argmax())
        self.neurons = self._ranked([x[self.layer] for x in norms])

    def _norms(self, pixels: Tensor) -> list[Tensor]:
        def read(resid: Tensor) -> Tensor:
            return token_norms(resid)[:, self.model.tokens.mask("patches")]

        return read_layers(self.model, pixels, read)

    def _ranked(self, norms: list[Tensor]) -> list[Neuron]:
        """All neurons up to the layer, those first that are more active at the outliers than elsewhere."""
        there: dict[int, Tensor] = defaultdict(lambda: torch.zeros(()))
        elsewhere: dict[int, Tensor] = defaultdict(lambda: torch.zeros(()))
        images = 0
        for pixels, of_patches in zip(self._pixels, norms, strict=True):
            chosen = self._chosen(of_patches)
            some = chosen.any(1) & ~chosen.all(1)
            images += int(some.sum())
            for layer, post in enumerate(self._active(pixels)):
                for total, where in ((there, chosen), (elsewhere, ~chosen)):
                    weight = (where / where.sum(1, keepdim=True).clamp(min=1))[some].to(post)
                    total[layer] = total[layer] + torch.einsum("bt,btn->n", weight, post[some.to(post.device)]).cpu()
        found = [
            Neuron(layer, unit, *pair)
            for layer in there
            for unit, pair in enumerate((torch.stack([there[layer], elsewhere[layer]], dim=1) / images).tolist())
        ]
        return sorted(found, key=lambda neuron: neuron.elsewhere - neuron.there)

    def _chosen(self, norms: Tensor) -> Tensor:
        if self.outliers:
            return self.rule.outliers(norms, self.layer)
        return torch.zeros_like(norms, dtype=torch.bool).scatter_(1, norms.argmax(1, keepdim=True), True)

    @torch.no_grad()
    def _active(self, pixels: Tensor) -> list[Tensor]:
        """Magnitudes [b, patches, d_mlp] behind the nonlinearity, up to the layer."""
        kept: list[Tensor] = []

        def keep(post: Tensor, hook: object) -> None:
            kept.append(post[:, self.model.tokens.mask("patches")].abs().double())

        hooks = [(f"blocks.{layer}.mlp.hook_post", keep) for layer in range(self.layer + 1)]
        self.model.run_with_hooks(pixels, fwd_hooks=hooks, stop_at_layer=self.layer + 1)
        return kept

    def described(self, layers: Sequence[int]) -> int:
        """Of these layers the one that is told of: the layer itself, or behind which there is most of the same."""
        return self.layer if self.layer in layers else max(layers, key=lambda layer: float(self.standing_out[layer]))

    def top(self, k: int) -> list[tuple[int, int]]:
        """The first k neurons as (layer, neuron)."""
        return [(neuron.layer, neuron.unit) for neuron in self.neurons[:k]]

    def at_random(self, k: int, seed: int) -> list[tuple[int, int]]:
        """As many others, of the same layers."""
        rng, top = np.random.default_rng(seed), self.top(k)
        drawn: list[tuple[int, int]] = []
        for layer in sorted({layer for layer, _ in top}):
            mine = [index for of, index in top if of == layer]
            free = np.setdiff1d(np.arange(self.model.cfg.d_mlp), mine)
            drawn += [(layer, int(index)) for index in rng.permutation(free)[: len(mine)]]
        return drawn


def _first(model: HookedViT, data: ImageData, n: int, batch_size: int, what: str) -> Iterator[Tensor]:
    """Pixels of the first n images."""
    for batch in progress_batches(data, batch_size, what):
        pixels = model.preprocess(batch.images[:n])
        yield pixels
        n -= len(pixels)
        if n <= 0:
            return
