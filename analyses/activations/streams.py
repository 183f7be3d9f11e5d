"""The residual stream of a run, layer by layer, keeping of each layer only what is asked for."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from hooked_vit import HookedViT
from hooked_vit.components.pieces import images_at_once, in_pieces
from hooked_vit.components.watching import watched
from hooked_vit.loading.progress import ahead, tick

Read = Callable[[Tensor], Tensor]


@torch.no_grad()
def read_stream(
    model: HookedViT,
    pixels: Float[Tensor, "b c h w"],
    read: Read | None = None,
    *,
    layers: Sequence[int] | None = None,
    embedding: bool = False,
    site: str = "resid_post",
) -> tuple[Float[Tensor, "b n"], list[Tensor]]:
    """Logits, and `read` of the activation [b, t, d] at `site` of every layer; of nothing else anything is kept.

    >>> cls = model.tokens.cls  # doctest: +SKIP
    >>> logits, at_layer = read_stream(model, pixels, lambda resid: resid[:, cls].squeeze(1))  # doctest: +SKIP

    With `layers` it is read at those alone, in the order of the network. `embedding` puts the stream that enters block
    0 in front. Without `read` whole activations are kept. `site` is a block's hook without "hook_", such as "resid_mid"
    or "attn_out". Runs under whatever is applied to the model; where nothing is, a large batch passes a block some
    images at a time.
    """
    return _read(model, pixels, read, _in_order(model, layers), embedding, site, None)


@torch.no_grad()
def read_layers(
    model: HookedViT,
    pixels: Float[Tensor, "b c h w"],
    read: Read | None = None,
    *,
    layers: Sequence[int] | None = None,
    embedding: bool = False,
) -> list[Tensor]:
    """`read_stream` without the logits: the run ends behind the last layer that is read.

    >>> cls = read_layers(model, pixels, lambda resid: resid[:, 0], layers=(3,))[0]  # 4 blocks  # doctest: +SKIP

    Where hooks are attached to the model it goes on to its end, as some may wait there.
    """
    chosen = _in_order(model, layers)
    waiting = any(watched(point) for point in model.hook_points())
    return _read(
        model, pixels, read, chosen, embedding, "resid_post", None if waiting else max(chosen, default=-1) + 1
    )[1]


def _in_order(model: HookedViT, layers: Sequence[int] | None) -> list[int]:
    return list(range(model.cfg.n_layers)) if layers is None else sorted({*layers})


def _read(
    model: HookedViT, pixels: Tensor, read: Read | None, layers: list[int], embedding: bool, site: str, stop: int | None
) -> tuple[Tensor, list[Tensor]]:
    """The logits, or the stream in front of block `stop`, and what was read on the way."""
    pieces = images_at_once(model.cfg, model.hook_points(), pixels, model.layout_for(pixels).n_tokens) < len(pixels)
    if pieces and site == "resid_post":
        return _in_pieces(model, pixels, read or (lambda resid: resid), layers, embedding, stop)
    kept: list[Tensor] = []

    def keep(x: Tensor, hook: object) -> None:
        kept.append(x if read is None else read(x))

    names = ["blocks.0.hook_resid_pre"] if embedding else []
    names += [f"blocks.{layer}.hook_{site}" for layer in layers]
    stop = stop if stop is None else max(stop, embedding)  # what enters block 0 is named inside it
    return model.run_with_hooks(pixels, fwd_hooks=[(name, keep) for name in names], stop_at_layer=stop), kept


def _in_pieces(
    model: HookedViT, pixels: Tensor, read: Read, layers: list[int], embedding: bool, stop: int | None
) -> tuple[Tensor, list[Tensor]]:
    """Blocks take some images at a time; what is read is the stream of all of them, as `read` may know their number."""
    with model.running(model.check_pixels(pixels)):
        model.run.n_forwards += 1
        blocks = model.blocks[:stop]
        ahead(len(blocks))
        resid = model.embed_pixels(pixels)
        kept = [read(resid)] if embedding else []
        for layer, block in enumerate(blocks):
            resid = in_pieces(block, model.cfg, (), resid)
            if layer in layers:
                kept.append(read(resid))
            tick()
        return resid if stop is not None else model.readout(resid), kept
