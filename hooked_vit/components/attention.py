"""Multi-head self-attention, each activation named where it is computed."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from hooked_vit.components.embedding import RelativePositionBias
from hooked_vit.components.linears import bias_of, plain
from hooked_vit.components.norms import LayerNorm
from hooked_vit.components.rotary import Rotary
from hooked_vit.components.watching import HookPoint, seen_by, transformed, unless_edited, watched
from hooked_vit.config import ViTConfig
from hooked_vit.tokens import Run, tokens_changed


class Attention(nn.Module):
    """Multi-head self-attention, its output already multiplied by LayerScale where the family has one."""

    hook_q: HookPoint
    hook_k: HookPoint
    hook_v: HookPoint
    hook_attn_scores: HookPoint
    hook_pattern: HookPoint
    hook_z: HookPoint
    hook_result: HookPoint
    hook_rot_q: HookPoint
    hook_rot_k: HookPoint

    def __init__(self, cfg: ViTConfig, run: Run, shared_bias: RelativePositionBias | None) -> None:
        super().__init__()
        self.run, self.d_head, self.n_heads = run, cfg.d_head, cfg.n_heads
        self.q = nn.Linear(cfg.d_model, cfg.d_model, bias=cfg.q_bias)
        self.k = nn.Linear(cfg.d_model, cfg.d_model, bias=cfg.k_bias)
        self.v = nn.Linear(cfg.d_model, cfg.d_model, bias=cfg.v_bias)
        self.o = nn.Linear(cfg.d_model, cfg.d_model, bias=cfg.o_bias)
        self.ls = nn.Parameter(torch.ones(cfg.d_model)) if cfg.layer_scale else None
        self.rel_pos = RelativePositionBias(cfg) if cfg.rel_pos_per_layer else None
        # in a tuple, so that the shared table is not registered once per block
        self._shared_bias = (shared_bias,)
        for name in ("q", "k", "v", "attn_scores", "pattern", "z", "result"):
            setattr(self, f"hook_{name}", HookPoint())
        if cfg.rel_pos_per_layer or cfg.rel_pos_shared:
            self.hook_rel_pos_bias = HookPoint()
        self.ln = LayerNorm(cfg.d_model, cfg.eps) if cfg.attn_inner_norm else None
        if cfg.attn_inner_norm:
            self.hook_mid = HookPoint()
        self.rotary = Rotary(cfg) if cfg.rotary is not None else None
        if self.rotary is not None:
            self.hook_rot_q, self.hook_rot_k = HookPoint(), HookPoint()

    def forward(self, x: Float[Tensor, "b t d"], rows: slice | None = None) -> Float[Tensor, "b after d"]:
        asking = x if rows is None else x[:, rows]
        q, k = self.hook_q(self._split(self.q(asking))), self.hook_k(self._split(self.k(x)))
        v = self.hook_v(self._split(self.v(x))).transpose(1, 2)
        bias = self._bias(x, rows)
        if self.rotary is not None:
            q = self.hook_rot_q(self.rotary(q, self.run.tokens if rows is None else self.run.tokens.part(rows)))
            k = self.hook_rot_k(self.rotary(k, self.run.tokens))
        z = self._mixed(q.transpose(1, 2), k.transpose(1, 2), v, bias).transpose(1, 2)
        if self.ln is not None:
            z = self._split(self.ln(self.hook_mid(z).flatten(-2)))
        return self._out(self.hook_z(z))

    def _mixed(self, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> Float[Tensor, "b h t d_head"]:
        def fused() -> Tensor:
            return F.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=self.d_head**-0.5)

        if self._fused() and not transformed(q):
            return fused()
        scores = q @ k.transpose(2, 3) * self.d_head**-0.5
        scores, scores_edited = seen_by(self.hook_attn_scores, scores if bias is None else scores + bias)
        # half precision is too coarse for a softmax over hundreds of keys
        pattern = scores.softmax(-1, dtype=torch.promote_types(scores.dtype, torch.float32)).to(v.dtype)
        pattern, edited = seen_by(self.hook_pattern, pattern)
        return unless_edited(self.run.attention == "eager" or scores_edited or edited, pattern @ v, fused)

    def _split(self, x: Tensor) -> Float[Tensor, "b t h d_head"]:
        return x.unflatten(-1, (self.n_heads, self.d_head))

    def _fused(self) -> bool:
        asked = watched(self.hook_attn_scores, self.hook_pattern)
        if asked and self.run.attention == "sdpa":
            raise RuntimeError(
                "a hook asks for attention scores or patterns, which the fused kernel never forms; "
                'call model.set_attention("auto")'
            )
        return self.run.attention != "eager" and not asked

    def _bias(self, x: Tensor, rows: slice | None) -> Float[Tensor, "#b #h #after t"] | None:
        """What is added to the scores: relative positions, and minus infinity at padded keys."""
        self.run.refuse_recomputation()
        tokens = self.run.tokens
        if tokens.n_tokens != x.shape[1]:
            raise ValueError(tokens_changed(tokens.n_tokens, x.shape[1]))
        tables = [t for t in (self.rel_pos, *self._shared_bias) if t is not None]
        bias = None
        if tables:
            bias = self.hook_rel_pos_bias(sum(t(tokens) for t in tables[1:]) + tables[0](tokens))
            bias = bias if rows is None else bias[..., rows, :]
        if (present := tokens.present) is not None:
            padding = x.new_zeros(present.shape).masked_fill(~present.to(x.device), float("-inf"))[..., None, None, :]
            bias = padding if bias is None else bias + padding
        return bias

    def _out(self, z: Float[Tensor, "b t h d_head"]) -> Float[Tensor, "b t d"]:
        def fast() -> Tensor:
            out = self.o(z.flatten(-2))
            return out if self.ls is None else out * self.ls

        if not watched(self.hook_result):
            return fast()
        result, edited = seen_by(self.hook_result, torch.einsum("bthe,hed->bthd", z, self.W_O))
        return unless_edited(edited, result.sum(2) + self.b_O, fast)

    def _heads_in(self, linear: nn.Linear) -> Float[Tensor, "h d d_head"]:
        return plain(linear).weight.unflatten(0, (self.n_heads, self.d_head)).transpose(1, 2)

    def _head_bias(self, linear: nn.Linear) -> Float[Tensor, "h d_head"]:
        bias = plain(linear).bias if plain(linear).bias is not None else linear.weight.new_zeros(linear.out_features)
        return bias.unflatten(0, (self.n_heads, self.d_head))

    @property
    def W_Q(self) -> Float[Tensor, "h d d_head"]:
        """Query weights per head, a view."""
        return self._heads_in(self.q)

    @property
    def W_K(self) -> Float[Tensor, "h d d_head"]:
        """Key weights per head, a view."""
        return self._heads_in(self.k)

    @property
    def W_V(self) -> Float[Tensor, "h d d_head"]:
        """Value weights per head, a view."""
        return self._heads_in(self.v)

    @property
    def W_O(self) -> Float[Tensor, "h d_head d"]:
        """Output weights per head: a view, or times LayerScale where that is not folded yet."""
        weight = plain(self.o).weight if self.ls is None else plain(self.o).weight * self.ls[:, None]
        return weight.unflatten(1, (self.n_heads, self.d_head)).permute(1, 2, 0)

    @property
    def b_Q(self) -> Float[Tensor, "h d_head"]:
        """Query bias per head; zeros where the family has none."""
        return self._head_bias(self.q)

    @property
    def b_K(self) -> Float[Tensor, "h d_head"]:
        """Key bias per head; zeros where the family has none."""
        return self._head_bias(self.k)

    @property
    def b_V(self) -> Float[Tensor, "h d_head"]:
        """Value bias per head; zeros where the family has none."""
        return self._head_bias(self.v)

    @property
    def b_O(self) -> Float[Tensor, "d"]:
        """Output bias, times LayerScale where that is not folded yet; zeros where the family has none."""
        bias = bias_of(self.o)
        return bias if self.ls is None else bias * self.ls
