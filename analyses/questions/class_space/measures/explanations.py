"""Which patches would raise a class in CLS if CLS attended to them more? A map per block and head (methods §21)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor

from analyses.activations.layers import measured_layers
from analyses.activations.relevance import check_classes
from analyses.questions.class_space.measures.projection import AS_TRAINED, Rules, check_rules, project_role
from hooked_vit import HookedViT

SITES = {"attn_out": "hook_attn_out", "block_out": "hook_resid_post"}
"""What is projected into class space: attention's update of CLS, or CLS behind the block."""


def check_asked(model: HookedViT, name: str = "the model", site: str = "attn_out") -> None:
    """What is asked of every model, with a head or without, before any run.

    Raises ValueError for a model without CLS and an unknown site.
    """
    if site not in SITES:
        raise ValueError(f"a gradient map is of one of the sites {', '.join(SITES)}; got {site!r}")
    if not model.cfg.has_cls:
        raise ValueError(
            f"a gradient map says what CLS would gain by attending elsewhere, and {name} has no CLS token (it has "
            f"{', '.join(model.tokens.roles)}): there is no CLS query to explain"
        )


def check_explainable(
    model: HookedViT, name: str = "the model", *, site: str = "attn_out", rules: Rules = AS_TRAINED
) -> int:
    """The number of classes that CLS has scores for, before any run.

    Raises what `check_asked` raises, and what `check_rules` raises for a model without a head.
    """
    check_asked(model, name, site)
    return check_rules(model, rules)


def gradient_maps(
    model: HookedViT,
    pixels: Float[Tensor, "b c h w"],
    classes: Int[Tensor, "_"],
    *,
    site: str = "attn_out",
    layers: Sequence[int] | None = None,
    double_softmax: bool = False,
    rules: Rules = AS_TRAINED,
) -> Float[Tensor, "b layers heads patches"]:
    """Importance of every image token for a class, in every block, or these `layers`, and head: −∂ℓ/∂A[CLS, i].

    >>> maps = gradient_maps(model, pixels, labels)  # doctest: +SKIP
    >>> maps.sum((1, 2))  # the global map, [b, patches]  # doctest: +SKIP

    ℓ is the cross entropy of the class scores that CLS has at `site` of that block ("attn_out": what attention adds to
    it; "block_out": CLS behind the block), A the pattern of the same block after the softmax. Larger is more
    important; values may be negative, and nothing is clamped or normalised. Closed form: CLS mixes the values V as
    z = Σᵢ A[CLS, i] Vᵢ, so that ∂ℓ/∂A[CLS, i] = Vᵢ · ∂ℓ/∂z, and one backward pass from the scores to z serves all
    tokens. `double_softmax` scores the softmax of the class scores as if it were logits, as the published code does.
    `rules` say how CLS becomes class scores.
    Raises what `check_explainable` and `check_classes` raise. Source: Vilas et al. 2023, section 7; methods §21.
    """
    check_classes(classes, len(pixels), check_explainable(model, site=site, rules=rules))
    layout = model.check_pixels(pixels)
    values: list[Tensor] = []
    mixed: list[Tensor] = []
    losses: list[Tensor] = []

    def start(resid: Tensor, hook: object) -> Tensor:
        return resid.detach()  # other blocks' attention is held where it is

    def keep_values(v: Tensor, hook: object) -> None:
        values.append(v.detach()[:, layout.patches])

    def from_here(z: Tensor, hook: object) -> Tensor:
        mixed.append(z.detach().requires_grad_())
        return mixed[-1]

    def read(x: Tensor, hook: object) -> None:
        scores = project_role(model, x[:, layout.cls].squeeze(1), "cls", rules)
        scores = scores.softmax(-1) if double_softmax else scores
        losses.append(F.cross_entropy(scores, classes.long().to(scores.device), reduction="sum"))

    at = measured_layers(model, layers)
    # what a block that is not measured would have kept for a gradient is let go at the next
    hooks: list[Any] = [(f"blocks.{layer}.hook_resid_pre", start) for layer in range(at[-1] + 1)]
    mix = "mid" if model.cfg.attn_inner_norm else "z"  # the sum itself, in front of a norm inside attention
    for layer in at:
        block = f"blocks.{layer}."
        hooks += [(f"{block}attn.hook_v", keep_values), (f"{block}attn.hook_{mix}", from_here)]
        hooks += [(f"{block}{SITES[site]}", read)]
    with torch.enable_grad(), model.hooks(hooks):
        model(pixels, stop_at_layer=at[-1] + 1)
        gradients = torch.autograd.grad(losses, mixed)
    maps = [
        -torch.einsum("bphe,bhe->bhp", v, g[:, layout.cls].squeeze(1)) for v, g in zip(values, gradients, strict=True)
    ]
    return torch.stack(maps, dim=1)


def jet(heat: Float[Tensor, "*b"]) -> Float[Tensor, "*b 3"]:
    """Blue, green, yellow, red for values from 0 to 1."""
    at = torch.tensor([3.0, 2.0, 1.0]).to(heat)
    return (1.5 - (4 * heat[..., None] - at).abs()).clamp(0, 1)


def overlay(pixels: Float[Tensor, "c h w"], heat: Float[Tensor, "rows cols"]) -> NDArray[np.uint8]:
    """A picture with a map laid over it, [h, w, 3]: blue where the map is least, red where it is greatest.

    >>> overlay(torch.rand(3, 8, 8), torch.tensor([[0.0, 1.0]])).shape
    (8, 8, 3)

    A map has a place for each patch, so the picture is what patches cover, `model.covered(pixels)`.
    Picture and map are each stretched to 0..1, the map enlarged bilinearly and coloured, both added and divided by the
    maximum. Source: methods §21 (the published pictures).
    """
    large = F.interpolate(_stretched(heat)[None, None].float(), pixels.shape[1:], mode="bilinear", align_corners=False)
    both = _stretched(pixels.float()).expand(3, -1, -1).permute(1, 2, 0) + jet(large[0, 0]).to(pixels.device)
    return (both / both.max() * 255).round().byte().cpu().numpy()


def _stretched(x: Tensor) -> Tensor:
    spread = x.max() - x.min()
    return (x - x.min()) / spread if spread > 0 else torch.zeros_like(x)
