"""The feed-forward branch, plain or gated."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from transformer_lens.hook_points import HookPoint

from hooked_vit.config import ViTConfig
from hooked_vit.errors import nearest

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "gelu_pytorch_tanh": lambda x: F.gelu(x, approximate="tanh"),
    # the same function, rounded as transformers rounds it
    "gelu_new": lambda x: 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * torch.pow(x, 3)))),
    "quick_gelu": lambda x: x * torch.sigmoid(1.702 * x),
    "silu": F.silu,
    "swish": F.silu,
    "relu": F.relu,
}


class MLP(nn.Module):
    """The feed-forward branch, plain or gated, its output already multiplied by LayerScale where the family has one."""

    def __init__(self, cfg: ViTConfig) -> None:
        super().__init__()
        self.fc_in = nn.Linear(cfg.d_model, cfg.d_mlp, bias=cfg.mlp_bias)
        self.fc_gate = nn.Linear(cfg.d_model, cfg.d_mlp, bias=cfg.mlp_bias) if cfg.gated_mlp else None
        self.fc_out = nn.Linear(cfg.d_mlp, cfg.d_model, bias=cfg.mlp_bias)
        self.ls = nn.Parameter(torch.ones(cfg.d_model)) if cfg.layer_scale else None
        if cfg.act_fn not in ACTIVATIONS:
            close = nearest(cfg.act_fn, ACTIVATIONS)
            raise ValueError(f"no activation is called {cfg.act_fn!r}{close}; there are {', '.join(ACTIVATIONS)}")
        self.act = ACTIVATIONS[cfg.act_fn]
        self.hook_pre = HookPoint()
        self.hook_post = HookPoint()
        if cfg.gated_mlp:
            self.hook_pre_linear = HookPoint()

    def forward(self, x: Float[Tensor, "b t d"]) -> Float[Tensor, "b t d"]:
        if self.fc_gate is None:
            post = self.act(self.hook_pre(self.fc_in(x)))
        else:
            post = self.act(self.hook_pre(self.fc_gate(x))) * self.hook_pre_linear(self.fc_in(x))
        out = self.fc_out(self.hook_post(post))
        return out if self.ls is None else out * self.ls

    @property
    def W_in(self) -> Float[Tensor, "d d_mlp"]:
        """Input weights, a view."""
        return self.fc_in.weight.T

    @property
    def b_in(self) -> Float[Tensor, "d_mlp"]:
        """Input bias; zeros where the family has none."""
        return _bias(self.fc_in)

    @property
    def W_gate(self) -> Float[Tensor, "d d_mlp"] | None:
        """Gate weights, a view; None for a plain MLP."""
        return None if self.fc_gate is None else self.fc_gate.weight.T

    @property
    def W_out(self) -> Float[Tensor, "d_mlp d"]:
        """Output weights: a view, or times LayerScale where that is not folded yet."""
        return self.fc_out.weight.T if self.ls is None else (self.fc_out.weight * self.ls[:, None]).T

    @property
    def b_out(self) -> Float[Tensor, "d"]:
        """Output bias, times LayerScale where that is not folded yet; zeros where the family has none."""
        bias = _bias(self.fc_out)
        return bias if self.ls is None else bias * self.ls


def _bias(linear: nn.Linear) -> Tensor:
    return linear.bias if linear.bias is not None else linear.weight.new_zeros(linear.out_features)
