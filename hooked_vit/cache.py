"""The activation cache: TransformerLens', made exact for pooled readouts and aware of token roles."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from transformer_lens import ActivationCache as TLActivationCache
from transformer_lens.utilities import Slice

from hooked_vit.config import Role
from hooked_vit.config.showing import Displayed, bare, counted, one_line
from hooked_vit.errors import UnknownHookError, nearest
from hooked_vit.tokens import TokenLayout, Tokens


class ActivationCache(Displayed, TLActivationCache):
    """Activations of one run by name, every TransformerLens method exact on every family.

    >>> logits, cache = model.run_with_cache(pixels)  # doctest: +SKIP
    >>> cache["resid_post", 3].shape, cache.at("resid_post", 3, tokens="cls").shape  # doctest: +SKIP

    `layouts` says which tokens each activation held, so that roles stay right after insertion and removal.
    """

    model: Any

    def __init__(
        self,
        cache_dict: dict[str, Tensor],
        model: Any,
        has_batch_dim: bool = True,
        layouts: dict[str, TokenLayout] | None = None,
    ) -> None:
        super().__init__(cache_dict, model, has_batch_dim)
        self.layouts = layouts or {}
        # where positions are added in front of a norm they are no term of the residual stream
        self.has_pos_embed = self.has_pos_embed and not model.cfg.ln_pre

    def __getitem__(self, key: Any) -> Tensor:
        """The activation of a hook's name, or of a short name and a layer, negative from the end.

        Raises UnknownHookError where there is no such hook point, and where this cache does not hold it.
        """
        try:
            return super().__getitem__(key)
        except (KeyError, TypeError):
            raise UnknownHookError(self._missing(key)) from None

    def _missing(self, key: Any) -> str:
        known, n = self.model.hook_dict, self.model.cfg.n_layers
        if isinstance(key, tuple) and len(key) > 1 and isinstance(key[1], int) and not -n <= key[1] < n:
            return f"layers are 0 to {n - 1}, or negative from the end; got {key[1]}"
        short, layer = (key[0], key[1]) if isinstance(key, tuple) and len(key) > 1 else (key, None)
        name = self._full_name(short, layer) if isinstance(short, str) else repr(key)
        if name.removesuffix("_grad") in known:
            return f"the cache does not hold {name!r}; see names_filter, and incl_bwd for gradients, of run_with_cache"
        shorts = {hook.rpartition("hook_")[2]: hook for hook in known}
        return f"no activation is called {short!r}{nearest(str(short), {*shorts, *known})}"

    def tokens(self, name: str, layer: int | None = None) -> TokenLayout:
        """The tokens an activation held, in the order of its position axis."""
        return self.layouts.get(self._full_name(name, layer), self.model.tokens)

    def at(
        self,
        name: str,
        layer: int | None = None,
        *,
        tokens: Tokens | None = None,
        queries: Tokens | None = None,
        keys: Tokens | None = None,
    ) -> Float[Tensor, "b ..."]:
        """An activation at the tokens of a role, or at original token indices, wherever they were then.

        >>> cache.at("resid_post", 3, tokens="patches").shape  # [b k d]  # doctest: +SKIP
        >>> cache.at("pattern", 3, queries="cls", keys="patches").shape  # [b h q k]  # doctest: +SKIP

        `tokens` (CLS, unless said otherwise) are along the second axis of [b t ...]; `queries` and `keys`, all of them
        where one is not said, along the last two of attention's [b h t t].
        Raises ValueError where the activation holds no such token, a different number of them per image, or no tokens
        along such an axis.
        """
        wanted = (
            {-2: queries, -1: keys} if (queries, keys) != (None, None) else {1: "cls" if tokens is None else tokens}
        )
        if tokens is not None and 1 not in wanted:
            raise ValueError(
                "`tokens` are of a stream [b t ...], `queries` and `keys` of attention [b h t t]; got both"
            )
        kept = self[(name, layer) if layer is not None else name]
        found = kept if self.has_batch_dim else kept[None]
        layout = self.tokens(name, layer)
        for axis, which in wanted.items():
            if which is not None:
                found = self._taken(found, axis, layout, which, f"{name!r} has the shape {tuple(kept.shape)}")
        return found if self.has_batch_dim else found[0]

    def _taken(self, activation: Tensor, axis: int, layout: TokenLayout, which: Tokens, what: str) -> Tensor:
        attention = axis < 0
        if activation.ndim <= max(axis, 3 * attention) or activation.shape[axis] != layout.n_tokens:
            other = "tokens= is for a stream" if attention else "queries= and keys= are for attention"
            raise ValueError(f"{what}, which does not hold {layout.n_tokens} tokens along axis {axis}; {other}")
        mask = layout.mask(which)
        counts = sorted(set(mask.sum(-1).flatten().tolist()))
        if len(counts) > 1:
            raise ValueError(f"images hold {counts} such tokens; use .tokens(name).mask(role)")
        along = activation.movedim(axis, 1)
        found = along[mask.expand(len(along), -1).to(along.device)]
        return found.reshape(len(along), *counts, *along.shape[2:]).movedim(1, axis)

    def __repr__(self) -> str:
        names = list(self.cache_dict)
        span = f": {names[0]} to {names[-1]}" if names else ""
        return one_line(f"ActivationCache({counted(len(names), 'activation')} of {self._images()}{span})")

    def _rows(self) -> dict[str, object]:
        shapes: dict[str, object] = {
            name: f"{list(act.shape)} {bare(act.dtype)}" for name, act in self.cache_dict.items()
        }
        return {"of": f"{self._images()}, by {self.model!r}"} | shapes

    def _images(self) -> str:
        first = next(iter(self.cache_dict.values()), None)
        return counted(len(first) if first is not None and self.has_batch_dim else 1, "image")

    def _full_name(self, name: str, layer: int | None) -> str:
        from transformer_lens.utilities import get_act_name

        return name if layer is None else get_act_name(name, layer % self.model.cfg.n_layers)

    def _get_cached_ln_scale(self, layer, mlp_input, pos_slice, batch_slice=None) -> Tensor:
        """A norm after pooling has one scale per image and role: the same for every token that was averaged."""
        name = "ln_final.hook_scale"
        if layer not in (None, self.model.cfg.n_layers):
            self.model.require_branches_are_sums("the norm in front of a block")
        if (layer is not None and layer != self.model.cfg.n_layers) or self.model.cfg.final_norm != "pooled":
            return super()._get_cached_ln_scale(layer, mlp_input, pos_slice, batch_slice)
        layout, sources = self.tokens(name), self.model.cfg.sources
        scale = self[name][..., :1, :].expand(*self[name].shape[:-2], layout.n_tokens, 1)
        for i, role in enumerate(sources[1:], start=1):
            scale = torch.where(layout.mask(role)[..., None].to(scale.device), self[name][..., i : i + 1, :], scale)
        scale = pos_slice.apply(scale, dim=-2)
        return batch_slice.apply(scale) if batch_slice is not None and self.has_batch_dim else scale

    def decompose_resid(self, layer: int | None = None, mlp_input: bool = False, *args: Any, **kw: Any) -> Any:
        """TransformerLens' decomposition of the stream entering a layer; a change of tokens in between is refused."""
        self._require_same_tokens(layer, *["resid_pre", "resid_mid"] * mlp_input)
        return super().decompose_resid(layer, mlp_input, *args, **kw)

    def accumulated_resid(self, layer: int | None = None, *args: Any, **kw: Any) -> Any:
        """TransformerLens' stack of the stream at every depth; a change of tokens in between is refused."""
        self._require_same_tokens(layer, "resid_pre", *["resid_mid"] * bool(kw.get("mlp_input")))
        return super().accumulated_resid(layer, *args, **kw)

    def _require_same_tokens(self, layer: int | None, *also: str) -> None:
        """Raise ValueError where activations of a stack would be laid over each other whose tokens are not the same.

        They are those in front of a layer, and `also` parts of it.
        """
        upto = self.model.cfg.n_layers if layer in (None, -1) else layer or 0
        parts = ("resid_pre", "resid_mid", "resid_post")
        stream = [f"blocks.{i}.hook_{part}" for i in range(upto + 1) for part in (parts if i < upto else also)]
        held = [(name, self.layouts[name]) for name in ["hook_embed", *stream] if name in self.layouts]
        for (before, old), (after, new) in pairwise(held):
            if not new.same_as(old):
                raise ValueError(
                    f"a stack lays activations over each other token by token, and between {before} and {after} the "
                    f"tokens change from {old} to {new}; stack those before or after it by hand, with "
                    "cache.at(name, layer, tokens=role) for the tokens they share"
                )

    def _ensure_head_results(self) -> bool:
        self.model.require_branches_are_sums("a stack of heads")
        return super()._ensure_head_results()

    def get_neuron_results(self, *args: Any, **kw: Any) -> Tensor:
        """TransformerLens' neuron results; a norm behind the MLP is refused."""
        self.model.require_branches_are_sums("a stack of neurons")
        return super().get_neuron_results(*args, **kw)

    def stack_neuron_results(self, *args: Any, **kw: Any) -> Any:
        """TransformerLens' stack of neurons; a norm behind the MLP is refused."""
        self._require_same_tokens(args[0] if args else kw.get("layer"))
        self.model.require_branches_are_sums("a stack of neurons")
        return super().stack_neuron_results(*args, **kw)

    def get_full_resid_decomposition(self, *args: Any, **kw: Any) -> Any:
        """TransformerLens' full decomposition; norms behind the branches are refused."""
        self._require_same_tokens(args[0] if args else kw.get("layer"))
        self.model.require_branches_are_sums("a full decomposition")
        return super().get_full_resid_decomposition(*args, **kw)

    def logit_attrs(
        self,
        residual_stack: Tensor,
        tokens: Any,
        incorrect_tokens: Any = None,
        pos_slice: Any = None,
        batch_slice: Any = None,
        has_batch_dim: bool = True,
    ) -> Float[Tensor, "components *b t"]:
        """TransformerLens' logit attributions, for the tokens this run had; `tokens` are classes, one or one per image.

        >>> cache.logit_attrs(cache.decompose_resid(), 7).sum(dim=(0, -1)) + model.logit_constant[7]  # doctest: +SKIP

        Raises ValueError for a stack over other positions than `pos_slice` says, or classes that are not as many as
        the images or the incorrect ones.
        """
        pos_slice = pos_slice if isinstance(pos_slice, Slice) else Slice(pos_slice)
        with self.model.running(self.tokens("ln_final.hook_scale")):
            towards = self.model.tokens_to_residual_directions(tokens)
            if incorrect_tokens is not None:
                _check_pairs(tokens, incorrect_tokens)
                towards = towards - self.model.tokens_to_residual_directions(incorrect_tokens)
        towards = pos_slice.apply(towards, dim=-2)
        if pos_slice.mode != "int" and residual_stack.shape[-2] != towards.shape[-2]:
            raise ValueError(
                f"the stack holds {residual_stack.shape[-2]} positions, pos_slice leaves {towards.shape[-2]} of the run"
            )
        scaled = self.apply_ln_to_stack(
            residual_stack, -1, pos_slice=pos_slice, batch_slice=batch_slice, has_batch_dim=has_batch_dim
        )
        whole = self.has_batch_dim and has_batch_dim and getattr(batch_slice, "mode", None) != "int"
        images = scaled.shape[1] if whole and not isinstance(batch_slice, int) else 1
        if len(towards) not in (1, images):
            raise ValueError(f"classes are one, or one for each of {images} images of the stack; got {len(towards)}")
        return (scaled * towards).sum(-1)

    def logit_lens(  # type: ignore[override]
        self, role: Role = "cls", tokens: Tokens | None = None
    ) -> Float[Tensor, "layers *b k c"]:
        """Class scores of the residual stream at every depth: entering each block, and after the last one.

        >>> cache.logit_lens("cls")[-1, :, 0]  # doctest: +SKIP

        `role` decides which head reads, `tokens` what is read (the same role where it is not given). This replaces
        TransformerLens' method, which knows one unembedding for all positions.
        """
        read = role if tokens is None else tokens
        n = self.model.cfg.n_layers
        depths = [("resid_pre", layer) for layer in range(n)] + [("resid_post", n - 1)]
        return torch.stack([self.model.project(self.at(*where, tokens=read), role) for where in depths])

    def apply_slice_to_batch_dim(self, batch_slice: Slice | Any) -> ActivationCache:
        """The cache of a part of the batch."""
        part = super().apply_slice_to_batch_dim(batch_slice)
        if any(layout.ragged for layout in self.layouts.values()):
            raise ValueError("a cache whose images hold different tokens cannot be sliced; run the images you want")
        return ActivationCache(part.cache_dict, self.model, part.has_batch_dim, self.layouts)


def _check_pairs(classes: Any, incorrect: Any) -> None:
    """Refuse classes that cannot be told which incorrect ones they are compared with: one each, or one for all."""
    shapes = [() if isinstance(given, str) else tuple(torch.as_tensor(given).shape) for given in (classes, incorrect)]
    if shapes[0] != shapes[1] and () not in shapes:
        raise ValueError(
            f"classes are compared one with one, so tokens and incorrect_tokens have one shape, or one of them is a "
            f"single class; got {list(shapes[0])} and {list(shapes[1])}"
        )
