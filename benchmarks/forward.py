"""A forward pass beside transformers and beside its matrix products alone; watching the residual stream."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks._models import bridged, images, installed, vit
from benchmarks._timing import Ratio, take_turns
from hooked_vit import HookedViT

BATCH = 8
WHY = "Both are the same kernels to the bit; what is ours is to ask each hook point whether somebody listens."


def measure(quick: bool) -> Iterator[Ratio]:
    """Transformers with its fused attention and with its eager one; the bridge and nnsight where installed."""
    hf, eager = vit(quick), vit(quick, "eager")
    model = HookedViT.from_hf(hf)
    x = images(hf, BATCH)
    watched = [f"blocks.{layer}.hook_resid_post" for layer in range(model.cfg.n_layers)]
    products = matrix_products(model, x)
    candidates = {
        "transformers": lambda: hf(x),
        "eager": lambda: eager(x),
        "plain": lambda: model(x),
        "cached": lambda: model.run_with_cache(x, names_filter=watched),
        "hidden states": lambda: hf(x, output_hidden_states=True),
        "products": products,
    }
    if installed("transformer-lens"):
        bridge = bridged(vit(quick))
        names = [f"blocks.{layer}.hook_out" for layer in range(model.cfg.n_layers)]
        candidates["lens"] = lambda: bridge.run_with_cache(x, names_filter=names)
    with torch.no_grad():
        assert torch.equal(model(x), hf(x).logits), "what is timed must be the same computation"
        times = take_turns(candidates, rounds=2 if quick else 20)
    where = f"forward, batch {BATCH}: ours / "
    yield times.ratio(f"{where}transformers sdpa", "plain", "transformers", 1.01, WHY)
    yield times.ratio(f"{where}transformers eager", "plain", "eager")
    yield times.ratio(f"{where}its matrix products alone", "plain", "products")
    cached = "cache of every hook_resid_post / "
    yield times.ratio(f"{cached}plain forward", "cached", "plain", 1.03)
    yield times.ratio(f"{cached}transformers with output_hidden_states", "cached", "hidden states")
    if "lens" in times.wall:
        yield times.ratio(f"{cached}the same of transformer-lens' bridge", "cached", "lens")


def matrix_products(model: HookedViT, x: Tensor) -> Callable[[], None]:
    """The products of a forward pass with its weights and nothing else: no norm, no GELU, no sum, no softmax by hand.

    Scores and mixing are the fused kernel, the fastest way to these two products there is.
    """
    cfg = model.cfg
    n, d, heads = model.tokens.n_tokens, cfg.d_model, cfg.n_heads
    patch = model.embed.patch.weight.flatten(1)
    patches = torch.randn(len(x) * model.tokens.grid[0] * model.tokens.grid[1], patch.shape[1])
    resid, wide = torch.randn(len(x), n, d), torch.randn(len(x), n, cfg.d_mlp)
    linear = [[b.attn.q, b.attn.k, b.attn.v, b.attn.o, b.mlp.fc_in] for b in model.blocks]
    split = resid.unflatten(-1, (heads, d // heads)).transpose(1, 2)

    def run() -> None:
        patches @ patch.T
        for block, parts in zip(model.blocks, linear, strict=True):
            for part in parts:
                F.linear(resid, part.weight, part.bias)
            F.scaled_dot_product_attention(split, split, split)
            F.linear(wide, block.mlp.fc_out.weight, block.mlp.fc_out.bias)
        resid[:, 0] @ model.W_U

    return run
