"""What every intervention promises, as a check that anyone can run on their own."""

from __future__ import annotations

import json

import torch
from jaxtyping import Float
from torch import Tensor

from hooked_vit import HookedViT
from hooked_vit.components.watching import watched
from interventions.apply import AppliedRun, apply
from interventions.core import Intervention, from_dict, registered
from interventions.sweep import sweep


def check_intervention(model: HookedViT, pixels: Float[Tensor, "b c h w"], intervention: Intervention) -> AppliedRun:
    """Hold an intervention to what all of them promise; returns what it did.

    >>> check_intervention(model, pixels, my_intervention(layer=3)).changes  # doctest: +SKIP

    It fires, is the same every time, leaves no hook behind and no weight changed, is stored and read back as itself,
    does exactly nothing where `where` is nowhere, does nothing more the second time where it says it is idempotent,
    and gives the same in a sweep. Raises AssertionError naming the first promise that is broken.
    """
    kernel = model.run.attention
    model.set_attention("eager")  # to the bit, whether or not a hook asks for patterns
    try:
        with torch.no_grad():
            return _check(model, pixels, intervention)
    finally:
        model.set_attention(kernel)


def _check(model: HookedViT, pixels: Tensor, intervention: Intervention) -> AppliedRun:
    clean = model(pixels)
    logits, run = _run(model, pixels, intervention)
    _promise(all(run.fired.values()), f"every hook fires, got {run.fired}")
    _promise(not any(watched(point) for point in model.hook_points()), "no hook stays attached")
    _promise(torch.equal(model(pixels), clean), "the model is afterwards what it was before")

    stored = json.loads(json.dumps(intervention.to_dict()))
    _promise(from_dict(stored) == intervention, "from_dict(to_dict()) is the same intervention")
    _promise(torch.equal(_run(model, pixels, from_dict(stored))[0], logits), "what was stored does the same again")

    for part in intervention.parts:
        # what edits the hook point of another part needs that part beside it
        hosts = [p for p in intervention.parts if p is not part and p.brings(model) and not part.brings(model)]
        _check_where(model, pixels, hosts, part, clean)
        _check_idempotent(model, pixels, hosts, part)

    swept = [out for _, out in sweep(model, pixels, [intervention, intervention], fold_tokens=0)]
    _promise(all(torch.equal(out, logits) for out in swept), "a sweep gives what a run of its own gives")
    return run


def _check_where(
    model: HookedViT, pixels: Tensor, hosts: list[Intervention], part: Intervention, clean: Tensor
) -> None:
    if "where" not in part.params:
        return
    without = _run(model, pixels, *hosts)[0] if hosts else clean
    for nowhere in (False, torch.zeros(len(pixels), dtype=torch.bool, device="cpu")):
        logits, run = _run(model, pixels, *hosts, part.replace(where=nowhere))
        _promise(torch.equal(logits, without), f"where={nowhere} changes nothing")
        moved = [sum(edit.changes) for edit in run.edits if edit.intervention not in hosts]
        _promise(not any(moved), f"where={nowhere} moves nothing, got {run.changes}")


def _check_idempotent(model: HookedViT, pixels: Tensor, hosts: list[Intervention], part: Intervention) -> None:
    if not registered()[part.name].idempotent:
        return
    where = part.params.get("where", True)
    if isinstance(where, float) or (isinstance(where, Tensor) and where.is_floating_point()):
        part = part.replace(where=True)  # going half the way twice leads further
    once, _ = _run(model, pixels, *hosts, part)
    twice, run = _run(model, pixels, *hosts, part + part)
    _promise(_close(twice, once), f"twice is the same as once; it moved {run.changes}")


def _run(model: HookedViT, pixels: Tensor, *interventions: Intervention) -> tuple[Tensor, AppliedRun]:
    with apply(model, *interventions) as run:
        return model(pixels), run


def _close(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and torch.allclose(a, b, rtol=1e-4, atol=1e-5)


def _promise(kept: bool, promise: str) -> None:
    if not kept:
        raise AssertionError(f"broken promise: {promise}")
