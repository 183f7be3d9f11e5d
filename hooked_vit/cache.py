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

    def __init__(
        self, cache_dict: dict[str, Tensor], model: Any, has_batch_dim: bool = True,
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

        Raises ValueError where the activation holds no such token, or a different number of them per image.
        """
        layout = self.tokens(name, layer)
        activation = self[(name, layer) if layer is not None else name]
        mask = layout.mask(tokens)
        if not layout.ragged:
            return activation[:, mask]
        counts = mask.sum(-1)
        if not (counts == counts[0]).all():
            raise ValueError(f"images hold {sorted(set(counts.tolist()))} such tokens; use .tokens(name).mask(role)")
        return activation[mask].unflatten(0, (len(activation), -1))

    def _full_name(self, name: str, layer: int | None) -> str:
        from transformer_lens.utilities import get_act_name

        return name if layer is None else get_act_name(name, layer % self.model.cfg.n_layers)

    def _get_cached_ln_scale(self, layer, mlp_input, pos_slice, batch_slice=None) -> Tensor:
        """A norm after pooling has one scale per image: the same for every token that was averaged."""
        name = "ln_final.hook_scale"
        if (layer is not None and layer != self.model.cfg.n_layers) or self.model.cfg.final_norm != "pooled":
            return super()._get_cached_ln_scale(layer, mlp_input, pos_slice, batch_slice)
        n_tokens = self.tokens("resid_post", self.model.cfg.n_layers - 1).n_tokens
        scale = pos_slice.apply(self[name].expand(*self[name].shape[:-2], n_tokens, 1), dim=-2)
        return batch_slice.apply(scale) if batch_slice is not None and self.has_batch_dim else scale

    def logit_lens(self, role: Role = "cls", tokens: Tokens | None = None) -> Float[Tensor, "layers b k c"]:
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
