"""On which size and how many images a model runs: as asked, or refused."""

from __future__ import annotations

import time
from collections.abc import Callable
from copy import deepcopy
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


def resize_(model: HookedViT, side: int) -> None:
    """Let a model's processor make pictures of `side` × `side` pixels, its resize and crop in their old proportion.

    Raises ValueError for a side that patches do not cover and
    for a processor whose pictures are not all of one square size.
    """
    if side < 1 or side % model.cfg.patch_size:
        raise ValueError(f"patches of {model.cfg.patch_size} pixels cover no side of {side}; give a multiple")
    made = model.processor_size
    if made is None or made[0] != made[1]:
        raise ValueError(f"only a processor that makes squares of one size is given another; this one makes {made}")
    processor = deepcopy(model.processor)
    for what in ("size", "crop_size"):
        if kept := {key: value for key, value in dict(getattr(processor, what, None) or {}).items() if value}:
            setattr(processor, what, {key: round(value * side / made[0]) for key, value in kept.items()})
    model.processor = processor
    if model.processor_size != (side, side):
        raise ValueError(f"this processor, told to make {side} × {side} pixels, makes {model.processor_size}")


def fitting_batch(model: HookedViT) -> int:
    """The batch size to run a model with: on a GPU the largest that fits, on a CPU the one with most images a second.

    >>> fitting_batch(model)  # doctest: +SKIP
    64

    Measured on images of the size the model is used on, in a few seconds; a batch that does not fit is none.
    """
    pixels = _usual_pixels(model)

    def run(n: int) -> float:
        return _seconds(model, pixels.expand(n, -1, -1, -1))

    return fastest(run, SIZES) if pixels.device.type == "cpu" else largest(run, SIZES)


def seconds_an_image(model: HookedViT, batch_size: int = 16) -> float:
    """How long a forward pass takes for each image of a batch, of the size the model is used on."""
    return _seconds(model, _usual_pixels(model).expand(batch_size, -1, -1, -1)) / batch_size


def _usual_pixels(model: HookedViT) -> torch.Tensor:
    weight = model.embed.patch.weight
    return torch.zeros(1, model.cfg.n_channels, *model.usual_size, dtype=weight.dtype, device=weight.device)


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
