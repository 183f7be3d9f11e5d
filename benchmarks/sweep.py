"""Shuffling CLS after one layer, and after each in turn: ours beside plain hooks, transformer-lens' bridge, nnsight."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import ViTForImageClassification

from benchmarks._models import bridged, images, installed, vit
from benchmarks._timing import Ratio, take_turns
from hooked_vit import HookedViT
from interventions import apply, shuffle_cls, sweep

BATCH, PLAIN = 8, "plain hooks on transformers sdpa"
Run = Callable[[], list[Tensor]]


def measure(quick: bool) -> Iterator[Ratio]:
    """All on the same weights with the same permutations; what they return is compared before it is timed."""
    hf = vit(quick)
    model, x = HookedViT.from_hf(hf), images(hf, BATCH)
    n_layers = model.cfg.n_layers
    one = f"one edit, CLS shuffled after block {n_layers // 2}, batch {BATCH}: ours / "
    yield from compared(quick, model, x, [n_layers // 2], one, rounds=2 if quick else 10, targets={})
    all_layers = f"{n_layers}-layer CLS shuffle, batch {BATCH}: ours / "
    targets = {PLAIN: 0.48, "transformer-lens' bridge": 0.30}
    why = shared(n_layers**2, n_layers * (n_layers - 1) // 2 + 1, n_layers - 1)
    yield from compared(
        quick, model, x, range(n_layers), all_layers, rounds=1 if quick else 3, targets=targets, why=why
    )


def shared(blocks: int, whole: int, alone: int) -> str:
    """What is left of these blocks of separate runs where some are computed whole, and some for CLS alone."""
    left = (whole + alone / 6) / blocks  # keys and values of all tokens are two of a block's twelve products of d x d
    return (
        f"A sweep shares all that is alike: of {blocks} blocks of separate runs it computes {whole} whole and {alone} "
        f"for CLS alone, which is {left:.2f} of the products."
    )


def compared(
    quick: bool,
    model: HookedViT,
    x: Tensor,
    layers: Sequence[int],
    where: str,
    rounds: int,
    targets: dict[str, float],
    why: str = "",
) -> Iterator[Ratio]:
    """Every candidate over one edit per layer."""
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))

    def shuffled(resid: Tensor) -> Tensor:
        return torch.cat([resid[order, :1], resid[:, 1:]], dim=1)

    def ours() -> list[Tensor]:
        if len(layers) > 1:
            return [logits for _, logits in sweep(model, x, [shuffle_cls(layer=layer) for layer in layers])]
        with apply(model, shuffle_cls(layer=layers[0])):
            return [model(x)]

    candidates: dict[str, Run] = {
        "ours": ours,
        PLAIN: hooks(vit(quick), x, layers, shuffled),
        "plain hooks on transformers eager": hooks(vit(quick, "eager"), x, layers, shuffled),
    }
    if installed("transformer-lens"):
        candidates["transformer-lens' bridge"] = lens(bridged(vit(quick)), x, layers, shuffled)
    if installed("nnsight"):
        candidates["nnsight"] = traces(vit(quick), x, layers, shuffled)
    with torch.no_grad():
        results = {name: torch.stack(run()) for name, run in candidates.items()}
        for name, result in results.items():
            assert torch.allclose(result, results["ours"], atol=1e-4), f"{name} computes something else"
        times = take_turns(candidates, rounds=rounds, warm_up=False)
    for name in [*candidates][1:]:
        pace = times.ratio("", name, PLAIN).value
        more = f"{why} A run of its own takes {pace:.2f} of what one with plain hooks takes."
        yield times.ratio(f"{where}{name}", "ours", name, targets.get(name), why if name == PLAIN else more)


def hooks(hf: ViTForImageClassification, x: Tensor, layers: Sequence[int], edit: Callable[[Tensor], Tensor]) -> Run:
    """One forward pass of transformers per layer, with torch's own hook."""

    def run() -> list[Tensor]:
        outputs = []
        for layer in layers:
            handle = hf.vit.layers[layer].register_forward_hook(lambda _, args, resid: edit(resid))
            outputs.append(hf(x).logits)
            handle.remove()
        return outputs

    return run


def lens(bridge: Any, x: Tensor, layers: Sequence[int], edit: Callable[[Tensor], Tensor]) -> Run:
    """The same with transformer-lens' bridge."""
    edits = [(f"blocks.{layer}.hook_out", lambda resid, hook: edit(resid)) for layer in layers]
    return lambda: [bridge.run_with_hooks(x, fwd_hooks=[one]) for one in edits]


def traces(hf: ViTForImageClassification, x: Tensor, layers: Sequence[int], edit: Callable[[Tensor], Tensor]) -> Run:
    """The same with nnsight."""
    import nnsight

    traced = nnsight.NNsight(hf)

    def run() -> list[Tensor]:
        outputs = []
        for layer in layers:
            with traced.trace(x):
                traced.vit.layers[layer].output = edit(traced.vit.layers[layer].output)
                logits = nnsight.save(traced.output.logits)
            outputs.append(logits)
        return outputs

    return run
