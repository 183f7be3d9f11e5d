"""Checks for 03_multiple_readouts."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from analyses.statistics.intervals import paired_difference
from exercises.verdicts import check, close, demand, given, scenes, tensor
from hooked_vit import HookedViT
from interventions import Intervention, apply, shuffle_cls, zero_attention


@check
def check_3_1(without_rewriting: Callable[[HookedViT, int], Intervention]) -> str:
    """Logits under the answer are those of a model that reads no patch behind the layer, dealt out to other images."""
    model, pixels, _ = scenes("vit")
    for layer in (2, 5):
        with torch.no_grad(), apply(model, given(without_rewriting(model, layer))) as run:
            logits = model(pixels)
        demand("shuffle_cls" in run.record, "CLS is not shuffled")
        behind = range(layer + 1, model.cfg.n_layers)
        with torch.no_grad(), apply(model, zero_attention("cls", "patches", layers=behind, renormalise=True)):
            unread = model(pixels)
        order = run.record["shuffle_cls"][0]
        says = f"CLS shuffled behind block {layer}: an answer is not the donor's alone, patches still act on CLS"
        demand(close(logits, unread[order]), says)
    return "right: nothing comes back, so all that came back before was read from the patches"


@check
def check_3_2(difference: Callable[[Tensor, Tensor], Sequence[float]]) -> str:
    """A difference that two intervals beside each other would hide, and one that is none."""
    images = torch.arange(100)
    for a, b, what in (
        (images < 90, images < 80, "90 and 80 of the same 100 images right, ten of them by one readout alone"),
        (images < 60, (images >= 5) & (images < 65), "60 right each, five of them by one readout alone"),
    ):
        found, want = tensor(difference(a, b), (3,)).double(), torch.tensor(paired_difference(a, b))
        says = ", ".join(f"{x:+.2f}" for x in want.tolist())
        got = ", ".join(f"{x:+.2f}" for x in found.tolist())
        demand((found - want).abs().max() < 0.04, f"{what}: about {says} (difference, low, high), not {got}")
    return "right: images that both readouts get right, or both wrong, say nothing about their difference"


@check
def check_3_3(own_readout: Callable[[HookedViT, int, Tensor], Intervention]) -> str:
    """A new token whose answer does not depend on CLS, in a model that does not notice it."""
    model, pixels, _ = scenes("vit")
    layer, vector = 5, torch.linspace(-1, 1, model.cfg.d_model)

    def behind(edit: Intervention) -> tuple[Tensor, Tensor]:
        with torch.no_grad(), apply(model, edit):
            logits, cache = model.run_with_cache(pixels)
        demand(
            cache.tokens("resid_post", layer).inserted is not None, f"no token is inserted in front of block {layer}"
        )
        return cache.at("resid_post", layer, tokens="inserted"), logits

    token, logits = behind(given(own_readout(model, layer, vector)))
    demand(token.std(0).max() > 1e-3, "the new token is the same for all images: it reads nothing")
    shuffled, _ = behind(shuffle_cls(layer=layer - 1, seed=0) + own_readout(model, layer, vector))
    demand(close(token, shuffled), "the new token depends on CLS, which it must not read")
    with torch.no_grad():
        demand(close(logits, model(pixels)), "the model's answer has changed: a token of it reads the new one")
    return "right: what this token answers, the block has from the patches alone, and nothing else was disturbed"
