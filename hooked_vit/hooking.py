"""Attaching hooks, resolving their names, and filling a cache: TransformerLens' interface, strict about names."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Self

from torch import Tensor
from transformer_lens import HookedRootModule
from transformer_lens.utilities import Slice

from hooked_vit.cache import ActivationCache
from hooked_vit.components.sizes import Sizes
from hooked_vit.components.watching import HookPoint
from hooked_vit.config import ViTConfig
from hooked_vit.errors import UnknownHookError, nearest
from hooked_vit.hook_table import describe_hooks
from hooked_vit.running import uncompiled
from hooked_vit.tokens import TokenLayout

NamesFilter = str | Sequence[str] | Callable[[str], bool] | None
Hook = tuple[str | Callable[[str], bool], Callable]


class Hooking(Sizes, HookedRootModule):
    """How a run is watched and edited, as a mixin of the model."""

    def describe_hooks(self, height: int | None = None, width: int | None = None) -> list[tuple[str, str, str]]:
        """(name, shape, meaning) of every hook point, for images of this size, or the one the processor makes.

        Raises ValueError for a size that patches do not cover.
        """
        size = self.usual_size if height is None else (height, height if width is None else width)
        self.layout_for(*size)
        return describe_hooks(self.cfg, self.hook_dict, size)

    @contextmanager
    def hooks(
        self,
        fwd_hooks: Sequence[Hook] = (),
        bwd_hooks: Sequence[Hook] = (),
        reset_hooks_end: bool = True,
        clear_contexts: bool = False,
    ) -> Iterator[Self]:
        """Attach hooks for the length of a `with`; every name is resolved before the first one is attached.

        Raises UnknownHookError for a name, or a name filter, that fits no hook point, and RuntimeError where another
        thread runs the model or has hooks attached to it.
        """
        for name, _ in (*fwd_hooks, *bwd_hooks):
            self.resolve_hooks(name)
        attached = super().hooks(list(fwd_hooks), list(bwd_hooks), reset_hooks_end, clear_contexts)
        with self.run.held(), uncompiled(), attached:
            yield self

    @contextmanager
    def more_hooks(self, points: Mapping[str, HookPoint]) -> Iterator[None]:
        """These hook points too, for the length of a `with`: found, cached and edited by name like all the others.

        Raises ValueError for a name that a hook point has already.
        """
        if taken := [name for name in points if name in self.hook_dict]:
            raise ValueError(
                f"{taken[0]} is there already: what brings it is applied to this model, and once is enough"
            )
        with self.run.held():
            for name, point in points.items():
                point.name = name
                self.hook_dict[name] = self.mod_dict[name] = point
            try:
                yield
            finally:
                for name in points:
                    del self.hook_dict[name], self.mod_dict[name]

    def resolve_hooks(self, name: str | Callable[[str], bool]) -> list[str]:
        """The hook points a name or a name filter means."""
        if isinstance(name, str):
            if name not in self.hook_dict:
                raise UnknownHookError(f"no hook point is called {name!r}{nearest(name, self.hook_dict)}")
            return [name]
        found = [known for known in self.hook_dict if name(known)]
        if not found:
            raise UnknownHookError("the name filter fits no hook point of this model; see model.describe_hooks()")
        return found

    def add_hook(self, name: str | Callable[[str], bool], *args: Any, **kw: Any) -> None:
        """Attach a hook until `reset_hooks()`.

        Raises UnknownHookError for a name that fits no hook point.
        """
        self.resolve_hooks(name)
        with self.run.held():
            super().add_hook(name, *args, **kw)

    def run_with_hooks(
        self, *model_args: Any, fwd_hooks: Sequence[Hook] = (), bwd_hooks: Sequence[Hook] = (), **kw: Any
    ) -> Tensor:
        """Run once with hooks attached: (name or name filter, function of (activation, hook)) pairs.

        >>> model.run_with_hooks(pixels, fwd_hooks=[("blocks.3.hook_resid_post", edit)])  # doctest: +SKIP

        Other arguments are `forward`'s and TransformerLens'. Raises UnknownHookError for a name that does not exist.
        """
        return super().run_with_hooks(*model_args, fwd_hooks=list(fwd_hooks), bwd_hooks=list(bwd_hooks), **kw)

    def run_with_cache(
        self,
        *model_args: Any,
        names_filter: NamesFilter = None,
        device: Any = None,
        remove_batch_dim: bool = False,
        incl_bwd: bool = False,
        metric: Callable[[Tensor], Tensor] | None = None,
        reset_hooks_end: bool = True,
        clear_contexts: bool = False,
        pos_slice: Any = None,
        return_cache_object: bool = True,
        **model_kwargs: Any,
    ) -> tuple[Tensor, ActivationCache | dict[str, Tensor]]:
        """Run and keep activations: all of them except `hook_result`, or those of `names_filter`.

        >>> logits, cache = model.run_with_cache(pixels, names_filter="blocks.3.hook_resid_post")  # doctest: +SKIP

        The arguments are TransformerLens', and with `incl_bwd` the gradients of `metric(logits)` are kept too, under
        names that end in "_grad". Raises UnknownHookError for a name that fits no hook point, and ValueError where what
        is to be differentiated is not one number.
        """
        wanted = self._wanted(names_filter)
        layouts: dict[str, TokenLayout] = {}

        def note(_: Tensor, hook: HookPoint) -> None:
            layouts[hook.name] = self.run.tokens  # type: ignore[index]

        if remove_batch_dim and model_args and len(model_args[0]) != 1:
            raise AssertionError(f"Cannot remove batch dimension from cache with batch size {len(model_args[0])}")
        kept, fwd, bwd = self.get_caching_hooks(wanted.__contains__, incl_bwd, device, remove_batch_dim)
        with (
            self.hooks([(name, note) for name in wanted]),
            self.hooks(fwd, bwd, reset_hooks_end, clear_contexts),
        ):
            output = self(*model_args, **model_kwargs)
            if incl_bwd or metric is not None:
                _one_number(output, metric, incl_bwd).backward()
        if pos_slice is not None:
            kept = _slice_positions(kept, Slice.unwrap(pos_slice), self.cfg)
        if not return_cache_object:
            return output, kept
        return output, ActivationCache(kept, self, not remove_batch_dim, layouts if pos_slice is None else None)

    def _wanted(self, names_filter: NamesFilter) -> set[str]:
        if names_filter is None:
            return {name for name in self.hook_dict if not name.endswith("hook_result")}
        if isinstance(names_filter, str) or callable(names_filter):
            return set(self.resolve_hooks(names_filter))
        return {name for wanted in names_filter for name in self.resolve_hooks(wanted)}


def _one_number(output: Tensor, metric: Callable[[Tensor], Tensor] | None, incl_bwd: bool) -> Tensor:
    if not incl_bwd:
        raise ValueError("a metric says what to differentiate; it goes with incl_bwd=True")
    value = output if metric is None else metric(output)
    if value.numel() != 1:
        raise ValueError(
            f"gradients are those of one number, and {'the output' if metric is None else 'the metric'} is "
            f"{list(value.shape)}; give metric=lambda logits: logits[:, label].sum()"
        )
    if not value.requires_grad:
        raise ValueError("there are no gradients to keep: the run was made under no_grad, or nothing asks for them")
    return value


def _slice_positions(kept: dict[str, Tensor], part: Slice, cfg: ViTConfig) -> dict[str, Tensor]:
    """TransformerLens' position slice, without cutting the batch off activations that have no position axis."""
    no_position: tuple[str, ...] = ("hook_pixels", "hook_patch", "hook_pooled", "hook_head_logits", "hook_logits")
    no_position += ("embed.norm.hook_scale", "embed.norm.hook_normalized")
    if cfg.final_norm == "pooled":
        no_position += ("ln_final.hook_scale", "ln_final.hook_normalized")
    per_head = ("hook_q", "hook_k", "hook_v", "hook_rot_q", "hook_rot_k", "attn.hook_mid", "hook_z", "hook_result")

    def cut(name: str, x: Tensor) -> Tensor:
        bare = name.removesuffix("_grad")
        if bare.startswith(("hook_pool_", "pool_", "hook_image_")):
            # of the pooling's activations keys and values alone have a row per token
            return part.apply(x, dim=-3) if bare in ("hook_pool_k", "hook_pool_v") else x
        return x if bare.endswith(no_position) else part.apply(x, dim=-3 if bare.endswith(per_head) else -2)

    return {name: cut(name, x) for name, x in kept.items()}
