"""The words all interventions share: layers, heads, tokens, and the one edit most of them are."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from hooked_vit import HookedViT
from hooked_vit.tokens import Tokens

Layers = int | Sequence[int] | None
Heads = int | Sequence[int] | None


def layers_of(model: HookedViT, layers: Layers) -> list[int]:
    """Layer indices 0..n_layers-1 of a layer, several, or None for all; negative from the end.

    Raises ValueError for a layer the model has not.
    """
    return _indices(layers, model.cfg.n_layers, "layer")


def layer_of(model: HookedViT, layer: int) -> int:
    """One layer index, negative from the end."""
    return layers_of(model, layer)[0]


def heads_of(model: HookedViT, heads: Heads) -> list[int]:
    """Head indices of a head, several, or None for all."""
    return _indices(heads, model.cfg.n_heads, "head")


def _indices(asked: int | Sequence[int] | None, n: int, what: str) -> list[int]:
    if asked is None:
        return list(range(n))
    wanted = [asked] if isinstance(asked, int) else list(asked)
    if bad := [i for i in wanted if isinstance(i, bool) or not isinstance(i, int) or not -n <= i < n]:
        raise ValueError(f"{what}s are 0 to {n - 1} (or negative from the end): the model has {n}, got {bad}")
    return [i % n for i in wanted]


def check_tokens(model: HookedViT, tokens: Tokens) -> None:
    """Refuse, before any run, a role or index the model has not.

    Raises ValueError. A role that only an earlier intervention can bring ("inserted") is checked when it is reached.
    """
    if tokens != "inserted":
        model.run.native.mask(tokens)


def resid_post(layer: int) -> str:
    """Hook name of "after block l"."""
    return f"blocks.{layer}.hook_resid_post"


def at_tokens(model: HookedViT, tokens: Tokens, like: Tensor) -> Bool[Tensor, "#b t 1"]:
    """Where an activation [b t d] belongs to these tokens, as they are at this point of the run."""
    mask = model.tokens.mask(tokens).to(like.device)
    return mask.reshape(-1, mask.shape[-1], 1)


def blend(act: Float[Tensor, "*s"], value: Float[Tensor, "*s"], where: Tensor) -> Float[Tensor, "*s"]:
    """`act + where * (value - act)`; a boolean `where` copies exactly, a float one is differentiable.

    The gradient of a metric in `where`, at 0, is attribution patching (Syed et al. 2023).
    """
    if where.dtype == torch.bool:
        return torch.where(where, value.to(act), act)
    return act + where.to(act) * (value.to(act) - act)


def vectors(model: HookedViT, value: Tensor, batch: int) -> Float[Tensor, "b d"]:
    """A vector [d], or one per image [b, d], as one per image.

    Raises ValueError for another width or number of images.
    """
    d = model.cfg.d_model
    if value.shape[-1] != d or value.ndim > 2 or (value.ndim == 2 and len(value) not in (1, batch)):
        raise ValueError(f"a token is [{d}], or [images, {d}] for {batch} images; got {tuple(value.shape)}")
    return value.expand(batch, d)


def check_width(model: HookedViT, value: Tensor) -> None:
    """Refuse, before any run, a vector that is not as wide as the residual stream."""
    if value.ndim not in (1, 2) or value.shape[-1] != model.cfg.d_model:
        raise ValueError(f"a token vector is [{model.cfg.d_model}] or [images, {model.cfg.d_model}]; got {tuple(value.shape)}")
