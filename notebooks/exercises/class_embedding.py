"""Checks for 04_class_embedding_space."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy

import torch
import torch.nn.functional as F
from torch import Tensor

from exercises.verdicts import check, close, demand, scenes, tensor
from hooked_vit import HookedViT
from interventions import apply, zero_attention, zero_random_attention


@check
def check_4_1(by_luck: Callable[[Tensor, Tensor], float]) -> str:
    """How many images have a token that names the class of some image, drawn at random."""
    draw = torch.Generator().manual_seed(0)
    labels = torch.randint(10, (40,), generator=draw)
    for tokens, agree in ((1, False), (36, False), (36, True)):
        predicted = torch.randint(10, (40, 1 if agree else tokens), generator=draw).expand(-1, tokens)
        want = torch.stack([(predicted == label).any(1).double().mean() for label in labels]).mean()
        found = tensor(by_luck(predicted, labels), ()).double()
        how = f"{tokens} tokens that {'all say the same' if agree else 'guess'}"
        demand(close(found, want), f"with {how}, {want:.1%} of the images have a lucky one, not {found:.1%}")
    return "right: one of many is easily right, and how easily depends on how alike the tokens are"


@check
def check_4_2(excess: Callable[[HookedViT, Tensor, Tensor, int], float]) -> str:
    """Accuracy lost by cutting named edges, beyond as much attention cut at random."""
    model, pixels, labels = scenes("vit")

    def accuracy(edit) -> Tensor:
        with torch.no_grad(), apply(model, edit):
            return (model(pixels).argmax(-1) == labels).double().mean()

    edges = {"queries": "cls", "keys": "patches"}
    for layer in (model.cfg.n_layers - 1, 4):
        named = accuracy(zero_attention(**edges, layers=layer))
        random = [accuracy(zero_random_attention(**edges, layers=layer, seed=seed)) for seed in range(3)]
        want, found = torch.stack(random).mean() - named, tensor(excess(model, pixels, labels, layer), ()).double()
        demand(close(found, want), f"at block {layer} cutting costs {want:+.1%} beyond its control, not {found:+.1%}")
    return "right: what a cut costs is its size and its place, and only the control tells them apart"


@check
def check_4_3(first_order: Callable[[HookedViT, Tensor, Tensor, int], Tensor]) -> str:
    """The change of the loss per share of attention taken away, against taking a thousandth away."""
    model, pixels, labels = scenes("vit", 8)
    model, pixels = deepcopy(model).double(), pixels.double()
    n, share = model.tokens.n_tokens, 1e-3

    def loss(scale: Tensor, layer: int) -> Tensor:
        hook = (f"blocks.{layer}.attn.hook_pattern", lambda pattern, hook: pattern * scale)
        with torch.no_grad():
            return F.cross_entropy(model.run_with_hooks(pixels, fwd_hooks=[hook]), labels, reduction="none")

    for layer in (3, model.cfg.n_layers - 1):
        answer = tensor(first_order(model, pixels, labels, layer), (len(pixels), len(range(n)[model.tokens.patches])))
        for patch in (0, 17):
            less = torch.ones(n, n, dtype=torch.double)
            less[0, range(n)[model.tokens.patches][patch]] -= share
            want = (loss(less, layer) - loss(torch.ones_like(less), layer)) / share
            off = (answer[:, patch] - want).abs().max() / want.abs().max()
            demand(off < 0.05, f"block {layer}, patch {patch}: off by {off:.0%} of what a small cut does")
    return "right: a gradient times an activation foretells small cuts; a deletion is no small cut"
