"""Taking tokens out of a run."""

from __future__ import annotations

import torch
from torch import Tensor

from hooked_vit import HookedViT
from hooked_vit.tokens import Tokens
from interventions.core import Hooks, intervention
from interventions.editing import weights
from interventions.vocabulary import Where, check_tokens, check_where, layer_of, layout_with, site_hook


@intervention
def remove_tokens(model: HookedViT, tokens: Tokens, layer: int = 0, where: Where = True) -> Hooks:
    """Delete tokens from the stream entering block `layer`: at 0, right behind the position embedding.

    >>> remove_tokens(range(1, 50))  # doctest: +ELLIPSIS
    remove_tokens(tokens=(1, 2, ...49))
    >>> remove_tokens("all", where=background)  # doctest: +SKIP

    `where` chooses images, or tokens of each image: a bool, [b], or [b, k] for the tokens named or all native ones.
    The others keep their positions, and images may keep different numbers of tokens: the rest is padding that nothing
    attends to. methods: Vilas et al. 2023, section 5 (object and context tokens); patch dropping.
    Raises ValueError where an image would keep no token at all.
    """
    layer = layer_of(model, layer)
    check_tokens(model, tokens)
    chosen = check_where(where, per_token=True)
    if chosen.dtype != torch.bool:
        raise ValueError("a token is removed or it is not: where is a bool, one per image, or per image and token")
    if chosen.ndim == 0 and chosen and tokens != "inserted" and layout_with(model, tokens).mask(tokens).all():
        raise ValueError(f"without {tokens!r} no token is left to run")

    def edit(resid: Tensor, hook: object) -> Tensor:
        layout = model.tokens
        here = layout.mask(tokens)[..., None] & weights(chosen.cpu(), resid, layout, tokens)
        gone = here.reshape(-1, resid.shape[1])
        if not gone.any():
            return resid
        kept = ~gone & layout.mask("all")
        if not kept.any(-1).all():
            raise ValueError(f"without {tokens!r} an image has no token left to run")
        places = [row.nonzero().flatten() for row in kept]
        if len(places) > 1:
            padded = torch.nn.utils.rnn.pad_sequence(places, batch_first=True, padding_value=-1)
            alike = (padded == padded[:1]).all() and not layout.ragged
            return model.keep_tokens(resid, padded[0] if alike else padded)
        return model.keep_tokens(resid, places[0])

    return [(site_hook(model, "resid_pre", layer), edit)]
