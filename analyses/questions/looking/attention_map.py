"""Where one token looks, as numbers and over the picture: the first look in a notebook."""

from __future__ import annotations

from typing import Any

import plotly.graph_objects as go
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from analyses.drawing.overlays import overlay
from analyses.drawing.pictures import colours_of
from analyses.running.shown import plain
from hooked_vit import ActivationCache, HookedViT
from hooked_vit.tokens import Tokens


@torch.no_grad()
def attention_map(
    model: HookedViT,
    image: Any,
    layer: int,
    head: int | str = "mean",
    query: Tokens = "cls",
) -> Float[Tensor, "rows columns"]:
    """The share of its attention that a token pays to every patch; what is missing to 1 goes to the other tokens.

    >>> attention_map(model, "cat.jpg", layer=5).shape  # doctest: +SKIP
    >>> attention_map(model, image, layer=5, head=2, query=[40])  # of one patch  # doctest: +SKIP

    `image` is anything `model.preprocess` takes, or pixels [1 c h w]. `query` is a role of one token, or the original
    index of one ([40]); `head` a number, the mean of all, or for every patch the largest.
    Raises ValueError for more images or queries than one, a head or layer out of range, and what `preprocess` raises.
    """
    pixels = _pixels(model, image)
    heads, n = head in ("mean", "largest"), model.cfg.n_heads
    if not heads and not (isinstance(head, int) and -n <= head < n):
        raise ValueError(f"heads are 0 to {n - 1}, 'mean' or 'largest'; got {head!r}")
    name = f"blocks.{_layer(model, layer)}.attn.hook_pattern"
    _, cache = model.run_with_cache(pixels, names_filter=name)
    assert isinstance(cache, ActivationCache)
    found = cache.at(name, queries=query, keys="patches")[0]
    if found.shape[1] != 1:
        raise ValueError(f"one token looks; {query!r} are {found.shape[1]}: give the original index of one, as [1]")
    by_head = found[:, 0].reshape(n, *model.layout_for(pixels).grid)
    return by_head.mean(0) if head == "mean" else by_head.amax(0) if head == "largest" else by_head[int(head)]


def show(
    model: HookedViT, image: Any, values: Float[Tensor, "rows columns"], *, name: str = "attention", title: str = ""
) -> go.Figure:
    """A number per patch over the picture, as the model saw it.

    >>> show(model, "cat.jpg", attention_map(model, "cat.jpg", layer=5))  # doctest: +SKIP

    Raises ValueError for values that are not one per patch of this image, and what `attention_map` raises for images.
    """
    pixels = _pixels(model, image)
    grid = model.layout_for(pixels).grid
    if tuple(values.shape) != grid:
        raise ValueError(f"there is one value per patch, {grid} of them; got {tuple(values.shape)}")
    picture = Image.fromarray(colours_of(model, model.covered(pixels[0])))
    return overlay(picture, values, patch=model.cfg.patch_size, name=plain(name), title=plain(title))


def _pixels(model: HookedViT, image: Any) -> Float[Tensor, "1 c h w"]:
    is_pixels = isinstance(image, Tensor) and image.ndim == 4 and image.is_floating_point()
    pixels = image if is_pixels else model.preprocess(image)
    if len(pixels) != 1:
        raise ValueError(f"one image is looked at; got {len(pixels)}")
    return pixels


def _layer(model: HookedViT, layer: int) -> int:
    n = model.cfg.n_layers
    if not -n <= layer < n:
        raise ValueError(f"layers are 0 to {n - 1}, or negative from the end; got {layer}")
    return layer % n
