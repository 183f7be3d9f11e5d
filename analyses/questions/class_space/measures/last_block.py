"""What a run comes to: its answer, and the class scores of every token behind the last block."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Float64, Int
from torch import Tensor

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
    """Of each image whether the answer is right; of each token the rank of the image's class; which token is which.

    `scores` are those of the classes, from which the answer is.
    """

    right: Bool[Tensor, "b"]
    pos: Float64[Tensor, "b t"]
    layout: TokenLayout
    scores: Float[Tensor, "b c"]

    def rate(self, here: Bool[Tensor, "#b t"]) -> Float64[Tensor, "b"]:
        """Share of these tokens of each image that put its class first; NaN where an image has none of them."""
        return _mean(correct(self.pos).double(), here)

    def identifiability(self, here: Bool[Tensor, "#b t"], n_classes: int) -> Float64[Tensor, "b"]:
        """Mean r of these tokens of each image; NaN where an image has none of them."""
        return _mean(identifiability(self.pos, n_classes), here)


def _mean(values: Tensor, here: Tensor) -> Tensor:
    here = here.expand(values.shape)
    return torch.where(here, values, 0.0).sum(1) / here.sum(1)  # 0 / 0 is NaN


@torch.no_grad()
def read_ending(
    model: HookedViT, pixels: Float[Tensor, "b c h w"], labels: Int[Tensor, "b"], rules: Rules = AS_TRAINED
) -> Ending:
    """Run once, under whatever is applied to the model, and rank each image's class at each of its last tokens.

    >>> with apply(model, zero_attention("patches", "cls")):  # doctest: +SKIP
    ...     read_ending(model, pixels, labels).rate(model.tokens.mask("patches")[None])

    Raises ValueError for a label that is no class of the head.
    """
    seen: list[tuple[Tensor, TokenLayout]] = []

    def see(resid: Tensor, hook: object) -> None:
        seen[:] = [(token_ranks(project_tokens(model, resid, model.tokens, rules), labels), model.tokens)]

    last = f"blocks.{model.cfg.n_layers - 1}.hook_resid_post"
    scores = class_answers(model, model.run_with_hooks(pixels, fwd_hooks=[(last, see)]), rules)
    (pos, layout) = seen[0]
    return Ending(correct(rank(scores, labels.to(scores.device))).cpu(), pos, layout, scores)
