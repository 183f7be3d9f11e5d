"""Shuffling CLS after each layer in turn: our sweep beside plain hooks, transformer-lens' ViT bridge, and nnsight."""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Iterator

import nnsight
import torch
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge
from transformers import ViTForImageClassification

from benchmarks._models import images, vit
from benchmarks._timing import Ratio, take_turns
from hooked_vit import HookedViT
from interventions import shuffle_cls, sweep

BATCH = 8


def measure(quick: bool) -> Iterator[Ratio]:
    """All four on the same weights with the same permutations; what they return is compared before it is timed."""
    hf = vit(quick)
    model = HookedViT.from_hf(hf)
    x = images(hf, BATCH)
    n_layers = model.cfg.n_layers
    order = torch.randperm(BATCH, generator=torch.Generator().manual_seed(0))

    def shuffled(resid: Tensor) -> Tensor:
        return torch.cat([resid[order, :1], resid[:, 1:]], dim=1)

    def ours() -> list[Tensor]:
        return [logits for _, logits in sweep(model, x, [shuffle_cls(layer=layer) for layer in range(n_layers)])]

    def hooks() -> list[Tensor]:
        outputs = []
        for block in hf.vit.layers:
            handle = block.register_forward_hook(lambda _, args, resid: shuffled(resid))
            outputs.append(hf(x).logits)
            handle.remove()
        return outputs

    bridge = bridged(vit(quick))

    def lens() -> list[Tensor]:
        edits = [(f"blocks.{layer}.hook_out", lambda resid, hook: shuffled(resid)) for layer in range(n_layers)]
        return [bridge.run_with_hooks(x, fwd_hooks=[edit]) for edit in edits]

    traced = nnsight.NNsight(vit(quick))

    def traces() -> list[Tensor]:
        outputs = []
        for layer in range(n_layers):
            with traced.trace(x):
                traced.vit.layers[layer].output = shuffled(traced.vit.layers[layer].output)
                logits = nnsight.save(traced.output.logits)
            outputs.append(logits)
        return outputs

    candidates = {"ours": ours, "hooks": hooks, "lens": lens, "nnsight": traces}
    with torch.no_grad():
        results = {name: torch.stack(run()) for name, run in candidates.items()}
        for name, result in results.items():
            assert torch.allclose(result, results["ours"], atol=1e-4), f"{name} computes something else"
        times = take_turns(candidates, rounds=1 if quick else 3, warm_up=False)
    where = f"{n_layers}-layer CLS shuffle, batch {BATCH}: ours / "
    yield times.ratio(f"{where}plain hooks on transformers sdpa", "ours", "hooks", 0.60)
    yield times.ratio(f"{where}transformer-lens bridge", "ours", "lens")
    yield times.ratio(f"{where}nnsight", "ours", "nnsight")


def bridged(hf: ViTForImageClassification) -> TransformerBridge:
    """transformer-lens' bridge; it wants a name to read a config from, so the config is written down for it."""
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        hf.config.save_pretrained(folder)
        return TransformerBridge.boot_transformers(folder, hf_model=hf)
