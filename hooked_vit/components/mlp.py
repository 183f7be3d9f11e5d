"""The feed-forward branch, plain or gated."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from hooked_vit.components.linears import plain
from hooked_vit.components.norms import LayerNorm
from hooked_vit.components.watching import HookPoint
from hooked_vit.config import ViTConfig
from hooked_vit.errors import nearest


def gelu_tanh(x: Tensor) -> Tensor:
    """GELU by its tanh approximation, in one kernel."""
    return F.gelu(x, approximate="tanh")


def gelu_new(x: Tensor) -> Tensor:
    """The same function, rounded as transformers rounds it."""
    return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * torch.pow(x, 3))))


def quick_gelu(x: Tensor) -> Tensor:
    """CLIP's approximation of GELU."""
    return x * torch.sigmoid(1.702 * x)


# functions by name, so that a model can be pickled
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "gelu_pytorch_tanh": gelu_tanh,
    "gelu_new": gelu_new,
    "quick_gelu": quick_gelu,
    "silu": F.silu,
    "swish": F.silu,
    "relu": F.relu,
}


def check_activation(name: str) -> None:
    """Raise ValueError for an activation function nobody here knows, naming those there are."""
    if name not in ACTIVATIONS:
        close = nearest(name, ACTIVATIONS)
        raise ValueError(f"no activation is called {name!r}{close}; there are {', '.join(ACTIVATIONS)}")


class MLP(nn.Module):
    """The feed-forward branch, plain or gated, its output already multiplied by LayerScale where the family has one."""

    def __init__(self, cfg: ViTConfig) -> None:
        super().__init__()
        self.fc_in = nn.Linear(cfg.d_model, cfg.d_mlp)
        self.fc_gate = nn.Linear(cfg.d_model, cfg.d_mlp) if cfg.gated_mlp else None
        self.fc_out = nn.Linear(cfg.d_mlp, cfg.d_model)
        self.ls = nn.Parameter(torch.ones(cfg.d_model)) if cfg.layer_scale else None
        check_activation(cfg.act_fn)
        self.act = ACTIVATIONS[cfg.act_fn]
        self.hook_pre = HookPoint()
        self.hook_post = HookPoint()
        if cfg.gated_mlp:
            self.hook_pre_linear = HookPoint()
        self.ln = LayerNorm(cfg.d_mlp, cfg.eps) if cfg.mlp_inner_norm else None
        if cfg.mlp_inner_norm:
            self.hook_mid = HookPoint()

    def forward(self, x: Float[Tensor, "b t d"]) -> Float[Tensor, "b t d"]:
        if self.fc_gate is None:
            post = self.act(self.hook_pre(self.fc_in(x)))
        else:
            post = self.act(self.hook_pre(self.fc_gate(x))) * self.hook_pre_linear(self.fc_in(x))
        if self.ln is not None:
            post = self.ln(self.hook_mid(post))
        out = self.fc_out(self.hook_post(post))
        return out if self.ls is None else out * self.ls

    @property
    def W_in(self) -> Float[Tensor, "d d_mlp"]:
        """Input weights, a view."""
        return plain(self.fc_in).weight.T

    @property
    def b_in(self) -> Float[Tensor, "d_mlp"]:
        """Input bias."""
        return plain(self.fc_in).bias

    @property
    def W_gate(self) -> Float[Tensor, "d d_mlp"] | None:
        """Gate weights, a view; None for a plain MLP."""
        return None if self.fc_gate is None else plain(self.fc_gate).weight.T

    @property
    def W_out(self) -> Float[Tensor, "d_mlp d"]:
        """Output weights: a view, or times LayerScale where that is not folded yet."""
        weight = plain(self.fc_out).weight
        return weight.T if self.ls is None else (weight * self.ls[:, None]).T

    @property
    def b_out(self) -> Float[Tensor, "d"]:
        """Output bias, times LayerScale where that is not folded yet."""
        return plain(self.fc_out).bias if self.ls is None else plain(self.fc_out).bias * self.ls
