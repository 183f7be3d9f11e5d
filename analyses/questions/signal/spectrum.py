"""What a picture holds at which spatial frequency: filters, and energy per band.

Frequencies are in cycles per picture: 1 is one wave across the whole of it, half its side the finest there can be.
methods §25, after Zou et al. 2024 (NeurIPS; a filter in front of the model).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from hooked_vit import HookedViT
from interventions.catalogue.pixels import low_frequencies, squared_frequencies

FRACTIONS = (1 / 16, 1 / 8, 1 / 4, 3 / 8)
"""Radii by default, as shares of the picture's shorter side: the source's 14, 28, 56 and 84 of 224 pixels."""
LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601
QUANTISATION = (1 / 255) ** 2 / 12  # variance of rounding a pixel to one of 256 values


class Filter(NamedTuple):
    """Keep the frequencies within `radius` of zero ("low") or those beyond it ("high")."""

    kind: str
    radius: float

    def __call__(self, pixels: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """The picture's part; the transform is in float64, the result in the pixels' own precision."""
        exact = in_float64(pixels)
        low = low_frequencies(exact, self.radius)
        return (low if self.kind == "low" else exact - low).to(pixels)


def default_radii(height: int, width: int) -> tuple[float, ...]:
    """The source's four radii for a picture of this size.

    >>> default_radii(224, 224)
    (14.0, 28.0, 56.0, 84.0)
    """
    return tuple(fraction * min(height, width) for fraction in FRACTIONS)


def published_filter(shown: Float[Tensor, "b c h w"], kind: str, radius: float) -> Float[Tensor, "b c h w"]:
    """The filter as Zou et al. ran it, on pixels from 0 to 1: off centre, and the magnitude of what comes out.

    Their disc lies around (side − 1) / 2, half a bin beside zero frequency for even sides, so that it keeps a wave and
    drops its conjugate; the result is complex, and its magnitude turns the dark half of a high-passed picture bright.
    """
    height, width = shown.shape[-2:]
    exact = in_float64(shown)
    rows = torch.arange(height, dtype=torch.float64, device=exact.device) - (height - 1) / 2
    cols = torch.arange(width, dtype=torch.float64, device=exact.device) - (width - 1) / 2
    inside = rows[:, None] ** 2 + cols**2 <= radius**2
    centred = torch.fft.fftshift(torch.fft.fft2(exact), dim=(-2, -1))
    kept = centred * (inside if kind == "low" else ~inside)
    return torch.fft.ifft2(torch.fft.ifftshift(kept, dim=(-2, -1))).abs().to(shown)


def shown_pixels(model: HookedViT, pixels: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
    """The picture from 0 to 1 that the processor normalised into these pixels.

    Raises ValueError where the model came without an image processor.
    """
    mean, std = _normalisation(model, pixels)
    return pixels * std + mean


def normalised_pixels(model: HookedViT, shown: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
    """The inverse of `shown_pixels`."""
    mean, std = _normalisation(model, shown)
    return (shown - mean) / std


def luminance(shown: Float[Tensor, "b c h w"]) -> Float64[Tensor, "b h w"]:
    """Brightness of pictures of 3 channels or of 1, in float64."""
    exact = in_float64(shown)
    if shown.shape[1] == 1:
        return exact[:, 0]
    if shown.shape[1] != len(LUMA):
        raise ValueError(f"luminance is of pictures with 3 channels or 1; got {shown.shape[1]}")
    return torch.einsum("bchw,c->bhw", exact, exact.new_tensor(LUMA))


def band_edges(height: int, width: int, bands: int) -> tuple[float, ...]:
    """`bands` + 1 radii, the first 0 and then evenly spaced in octaves up to half the shorter side.

    >>> [round(edge, 2) for edge in band_edges(64, 64, 5)]
    [0.0, 2.0, 4.0, 8.0, 16.0, 32.0]

    Band k holds the frequencies above edge k up to edge k + 1; the last one also the corners beyond half the side.
    Zero frequency, the mean brightness, is in none. Raises ValueError for a band that holds no frequency.
    """
    finest = min(height, width) / 2
    if bands < 1:
        raise ValueError(f"there is at least one band; got bands={bands}")
    edges = (0.0, *(finest ** ((k + 1) / bands) for k in range(bands)))
    members = _members(height, width, edges)
    if empty := [k for k in range(bands) if not (members == k).any()]:
        raise ValueError(f"a picture of {height} x {width} has no frequency in bands {empty} of {bands}; ask for fewer")
    return edges


def band_energies(brightness: Float[Tensor, "b h w"], edges: tuple[float, ...]) -> Float64[Tensor, "b k"]:
    """Energy of each band: all of them and the squared mean add up to the mean square of the picture.

    >>> flat = torch.ones(1, 8, 8)
    >>> band_energies(flat, band_edges(8, 8, 2)).tolist()
    [[0.0, 0.0]]

    In float64: in float32 a transform's rounding, some 1e-7 of the largest amplitude, is more than a smooth picture
    holds in its finest band.
    """
    exact = in_float64(brightness)
    height, width = exact.shape[-2:]
    power = (torch.fft.fft2(exact).abs() / (height * width)).square().flatten(1)
    members = _members(height, width, edges).to(power.device).flatten()
    # zero frequency is gathered too, in a place of its own, and left out
    sums = power.new_zeros(len(power), len(edges)).index_add_(1, members % len(edges), power)
    return sums[:, :-1]


def log_band_energies(brightness: Float[Tensor, "b h w"], edges: tuple[float, ...]) -> Float64[Tensor, "b k"]:
    """log10 of each band's energy and of what rounding to 256 grey values puts there, so that blank is not −∞."""
    height, width = brightness.shape[-2:]
    members = _members(height, width, edges)
    share = torch.stack([(members == k).double().mean() for k in range(len(edges) - 1)])
    energies = band_energies(brightness, edges)
    return torch.log10(energies + QUANTISATION * share.to(energies))


def in_float64(x: Tensor) -> Tensor:
    """The same in float64; on the CPU where the device has none."""
    return x.to("cpu" if x.device.type == "mps" else x.device).double()


def _members(height: int, width: int, edges: tuple[float, ...]) -> Tensor:
    """The band of every frequency [h, w]; −1 at zero frequency."""
    radius = squared_frequencies(height, width).sqrt()
    # powers of the finest frequency come out a rounding error to either side of whole numbers
    inner = torch.tensor(edges[1:-1], dtype=torch.float64) * (1 + 1e-12)
    band = torch.bucketize(radius, inner)
    return band.where(radius > 0, -1)


def _normalisation(model: HookedViT, like: Tensor) -> tuple[Tensor, Tensor]:
    if model.processor is None:
        raise ValueError(
            "what a picture looked like before normalisation is known from the image processor; this model has none"
        )
    plain = not getattr(model.processor, "do_normalize", True)
    mean = [0.0] if plain else model.processor.image_mean
    std = [1.0] if plain else model.processor.image_std
    return like.new_tensor(mean).reshape(-1, 1, 1), like.new_tensor(std).reshape(-1, 1, 1)
