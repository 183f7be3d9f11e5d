"""One head or MLP taken out of a run, in three ways, and what is lost: with everything behind it, or directly.

Directly means along the residual stream alone: the change of what the part writes reaches the readout, and nothing in
between hears of it. Zeroing shows the model something it has never seen; the mean over images and another image's
output stay nearer to what it knows (Wang et al. 2022, Chan et al. 2022).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from hooked_vit import HookedViT
from interventions import Intervention, ablate_branch, ablate_heads, patch_branch, patch_heads, sweep
from interventions.sources import run_pixels

WAYS = ("zero", "mean", "resample")
EFFECTS = ("total", "direct")
Outputs = Mapping[str, Tensor]
"""What stands at the sites of parts, by the name of the hook: all heads of a layer [b t h e], or its MLP [b t d]."""


class Part(NamedTuple):
    """A head, or with `head` None the MLP of a layer."""

    layer: int
    head: int | None

    @property
    def kind(self) -> str:
        """ "head" or "mlp"."""
        return "mlp" if self.head is None else "head"

    @property
    def hook(self) -> str:
        """Where what it puts out stands."""
        return f"blocks.{self.layer}.{'hook_mlp_out' if self.head is None else 'attn.hook_z'}"

    def __str__(self) -> str:
        return f"{'MLP' if self.head is None else f'head {self.head}'} of layer {self.layer}"


def parts_of(model: HookedViT, layers: Sequence[int] | None = None) -> list[Part]:
    """Every head and every MLP, layer by layer, of some layers where these are named."""
    chosen = range(model.cfg.n_layers) if layers is None else layers
    return [Part(l, h) for l in chosen for h in (*range(model.cfg.n_heads), None)]


def outputs_of(model: HookedViT, pixels: Float[Tensor, "b c h w"], parts: Sequence[Part]) -> Outputs:
    """What these parts put out in a clean run, which ends behind the last of them."""
    stop = max(part.layer for part in parts) + 1
    return run_pixels(model, pixels, list(dict.fromkeys(part.hook for part in parts)), stop_at_layer=stop)


def clean_run(
    model: HookedViT, pixels: Float[Tensor, "b c h w"], parts: Sequence[Part]
) -> tuple[Float[Tensor, "b n"], Float[Tensor, "b t d"], Outputs]:
    """Logits, the stream behind the last block, and what these parts put out, of one run."""
    n = model.cfg.n_layers
    behind = f"blocks.{n - 1}.hook_resid_post"
    seen = run_pixels(model, pixels, [*dict.fromkeys(part.hook for part in parts), behind], stop_at_layer=n)
    final = seen.pop(behind)
    with torch.no_grad():
        return model(final, start_at_layer=n, tokens=model.layout_for(pixels)), final, seen


def without(parts: Sequence[Part], values: Outputs | None) -> Intervention:
    """The intervention that puts `values` in the place of what these parts put out; None: zeros."""
    found: list[Intervention] = []
    for layer in sorted({part.layer for part in parts}):
        heads = [part.head for part in parts if part.layer == layer and part.head is not None]
        if heads and values is None:
            found.append(ablate_heads(layers=layer, heads=heads))
        elif heads and values is not None:
            found.append(patch_heads(layer=layer, heads=heads, value=values[Part(layer, heads[0]).hook]))
        if Part(layer, None) in parts:
            mlp = None if values is None else values[Part(layer, None).hook]
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
        own = outputs[part.hook]
        change = (torch.zeros_like(own) if values is None else values[part.hook]) - own
        if part.head is not None:
            weight = model.blocks[part.layer].attn.W_O[part.head].detach()
            change = change[:, :, part.head].to(weight) @ weight
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
