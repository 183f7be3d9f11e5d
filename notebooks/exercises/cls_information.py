"""Checks for 02_cls_information_is_not_used."""

from __future__ import annotations

from collections.abc import Callable
from itertools import permutations

import torch
from torch import Tensor

from exercises.verdicts import check, close, demand, scenes, tensor
from hooked_vit import HookedViT


@check
def check_2_1(floor: Callable[[Tensor, Tensor], float]) -> str:
    """What another image's answer is right by luck, against all permutations of a small batch."""
    for predicted, labels in (([0, 1, 1, 2], [0, 1, 2, 2]), ([3, 3, 3, 3, 3], [3, 3, 1, 0, 3]), ([0, 1], [1, 0])):
        p, y = torch.tensor(predicted), torch.tensor(labels)
        orders = [torch.tensor(order) for order in permutations(range(len(p)))]
        want = sum((p[order] == y).double().mean() for order in orders) / len(orders)
        found = tensor(floor(p, y), ()).double()
        says = f"of answers {predicted} dealt out to labels {labels}, {want:.3f} are right on average, not {found:.3f}"
        demand(close(found, want), says)
    return "right: the floor depends on the classes and on the answers, and is one in ten only by accident"


@check
def check_2_2(donors_label: Callable[[HookedViT, Tensor, Tensor, int], float]) -> str:
    """How often the answer is the class of the image that CLS came from, with a hook that rolls the batch."""
    model, pixels, labels = scenes("vit")
    for layer in (1, model.cfg.n_layers - 1):

        def roll(resid: Tensor, hook: object) -> Tensor:
            return torch.cat([resid[:, :1].roll(1, 0), resid[:, 1:]], dim=1)

        with torch.no_grad():
            logits = model.run_with_hooks(pixels, fwd_hooks=[(f"blocks.{layer}.hook_resid_post", roll)])
        want = (logits.argmax(-1) == labels.roll(1)).double().mean()
        found = tensor(donors_label(model, pixels, labels, layer), ()).double()
        says = f"with CLS of the image before behind block {layer}, {want:.1%} get that image's class, not {found:.1%}"
        demand(close(found, want), says)
    return "right: a drop says that CLS is needed, the donor's class says what it carries"


@check
def check_2_3(direction: Callable[[HookedViT], Tensor]) -> str:
    """One bit an image, planted in CLS so that a probe reads it and the model does not."""
    model, pixels, _ = scenes("vit")
    answer = tensor(direction(model), (model.cfg.d_model,)).float()
    demand(close(answer.norm(), torch.ones(())), f"a direction has length 1, this one {answer.norm():.3f}")
    bits = torch.arange(len(pixels)) % 2 * 2.0 - 1

    def plant(normalized: Tensor, hook: object) -> Tensor:
        mark = 100 * bits[:, None] * answer
        return torch.cat([normalized[:, :1] + mark[:, None], normalized[:, 1:]], dim=1)

    with torch.no_grad():
        clean, cache = model.run_with_cache(pixels)
        marked = model.run_with_hooks(pixels, fwd_hooks=[("ln_final.hook_normalized", plant)])
    read = (cache["ln_final.hook_normalized"][:, 0] + 100 * bits[:, None] * answer) @ answer
    demand(((read > 0) == (bits > 0)).all(), "a probe along the direction does not read the bit")
    moved = (marked - clean).abs().max()
    demand(moved < 0.01, f"with the bit planted, a logit moves by {moved:.2f}")
    return "right: every probe reads the bit from CLS, and no answer depends on it"
