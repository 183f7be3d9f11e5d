"""One head or MLP taken out of a run, in three ways, and what is lost: with everything behind it, or directly.

Directly means along the residual stream alone: the change of what the part writes reaches the readout, and nothing in
between hears of it. Zeroing shows the model something it has never seen; the mean over images and another image's
output stay nearer to what it knows (Wang et al. 2022, Chan et al. 2022).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from hooked_vit import HookedViT
from interventions import Intervention, ablate_branch, ablate_heads, patch_branch, patch_heads, sweep

WAYS = ("zero", "mean", "resample")
EFFECTS = ("total", "direct")


class Part(NamedTuple):
    """A head, or with `head` None the MLP of a layer."""

    layer: int
    head: int | None

    @property
    def kind(self) -> str:
        """ "head" or "mlp"."""
        return "mlp" if self.head is None else "head"


def parts_of(model: HookedViT) -> list[Part]:
    """Every head and every MLP, layer by layer."""
    return [Part(l, h) for l in range(model.cfg.n_layers) for h in (*range(model.cfg.n_heads), None)]


class Outputs(NamedTuple):
    """What the parts put out: heads before the output matrix `z` [l b t h e], MLPs `mlp` [l b t d]."""

    z: Float[Tensor, "l b t h e"]
    mlp: Float[Tensor, "l b t d"]

    def of(self, part: Part) -> Tensor:
        """What stands at the part's site: all heads of its layer, or the MLP."""
        return self.mlp[part.layer] if part.head is None else self.z[part.layer]

    def dealt(self, order: Int[Tensor, "b"]) -> Outputs:
        """Image i gets what image order[i] had."""
        order = order.to(self.z.device)
        return Outputs(self.z[:, order], self.mlp[:, order])


@torch.no_grad()
def run(model: HookedViT, pixels: Float[Tensor, "b c h w"]) -> tuple[Tensor, Tensor, Outputs]:
    """(logits, stream behind the last block, outputs of all parts) of a clean run."""
    n = model.cfg.n_layers
    seen: dict[str, Tensor] = {}

    def keep(act: Tensor, hook: Any) -> None:
        seen[hook.name] = act

    sites = {site: [f"blocks.{l}.{site}" for l in range(n)] for site in ("attn.hook_z", "hook_mlp_out")}
    end = f"blocks.{n - 1}.hook_resid_post"
    names = [*sites["attn.hook_z"], *sites["hook_mlp_out"], end]
    logits = model.run_with_hooks(pixels, fwd_hooks=[(name, keep) for name in names])
    z, mlp = (torch.stack([seen[name] for name in of_site]) for of_site in sites.values())
    return logits, seen[end], Outputs(z, mlp)


def mean_outputs(model: HookedViT, batches: Iterator[Float[Tensor, "b c h w"]]) -> Outputs:
    """The mean over images at every token, as a batch of one."""
    total: list[Tensor] = []
    n = 0
    for pixels in batches:
        sums = [kept.double().sum(1, keepdim=True) for kept in run(model, pixels)[2]]
        total = [a + b for a, b in zip(total, sums, strict=True)] if total else sums
        n += len(pixels)
    return Outputs(*((s / n).to(model.embed.patch.weight.dtype) for s in total))


def without(parts: Sequence[Part], values: Outputs | None) -> Intervention:
    """The intervention that puts `values` in the place of what these parts put out; None: zeros."""
    found: list[Intervention] = []
    for layer in sorted({part.layer for part in parts}):
        heads = [part.head for part in parts if part.layer == layer and part.head is not None]
        if heads and values is None:
            found.append(ablate_heads(layers=layer, heads=heads))
        elif heads and values is not None:
            found.append(patch_heads(layer=layer, heads=heads, value=values.z[layer]))
        if Part(layer, None) in parts:
            mlp = None if values is None else values.mlp[layer]
            gone = ablate_branch("mlp", layers=layer) if mlp is None else patch_branch(layer, "mlp", value=mlp)
            found.append(gone)
    first, *others = found
    return sum(others, first)


def total_logits(
    model: HookedViT, pixels: Float[Tensor, "b c h w"], groups: Sequence[Sequence[Part]], values: Outputs | None
) -> Iterator[Float[Tensor, "b c"]]:
    """Logits without each group of parts, everything behind it going on from there."""
    for _, logits in sweep(model, pixels, [without(parts, values) for parts in groups]):
        yield logits


def direct_logits(
    model: HookedViT,
    pixels: Float[Tensor, "b c h w"],
    final: Float[Tensor, "b t d"],
    outputs: Outputs,
    parts: Sequence[Part],
    values: Outputs | None,
) -> Iterator[Float[Tensor, "b c"]]:
    """Logits in which the readout alone misses what each part writes, all other parts kept as they were."""
    layout = model.layout_for(*pixels.shape[2:])
    for part in parts:
        own = outputs.of(part)
        change = (torch.zeros_like(own) if values is None else values.of(part)) - own
        if part.head is not None:
            change = change[:, :, part.head] @ model.blocks[part.layer].attn.W_O[part.head].detach()
        with torch.no_grad():
            logits = model(final + change, start_at_layer=model.cfg.n_layers, tokens=layout)
        yield logits


def margin(logits: Float[Tensor, "b c"], labels: Int[Tensor, "b"]) -> Float[Tensor, "b"]:
    """The logit of the right class minus the mean of the others.

    >>> margin(torch.tensor([[3.0, 1.0, 0.0]]), torch.tensor([0])).tolist()
    [2.5]
    """
    logits = logits.double().cpu()
    own = logits.gather(1, labels.cpu()[:, None])[:, 0]
    return own - (logits.sum(1) - own) / (logits.shape[1] - 1)
