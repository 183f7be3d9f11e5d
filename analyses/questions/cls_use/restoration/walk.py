"""One walk through the network, and from behind a block on once more with tokens exchanged between images."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from analyses.activations.layers import measured_layers
from hooked_vit import HookedViT
from hooked_vit.components.pieces import in_pieces


def shuffled_streams(
    model: HookedViT, pixels: Float[Tensor, "b c h w"], tokens: str, orders: Mapping[int, Int[Tensor, "b"]], read: Any,
    known: Callable[[int], Float[Tensor, "b t d"]] | None = None, layers: Sequence[int] | None = None,
) -> Iterator[tuple[int | None, int | None, int, Tensor]]:  # fmt: skip
    """Walk the network once and, behind every block, on from its output with tokens of a role exchanged.

    >>> for shuffled, seed, probed, x in shuffled_streams(model, pixels, "cls", orders, read): ...  # doctest: +SKIP

    Yields (shuffled layer, seed, probed layer, `read` of the stream behind the probed layer); without a shuffle the
    first two are None. `orders` holds a permutation per seed. The unshuffled prefix is computed once, and two streams
    are alive at most. Equal to runs of their own under `shuffle_tokens`. Where the stream behind a block is
    `known`, the prefix is not computed. With `layers` the way on from a shuffle is gone from these alone; from the
    first of them on every layer is read without a shuffle, and right behind one, which takes no block.
    Raises ValueError for layers the model has not.
    """
    chosen = measured_layers(model, layers)
    layout = model.layout_for(*pixels.shape[2:])
    mask = layout.mask(tokens).to(pixels.device)[:, None]

    # step by step: a generator that switched gradients off would leave them off for whoever goes through it
    @torch.no_grad()
    def through(resid: Tensor, layer: int) -> Tensor:
        def block(piece: Tensor) -> Tensor:
            return model(piece, start_at_layer=layer, stop_at_layer=layer + 1, tokens=layout)

        return in_pieces(block, model.cfg, model.hook_points(), resid)

    def read_here(stream: Tensor) -> Tensor:
        with model.running(layout):
            return read(stream)

    if known is None:
        with torch.no_grad():
            resid = model(pixels, stop_at_layer=0)
        for layer in range(chosen[0]):
            resid = through(resid, layer)
    for layer in range(chosen[0], model.cfg.n_layers):
        resid = through(resid, layer) if known is None else known(layer).to(pixels.device)
        yield None, None, layer, read_here(resid)
        for seed, order in orders.items():
            other = torch.where(mask, resid[order.to(resid.device)], resid)
            yield layer, seed, layer, read_here(other)
            for later in range(layer + 1, model.cfg.n_layers) if layer in chosen else ():
                other = through(other, later)
                yield layer, seed, later, read_here(other)
