"""What a run comes to: its answer, and the class scores of every token behind the last block, or behind others too."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Float64, Int
from torch import Tensor

from analyses.activations.layers import measured_layers
from analyses.questions.class_space.measures.projection import (
    AS_TRAINED,
    Rules,
    class_answers,
    project_tokens,
    token_ranks,
)
from analyses.statistics.ranks import correct, identifiability, rank
from hooked_vit import HookedViT, TokenLayout


class Ending(NamedTuple):
    """Of each image whether the answer is right; behind each layer that is read, the rank of its class at each token.

    `layout` says which token is which behind the last of them, `scores` are those of the classes, from which the answer
    is.
    """

    right: Bool[Tensor, "b"]
    pos: dict[int, Float64[Tensor, "b t"]]
    layout: TokenLayout
    scores: Float[Tensor, "b c"]

    def rate(self, layer: int, here: Bool[Tensor, "#b t"]) -> Float64[Tensor, "b"]:
        """Share of these tokens of each image that put its class first; NaN where an image has none of them."""
        return _mean(correct(self.pos[layer]).double(), here)

    def identifiability(self, layer: int, here: Bool[Tensor, "#b t"], n_classes: int) -> Float64[Tensor, "b"]:
        """Mean r of these tokens of each image; NaN where an image has none of them."""
        return _mean(identifiability(self.pos[layer], n_classes), here)


def _mean(values: Tensor, here: Tensor) -> Tensor:
    here = here.expand(values.shape)
    return torch.where(here, values, 0.0).sum(1) / here.sum(1)  # 0 / 0 is NaN


def ending_layers(model: HookedViT, layers: Sequence[int] | None) -> list[int]:
    """Behind which layers tokens are read: the last, where none are named.

    Raises what `measured_layers` raises.
    """
    return measured_layers(model, (-1,) if layers is None else layers)


@torch.no_grad()
def read_ending(
    model: HookedViT,
    pixels: Float[Tensor, "b c h w"],
    labels: Int[Tensor, "b"],
    rules: Rules = AS_TRAINED,
    layers: Sequence[int] | None = None,
) -> Ending:
    """Run once, under whatever is applied to the model, and rank each image's class at each token of `ending_layers`.

    >>> with apply(model, zero_attention("patches", "cls")):  # doctest: +SKIP
    ...     read_ending(model, pixels, labels).rate(11, model.tokens.mask("patches")[None])

    Raises ValueError for a label that is no class of the head.
    """
    pos: dict[int, Tensor] = {}
    layouts: list[TokenLayout] = []

    def see(layer: int) -> Callable[[Tensor, object], None]:
        def hook(resid: Tensor, hook: object) -> None:
            pos[layer] = token_ranks(project_tokens(model, resid, model.tokens, rules), labels)
            layouts.append(model.tokens)

        return hook

    hooks = [(f"blocks.{layer}.hook_resid_post", see(layer)) for layer in ending_layers(model, layers)]
    scores = class_answers(model, model.run_with_hooks(pixels, fwd_hooks=hooks), rules)
    return Ending(correct(rank(scores, labels.to(scores.device))).cpu(), pos, layouts[-1], scores)
