"""Norms with TransformerLens' names for what they divide by and what is left."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from hooked_vit.components.watching import HookPoint, seen_by, unless_edited, watched


class LayerNorm(nn.LayerNorm):
    """Layer norm with TransformerLens' names: `hook_scale` [b t 1] and `hook_normalized` [b t d], before the affine."""

    def __init__(self, d_model: int, eps: float) -> None:
        super().__init__(d_model, eps=eps)
        self.hook_scale = HookPoint()
        self.hook_normalized = HookPoint()

    def forward(self, x: Float[Tensor, "*b d"]) -> Float[Tensor, "*b d"]:
        if not watched(self.hook_scale, self.hook_normalized):
            return super().forward(x)
        # torch warns of a variance of nothing, though it is asked for none
        variance = x.var(-1, unbiased=False, keepdim=True) if x.numel() else x.sum(-1, keepdim=True)
        scale = (variance + self.eps).sqrt()
        scale, scale_edited = seen_by(self.hook_scale, scale)
        normalized, edited = seen_by(self.hook_normalized, (x - x.mean(-1, keepdim=True)) / scale)
        named = normalized * self.weight + self.bias
        return unless_edited(scale_edited or edited, named, lambda: super(LayerNorm, self).forward(x))

    @property
    def w(self) -> Float[Tensor, "d"]:
        """Gain."""
        return self.weight

    @property
    def b(self) -> Float[Tensor, "d"]:
        """Offset."""
        return self.bias


class NoNorm(nn.Module):
    """Stands where a family has no final norm, so that its hooks live there too: scale 1, nothing subtracted."""

    def __init__(self, d_model: int) -> None:
        super().__init__()
        self.hook_scale = HookPoint()
        self.hook_normalized = HookPoint()
        self.register_buffer("weight", torch.ones(d_model), persistent=False)
        self.register_buffer("bias", torch.zeros(d_model), persistent=False)

    w, b = LayerNorm.w, LayerNorm.b

    def forward(self, x: Float[Tensor, "*b d"]) -> Float[Tensor, "*b d"]:
        if watched(self.hook_scale):
            # dividing by one changes no bit, and a gradient reaches the scale
            x = x / self.hook_scale(torch.ones_like(x[..., :1]).requires_grad_(x.requires_grad))
        return self.hook_normalized(x)
