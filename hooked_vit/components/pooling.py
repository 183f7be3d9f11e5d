"""Attention pooling: a learned probe attends to the tokens, and what it gathers passes an MLP (Zhai et al. 2023)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from hooked_vit.components.mlp import MLP
from hooked_vit.components.norms import LayerNorm
from hooked_vit.components.watching import HookPoint
from hooked_vit.config import ProbePooling, ViTConfig

HOOKS = tuple(f"hook_pool_{name}" for name in ("q", "k", "v", "scores", "pattern", "z", "attn_out"))
PARTS = ("pool_probe", "pool_q", "pool_k", "pool_v", "pool_o", "pool_ln", "pool_mlp", *HOOKS, "hook_pool_mlp_out")


class AttentionPool(nn.Module):
    """One query, the probe, over the tokens the readout reads; a mixin, so that its hooks carry no prefix.

    Pooled are attn_out + MLP(norm(attn_out)), or attn_out alone: the probe itself is on no skip path. Keys and values
    belong to every token, so that roles stay addressable; tokens the readout does not read get a score of minus
    infinity.
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

    def _build_pool(self, cfg: ViTConfig, pool: ProbePooling) -> None:
        d = cfg.d_model
        self.pool_probe = nn.Parameter(torch.zeros(1, 1, d))
        if pool.query:
            self.pool_q = nn.Linear(d, d)
        self.pool_k, self.pool_v = (nn.Linear(d, d, bias=pool.bias) for _ in "kv")
        self.pool_o = nn.Linear(d, d)
        for name in HOOKS:
            setattr(self, name, HookPoint())
        if pool.d_mlp is not None:
            self.pool_ln = LayerNorm(d, cfg.eps)
            self.pool_mlp = MLP(cfg.replace(d_mlp=pool.d_mlp, gated_mlp=False, layer_scale=False, mlp_inner_norm=False))
            self.hook_pool_mlp_out = HookPoint()

    def _drop_pool(self) -> None:
        for name in PARTS:
            if hasattr(self, name):
                delattr(self, name)

    def _attend(self, x: Float[Tensor, "b t d"], read: Bool[Tensor, "*b t"]) -> Float[Tensor, "b 1 d"]:
        """What the probe gathers from the tokens that are read, to the bit as torch's MultiheadAttention does it."""
        pool = self.cfg.attention_pool
        assert pool is not None
        by_token = x.transpose(0, 1)  # its layout, in which half precision rounds once more, before the bias
        probe = self.pool_probe.repeat(len(x), 1, 1)
        q = self.hook_pool_q(self._heads(self.pool_q(probe) if pool.query else probe)).transpose(1, 2)
        k = self.hook_pool_k(self._heads(self.pool_k(by_token).transpose(0, 1))).transpose(1, 2)
        v = self.hook_pool_v(self._heads(self.pool_v(by_token).transpose(0, 1))).transpose(1, 2)
        # the query is scaled, not the scores, and keys are not copied
        scores = torch.bmm((q * q.shape[-1] ** -0.5).flatten(0, 1), k.flatten(0, 1).transpose(1, 2))
        scores = scores.unflatten(0, (-1, pool.n_heads))
        if not read.all():
            scores = scores.masked_fill(~read.to(x.device).reshape(-1, 1, 1, x.shape[1]), float("-inf"))
        pattern = self.hook_pool_pattern(self.hook_pool_scores(scores).softmax(-1))
        z = self.hook_pool_z((pattern @ v).transpose(1, 2))
        out = self.hook_pool_attn_out(self.pool_o(z.flatten(-2)))
        return out if pool.d_mlp is None else out + self.hook_pool_mlp_out(self.pool_mlp(self.pool_ln(out)))

    def _heads(self, x: Tensor) -> Float[Tensor, "b t h d_head"]:
        assert self.cfg.attention_pool is not None
        return x.unflatten(-1, (self.cfg.attention_pool.n_heads, -1))

    def _attend_alone(self, x: Float[Tensor, "*b d"]) -> Float[Tensor, "*b d"]:
        """What would be pooled if these were the only tokens, one at a time; no hook fires."""
        out, pool = self.pool_o(self.pool_v(x)), self.cfg.attention_pool
        if pool is None or pool.d_mlp is None:
            return out
        normed = F.layer_norm(out, out.shape[-1:], self.pool_ln.weight, self.pool_ln.bias, self.pool_ln.eps)
        return out + self.pool_mlp.fc_out(self.pool_mlp.act(self.pool_mlp.fc_in(normed)))
