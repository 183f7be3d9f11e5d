"""Runs with a subspace of one layer's tokens taken from another image, and the subspace learned through them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from hooked_vit import HookedViT, TokenLayout
from interventions.vocabulary import generator_of

Change = Callable[[Tensor], Tensor]
"""donor − base of the tokens to what is added of it."""


@dataclass(frozen=True, eq=False)
class Streams:
    """Both runs of some pairs behind a block, and the classes an answer should be: what patching has to work with."""

    base: Float[Tensor, "b t d"]
    difference: Float[Tensor, "b t d"]
    targets: Int[Tensor, "b"]

    def take(self, rows: Tensor) -> Streams:
        """Some of the pairs."""
        return Streams(self.base[rows], self.difference[rows], self.targets[rows])

    def __len__(self) -> int:
        return len(self.base)


class Interchange:
    """The rest of a model from one layer on, with some tokens of a role changed."""

    def __init__(self, model: HookedViT, layer: int, mask: Bool[Tensor, "t"], layout: TokenLayout) -> None:
        self.model, self.layer, self.layout = model, layer, layout
        self.mask = mask

    @torch.no_grad()
    def streams(self, base: Tensor, donor: Tensor, targets: Int[Tensor, "b"]) -> Streams:
        """Both runs up to the layer; the difference is zero at tokens that are not patched."""
        ours, theirs = (self.model(pixels, stop_at_layer=self.layer + 1) for pixels in (base, donor))
        return Streams(ours, (theirs - ours) * self.mask[:, None].to(ours), targets)

    def logits(self, streams: Streams, change: Change) -> Float[Tensor, "b c"]:
        """The base run with a change of the difference added."""
        x = streams.base + change(streams.difference)
        return self.model(x, start_at_layer=self.layer + 1, tokens=self.layout)


def inside(basis: Float[Tensor, "k d"]) -> Change:
    """What a difference has in the span of orthonormal rows."""
    return lambda difference: difference @ basis.to(difference).T @ basis.to(difference)


def random_basis(d: int, k: int, seed: int) -> Float[Tensor, "k d"]:
    """Orthonormal rows in a direction drawn uniformly."""
    return torch.linalg.qr(torch.randn(d, k, generator=generator_of(seed), dtype=torch.float64))[0].T


def as_long_as(basis: Float[Tensor, "k d"], like: Float[Tensor, "k d"]) -> Change:
    """What a difference has in one span, made as long, token by token, as what it has in another."""

    def change(difference: Tensor) -> Tensor:
        mine, theirs = inside(basis)(difference), inside(like)(difference)
        length = mine.norm(dim=-1, keepdim=True)
        return mine * torch.where(length > 0, theirs.norm(dim=-1, keepdim=True) / length.clamp(min=1e-12), 0.0)

    return change


def main_differences(streams: Streams, k: int) -> Float[Tensor, "k d"]:
    """The k directions in which the two runs differ most, about zero: the closed form beside the learned one."""
    rows = streams.difference[streams.difference.abs().sum(-1) > 0].double()
    return torch.linalg.svd(rows, full_matrices=False)[2][:k].cpu()


def learn_basis(
    interchange: Interchange, streams: Streams, k: int, *, steps: int, rate: float, batch_size: int, seed: int
) -> tuple[Float[Tensor, "k d"], list[float]]:
    """Orthonormal rows such that patching their span makes the answers the targets, and the loss of every step.

    Cross-entropy, Adam; the rows are kept orthonormal by QR, and start at random. Geiger et al. 2024 (distributed
    alignment search), on one layer.
    """
    d = streams.base.shape[-1]
    free = random_basis(d, k, seed).T.clone().requires_grad_()
    optimiser = torch.optim.Adam([free], lr=rate)
    generator, losses = generator_of(seed), []
    for _ in range(steps):
        rows = torch.randperm(len(streams), generator=generator)[:batch_size]
        part = streams.take(rows)
        with torch.enable_grad():
            logits = interchange.logits(part, inside(torch.linalg.qr(free)[0].T))
            loss = F.cross_entropy(logits, part.targets.to(logits.device))
            (gradient,) = torch.autograd.grad(loss, free)
        free.grad = gradient
        optimiser.step()
        losses.append(float(loss.detach()))
    return torch.linalg.qr(free.detach())[0].T, losses
