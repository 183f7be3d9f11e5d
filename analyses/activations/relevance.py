"""What other methods call important: raw attention, attention rollout, and attention weighted by its gradient."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from analyses.activations.layers import measured_layers, stop_behind
from hooked_vit import HookedViT, TokenLayout
from hooked_vit.config import Role


def check_classes(classes: Int[Tensor, "_"], n_images: int, n_classes: int) -> None:
    """Refuse classes of interest that there are no scores for.

    Raises ValueError for a class out of range and for another number of classes than images.
    """
    if len(classes) != n_images:
        raise ValueError(f"there is one class of interest per image, [{n_images}]; got {tuple(classes.shape)}")
    if bad := classes[(classes < 0) | (classes >= n_classes)].unique().tolist()[:5]:
        raise ValueError(f"a class of interest is 0 to {n_classes - 1}; got {bad}")


@torch.no_grad()
def attention_patterns(
    model: HookedViT, pixels: Float[Tensor, "b c h w"], layers: Sequence[int] | None = None
) -> list[Float[Tensor, "b heads t t"]]:
    """The attention pattern of every block, or of these `layers`: each query's row sums to 1."""
    at = measured_layers(model, layers)
    names = [f"blocks.{layer}.attn.hook_pattern" for layer in at]
    _, cache = model.run_with_cache(pixels, names_filter=names, stop_at_layer=stop_behind(model, at))
    return [cache[name] for name in names]


def raw_attention(
    patterns: Sequence[Float[Tensor, "b heads t t"]], layout: TokenLayout, *, last: bool = True
) -> Float[Tensor, "b patches"]:
    """How much CLS attends to each image token, averaged over heads: in the last block, or in all blocks.

    Raises ValueError for tokens without CLS.
    """
    mean = torch.stack([a.mean(1) for a in (patterns[-1:] if last else patterns)]).mean(0)
    return mean[:, int(layout.mask("cls").nonzero()), layout.patches]


def rollout(patterns: Sequence[Float[Tensor, "b heads t t"]]) -> Float[Tensor, "b t t"]:
    """Attention followed through the blocks: the product of ½A + ½I, A averaged over heads. Rows sum to 1.

    >>> rollout([torch.full((1, 2, 2, 2), 0.5)])
    tensor([[[0.7500, 0.2500],
             [0.2500, 0.7500]]])

    Source: Abnar & Zuidema 2020, equation 1 (the residual stream counts as half).
    """
    here = torch.eye(patterns[0].shape[-1]).to(patterns[0])
    rolled = here.expand(len(patterns[0]), -1, -1)
    for pattern in patterns:
        rolled = (pattern.mean(1) / 2 + here / 2) @ rolled
    return rolled


def attention_gradients(
    model: HookedViT, pixels: Float[Tensor, "b c h w"], classes: Int[Tensor, "_"]
) -> tuple[list[Float[Tensor, "b heads t t"]], list[Float[Tensor, "b heads t t"]]]:
    """Every block's pattern, and the gradient of the class logit in it, through everything behind it.

    Raises what `check_classes` raises.
    """
    check_classes(classes, len(pixels), model.cfg.d_out)
    patterns: list[Tensor] = []
    added: list[Tensor] = []

    def watch(pattern: Tensor, hook: object) -> Tensor:
        patterns.append(pattern.detach())
        added.append(torch.zeros_like(pattern, requires_grad=True))
        return pattern + added[-1]

    hooks = [(f"blocks.{layer}.attn.hook_pattern", watch) for layer in range(model.cfg.n_layers)]
    with torch.enable_grad(), model.hooks(hooks):
        logits = model(pixels)
        chosen = logits.gather(1, classes.long().to(logits.device)[:, None]).sum()
        return patterns, list(torch.autograd.grad(chosen, added))


def gradient_weighted(
    model: HookedViT, pixels: Float[Tensor, "b c h w"], classes: Int[Tensor, "_"]
) -> Float[Tensor, "b t t"]:
    """Relevance of every token to every other for a class: R ← R + Āᵇ R from R = I, over blocks b.

    Āᵇ = mean over heads of max(0, ∇A ⊙ A). Source: Chefer et al. ICCV 2021, equations 5 and 6 (the rule for
    self-attention alone, which Vilas et al. run, though they cite the LRP rule of CVPR 2021); methods §22.
    Raises what `check_classes` raises.
    """
    patterns, gradients = attention_gradients(model, pixels, classes)
    relevance = torch.eye(patterns[0].shape[-1]).to(patterns[0]).expand(len(pixels), -1, -1)
    for pattern, gradient in zip(patterns, gradients, strict=True):
        relevance = relevance + (gradient * pattern).clamp(min=0).mean(1) @ relevance
    return relevance


def read_roles(model: HookedViT) -> tuple[Role, ...]:
    """Tokens whose rows explain the answer: CLS, or the patches where CLS is never read; all that one probe reads."""
    sources = model.cfg.sources
    if model.cfg.attention_pool is not None:
        return sources
    return ("cls",) if "cls" in sources else ("patches",)


def read_row(model: HookedViT, layout: TokenLayout, relevance: Float[Tensor, "b t t"]) -> Float[Tensor, "b patches"]:
    """Relevance of image tokens to what the readout reads, the mean over the tokens of `read_roles`."""
    read = torch.stack([layout.mask(role) for role in read_roles(model)]).any(0)
    return relevance[:, read].mean(1)[:, layout.patches]
