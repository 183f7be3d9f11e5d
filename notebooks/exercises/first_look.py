"""Checks for 01_first_look."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from exercises.verdicts import check, close, demand, given, scenes, tensor
from hooked_vit import HookedViT
from interventions import Intervention, apply, insert_token, remove_tokens


@check
def check_1_1(effects: Callable[[HookedViT, Tensor, Tensor], Tensor]) -> str:
    """What each MLP is worth in all, by zeroing it with a plain hook."""
    model, pixels, labels = scenes("deit")

    def true_logit(hooks: list[Any]) -> Tensor:
        with torch.no_grad():
            return model.run_with_hooks(pixels, fwd_hooks=hooks).gather(1, labels[:, None]).mean()

    answer = tensor(effects(model, pixels, labels), (model.cfg.n_layers,))
    clean = true_logit([])
    for l, found in enumerate(answer):
        want = clean - true_logit([(f"blocks.{l}.hook_mlp_out", lambda act, hook: 0 * act)])
        demand(close(found, want, 1e-3), f"the MLP of block {l} is worth {want:.3f} logits in all, not {found:.3f}")
    return "right: beside it, the direct contribution misses what later blocks do with what an MLP wrote"


@check
def check_1_2(cls_behind: Callable[[HookedViT, Tensor, Intervention], Tensor]) -> str:
    """CLS, wherever it stands: in front, behind an inserted token, and in a shorter run."""
    model, pixels, _ = scenes("deit")
    runs = {
        "no token is inserted": (remove_tokens([10, 11]), 0),
        "a token stands in front": (insert_token(layer=2, vector=torch.zeros(model.cfg.d_model), index=0), 1),
    }
    for when, (edit, place) in runs.items():
        with torch.no_grad(), apply(model, edit):
            _, cache = model.run_with_cache(pixels)
        want = cache[f"blocks.{model.cfg.n_layers - 1}.hook_resid_post"][:, place]
        demand(close(tensor(cls_behind(model, pixels, edit), want.shape), want), f"where {when}, that is not CLS")
    return "right: a role is looked up in the run, position 0 is a guess"


@check
def check_1_3(hooks: Callable[[HookedViT], list[Any]]) -> str:
    """Edges from CLS to patches cut in the last two blocks, every row still summing to one."""
    model, pixels, _ = scenes("deit")
    ours, blocks = given(hooks(model)), range(model.cfg.n_layers - 2, model.cfg.n_layers)
    with torch.no_grad(), model.hooks(ours):
        _, cut = model.run_with_cache(pixels)
    with torch.no_grad():
        _, whole = model.run_with_cache(pixels)
    for l in range(model.cfg.n_layers):
        pattern = cut["pattern", l]
        to_patches = cut.at("pattern", l, queries="cls", keys="patches")
        if l in blocks:
            demand(to_patches.abs().max() == 0, f"in block {l} CLS still attends to patches")
            demand(close(pattern.sum(-1), torch.ones(())), f"in block {l} the rows of the pattern do not sum to one")
        if l == blocks[0]:
            want = whole["attn_scores", l].clone()
            want[:, :, model.tokens.cls, model.tokens.patches] = -torch.inf
            demand(close(pattern, want.softmax(-1)), f"in block {l} other attention has changed than that of CLS")
        elif l not in blocks:
            demand(torch.equal(pattern, whole["pattern", l]), f"block {l} has changed, which was to stay")
    return "right: in front of the softmax the rest shares what was cut, behind it the output shrinks too"
