"""Attention pooling: a learned probe attends to the tokens, and what it gathers passes an MLP (Zhai et al. 2023)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from hooked_vit.components.mlp import MLP
from hooked_vit.components.norms import LayerNorm
from hooked_vit.components.watching import HookPoint
from hooked_vit.config import ViTConfig

LINEARS = ("pool_q", "pool_k", "pool_v", "pool_o")
HOOKS = tuple(f"hook_pool_{name}" for name in ("q", "k", "v", "scores", "pattern", "z", "attn_out", "mlp_out"))


class AttentionPool(nn.Module):
    """One query, the probe, over the tokens the readout reads; a mixin, so that its hooks carry no prefix.

    Pooled are attn_out + MLP(norm(attn_out)): the probe itself is on no skip path. Keys and values belong to every
    token, so that roles stay addressable; tokens the readout does not read get a score of minus infinity.
    """

    cfg: ViTConfig
    pool_probe: nn.Parameter
    pool_q: nn.Linear
    pool_k: nn.Linear
    pool_v: nn.Linear
    pool_o: nn.Linear
    pool_ln: LayerNorm
    pool_mlp: MLP
    hook_pool_q: HookPoint
    hook_pool_k: HookPoint
    hook_pool_v: HookPoint
    hook_pool_scores: HookPoint
    hook_pool_pattern: HookPoint
    hook_pool_z: HookPoint
    hook_pool_attn_out: HookPoint
    hook_pool_mlp_out: HookPoint

    def _build_pool(self, cfg: ViTConfig) -> None:
        self.pool_probe = nn.Parameter(torch.zeros(1, 1, cfg.d_model))
        for name in LINEARS:
            setattr(self, name, nn.Linear(cfg.d_model, cfg.d_model))
        self.pool_ln = LayerNorm(cfg.d_model, cfg.eps)
        self.pool_mlp = MLP(cfg.replace(gated_mlp=False, layer_scale=False))
        for name in HOOKS:
            setattr(self, name, HookPoint())

    def _drop_pool(self) -> None:
        for name in ("pool_probe", *LINEARS, "pool_ln", "pool_mlp", *HOOKS):
            delattr(self, name)

    def _attend(self, x: Float[Tensor, "b t d"], read: Bool[Tensor, "*b t"]) -> Float[Tensor, "b 1 d"]:
        """What the probe gathers from the tokens that are read, to the bit as torch's MultiheadAttention does it."""
        by_token = x.transpose(0, 1)  # its layout, in which half precision rounds once more, before the bias
        q = self.hook_pool_q(self._heads(self.pool_q(self.pool_probe.repeat(len(x), 1, 1)))).transpose(1, 2)
        k = self.hook_pool_k(self._heads(self.pool_k(by_token).transpose(0, 1))).transpose(1, 2)
        v = self.hook_pool_v(self._heads(self.pool_v(by_token).transpose(0, 1))).transpose(1, 2)
        # the query is scaled, not the scores, and keys are not copied
        scores = torch.bmm((q * self.cfg.d_head**-0.5).flatten(0, 1), k.flatten(0, 1).transpose(1, 2))
        scores = scores.unflatten(0, (-1, self.cfg.n_heads))
        if not read.all():
            scores = scores.masked_fill(~read.to(x.device).reshape(-1, 1, 1, x.shape[1]), float("-inf"))
        pattern = self.hook_pool_pattern(self.hook_pool_scores(scores).softmax(-1))
        z = self.hook_pool_z((pattern @ v).transpose(1, 2))
        out = self.hook_pool_attn_out(self.pool_o(z.flatten(-2)))
        return out + self.hook_pool_mlp_out(self.pool_mlp(self.pool_ln(out)))

    def _heads(self, x: Tensor) -> Float[Tensor, "b t h d_head"]:
        return x.unflatten(-1, (self.cfg.n_heads, self.cfg.d_head))

    def _attend_alone(self, x: Float[Tensor, "*b d"]) -> Float[Tensor, "*b d"]:
        """What would be pooled if these were the only tokens, one at a time; no hook fires."""
        out = self.pool_o(self.pool_v(x))
        normed = F.layer_norm(out, out.shape[-1:], self.pool_ln.weight, self.pool_ln.bias, self.pool_ln.eps)
        return out + self.pool_mlp.fc_out(self.pool_mlp.act(self.pool_mlp.fc_in(normed)))
