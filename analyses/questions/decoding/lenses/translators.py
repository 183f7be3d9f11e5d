"""Affine translators: what a head would read at each layer if the layers' codes were first brought into the last one's.

A translator per layer, begun as the identity, is trained so that the head behind it gives the distribution the model
ends with; the model itself stays as it is. Belrose et al. 2023 (arXiv 2303.08112).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from hooked_vit.loading.progress import tqdm

Head = Callable[[Tensor], Tensor]

HELD_OUT = 0.1
CHECKS = 20


@dataclass(frozen=True, eq=False)
class Translators:
    """An affine map of the residual stream per layer, and what it was worth on images it was not fitted on.

    `kl_before` and `kl_after`: divergence of the head's distribution from the model's, in nats, of the identity and of
    the translator. `kl_after` is never larger: a layer whose translator did not help keeps the identity.
    """

    weight: Float[Tensor, "layers d d"]
    bias: Float[Tensor, "layers d"]
    kl_before: Float[Tensor, "layers"]
    kl_after: Float[Tensor, "layers"]

    def __call__(self, layer: int, x: Float[Tensor, "*b d"]) -> Float[Tensor, "*b d"]:
        """A vector of this layer in the code of the last one."""
        return x @ self.weight[layer].T.to(x) + self.bias[layer].to(x)


def kl_divergence(target: Float[Tensor, "*b c"], logits: Float[Tensor, "*b c"]) -> Float64[Tensor, "*b"]:
    """KL(softmax(target) ‖ softmax(logits)) in nats, in float64.

    >>> kl_divergence(torch.tensor([1.0, 2.0]), torch.tensor([2.0, 3.0])).item()
    0.0
    """
    ours, theirs = target.double().log_softmax(-1), logits.double().log_softmax(-1)
    return (ours.exp() * (ours - theirs)).sum(-1).clamp(min=0)


def fit_translators(
    x: Float[Tensor, "n layers d"],
    target: Float[Tensor, "n c"],
    head: Head,
    *,
    steps: int = 500,
    batch_size: int = 128,
    lr: float = 1e-3,
    seed: int = 0,
    what: str = "translators",
) -> Translators:
    """A translator for every layer, all trained together on vectors `x` and the logits `target` of the same images.

    >>> translators = fit_translators(x, logits, lambda v: model.project(v, "cls"))  # doctest: +SKIP

    `head` takes [*b d] to logits and is not changed. Adam on the divergence of methods: KL(model ‖ lens), with a
    learning rate that falls to 0 over `steps` mini-batches; a tenth of the images is held out, and each layer keeps
    the state that was best on it. Vectors are standardised inside, so that one rate fits streams of any size.
    Raises ValueError for fewer than 20 images, and for vectors that are not finite.
    """
    n, n_layers, d = x.shape
    if n < 20:
        raise ValueError(f"translators need at least 20 images, a tenth of them held out; got {n}")
    if not (torch.isfinite(x).all() and torch.isfinite(target).all()):
        raise ValueError("translators need finite vectors and logits; look for NaN in weights or pixels")
    generator = torch.Generator("cpu").manual_seed(seed)
    order = torch.randperm(n, generator=generator, device="cpu")
    held, used = order[: max(2, int(HELD_OUT * n))], order[max(2, int(HELD_OUT * n)) :]
    mean, spread = x[used].mean(0), x[used].std(0)
    size = spread.square().mean(-1, keepdim=True).sqrt()
    # a unit that does not vary has nothing to be standardised by
    spread = spread.clamp(min=1e-6).maximum(1e-3 * size)
    turn = torch.zeros(n_layers, d, d, dtype=x.dtype, device=x.device, requires_grad=True)
    shift = torch.zeros(n_layers, d, dtype=x.dtype, device=x.device, requires_grad=True)

    def divergence(rows: Tensor) -> Float64[Tensor, "layers"]:
        v = x[rows.to(x.device)]
        moved = v + size[:, 0, None] * (torch.einsum("bld,lde->ble", (v - mean) / spread, turn) + shift)
        logits = head(moved)
        return kl_divergence(target[rows.to(x.device)][:, None].expand_as(logits), logits).mean(0)

    optimiser = torch.optim.Adam([turn, shift], lr=lr)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: 1 - step / steps)
    with torch.no_grad():
        before = divergence(held)
    best, kept = before.clone(), (turn.detach().clone(), shift.detach().clone())
    waiting = used[:0]
    for step in tqdm(range(1, steps + 1), desc=what, leave=False, delay=2):
        if len(waiting) < min(batch_size, len(used)):
            waiting = used[torch.randperm(len(used), generator=generator, device="cpu")]
        rows, waiting = waiting[:batch_size], waiting[batch_size:]
        # only of the translators: nothing of the model gets a gradient
        turn.grad, shift.grad = torch.autograd.grad(divergence(rows).sum(), [turn, shift])
        optimiser.step()
        schedule.step()
        if step % max(1, steps // CHECKS) == 0:
            with torch.no_grad():
                now = divergence(held)
            better = now < best
            best = torch.where(better, now, best)
            for old, new in zip(kept, (turn, shift), strict=True):
                old[better] = new.detach()[better]
    turned, shifted = kept
    weight = (size[..., None] * turned / spread[..., None]).transpose(1, 2)
    bias = size * shifted - torch.einsum("led,ld->le", weight, mean)
    return Translators(torch.eye(d).to(x) + weight, bias, before.float().cpu(), best.float().cpu())
