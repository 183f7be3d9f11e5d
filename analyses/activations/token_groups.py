"""Which tokens a patch touches: groups by role, by index, or by what is to be seen in each image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Int
from PIL import Image
from torch import Tensor

from hooked_vit import HookedViT, TokenLayout

EACH = "each"
Groups = Mapping[str, Bool[Tensor, "#b t"]]


def token_masks(layout: TokenLayout, n: int, tokens: Any = None) -> dict[str, Bool[Tensor, "b t"]]:
    """Named masks [n, tokens], from the ways there are to say which tokens are meant.

    >>> from hooked_vit import TokenLayout
    >>> layout = TokenLayout.native(("cls",), grid=(2, 2))
    >>> {name: mask[0].int().tolist() for name, mask in token_masks(layout, 1, ["cls", "patches"]).items()}
    {'cls': [1, 0, 0, 0, 0], 'patches': [0, 1, 1, 1, 1]}
    >>> list(token_masks(layout, 1, "each"))
    ['0', '1', '2', '3', '4']

    `tokens` is a role or "all", "each" (every token a group of its own), original indices, a boolean mask [tokens] or
    [images, tokens], several roles, or a mapping from names to any of these. None: every role there is, and "all".
    Raises ValueError for a role or index there is not, and for a mask of another shape.
    """
    if tokens is None:
        tokens = [*layout.roles, "all"]
    if isinstance(tokens, str) and tokens == EACH:
        tokens = {str(i): i for i in range(layout.n_tokens)}
    elif isinstance(tokens, str):
        tokens = {tokens: tokens}
    elif isinstance(tokens, Tensor):
        tokens = {"mask": tokens}
    elif isinstance(tokens, int):
        tokens = {str(tokens): tokens}
    elif isinstance(tokens, Sequence):
        named = tokens and all(isinstance(t, str) for t in tokens)
        tokens = {t: t for t in tokens} if named else {str(list(tokens)): list(tokens)}
    if not isinstance(tokens, Mapping) or not tokens:
        raise ValueError(f"tokens are roles, indices, masks, or names for them; got {tokens!r}")
    return {str(name): _mask(layout, n, value) for name, value in tokens.items()}


def _mask(layout: TokenLayout, n: int, tokens: Any) -> Bool[Tensor, "b t"]:
    if not isinstance(tokens, Tensor):
        return layout.mask(tokens).expand(n, -1)
    if tokens.dtype != torch.bool or tokens.shape not in ((layout.n_tokens,), (n, layout.n_tokens)):
        raise ValueError(
            f"a mask of tokens is boolean, [{layout.n_tokens}] or [{n} images, {layout.n_tokens}]; got {tokens.dtype} "
            f"{tuple(tokens.shape)}"
        )
    return tokens.cpu().expand(n, -1)


def aligned_masks(model: HookedViT, masks: Sequence[Image.Image]) -> Int[Tensor, "b h w"]:
    """Object masks moved as the model's processor moves its images: resized and cropped alike, ids kept.

    >>> objects = aligned_masks(model, batch.extra["mask"])  # doctest: +SKIP

    They show what the model's patches cover (`model.covered`). Raises ValueError where the model came without an image
    processor.
    """
    if model.processor is None:
        raise ValueError("masks are moved as the images are, and this model came without an image processor")
    pictures = [_ids(mask).convert("RGB") for mask in masks]
    as_they_are = {"do_rescale": False, "do_normalize": False, "resample": Image.Resampling.NEAREST}
    moved = model.processor(pictures, return_tensors="pt", **as_they_are)["pixel_values"]
    return model.covered(torch.as_tensor(moved)[:, 0].long())


def _ids(mask: Image.Image) -> Image.Image:
    """The mask in eight bits with its ids as they are: of a palette its indices, not the colours they stand for."""
    if mask.mode != "P" and not mask.mode.startswith("I"):
        return mask.convert("L")
    ids = np.asarray(mask)
    if ids.min() < 0 or ids.max() > 255:
        raise ValueError(f"ids in a mask are 0 to 255; this one (mode {mask.mode}) has {ids.min()} to {ids.max()}")
    return Image.fromarray(ids.astype(np.uint8))


def object_groups(
    objects: Int[Tensor, "b h w"],
    removed: Int[Tensor, "b"],
    layout: TokenLayout,
    *,
    threshold: int = 0,
    seed: int = 0,
    index: Int[Tensor, "b"] | None = None,
) -> dict[str, Bool[Tensor, "b t"]]:
    """Token groups of scenes whose object `removed` is left out in the other member of the pair.

    >>> groups = object_groups(objects, removed, model.tokens)  # doctest: +SKIP
    >>> list(groups)  # doctest: +SKIP
    ['cls', 'removed', 'others', 'background', 'random', 'patches', 'all']

    `objects` holds 0 for background and an id per object. A patch belongs to an object that has more than `threshold`
    pixels in it, to the removed one first; so `removed`, `others` and `background` share no patch and are all of them.
    `random` are as many patches as `removed`, drawn from the others, for image `index` the same whatever the batch.
    Every prefix role is a group too. methods section 24. Raises ValueError for masks that patches do not cover.
    """
    b, height, width = objects.shape
    rows, cols = layout.grid
    if height % rows or width % cols:
        raise ValueError(f"a mask of {height} x {width} pixels is not covered by {rows} x {cols} patches")
    cells = objects.reshape(b, rows, height // rows, cols, width // cols).transpose(2, 3).reshape(b, rows * cols, -1)
    gone = (cells == removed[:, None, None]).sum(-1) > threshold
    present = ((cells > 0) & (cells != removed[:, None, None])).sum(-1) > threshold
    patches = layout.mask("patches")

    def at_patches(of_patches: Tensor) -> Tensor:
        mask = torch.zeros(b, layout.n_tokens, dtype=torch.bool)
        mask[:, patches] = of_patches
        return mask

    index = torch.arange(b) if index is None else index
    asked = zip(~gone, gone.sum(1), index, strict=True)
    drawn = np.stack([_draw(free.numpy(), int(k), seed, int(i)) for free, k, i in asked])
    prefix = {role: layout.mask(role).expand(b, -1) for role in layout.roles if role != "patches"}
    return {
        **prefix,
        "removed": at_patches(gone),
        "others": at_patches(present & ~gone),
        "background": at_patches(~present & ~gone),
        "random": at_patches(torch.from_numpy(drawn)),
        "patches": patches.expand(b, -1),
        "all": torch.ones(b, layout.n_tokens, dtype=torch.bool),
    }


def _draw(free: np.ndarray, k: int, seed: int, index: int) -> np.ndarray:
    """`k` of the free patches, all of them where there are fewer."""
    places = np.random.default_rng([seed, index]).permutation(np.flatnonzero(free))[:k]
    chosen = np.zeros(len(free), bool)
    chosen[places] = True
    return chosen
