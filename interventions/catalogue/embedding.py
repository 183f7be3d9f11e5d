"""Edits of the embedding: the learned CLS token itself."""

from __future__ import annotations

import torch
from torch import Tensor

from hooked_vit import HookedViT
from interventions.core import Hooks, intervention
from interventions.editing import moved, weights
from interventions.vocabulary import Where, check_tokens, check_where, check_width, per_image


@intervention(idempotent=True)
def swap_cls_parameter(model: HookedViT, vector: Tensor, position: bool = True, where: Where = True) -> Hooks:
    """Run with another vector in the place of the learned CLS embedding.

    >>> swap_cls_parameter(0.02 * torch.randn(768))  # doctest: +SKIP

    `vector` is [d], or one per image [b, d]. It gets the position embedding of CLS, or with `position=False` none: then
    it is all that enters the network as CLS. methods: Zou et al. 2024 (CLS as a domain-bound parameter).
    Raises ValueError where the model has no CLS token.
    """
    check_tokens(model, "cls")
    check_width(model, vector)
    chosen = check_where(where)

    def replaced(act: Tensor, value: Tensor) -> Tensor:
        value = per_image(value.reshape(-1, 1, value.shape[-1]), len(act), "vectors are given")
        here = model.tokens.mask("cls")[:, None]
        return moved(act, lambda _: value, here, weights(chosen, act, model.tokens, "cls"))

    def as_embedding(embed: Tensor, hook: object) -> Tensor:
        return replaced(embed, vector)

    def without_position(pos: Tensor, hook: object) -> Tensor:
        return replaced(pos, torch.zeros_like(vector))

    def as_position(pos: Tensor, hook: object) -> Tensor:
        # the sum of embedding and position goes straight into a norm, and only the position can be edited before that
        change = vector.to(pos) - model.embed.cls.flatten()  # type: ignore[union-attr]
        if position and model.pos_embed is not None:
            change = change + model.pos_embed(model.tokens.grid)[0, model.cfg.prefix.index("cls")]
        return replaced(pos, change)

    if model.cfg.ln_pre:
        return [("hook_pos_embed", as_position)]
    return [("hook_embed", as_embedding), *([] if position else [("hook_pos_embed", without_position)])]
