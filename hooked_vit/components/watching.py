"""Who listens at a hook point, what he is shown, and what he made of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook
from torch.utils.hooks import RemovableHandle
from transformer_lens.hook_points import HookPoint as LensHookPoint

from hooked_vit.config.numbers import autocast_on


class HookPoint(LensHookPoint):
    """TransformerLens' hook point, which shows its hooks nothing but tensors of their own.

    No weight, no tensor of the caller and no other activation shares memory with what a hook is shown, so that an edit
    in place reaches what lies behind it and nothing else. Where nobody watches nothing is copied.
    Raises TypeError where a hook returns something else than a tensor of the activation's dtype and device.
    """

    def __call__(self, x: Any) -> Any:
        return self.show(x.clone()) if watched(self) else x

    def show(self, x: Tensor) -> Tensor:
        """The same for a tensor that was computed to be watched, and so is nobody else's."""
        if not watched(self):
            return x
        kind = x.device.type
        if autocast_on(kind) is None:
            return super().__call__(x)
        with torch.autocast(kind, enabled=False):  # what a hook adds is its own, and no part of the model
            return super().__call__(x)

    def register_forward_hook(self, hook: Callable, **kw: Any) -> RemovableHandle:
        """torch's; the next hook is shown a copy of what this one returns."""

        def shown(point: HookPoint, *args: Any) -> Tensor | None:
            new, old = hook(point, *args), args[-1]
            if new is None or new is old:
                return new
            point._check(new, old)
            return new.clone() if len(point._forward_hooks) > 1 else new

        return super().register_forward_hook(shown, **kw)

    def register_forward_pre_hook(self, hook: Callable, **kw: Any) -> RemovableHandle:
        """torch's; the next hook is shown a copy of what this one returns."""

        def shown(point: HookPoint, args: tuple[Tensor]) -> Tensor | None:
            new = hook(point, args)
            if new is None:
                return None
            new = new[0] if isinstance(new, tuple) and len(new) == 1 else new
            point._check(new, args[0])
            return new.clone()

        if kw.pop("with_kwargs", False):
            raise TypeError(f"a hook point has no keyword arguments to show; register the hook of {self.name} without")
        return super().register_forward_pre_hook(shown, **kw)

    def register_full_backward_hook(self, hook: Callable, prepend: bool = False) -> RemovableHandle:
        """torch's, where writing into the gradient counts as returning another one."""

        def shown(point: nn.Module, grad_in: Any, grad_out: Any) -> Any:
            own = _copies(grad_out)
            new = hook(point, tuple(None if g is None else o for g, o in zip(grad_in, own, strict=True)), own)
            return own if new is None and _written(own) else new

        return super().register_full_backward_hook(shown, prepend)

    def register_full_backward_pre_hook(self, hook: Callable, prepend: bool = False) -> RemovableHandle:
        """torch's, where writing into the gradient counts as returning another one."""

        def shown(point: nn.Module, grad_out: Any) -> Any:
            own = _copies(grad_out)
            new = hook(point, own)
            return own if new is None and _written(own) else new

        return super().register_full_backward_pre_hook(shown, prepend)

    def remove_hooks(self, *args: Any, **kw: Any) -> None:
        """TransformerLens'; every model has hundreds of points, and few of them have hooks to remove."""
        if self.fwd_hooks or self.bwd_hooks:
            super().remove_hooks(*args, **kw)

    def _check(self, new: Any, old: Tensor) -> None:
        kind = type(new).__name__
        if not isinstance(new, Tensor):
            raise TypeError(f"a hook returns a tensor, or None to change nothing; on {self.name} one returned a {kind}")
        if (new.dtype, new.device) != (old.dtype, old.device):
            raise TypeError(
                f"a hook returns what it was given in kind: {self.name} is {old.dtype} on {old.device}, and a hook "
                f"returned {new.dtype} on {new.device}; return value.to(activation)"
            )


def _copies(grads: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return tuple(g if g is None else g.clone() for g in grads)


def _written(grads: tuple[Tensor, ...]) -> bool:
    return any(g is not None and g._version > 0 for g in grads)


def watched(*points: nn.Module) -> bool:
    """True where somebody listens, with any hook torch has: what is expensive to name is computed only then.

    Who puts another `forward` in a point's place, as nnsight does, listens too.
    """
    for p in points:
        if (
            "forward" in p.__dict__
            or p._forward_hooks
            or p._forward_pre_hooks
            or p._backward_hooks
            or p._backward_pre_hooks
        ):
            return True
    return bool(_has_any_global_hook())


def transformed(x: Tensor) -> bool:
    """True inside torch.func's grad, vmap and the like, which fused kernels do not all know."""
    return not torch.compiler.is_compiling() and torch._C._functorch.is_functorch_wrapped_tensor(x)


def leaving(point: HookPoint, x: Tensor) -> Tensor:
    """What a point makes of the last tensor of a run, the caller's from now on: no hook has kept the same one."""
    return point(x).clone() if watched(point) else x


def seen_by(point: HookPoint, x: Tensor) -> tuple[Tensor, bool]:
    """What a hook point makes of a tensor computed for it, and whether that is an edit, in place or not."""
    if not watched(point):
        return x, False
    if x.is_inference():
        with torch.inference_mode(False):
            x = x.clone()  # inference tensors count no versions
    before = x._version
    seen = point.show(x)
    return seen, x._version != before or not _is(seen, x)


def _is(seen: Tensor, x: Tensor) -> bool:
    """True for the tensor itself, and for the view of it that torch makes to watch its gradient."""
    whole = x if x._base is None else x._base
    if seen is x or seen._base is not whole:
        return seen is x
    mine, its = (x.shape, x.stride(), x.storage_offset()), (seen.shape, seen.stride(), seen.storage_offset())
    return mine == its


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
    still flow through the activation that was watched. torch.func transforms what is named alone."""
    if edited or transformed(named):
        return named
    value = fast()  # as it runs unwatched: with gradients on or off, which choose kernels too
    return _FastValue.apply(named, value.detach()) if named.requires_grad else value


def may_look(x: Tensor) -> bool:
    """False where a tensor's numbers cannot be looked at: inside vmap, on the meta device, while torch traces."""
    while torch._C._functorch.is_functorch_wrapped_tensor(x):
        if torch._C._functorch.is_batchedtensor(x):
            return False
        x = torch._C._functorch.get_unwrapped(x)
    return not (x.is_meta or torch.compiler.is_compiling())
