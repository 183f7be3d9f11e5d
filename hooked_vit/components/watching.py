"""Who listens at a hook point, and what he made of the tensor he was shown."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from transformer_lens.hook_points import HookPoint


def watched(*points: HookPoint) -> bool:
    """True where somebody listens: tensors that are expensive to name are computed only then."""
    return any(p._forward_hooks or p._backward_hooks or p._backward_pre_hooks for p in points)


def seen_by(point: HookPoint, x: Tensor) -> tuple[Tensor, bool]:
    """What a hook point makes of a tensor, and whether that is an edit, in place or not."""
    before = x.clone() if x.is_inference() else x._version  # inference tensors count no versions
    seen = point(x)
    written = x._version != before if isinstance(before, int) else not torch.equal(x, before)
    return seen, written or seen is not x


class _FastValue(torch.autograd.Function):
    """The value of one tensor with the gradient path of another that equals it up to rounding."""

    @staticmethod
    def forward(ctx, named: Tensor, fast: Tensor) -> Tensor:
        return fast.view_as(fast)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None]:
        return grad, None


def unless_edited(edited: bool, named: Tensor, fast: Callable[[], Tensor]) -> Tensor:
    """`named` where a hook edited it, else the fast kernel's value: watching never changes a number, and gradients
    still flow through the activation that was watched."""
    if edited:
        return named
    if not named.requires_grad:
        return fast()
    with torch.no_grad():
        value = fast()
    return _FastValue.apply(named, value)
