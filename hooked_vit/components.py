"""The parts of a ViT block, each activation named where it is computed."""

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
from hooked_vit.positions import RelativePositionBias
from hooked_vit.tokens import Run, tokens_changed

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


def watched(*points: HookPoint) -> bool:
    """True where somebody listens: tensors that are expensive to name are computed only then."""
    return any(p._forward_hooks or p._backward_hooks or p._backward_pre_hooks for p in points)


def seen_by(point: HookPoint, x: Tensor) -> tuple[Tensor, bool]:
    """What a hook point makes of a tensor, and whether that is an edit, in place or not."""
    before = x.clone() if x.is_inference() else x._version  # inference tensors count no versions
    seen = point(x)
    written = x._version != before if isinstance(before, int) else not torch.equal(x, before)
    return seen, written or seen is not x


class _FastValue(torch.autograd.Function):
    """The value of one tensor with the gradient path of another that equals it up to rounding."""

    @staticmethod
    def forward(ctx, named: Tensor, fast: Tensor) -> Tensor:
        return fast.view_as(fast)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None]:
        return grad, None


def unless_edited(edited: bool, named: Tensor, fast: Callable[[], Tensor]) -> Tensor:
    """`named` where a hook edited it, else the fast kernel's value: watching never changes a number, and gradients
    still flow through the activation that was watched."""
    if edited:
        return named
    if not named.requires_grad:
        return fast()
    with torch.no_grad():
        value = fast()
    return _FastValue.apply(named, value)


class LayerNorm(nn.LayerNorm):
    """Layer norm with TransformerLens' names: `hook_scale` [b t 1] and `hook_normalized` [b t d], before the affine."""

    def __init__(self, d_model: int, eps: float) -> None:
        super().__init__(d_model, eps=eps)
        self.hook_scale = HookPoint()
        self.hook_normalized = HookPoint()

    def forward(self, x: Float[Tensor, "*b d"]) -> Float[Tensor, "*b d"]:
        if not watched(self.hook_scale, self.hook_normalized):
            return super().forward(x)
        scale = (x.var(-1, unbiased=False, keepdim=True) + self.eps).sqrt()
        scale, scale_edited = seen_by(self.hook_scale, scale)
        normalized, edited = seen_by(self.hook_normalized, (x - x.mean(-1, keepdim=True)) / scale)
        named = normalized * self.weight + self.bias
        return unless_edited(scale_edited or edited, named, lambda: super(LayerNorm, self).forward(x))

    @property
    def w(self) -> Float[Tensor, "d"]:
        """Gain."""
        return self.weight

    @property
    def b(self) -> Float[Tensor, "d"]:
        """Offset."""
        return self.bias


class NoNorm(nn.Module):
    """Stands where a family has no final norm, so that its hooks live there too: scale 1, nothing subtracted."""

    def __init__(self, d_model: int) -> None:
        super().__init__()
        self.hook_scale = HookPoint()
        self.hook_normalized = HookPoint()
        self.register_buffer("weight", torch.ones(d_model), persistent=False)
        self.register_buffer("bias", torch.zeros(d_model), persistent=False)

    w, b = LayerNorm.w, LayerNorm.b

    def forward(self, x: Float[Tensor, "*b d"]) -> Float[Tensor, "*b d"]:
        if watched(self.hook_scale):
            # dividing by one changes no bit, and a gradient reaches the scale
            x = x / self.hook_scale(torch.ones_like(x[..., :1]).requires_grad_(x.requires_grad))
        return self.hook_normalized(x)


class Attention(nn.Module):
    """Multi-head self-attention, its output already multiplied by LayerScale where the family has one."""

    hook_q: HookPoint
    hook_k: HookPoint
    hook_v: HookPoint
    hook_attn_scores: HookPoint
    hook_pattern: HookPoint
    hook_z: HookPoint
    hook_result: HookPoint

    def __init__(self, cfg: ViTConfig, run: Run, shared_bias: RelativePositionBias | None) -> None:
        super().__init__()
        self.run, self.d_head, self.n_heads = run, cfg.d_head, cfg.n_heads
        self.q = nn.Linear(cfg.d_model, cfg.d_model, bias=cfg.q_bias)
        self.k = nn.Linear(cfg.d_model, cfg.d_model, bias=cfg.k_bias)
        self.v = nn.Linear(cfg.d_model, cfg.d_model, bias=cfg.v_bias)
        self.o = nn.Linear(cfg.d_model, cfg.d_model)
        self.ls = nn.Parameter(torch.ones(cfg.d_model)) if cfg.layer_scale else None
        self.rel_pos = RelativePositionBias(cfg) if cfg.rel_pos_per_layer else None
        # in a tuple, so that the shared table is not registered once per block
        self._shared_bias = (shared_bias,)
        for name in ("q", "k", "v", "attn_scores", "pattern", "z", "result"):
            setattr(self, f"hook_{name}", HookPoint())
        if cfg.rel_pos_per_layer or cfg.rel_pos_shared:
            self.hook_rel_pos_bias = HookPoint()

    def forward(self, x: Float[Tensor, "b t d"]) -> Float[Tensor, "b t d"]:
        q = self.hook_q(self._split(self.q(x))).transpose(1, 2)
        k = self.hook_k(self._split(self.k(x))).transpose(1, 2)
        v = self.hook_v(self._split(self.v(x))).transpose(1, 2)
        bias = self._bias(x)
        if self._fused():
            z = F.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=self.d_head**-0.5)
        else:
            scores = q @ k.transpose(2, 3) * self.d_head**-0.5
            scores = self.hook_attn_scores(scores if bias is None else scores + bias)
            # half precision is too coarse for a softmax over hundreds of keys
            pattern = scores.softmax(-1, dtype=torch.promote_types(scores.dtype, torch.float32)).to(v.dtype)
            z = self.hook_pattern(pattern) @ v
        return self._out(self.hook_z(z.transpose(1, 2)))

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

    def _bias(self, x: Tensor) -> Float[Tensor, "#b #h #t t"] | None:
        """What is added to the scores: relative positions, and minus infinity at padded keys."""
        tokens = self.run.tokens
        if tokens.n_tokens != x.shape[1]:
            raise ValueError(tokens_changed(tokens.n_tokens, x.shape[1]))
        tables = [t for t in (self.rel_pos, *self._shared_bias) if t is not None]
        bias = None
        if tables:
            bias = self.hook_rel_pos_bias(sum(t(tokens) for t in tables[1:]) + tables[0](tokens))
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
        return linear.weight.unflatten(0, (self.n_heads, self.d_head)).transpose(1, 2)

    def _head_bias(self, linear: nn.Linear) -> Float[Tensor, "h d_head"]:
        bias = linear.bias if linear.bias is not None else linear.weight.new_zeros(linear.out_features)
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
        weight = self.o.weight if self.ls is None else self.o.weight * self.ls[:, None]
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
        """Output bias, times LayerScale where that is not folded yet."""
        return self.o.bias if self.ls is None else self.o.bias * self.ls


class MLP(nn.Module):
    """The feed-forward branch, plain or gated, its output already multiplied by LayerScale where the family has one."""

    def __init__(self, cfg: ViTConfig) -> None:
        super().__init__()
        self.fc_in = nn.Linear(cfg.d_model, cfg.d_mlp)
        self.fc_gate = nn.Linear(cfg.d_model, cfg.d_mlp) if cfg.gated_mlp else None
        self.fc_out = nn.Linear(cfg.d_mlp, cfg.d_model)
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
        """Input bias."""
        return self.fc_in.bias

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
        """Output bias, times LayerScale where that is not folded yet."""
        return self.fc_out.bias if self.ls is None else self.fc_out.bias * self.ls


class Block(nn.Module):
    """One transformer block: its norms stand in front of attention and MLP, or with `post_norm` behind them."""

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
        self.ln1 = LayerNorm(cfg.d_model, cfg.eps)
        self.attn = Attention(cfg, run, shared_bias)
        self.ln2 = LayerNorm(cfg.d_model, cfg.eps)
        self.mlp = MLP(cfg)
        for name in ("resid_pre", "attn_out", "resid_mid", "mlp_in", "mlp_out", "resid_post"):
            setattr(self, f"hook_{name}", HookPoint())

    def forward(self, x: Float[Tensor, "b t d"]) -> Float[Tensor, "b after d"]:
        x = self.hook_resid_pre(x)  # which may insert or remove tokens, here and at the other two hooks of the stream
        x = self.hook_resid_mid(x + self.hook_attn_out(self._branch(self.attn, self.ln1, x)))
        # a tensor of its own, so that neither an edit in place nor a gradient of it is one of the skip path
        mlp_in = self.hook_mlp_in(x.clone() if watched(self.hook_mlp_in) else x)
        return self.hook_resid_post(x + self.hook_mlp_out(self._branch(self.mlp, self.ln2, mlp_in)))

    def _branch(self, part: nn.Module, norm: LayerNorm, x: Float[Tensor, "b t d"]) -> Float[Tensor, "b t d"]:
        return norm(part(x)) if self.post_norm else part(norm(x))
