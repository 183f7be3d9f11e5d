"""The parts of a ViT block, each activation named where it is computed."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from jaxtyping import Float
from torch import Tensor, nn

from hooked_vit.components.attention import Attention
from hooked_vit.components.embedding import RelativePositionBias
from hooked_vit.components.mlp import MLP
from hooked_vit.components.norms import LayerNorm, norm_of
from hooked_vit.components.watching import HookPoint
from hooked_vit.config import ViTConfig
from hooked_vit.tokens import Run


class Block(nn.Module):
    """One transformer block: its norms stand in front of attention and MLP, or with `post_norm` behind them.

    With `rows` it gives these tokens alone, which attend to all; hooks behind the queries would not see the others.
    """

    hook_resid_pre: HookPoint
    hook_attn_out: HookPoint
    hook_resid_mid: HookPoint
    hook_mlp_in: HookPoint
    hook_mlp_out: HookPoint
    hook_resid_post: HookPoint
    hook_out_is_single_residual_stream = True  # TransformerLens tools ask before reading a block's output

    def __init__(self, cfg: ViTConfig, run: Run, shared_bias: RelativePositionBias | None) -> None:
        super().__init__()
        self.post_norm = cfg.post_norm
        self.ln1 = norm_of(cfg)
        self.attn = Attention(cfg, run, shared_bias)
        self.ln2 = norm_of(cfg)
        self.mlp = MLP(cfg)
        for name in ("resid_pre", "attn_out", "resid_mid", "mlp_in", "mlp_out", "resid_post"):
            setattr(self, f"hook_{name}", HookPoint())

    def forward(self, x: Float[Tensor, "b t d"], rows: slice | None = None) -> Float[Tensor, "b after d"]:
        x = self.hook_resid_pre(x)  # which may insert or remove tokens, here and at the other two hooks of the stream
        attn = self.attn if rows is None else partial(self.attn, rows=rows)
        attn_out = self.hook_attn_out(self._branch(attn, self.ln1, x))
        x = self.hook_resid_mid((x if rows is None else x[:, rows]) + attn_out)
        # shown as a tensor of its own, so that a gradient of it is not one of the skip path
        mlp_in = self.hook_mlp_in(x)
        return self.hook_resid_post(x + self.hook_mlp_out(self._branch(self.mlp, self.ln2, mlp_in)))

    def _branch(self, part: Callable, norm: LayerNorm, x: Float[Tensor, "b t d"]) -> Float[Tensor, "b after d"]:
        return norm(part(x)) if self.post_norm else part(norm(x))
