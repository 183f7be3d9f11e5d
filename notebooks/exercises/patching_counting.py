"""Checks for 05_activation_patching_counting."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from copy import deepcopy

import torch
from torch import Tensor

from exercises.verdicts import check, close, demand, scenes, tensor
from hooked_vit import HookedViT

GATES = {"or": lambda a, b: max(a, b), "and": lambda a, b: min(a, b)}


@check
def check_5_1(shares: Mapping[str, tuple[float, float]]) -> str:
    """Both directions of patching in two toy models, by running them."""
    for name, gate in GATES.items():
        denoised, noised = gate(1, 0), gate(1, 1) - gate(0, 1)
        found = tuple(tensor(shares.get(name), (2,)).tolist())
        demand(found[0] == denoised, f"'{name}': one clean part in the corrupt run gives back {denoised}")
        demand(found[1] == noised, f"'{name}': one corrupt part in the clean run takes away {noised}")
    return "right: enough and needed come apart wherever two parts hold one thing, or need each other"


@check
def check_5_2(recovery: Callable[[Tensor, Tensor, Tensor], float]) -> str:
    """The two ends, a pair whose runs agree, and a patch that leads away."""
    draw = torch.Generator().manual_seed(0)
    corrupt = torch.randn(50, generator=draw)
    clean = corrupt + 2 + torch.rand(50, generator=draw)
    for patched, want, what in ((clean, 1, "clean"), (corrupt, 0, "corrupt"), (2 * corrupt - clean, -1, "mirrored")):
        found = tensor(recovery(patched, clean, corrupt), ()).double()
        demand(
            close(found, torch.tensor(want)), f"a patched run equal to the {what} one recovers {want}, not {found:.2f}"
        )
    half, agree = (clean + corrupt) / 2, torch.arange(50) == 7
    found = tensor(recovery(half + 0.01 * agree, torch.where(agree, corrupt + 1e-6, clean), corrupt), ()).double()
    demand((found - 0.5).abs() < 0.05, f"one pair of 50 whose two runs agree makes {found:.1f} of a recovery of 0.5")
    return "right: a share of nothing is no number, and a mean of shares is as good as its smallest denominator"


@check
def check_5_3(attribution: Callable[[HookedViT, Tensor, Tensor, int], Tensor]) -> str:
    """First-order effects of patching each token, against going a thousandth of the way."""
    model, clean, _ = scenes("vit-count", 4)
    _, corrupt, _ = scenes("vit-count", 4, "pair")
    model, clean, corrupt = deepcopy(model).double(), clean.double(), corrupt.double()
    share, last = 1e-3, model.cfg.n_layers - 1
    with torch.no_grad():
        wanted = model(clean).argmax(-1, keepdim=True)
        base = model(corrupt).gather(1, wanted).mean()
    for layer in (2, last):
        answer = tensor(attribution(model, clean, corrupt, layer), (model.tokens.n_tokens,))
        with torch.no_grad():
            there, here = (model(x, stop_at_layer=layer + 1) for x in (clean, corrupt))
        for token in (0, 5, 20):
            step = here.clone()
            step[:, token] += share * (there - here)[:, token]
            with torch.no_grad():
                moved = model(step, start_at_layer=layer + 1).gather(1, wanted).mean()
            want, found = (moved - base) / share, answer[token]
            says = f"behind block {layer}, token {token} is worth {want:.4f} to first order, not {found:.4f}"
            demand(close(found, want, 1e-2), says)
    return "right: one backward pass in the run that is patched, times what the patch would change"
