"""Edits of the picture itself."""

from __future__ import annotations

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from hooked_vit import HookedViT
from interventions.apply import note
from interventions.core import Hooks, intervention
from interventions.editing import Value, moved, weights
from interventions.vocabulary import Number, Where, check_number, check_where, generator_of


@intervention
def shuffle_patches(model: HookedViT, seed: int = 0, patch_size: int | None = None, where: Where = True) -> Hooks:
    """Cut every picture into square patches and put them together at random.

    >>> shuffle_patches(patch_size=32)
    shuffle_patches(patch_size=32)

    The patches are the model's own unless `patch_size` (pixels) says otherwise; every picture gets its own
    permutation, in `run.record`; pixels that the model's patches leave out stay where they are. Naseer et al. 2021: how
    much a model relies on global structure. Raises ValueError where patches do not cover what the model's own do.
    """
    size = model.cfg.patch_size if patch_size is None else patch_size
    generator = generator_of(seed)
    if isinstance(size, bool) or not isinstance(size, int) or size < 1:
        raise ValueError(f"patch_size is a number of pixels, got {size!r}")
    usual = {model.usual_size, model.cfg.image_size}
    seen = [model.covered(torch.empty(at, device="meta")).shape for at in usual]
    if patch_size is not None and all(height % size or width % size for height, width in seen):
        raise ValueError(f"patches of {size} pixels do not cover a picture of {model.usual_size}")

    def shuffled(pixels: Tensor) -> Tensor:
        seen, whole = model.covered(pixels), pixels.clone()
        whole[..., : seen.shape[-2], : seen.shape[-1]] = mixed(seen)
        return whole

    def mixed(pixels: Tensor) -> Tensor:
        b, c, height, width = pixels.shape
        if height % size or width % size:
            raise ValueError(f"patches of {size} pixels do not cover a picture of {height} x {width}")
        patches = pixels.reshape(b, c, height // size, size, width // size, size).permute(0, 2, 4, 1, 3, 5)
        flat = patches.flatten(1, 2)
        order = torch.stack([torch.randperm(flat.shape[1], generator=generator, device="cpu") for _ in range(b)])
        note("shuffle_patches", order)
        mixed = flat[torch.arange(b, device=flat.device)[:, None], order.to(flat.device)]
        return mixed.reshape(patches.shape).permute(0, 3, 1, 4, 2, 5).reshape(pixels.shape)

    return _edit_pixels(model, shuffled, where)


@intervention(idempotent=True)
def low_pass(model: HookedViT, radius: Number, where: Where = True) -> Hooks:
    """Keep the spatial frequencies within `radius` of zero, in cycles per picture.

    >>> low_pass(radius=14)
    low_pass(radius=14)

    `low_pass` and `high_pass` of one radius add up to the picture. Both act on the normalised pixels, whose zero is
    the mean colour of the training data. methods: Zou et al. 2024, with the filter's real part and centre put right.
    """
    check_number(radius, "radius", least=0)
    return _edit_pixels(model, lambda pixels: low_frequencies(pixels, radius), where)


@intervention(idempotent=True)
def high_pass(model: HookedViT, radius: Number, where: Where = True) -> Hooks:
    """Keep the spatial frequencies more than `radius` from zero, in cycles per picture.

    >>> high_pass(radius=14)
    high_pass(radius=14)

    What `low_pass` of the same radius leaves out; zero frequency is never among it.
    """
    check_number(radius, "radius", least=0)
    return _edit_pixels(model, lambda pixels: pixels - low_frequencies(pixels, radius), where)


def low_frequencies(pixels: Float[Tensor, "*b h w"], radius: Number) -> Float[Tensor, "*b h w"]:
    """The part of pictures within a disc of frequencies around zero.

    >>> low_frequencies(torch.tensor([[1.0, 3.0], [1.0, 3.0]]), radius=0)
    tensor([[2., 2.],
            [2., 2.]])
    """
    height, width = pixels.shape[-2:]
    exact = pixels.to(torch.promote_types(pixels.dtype, torch.float32))
    inside = squared_frequencies(height, width).to(pixels.device) <= radius**2
    # the disc is symmetric about zero frequency, so what the inverse leaves imaginary is rounding
    return torch.fft.ifft2(torch.fft.fft2(exact) * inside).real.to(pixels.dtype)


def squared_frequencies(height: int, width: int) -> Float64[Tensor, "h w"]:
    """Squared distance of every place of a Fourier transform from zero frequency, in cycles per picture: whole numbers.

    >>> squared_frequencies(2, 3).tolist()
    [[0.0, 1.0, 1.0], [1.0, 2.0, 2.0]]
    """
    # 1 / n is rounded, so that frequencies come out beside whole numbers for some n, and a radius would miss its edge
    rows, cols = (torch.fft.fftfreq(n, 1 / n, dtype=torch.float64, device="cpu").round() for n in (height, width))
    return rows[:, None] ** 2 + cols**2


def _edit_pixels(model: HookedViT, value: Value, where: Where) -> Hooks:
    chosen = check_where(where)

    def edit(pixels: Tensor, hook: object) -> Tensor:
        whole = torch.ones(1, 1, 1, 1, dtype=torch.bool, device="cpu")
        return moved(pixels, value, whole, weights(chosen, pixels, model.tokens, "all"))

    return [("hook_pixels", edit)]
