"""Putting one run's tokens into another."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from hooked_vit import ActivationCache, HookedViT
from interventions.core import Hooks, intervention
from interventions.vocabulary import at_tokens, check_tokens, check_width, layer_of, resid_post, vectors


def _cls_of_cache(layer: int, value: Any) -> dict[str, Any]:
    """A cache becomes the CLS tokens it holds, so that the intervention can be stored."""
    if isinstance(value, ActivationCache):
        value = value.at("resid_post", layer, tokens="cls").squeeze(1)
    return {"layer": layer, "value": value}


@intervention(canonical=_cls_of_cache)
def patch_cls(model: HookedViT, layer: int, value: Tensor) -> Hooks:
    """Put given CLS tokens in place after block `layer`.

    >>> patch_cls(layer=3, value=cache)  # doctest: +SKIP

    `value` is a cache that holds `resid_post` of that layer, a vector [d], one per image [b, d], or the pixels
    [b, c, h, w] of other images, whose CLS tokens after that block are taken (one extra run).
    Raises ValueError for another width or number of images.
    """
    layer = layer_of(model, layer)
    check_tokens(model, "cls")
    if value.ndim == 4:
        value = model(value, stop_at_layer=layer + 1)[:, model.run.native.cls].squeeze(1)
    check_width(model, value)

    def edit(resid: Tensor, hook: object) -> Tensor:
        new = vectors(model, value, len(resid)).to(resid)
        return torch.where(at_tokens(model, "cls", resid), new[:, None], resid)

    return [(resid_post(layer), edit)]
