"""One vector per image and role of token: CLS, distillation token, mean register, mean patch, one random patch."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from hooked_vit import TokenLayout

LABELS = {
    "cls": "CLS",
    "dist": "distillation token",
    "registers": "mean register",
    "patches": "mean patch",
    "random_patch": "one random patch",
}


def random_patches(layout: TokenLayout, index: Int[Tensor, "b"], seed: int) -> Int[Tensor, "b"]:
    """The position of one patch token per image, drawn by the image's own number: the same whatever the batch.

    >>> layout = TokenLayout.native(("cls",), grid=(2, 2))
    >>> bool((random_patches(layout, torch.arange(9), seed=0) >= 1).all())
    True
    """
    places = layout.mask("patches").nonzero().flatten()
    return places[[int(np.random.default_rng([seed, int(i)]).integers(len(places))) for i in index]]


def read_roles(
    resid: Float[Tensor, "b t d"], layout: TokenLayout, random: Int[Tensor, "b"]
) -> dict[str, Float[Tensor, "b d"]]:
    """Every role there is, averaged over its tokens, and the patch of each image that `random_patches` drew.

    >>> layout = TokenLayout.native(("cls",), grid=(1, 2))
    >>> resid = torch.tensor([[[1.0], [2.0], [4.0]]])
    >>> {role: x.item() for role, x in read_roles(resid, layout, torch.tensor([2])).items()}
    {'cls': 1.0, 'patches': 3.0, 'random_patch': 4.0}
    """
    roles = {role: resid[:, layout.where(role)].mean(1) for role in layout.roles}
    return {**roles, "random_patch": resid[torch.arange(len(resid)), random.to(resid.device)]}
