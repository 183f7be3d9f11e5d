"""What cutting each edge would do to a metric: by gradients, averaged along a way, by size alone, or in earnest.

Cutting an edge replaces what its sender says by something else for this receiver only. To first order that changes the
metric by (value − output) · gradient at the receiver's input: Syed et al. 2023 (edge attribution patching). Hanna et
al. 2024 average the gradient while the embedding moves to the other image's (EAP-IG); here also while all edges are cut
together, which needs no other image and adds up to the whole change: integrated gradients in `where` of `only`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from hooked_vit import HookedViT
from interventions.circuits import Graph
from interventions.wiring import Outputs, Wiring

ALONG = ("edges", "embedding")
Judge = Callable[[Tensor], Float[Tensor, "b"]]
"""Logits to the metric, one number per pair."""


@dataclass(frozen=True)
class Scores:
    """Per pair, what cutting each edge is estimated to add to the metric, and how much of its input it would move."""

    effect: Float64[Tensor, "b s r"]
    size: Float64[Tensor, "b s r"]


@contextmanager
def wired(model: HookedViT, wiring: Wiring) -> Iterator[Wiring]:
    """The model with these wires, for the length of a `with`."""
    with model.hooks(fwd_hooks=wiring.hooks()):
        yield wiring


@torch.no_grad()
def cut_logits(
    model: HookedViT, pixels: Float[Tensor, "b c h w"], cut: Float[Tensor, "s r"], values: Outputs | None
) -> Float[Tensor, "b n"]:
    """Logits of a run in which these edges carry the values instead."""
    with wired(model, Wiring(model, cut, values)):
        return model(pixels)


def edge_scores(
    model: HookedViT,
    pixels: Float[Tensor, "b c h w"],
    values: Outputs | None,
    judge: Judge,
    *,
    steps: int = 0,
    along: str = "edges",
) -> Scores:
    """Estimates for every edge from one backward pass, or from one per step along a way.

    With `steps` 0 the gradient is that of the clean run. `along="edges"` moves all edges from their senders to the
    values: the effects add up to the metric with all edges cut minus that with none (towards zeros slowly: at the end
    of that way nothing is left in front of the norms). `along="embedding"` moves the stream in front of block 0 to that
    of the values, and needs values of another image: then those from the embedding add up to the whole difference.
    """
    graph = Graph.of(model)
    everything = graph.exists.to(torch.get_default_dtype())
    shares = [(i + 0.5) / steps for i in range(steps)] or [0.0]
    none = torch.zeros_like(everything)
    clean = Wiring(model, none, values)
    with torch.no_grad(), wired(model, clean):
        model(pixels)
    said, heard = torch.cat(clean.written), clean.heard
    effect: Any = 0.0
    for share in shares:
        start = None
        if along == "embedding":
            assert values is not None
            start = torch.lerp(heard[0], values.embed.to(heard[0]).expand_as(heard[0]), share)
        wiring, gradients = _gradients(
            model, pixels, start, everything * share if along == "edges" else none, values, judge
        )
        written = said if along == "embedding" else torch.cat(wiring.written).detach()
        effect = effect + _spread(graph, written, gradients) / len(shares)
    return Scores(effect, _sizes(graph, said, heard))


def _gradients(
    model: HookedViT, pixels: Tensor, start: Tensor | None, cut: Tensor, values: Outputs | None, judge: Judge
) -> tuple[Wiring, list[Float[Tensor, "r b t d"]]]:
    """The gradient of the metric at what each block of receivers reads, in a run with some edges cut."""
    layout = model.layout_for(*pixels.shape[2:])
    like = model.embed.patch.weight
    shape = len(pixels), layout.n_tokens, model.cfg.d_model
    sizes = [*(3 * model.cfg.n_heads, 1) * model.cfg.n_layers, 1]
    leaves = [torch.zeros(n, *shape, dtype=like.dtype, device=like.device, requires_grad=True) for n in sizes]
    with torch.enable_grad(), wired(model, Wiring(model, cut, values, leaves=leaves)) as wiring:
        logits = model(pixels) if start is None else model(start, start_at_layer=0, tokens=layout)
        gradients = torch.autograd.grad(judge(logits).sum(), leaves, allow_unused=True)
    # a receiver nothing reads, such as the last MLP's patches of a CLS readout, is none of these: it has zeros
    return wiring, [torch.zeros_like(l) if g is None else g for l, g in zip(leaves, gradients, strict=True)]


def _blocks(graph: Graph) -> Iterator[tuple[int, slice]]:
    """(senders heard, columns) of every block of receivers, in the order of a run."""
    for layer in range(graph.n_layers):
        yield graph.attention(layer)
        yield graph.mlp(layer)
    yield len(graph.senders), slice(len(graph.receivers) - 1, len(graph.receivers))


def _spread(graph: Graph, written: Float[Tensor, "s b t d"], gradients: list[Tensor]) -> Float64[Tensor, "b s r"]:
    """Products of what every sender would change with the gradient at every receiver, summed over tokens."""
    found = torch.zeros(written.shape[1], *graph.exists.shape, dtype=torch.float64)
    for (heard, columns), gradient in zip(_blocks(graph), gradients, strict=True):
        found[:, :heard, columns] = torch.einsum("sbtd,rbtd->bsr", written[:heard], gradient).double().cpu()
    return found


def _sizes(graph: Graph, written: Float[Tensor, "s b t d"], heard: list[Tensor]) -> Float64[Tensor, "b s r"]:
    """How much of the norm of what a receiver reads cutting the edge would move."""
    moved = written.double().flatten(2).norm(dim=2).T.cpu()
    found = torch.zeros(written.shape[1], *graph.exists.shape, dtype=torch.float64)
    for (n, columns), stream in zip(_blocks(graph), heard, strict=True):
        whole = stream.double().flatten(1).norm(dim=1).cpu()
        found[:, :n, columns] = (moved[:, :n] / whole[:, None])[..., None]
    return found


def exact_effects(
    model: HookedViT,
    pixels: Float[Tensor, "b c h w"],
    values: Outputs | None,
    judge: Judge,
    places: list[tuple[int, int]],
) -> Iterator[Float64[Tensor, "b"]]:
    """What cutting each of these edges alone adds to the metric: one run each."""
    graph = Graph.of(model)
    with torch.no_grad():
        before = judge(model(pixels)).double().cpu()
    for sender, receiver in places:
        cut = torch.zeros(graph.exists.shape)
        cut[sender, receiver] = 1
        logits = cut_logits(model, pixels, cut, values)
        yield judge(logits).double().cpu() - before
