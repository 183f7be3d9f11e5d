"""Norms with TransformerLens' names for what they divide by and what is left."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from hooked_vit.components.watching import HookPoint, seen_by, unless_edited, watched
from hooked_vit.config import ViTConfig


class LayerNorm(nn.LayerNorm):
    """Layer norm with TransformerLens' names: `hook_scale` [b t 1] and `hook_normalized` [b t d], before the affine."""

    centred = True  # the mean is subtracted

    def __init__(self, d_model: int, eps: float, *, bias: bool = True) -> None:
        super().__init__(d_model, eps=eps, bias=bias)
        self.hook_scale = HookPoint()
        self.hook_normalized = HookPoint()

    def applied(self, x: Float[Tensor, "*b d"]) -> Float[Tensor, "*b d"]:
        """The norm of any vectors, unseen by hooks."""
        return super().forward(x)

    def forward(self, x: Float[Tensor, "*b d"]) -> Float[Tensor, "*b d"]:
        if not watched(self.hook_scale, self.hook_normalized):
            return self.applied(x)
        # torch's own variance takes as long as a matrix product
        variance = (wide := _wide(x)).sub(wide.mean(-1, keepdim=True)).square().mean(-1, keepdim=True)
        scale = (variance + self.eps).sqrt().to(x.dtype)
        scale, scale_edited = seen_by(self.hook_scale, scale)
        normalized, edited = seen_by(self.hook_normalized, (x - x.mean(-1, keepdim=True)) / scale)
        named = normalized * self.weight + self.bias
        return unless_edited(scale_edited or edited, named, lambda: self.applied(x))

    @property
    def w(self) -> Float[Tensor, "d"]:
        """Gain."""
        return self.weight

    @property
    def b(self) -> Float[Tensor, "d"]:
        """Offset; zeros where there is none."""
        return self.weight.new_zeros(self.weight.shape) if self.bias is None else self.bias


class RMSNorm(LayerNorm):
    """Division by the root mean square alone: no mean is subtracted and no offset added (Zhang & Sennrich 2019)."""

    centred = False

    def __init__(self, d_model: int, eps: float) -> None:
        super().__init__(d_model, eps, bias=False)

    def applied(self, x: Float[Tensor, "*b d"]) -> Float[Tensor, "*b d"]:
        """The norm of any vectors, unseen by hooks."""
        wide = _wide(x)
        return self.weight * (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.eps)).to(x.dtype)

    def forward(self, x: Float[Tensor, "*b d"]) -> Float[Tensor, "*b d"]:
        if not watched(self.hook_scale, self.hook_normalized):
            return self.applied(x)
        wide = _wide(x)
        scale = (wide.pow(2).mean(-1, keepdim=True) + self.eps).sqrt()
        scale, scale_edited = seen_by(self.hook_scale, scale.to(x.dtype))
        normalized, edited = seen_by(self.hook_normalized, x / scale)
        return unless_edited(scale_edited or edited, normalized * self.weight, lambda: self.applied(x))


def _wide(x: Tensor) -> Tensor:
    """At least in float32."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def norm_of(cfg: ViTConfig) -> LayerNorm:
    """The norm of the family, over the residual stream."""
    return (RMSNorm if cfg.norm == "rms" else LayerNorm)(cfg.d_model, cfg.eps)


class NoNorm(nn.Module):
    """Stands where a family has no final norm, so that its hooks live there too: scale 1, nothing subtracted."""

    centred = False
    weight: Tensor
    bias: Tensor

    def __init__(self, d_model: int) -> None:
        super().__init__()
        self.hook_scale = HookPoint()
        self.hook_normalized = HookPoint()
        self.register_buffer("weight", torch.ones(d_model), persistent=False)
        self.register_buffer("bias", torch.zeros(d_model), persistent=False)

    w = LayerNorm.w

    @property
    def b(self) -> Float[Tensor, "d"]:
        """Offset."""
        return self.bias

    def applied(self, x: Float[Tensor, "*b d"]) -> Float[Tensor, "*b d"]:
        """The vectors as they are."""
        return x

    def forward(self, x: Float[Tensor, "*b d"]) -> Float[Tensor, "*b d"]:
        if watched(self.hook_scale):
            # dividing by one changes no bit, and a gradient reaches the scale
            x = x / self.hook_scale(torch.ones_like(x[..., :1]).requires_grad_(x.requires_grad))
        return self.hook_normalized(x)
