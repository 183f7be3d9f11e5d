"""A large batch in pieces that fit the memory a process keeps."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from hooked_vit.components.watching import HookPoint, watched
from hooked_vit.config import ViTConfig

PIECE_BYTES = 16 * 2**20
"""The largest activation of a piece.

From 32 MiB on the C library maps every one anew and gives it back: for ViT-S/14 at 224 pixels and a batch of 64 the
kernel clears pages for a fifth of the time.
"""


def images_at_once(cfg: ViTConfig, points: Iterable[HookPoint], x: Shaped[Tensor, "b ..."], n_tokens: int) -> int:
    """How many of the images of `x` pass together: as many as fit; all where it is no CPU, or somebody listens.

    >>> images_at_once(model.cfg, model.hook_points(), torch.zeros(4096, 37, 64), 37)  # doctest: +SKIP
    442

    A hook may look at, and exchange things between, all images of the batch that was given in.
    """
    if x.device.type != "cpu" or torch.is_grad_enabled() or any(watched(point) for point in points):
        return max(1, len(x))
    widest = max(cfg.d_mlp, 3 * cfg.d_model)
    return max(1, min(len(x), PIECE_BYTES // (n_tokens * widest * 4)))


def in_pieces(
    part: Callable[[Tensor], Tensor], cfg: ViTConfig, points: Iterable[HookPoint], x: Float[Tensor, "b t d"]
) -> Float[Tensor, "b after d"]:
    """What a part of the network makes of a stream, some images at a time.

    >>> in_pieces(model.blocks[3], model.cfg, model.hook_points(), resid)  # doctest: +SKIP

    Equal to `part(x)` up to the rounding of smaller matrix products.
    """
    n = images_at_once(cfg, points, x, x.shape[1])
    return part(x) if n >= len(x) else torch.cat([part(piece) for piece in x.split(n)])
