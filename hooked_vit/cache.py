"""The activation cache: TransformerLens', made exact for pooled readouts and aware of token roles."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from transformer_lens import ActivationCache as TLActivationCache
from transformer_lens.utilities import Slice

from hooked_vit.config import Role
from hooked_vit.tokens import TokenLayout, Tokens


class ActivationCache(TLActivationCache):
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

    def tokens(self, name: str, layer: int | None = None) -> TokenLayout:
        """The tokens an activation held, in the order of its position axis."""
        return self.layouts.get(self._full_name(name, layer), self.model.tokens)

    def at(self, name: str, layer: int | None = None, *, tokens: Tokens = "cls") -> Float[Tensor, "b k ..."]:
        """An activation [b t ...] at the tokens of a role, or at original token indices, wherever they were then.

        Raises ValueError where the activation holds no such token, a different number of them per image, or no tokens
        along its second axis.
        """
        layout = self.tokens(name, layer)
        kept = self[(name, layer) if layer is not None else name]
        activation = kept if self.has_batch_dim else kept[None]
        if activation.shape[1] != layout.n_tokens:
            raise ValueError(
                f"{name!r} has the shape {tuple(kept.shape)}, which does not hold {layout.n_tokens} tokens in a row"
            )
        mask = layout.mask(tokens).expand(len(activation), -1)
        counts = mask.sum(-1)
        if not (counts == counts[0]).all():
            raise ValueError(f"images hold {sorted(set(counts.tolist()))} such tokens; use .tokens(name).mask(role)")
        found = activation[mask.to(activation.device)].unflatten(0, (len(activation), -1))
        return found if self.has_batch_dim else found[0]

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

    def _ensure_head_results(self) -> bool:
        self.model.require_branches_are_sums("a stack of heads")
        return super()._ensure_head_results()

    def get_neuron_results(self, *args: Any, **kw: Any) -> Tensor:
        """TransformerLens' neuron results; a norm behind the MLP is refused."""
        self.model.require_branches_are_sums("a stack of neurons")
        return super().get_neuron_results(*args, **kw)

    def stack_neuron_results(self, *args: Any, **kw: Any) -> Any:
        """TransformerLens' stack of neurons; a norm behind the MLP is refused."""
        self.model.require_branches_are_sums("a stack of neurons")
        return super().stack_neuron_results(*args, **kw)

    def get_full_resid_decomposition(self, *args: Any, **kw: Any) -> Any:
        """TransformerLens' full decomposition; norms behind the branches are refused."""
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

        Raises ValueError for a stack over other positions than `pos_slice` says.
        """
        pos_slice = pos_slice if isinstance(pos_slice, Slice) else Slice(pos_slice)
        with self.model.running(self.tokens("ln_final.hook_scale")):
            towards = self.model.tokens_to_residual_directions(tokens)
            if incorrect_tokens is not None:
                towards = towards - self.model.tokens_to_residual_directions(incorrect_tokens)
        towards = pos_slice.apply(towards, dim=-2)
        if pos_slice.mode != "int" and residual_stack.shape[-2] != towards.shape[-2]:
            raise ValueError(
                f"the stack holds {residual_stack.shape[-2]} positions, pos_slice leaves {towards.shape[-2]} of the run"
            )
        scaled = self.apply_ln_to_stack(
            residual_stack, -1, pos_slice=pos_slice, batch_slice=batch_slice, has_batch_dim=has_batch_dim
        )
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
