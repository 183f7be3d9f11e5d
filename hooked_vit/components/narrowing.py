"""The last block for the few tokens alone that the readout pools, where nobody sees the others.

What stands in place of the other tokens behind the last block then reaches nothing: they are attended to, as keys and
values, and neither their queries nor their MLP are computed. For a readout of CLS that spares five sixths of the block.
"""

from __future__ import annotations

import torch
from torch import nn

from hooked_vit.components import image_embeds
from hooked_vit.components.block import Block
from hooked_vit.components.watching import watched
from hooked_vit.config import ViTConfig
from hooked_vit.tokens import TokenLayout

BEHIND_POOLING = ("hook_pooled", *image_embeds.HOOKS, "hook_head_logits", "hook_logits")
"""The hooks of the last block and the readout whose activations have no tokens; all others may have."""


def can_narrow(block: nn.Module, norm: nn.Module) -> bool:
    """Whether the last block and the final norm are as they were built, one token like another, and nobody listens.

    >>> can_narrow(model.blocks[-1], model.ln_final)  # doctest: +SKIP
    True

    A module that somebody put in place of theirs, such as a quantised layer, may look at all tokens; so may a hook of
    torch on any of them.
    """
    parts = [*block.modules(), *norm.modules()]
    ours = all(type(part) is nn.Linear or type(part).__module__.startswith("hooked_vit.") for part in parts)
    return type(block) is Block and ours and not watched(*parts)


def rows_pooled(cfg: ViTConfig, tokens: TokenLayout) -> slice | None:
    """Where the tokens stand that the readout pools, if they are few and side by side, and are the same in all images.

    >>> rows_pooled(model.cfg, model.tokens)  # of a model that reads CLS  # doctest: +SKIP
    slice(0, 1, None)
    """
    if cfg.attention_pool is not None or tokens.ragged or tokens.present is not None:
        return None
    masks = [tokens.mask(role, missing_ok=True) for role in cfg.sources]
    places = torch.stack(masks).any(0).nonzero().flatten().tolist()
    if not all(mask.any() for mask in masks) or 2 * len(places) > tokens.n_tokens:
        return None
    rows = slice(places[0], places[-1] + 1)
    return rows if rows.stop - rows.start == len(places) else None
