"""Keeping every activation of a run: time and peak memory, beside plain hooks on all modules and transformer-lens."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from analyses.processes.memory import peak_memory
from benchmarks._memory import measured_by
from benchmarks._models import bridged, images, installed, vit
from benchmarks._timing import Ratio, take_turns
from hooked_vit import HookedViT

BATCH = 8
WHY = (
    "Scores and patterns are formed beside the fused kernel and not in its place, so that watching changes no number, "
    "and every hook is shown a tensor of its own, so that an edit in place reaches nothing else; the bridge never runs "
    "the fused kernel, and copies nothing."
)
LARGER = (
    "Every activation that is kept is a tensor of its own; the bridge keeps the tensors that the model holds, often "
    "one of them under several names."
)
OURS, HOOKS, LENS = "ours", "plain hooks on every module of transformers eager", "transformer-lens' bridge"


def measure(quick: bool) -> Iterator[Ratio]:
    """What each calls its whole cache; ours holds patterns, scores and norms beside the stream."""
    candidates = {name: keeping(name, quick) for name in who()}
    with torch.no_grad():
        times = take_turns(candidates, rounds=2 if quick else 10)
    peaks = {name: measured_by("benchmarks.cache", {"name": name, "quick": quick}) for name in candidates}
    for name in [*candidates][1:]:
        yield times.ratio(f"full cache, batch {BATCH}, time: ours / {name}", OURS, name, _target(name), WHY)
        ratio = peaks[OURS] / peaks[name]
        what = f"full cache, batch {BATCH}, memory it adds to a forward pass: ours / {name}"
        yield Ratio(what, [ratio], [], ratio, _target(name), why=LARGER)


def who() -> list[str]:
    """Those that can be compared here."""
    return [OURS, HOOKS, *([LENS] if installed("transformer-lens") else [])]


def keeping(name: str, quick: bool) -> Callable[[], Any]:
    """A run that keeps everything, without arguments."""
    if name == HOOKS:
        hf = vit(quick, "eager")
        x = images(hf, BATCH)
        return lambda: _all_outputs(hf, x)
    hf = vit(quick)
    x = images(hf, BATCH)
    model = HookedViT.from_hf(hf) if name == OURS else bridged(hf)
    return lambda: model.run_with_cache(x)


def _all_outputs(hf: torch.nn.Module, x: Tensor) -> dict[str, Tensor]:
    kept: dict[str, Tensor] = {}

    def keep(name: str) -> Callable[..., None]:
        def hook(module: torch.nn.Module, args: tuple[Any, ...], out: Any) -> None:
            kept.update({f"{name} {i}": t for i, t in enumerate(out if isinstance(out, tuple) else (out,))})

        return hook

    handles = [module.register_forward_hook(keep(name)) for name, module in hf.named_modules() if name]
    hf(x, output_attentions=True)
    for handle in handles:
        handle.remove()
    return kept


def _target(name: str) -> float | None:
    """No slower and no larger than the fastest tool that keeps a cache."""
    return 1.0 if name == LENS else None


def added(name: str, quick: bool) -> None:
    """Print by how much the peak memory of this process grows when a cache is kept, after a forward pass."""
    torch.set_num_threads(1)
    run = keeping(name, quick)
    hf = vit(quick)
    with torch.no_grad():
        hf(images(hf, BATCH))
        before = peak_memory()
        kept = run()
    print(max(1, peak_memory() - before) if kept else 0)


if __name__ == "__main__":
    added(**json.loads(sys.argv[1]))
