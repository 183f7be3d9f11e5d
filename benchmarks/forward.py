"""A forward pass without hooks beside transformers, and watching the residual stream beside not watching it."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from benchmarks._models import images, vit
from benchmarks._timing import Ratio, take_turns
from hooked_vit import HookedViT

BATCH = 8


def measure(quick: bool) -> Iterator[Ratio]:
    """ViT-B/16, transformers with its fused attention."""
    hf = vit(quick)
    model = HookedViT.from_hf(hf)
    x = images(hf, BATCH)
    watched = [f"blocks.{layer}.hook_resid_post" for layer in range(model.cfg.n_layers)]
    with torch.no_grad():
        assert torch.equal(model(x), hf(x).logits), "what is timed must be the same computation"
        times = take_turns(
            {
                "transformers": lambda: hf(x),
                "plain": lambda: model(x),
                "cached": lambda: model.run_with_cache(x, names_filter=watched),
            },
            rounds=2 if quick else 12,
        )
    yield times.ratio(f"forward, batch {BATCH}: ours / transformers sdpa", "plain", "transformers", 1.05)
    yield times.ratio("cache of every hook_resid_post / plain forward", "cached", "plain", 1.10)
