"""The batch size that is fastest on this machine, found by measuring and not by a constant."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from hooked_vit.model import HookedViT

SIZES = (8, 16, 32, 64, 128, 256, 512, 1024)
STATES = 4
"""States of a batch that an analysis may hold at once: that many times a batch has to fit."""
FASTER = 0.97
"""A larger batch is taken where an image takes at most this share of the time it took."""
BUDGET = 5.0
"""Seconds after which no larger batch is tried."""


def fitting_batch(model: HookedViT) -> int:
    """The batch size to run a model with: on a GPU the largest that fits, on a CPU the one with most images a second.

    >>> fitting_batch(model)  # doctest: +SKIP
    64

    Measured on images of the size the model is used on, in a few seconds; a batch that does not fit is none.
    """
    weight = model.embed.patch.weight
    pixels = torch.zeros(1, model.cfg.n_channels, *model.usual_size, dtype=weight.dtype, device=weight.device)

    def run(n: int) -> float:
        return _seconds(model, pixels.expand(n, -1, -1, -1))

    return fastest(run, SIZES) if weight.device.type == "cpu" else largest(run, SIZES)


def largest(run: Callable[[int], float], sizes: tuple[int, ...]) -> int:
    """The largest size of which `STATES` fit at once, of sizes that rise.

    Raises what the first one raises.
    """
    best = sizes[0]
    for n in sizes:
        try:
            run(STATES * n)
        except torch.OutOfMemoryError:
            if n == sizes[0]:
                run(n)
            break
        best = n
    return best


def fastest(run: Callable[[int], float], sizes: tuple[int, ...]) -> int:
    """The size at which an image takes the least time, of sizes that rise; the smaller one where there is little in it.

    >>> fastest(lambda n: 2 + n if n <= 32 else 2 * n, (8, 16, 32, 64))
    32
    """
    began, best, least = time.monotonic(), sizes[0], run(sizes[0]) / sizes[0]
    for n in sizes[1:]:
        if time.monotonic() - began > BUDGET:
            break
        try:
            each = run(n) / n
        except (MemoryError, RuntimeError):  # torch's own of a CPU without memory is a RuntimeError
            break
        if each > least * FASTER:
            break
        best, least = n, each
    return best


@torch.no_grad()
def _seconds(model: HookedViT, pixels: torch.Tensor) -> float:
    """How long a forward pass takes, the better of two."""
    found = []
    for _ in range(2):
        began = time.perf_counter()
        model(pixels).flatten()[:1].tolist()  # on a GPU, until it is there
        found.append(time.perf_counter() - began)
    return min(found)
