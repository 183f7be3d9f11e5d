"""A layer x head map, every head set to zero in turn: our sweep beside plain hooks."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from benchmarks._models import images, vit
from benchmarks._timing import Ratio, take_turns
from benchmarks.sweep import shared
from hooked_vit import HookedViT
from interventions import ablate_heads, sweep

BATCH = 2


def measure(quick: bool) -> Iterator[Ratio]:
    """One run per head with a hook in front of the output projection, as one does without a tool."""
    hf = vit(quick)
    model, x = HookedViT.from_hf(hf), images(hf, BATCH)
    n_layers, n_heads = model.cfg.n_layers, model.cfg.n_heads
    places = [(layer, head) for layer in range(n_layers) for head in range(n_heads)]
    width = model.cfg.d_model // n_heads

    def ours() -> list[Tensor]:
        return [logits for _, logits in sweep(model, x, [ablate_heads(layers=l, heads=[h]) for l, h in places])]

    def hooks() -> list[Tensor]:
        outputs = []
        for layer, head in places:

            def without(module: torch.nn.Module, args: tuple[Tensor], head: int = head) -> tuple[Tensor]:
                z = args[0].clone()
                z[..., head * width : (head + 1) * width] = 0
                return (z,)

            handle = hf.vit.layers[layer].attention.o_proj.register_forward_pre_hook(without)
            outputs.append(hf(x).logits)
            handle.remove()
        return outputs

    with torch.no_grad():
        assert torch.allclose(torch.stack(ours()), torch.stack(hooks()), atol=1e-4), "these are not the same heads"
        times = take_turns({"ours": ours, "hooks": hooks}, rounds=1 if quick else 3, warm_up=False)
    what = f"{n_layers} x {n_heads} head map, batch {BATCH}: ours / plain hooks on transformers sdpa"
    every, later = n_layers * len(places), n_heads * (n_layers - 1)
    whole = n_heads * n_layers * (n_layers + 1) // 2 + n_layers - 1 - later
    yield times.ratio(what, "ours", "hooks", 0.50, shared(every, whole, later))
