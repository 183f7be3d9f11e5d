"""Layer-wise relevance propagation through a transformer, and the explanation made of it (Chefer et al. CVPR 2021).

The class score is handed back through the network: every part divides the relevance of its output among its inputs, so
that each depth holds the same total. Rules: linear maps by their positive contributions; a product of two
activations, half to each factor, in proportion to the terms of the sum; a residual sum in proportion to its two
terms, rescaled to the share of each; norms, softmax, LayerScale and nonlinearities hand on what they get.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor

from analyses.activations.relevance import attention_gradients
from hooked_vit import ActivationCache, HookedViT
from hooked_vit.components.block import Block
from hooked_vit.components.norms import LayerNorm
from hooked_vit.config.showing import counted


@dataclass(frozen=True, eq=False)
class Relevance:
    """`attention[l]` is the relevance of the weights of block l, `stream[l]` that of the stream entering it."""

    attention: list[Float64[Tensor, "b heads t t"]]
    stream: list[Float64[Tensor, "b t d"]]


def check_propagates(model: HookedViT, name: str = "the model") -> None:
    """Refuse a model there is no rule for.

    Raises ValueError for a readout that is not one head on CLS, a gated MLP, norms elsewhere, or positions inside
    attention.
    """
    cfg = model.cfg
    obstacles = {
        f"reads {' and '.join(cfg.sources)}": cfg.sources != ("cls",),
        f"has {counted(len(cfg.heads), 'head')}": len(cfg.heads) != 1,
        "norms the pooled token": cfg.final_norm != "tokens",
        "has a gated MLP": cfg.gated_mlp,
        "adds a relative position bias to the scores": cfg.rel_pos_shared or cfg.rel_pos_per_layer,
        "norms behind the branches": cfg.post_norm,
        "norms inside the branches": cfg.attn_inner_norm or cfg.mlp_inner_norm,
        "turns queries and keys by position": cfg.rotary is not None,
    }
    if found := [what for what, true in obstacles.items() if true]:
        raise ValueError(
            f"relevance is propagated through pre-norm blocks with a plain MLP to one head on CLS; {name} "
            f"{' and '.join(found)}, for which the method has no rule: leave lrp out for it"
        )


@torch.no_grad()
def propagate(model: HookedViT, pixels: Float[Tensor, "b c h w"], classes: Int[Tensor, "_"]) -> Relevance:
    """Relevance of attention weights and of the stream for one class per image; 1 in total at every depth.

    >>> relevance = propagate(model, pixels, labels)  # doctest: +SKIP
    >>> relevance.stream[0].sum((1, 2))  # doctest: +SKIP
    tensor([1.0000, 1.0000], dtype=torch.float64)

    Half of what reaches a product of values and weights goes to the weights and from there to queries and keys.
    Raises what `check_propagates` raises. Source: Chefer et al. CVPR 2021, section 3, with the rules of its code.
    """
    check_propagates(model)
    layout = model.check_pixels(pixels)
    _, cache = model.run_with_cache(pixels)
    assert isinstance(cache, ActivationCache)
    ((head, _),) = model.cfg.heads
    weight = getattr(model, head).weight
    scores = torch.nn.functional.one_hot(classes.long(), len(weight)).double().to(weight.device)
    stream = torch.zeros_like(cache["resid_post", -1], dtype=torch.float64)
    stream[:, layout.cls] = _linear(cache["hook_pooled"], weight, scores)[:, None]
    attention, streams = [], []
    for layer in reversed(range(model.cfg.n_layers)):
        weights, stream = _through(model.blocks[layer], cache, layer, stream)
        attention.append(weights)
        streams.append(stream)
    return Relevance(attention[::-1], streams[::-1])


def lrp_rollout(
    model: HookedViT, pixels: Float[Tensor, "b c h w"], classes: Int[Tensor, "_"]
) -> Float64[Tensor, "b t t"]:
    """Relevance of every token to every other for a class: the product of I + mean over heads of max(0, ∇A ⊙ R).

    R is the propagated relevance of the attention weights, ∇A the gradient of the class logit in them; rows are not
    normalised. Source: Chefer et al. CVPR 2021, section 3; methods §22.
    Raises what `check_propagates` and `check_classes` raise.
    """
    check_propagates(model)
    patterns, gradients = attention_gradients(model, pixels, classes)
    here = torch.eye(patterns[0].shape[-1], dtype=torch.float64, device=patterns[0].device)
    rolled = here.expand(len(pixels), -1, -1)
    for relevance, gradient in zip(propagate(model, pixels, classes).attention, gradients, strict=True):
        rolled = (here + (gradient * relevance).clamp(min=0).mean(1)) @ rolled
    return rolled


def _through(
    block: Block, cache: ActivationCache, layer: int, relevance: Float64[Tensor, "b t d"]
) -> tuple[Float64[Tensor, "b heads t t"], Float64[Tensor, "b t d"]]:
    """Relevance of a block's attention weights and input, from that of its output."""
    skip, branch = _sum(cache["resid_mid", layer], cache["mlp_out", layer], relevance)
    neurons = _linear(cache["post", layer], block.mlp.fc_out.weight, branch)
    mid = skip + _linear(_normed(block.ln2, cache, layer, "ln2"), block.mlp.fc_in.weight, neurons)

    skip, branch = _sum(cache["resid_pre", layer], cache["attn_out", layer], mid)
    z = _linear(cache["z", layer].flatten(-2), block.attn.o.weight, branch)
    q, k, v, z_ = (cache[name, layer].transpose(1, 2).double() for name in ("q", "k", "v", "z"))
    pattern = cache["pattern", layer].double()
    share = _divided(z.unflatten(-1, (z_.shape[1], -1)).transpose(1, 2), z_)
    of_pattern, of_v = pattern * (share @ v.mT) / 2, v * (pattern.mT @ share) / 2
    share = _divided(of_pattern, q @ k.mT)
    of_q, of_k = q * (share @ k) / 2, k * (share.mT @ q) / 2
    x = _normed(block.ln1, cache, layer, "ln1")
    attn = block.attn
    parts = ((attn.q, of_q), (attn.k, of_k), (attn.v, of_v))
    inner = sum(_linear(x, linear.weight, part.transpose(1, 2).flatten(-2)) for linear, part in parts)
    return of_pattern, skip + inner


def _normed(norm: LayerNorm, cache: ActivationCache, layer: int, name: str) -> Tensor:
    return cache[f"blocks.{layer}.{name}.hook_normalized"] * norm.w + norm.b


def _linear(x: Tensor, weight: Float[Tensor, "o i"], relevance: Float64[Tensor, "*b o"]) -> Float64[Tensor, "*b i"]:
    """Each output's relevance among the inputs that contribute positively, in proportion to what they contribute."""
    x, weight = x.double(), weight.double()
    x_pos, x_neg, w_pos, w_neg = x.clamp(min=0), x.clamp(max=0), weight.clamp(min=0), weight.clamp(max=0)
    share = _divided(relevance, x_pos @ w_pos.T + x_neg @ w_neg.T)
    return x_pos * (share @ w_pos) + x_neg * (share @ w_neg)


def _sum(a: Tensor, b: Tensor, relevance: Float64[Tensor, "b t d"]) -> tuple[Tensor, Tensor]:
    """The relevance of a sum's two terms, each rescaled to its part of the two absolute totals."""
    a, b = a.double(), b.double()
    share = _divided(relevance, a + b)
    parts = (a * share, b * share)
    sums = [part.sum((1, 2), keepdim=True) for part in parts]
    total = _divided(relevance.sum((1, 2), keepdim=True), sums[0].abs() + sums[1].abs())
    first, second = (part * s.sign() * total for part, s in zip(parts, sums, strict=True))
    return first, second


def _divided(a: Tensor, b: Tensor) -> Tensor:
    """a / b, and 0 where b is 0: what nothing contributed to hands nothing on."""
    return torch.where(b == 0, 0, a / torch.where(b == 0, 1, b))
