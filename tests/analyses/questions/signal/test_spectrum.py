"""Filters and band energies obey Fourier's laws; the published filter breaks them in the way it is said to."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from transformers import ViTImageProcessorPil

from analyses.questions.signal.spectrum import (
    Filter,
    band_edges,
    band_energies,
    default_radii,
    log_band_energies,
    luminance,
    normalised_pixels,
    published_filter,
    shown_pixels,
)
from hooked_vit import HookedViT
from interventions import apply, high_pass, low_pass
from interventions.catalogue.pixels import squared_frequencies
from tests.tiny import IMAGE, make_hf, tiny

SIZES = [(16, 16), (15, 15), (12, 18)]


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def wave(height: int, width: int, rows: int, cols: int, phase: float = 0.3) -> Tensor:
    y, x = torch.meshgrid(torch.arange(height).double() / height, torch.arange(width).double() / width, indexing="ij")
    return torch.cos(2 * torch.pi * (rows * y + cols * x) + phase)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("radius", [0.0, 2.0, 3.7, 100.0])
def test_low_and_high_add_up_to_the_picture(size: tuple[int, int], radius: float) -> None:
    picture = noise(2, 3, *size)
    low, high = (Filter(kind, radius)(picture) for kind in ("low", "high"))
    assert torch.allclose(low + high, picture, rtol=0, atol=1e-14)
    # the parts share no frequency
    assert abs(float((low * high).sum())) < 1e-10 * float(picture.square().sum())
    single = picture.float()
    halves = sum(Filter(kind, radius)(single) for kind in ("low", "high"))
    assert float((halves - single).abs().max()) <= 2 * torch.finfo(torch.float32).eps * float(single.abs().max())


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(("rows", "cols"), [(0, 0), (0, 3), (3, 0), (2, 2), (3, 4)])
def test_a_wave_passes_whole_or_not_at_all(size: tuple[int, int], rows: int, cols: int) -> None:
    picture = wave(*size, rows, cols)[None, None]
    frequency = (rows**2 + cols**2) ** 0.5
    for radius, inside in ((frequency + 1e-6, True), (frequency - 1e-6, False)):
        if radius < 0:
            continue
        kept = {kind: Filter(kind, radius)(picture) for kind in ("low", "high")}
        assert torch.allclose(kept["low"], picture * inside, atol=1e-12)
        assert torch.allclose(kept["high"], picture * (not inside), atol=1e-12)


def test_the_filters_are_those_of_the_interventions() -> None:
    _, model = tiny("vit")
    pixels = noise(2, 3, IMAGE, IMAGE).float()
    for kind, intervention in (("low", low_pass), ("high", high_pass)):
        seen: list[Tensor] = []
        with apply(model, intervention(4.0)), torch.no_grad():
            model.run_with_hooks(pixels, fwd_hooks=[("hook_pixels", lambda x, hook, seen=seen: seen.append(x))])
        assert torch.allclose(seen[0], Filter(kind, 4.0)(pixels), atol=2e-6)


def test_the_published_filter_rectifies_and_does_not_add_up() -> None:
    picture = 0.5 + 0.4 * wave(16, 16, 0, 5)[None, None]
    low, high = (published_filter(picture, kind, 4.0) for kind in ("low", "high"))
    assert float(high.min()) >= 0  # the correct high-pass is the wave, half of it below 0
    assert float(Filter("high", 4.0)(picture).min()) < -0.39
    assert not torch.allclose(low + high, picture, atol=0.05)
    # off centre: of the two halves of this wave one is within the disc, so half the amplitude stays
    edge = 0.5 + 0.4 * wave(16, 16, 0, 4)[None, None]
    within = published_filter(edge, "low", 4.3) - 0.5
    assert 0.1 < float(within.abs().max()) < 0.35
    assert torch.allclose(Filter("low", 4.3)(edge), edge, atol=1e-12)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("bands", [1, 3])
def test_bands_share_out_the_energy(size: tuple[int, int], bands: int) -> None:
    brightness = noise(3, *size)
    energies = band_energies(brightness, band_edges(*size, bands))
    assert energies.shape == (3, bands)
    mean_square = brightness.square().mean((1, 2))
    assert torch.allclose(energies.sum(1) + brightness.mean((1, 2)).square(), mean_square, rtol=1e-12)


def test_each_wave_is_in_the_band_of_its_frequency() -> None:
    edges = band_edges(32, 32, 4)
    assert edges == pytest.approx((0, 2, 4, 8, 16))
    for cols, band in ((1, 0), (2, 0), (3, 1), (4, 1), (5, 2), (8, 2), (9, 3), (16, 3)):
        energies = band_energies(wave(32, 32, 0, cols, 0.0)[None], edges)[0]
        assert int(energies.argmax()) == band
        assert float(energies.sum() - energies[band]) < 1e-25
    corner = band_energies(wave(32, 32, 15, 15)[None], edges)[0]
    assert int(corner.argmax()) == 3


def test_float32_would_see_energy_where_there_is_none() -> None:
    edges, smooth = band_edges(48, 48, 6), 10 + Filter("low", 2.0)(noise(1, 1, 48, 48))[0]
    finest = squared_frequencies(48, 48) > edges[-2] ** 2
    power = (torch.fft.fft2(smooth.float())[0].abs().double() / 48**2).square()
    assert float(band_energies(smooth, edges)[0, -1]) < 1e-9 * float(power[finest].sum())


@pytest.mark.parametrize("side", [49, 98, 392])
def test_a_radius_keeps_the_frequency_it_names_at_every_size(side: int) -> None:
    for frequency in (1, 3, 7, 14, 24):
        picture = wave(side, side, 0, frequency)[None, None]
        assert torch.allclose(Filter("low", float(frequency))(picture), picture, atol=1e-11)


def test_a_blank_picture_has_the_energy_of_rounding() -> None:
    edges = band_edges(24, 24, 4)
    blank = log_band_energies(torch.full((1, 24, 24), 0.5), edges)
    assert torch.isfinite(blank).all()
    total = float((10**blank).sum())
    assert total == pytest.approx((1 / 255) ** 2 / 12, rel=0.01)


def test_a_band_without_a_frequency_is_refused() -> None:
    with pytest.raises(ValueError, match="no frequency in bands"):
        band_edges(16, 16, 20)
    with pytest.raises(ValueError, match="at least one band"):
        band_edges(16, 16, 0)
    assert default_radii(224, 300) == (14.0, 28.0, 56.0, 84.0)


def test_shown_pixels_undo_the_processor() -> None:
    processor = ViTImageProcessorPil(
        size={"height": IMAGE, "width": IMAGE}, image_mean=[0.1, 0.2, 0.3], image_std=[0.5, 0.6, 0.7]
    )
    model = HookedViT.from_hf(make_hf("vit"), processor=processor)
    picture = np.random.default_rng(0).integers(0, 256, (IMAGE, IMAGE, 3), dtype=np.uint8)
    pixels = model.preprocess(Image.fromarray(picture))
    shown = shown_pixels(model, pixels)
    assert torch.allclose(shown[0], torch.from_numpy(picture / 255.0).float().permute(2, 0, 1), atol=1e-6)
    assert torch.allclose(normalised_pixels(model, shown), pixels, atol=1e-5)
    grey = torch.full((1, 3, 4, 4), 0.25)
    assert torch.allclose(luminance(grey), torch.full((1, 4, 4), 0.25, dtype=torch.float64))
    assert torch.equal(luminance(grey[:, :1]), grey[:, 0].double())
    with pytest.raises(ValueError, match="3 channels or 1"):
        luminance(torch.zeros(1, 4, 4, 4))
    with pytest.raises(ValueError, match="image processor"):
        shown_pixels(tiny("vit")[1], pixels)
