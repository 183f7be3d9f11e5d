"""Pictures of every kind are read and shown upright and as bright as they are, on every way in, or refused in words."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import ViTImageProcessorPil

from analyses import attention_map, explore, load_data, show
from analyses.data.images import UnreadableImageError, find_unreadable, open_rgb
from analyses.pages.album import thumbnail
from hooked_vit import HookedViT
from tests.tiny import IMAGE, make_hf

COLOUR = np.zeros((40, 60, 3), np.uint8)
COLOUR[:20], COLOUR[20:], COLOUR[:10, :15] = (200, 40, 40), (20, 60, 90), 255  # which side is up shows
RGB = Image.fromarray(COLOUR)
GREY = RGB.convert("L")
DEEP = np.asarray(GREY).astype(np.uint16) * 257
OTHERS = [Image.new("RGB", RGB.size, (0, 255, 0))]


def file(picture: Image.Image, kind: str, **options: Any) -> bytes:
    written = io.BytesIO()
    picture.save(written, kind, **options)
    return written.getvalue()


def sideways(kind: str, **options: Any) -> bytes:
    exif = Image.Exif()
    exif[Image.ExifTags.Base.Orientation] = 6
    return file(RGB.rotate(90, expand=True), kind, exif=exif, **options)


def transparent() -> Image.Image:
    picture = RGB.convert("RGBA")
    picture.putalpha(60)
    return picture


PALETTE = RGB.convert("P", palette=Image.Palette.ADAPTIVE)
READ: dict[str, tuple[bytes, Image.Image]] = {
    "grey.png": (file(GREY, "PNG"), GREY),
    "grey and transparent.png": (file(GREY.convert("LA"), "PNG"), GREY),
    "transparent.png": (file(transparent(), "PNG"), RGB),
    "transparent.webp": (file(transparent(), "WEBP", lossless=True, exact=True), RGB),
    "one colour transparent.png": (file(RGB, "PNG", transparency=(255, 255, 255)), RGB),
    "one grey transparent.png": (file(GREY, "PNG", transparency=255), GREY),
    "palette.png": (file(PALETTE, "PNG"), RGB),
    "palette, one transparent.png": (file(PALETTE, "PNG", transparency=0), RGB),
    "palette, all transparent.png": (file(PALETTE, "PNG", transparency=bytes(range(200))), RGB),
    "cmyk.tif": (file(RGB.convert("CMYK"), "TIFF"), RGB),
    "cmyk.jpg": (file(RGB.convert("CMYK"), "JPEG", quality=100, subsampling=0), RGB),
    "16 bits.png": (file(Image.fromarray(DEEP), "PNG"), GREY),
    "16 bits.tif": (file(Image.fromarray(DEEP), "TIFF"), GREY),
    "16 bits, white is zero.tif": (file(Image.fromarray(65535 - DEEP), "TIFF", tiffinfo={262: 0}), GREY),
    "white is zero.tif": (file(GREY, "TIFF", tiffinfo={262: 0}), GREY),
    "on its side.png": (sideways("PNG"), RGB),
    "on its side.jpg": (sideways("JPEG", quality=100, subsampling=0), RGB),
    "on its side.tif": (sideways("TIFF"), RGB),
    "animated.gif": (file(RGB, "GIF", save_all=True, append_images=OTHERS), RGB),
    "animated.png": (file(RGB, "PNG", save_all=True, append_images=OTHERS), RGB),
    "animated.webp": (file(RGB, "WEBP", save_all=True, lossless=True, append_images=OTHERS), RGB),
    "tiny.png": (file(Image.new("RGB", (1, 1), (9, 99, 199)), "PNG"), Image.new("RGB", (1, 1), (9, 99, 199))),
    "thin.png": (file(Image.new("RGB", (1, 3000), (9, 99, 199)), "PNG"), Image.new("RGB", (1, 3000), (9, 99, 199))),
    "large.png": (file(Image.new("L", (9000, 2), 77), "PNG"), Image.new("L", (9000, 2), 77)),
}
REFUSED: dict[str, tuple[bytes, str]] = {
    "floating.tif": (file(Image.fromarray(np.asarray(GREY) / np.float32(255)), "TIFF"), "unknown range .mode F"),
    "32 bits.tif": (file(Image.fromarray(np.asarray(GREY).astype(np.int32)), "TIFF"), "unknown range .mode I"),
    "lab.tif": (file(Image.merge("LAB", [GREY] * 3), "TIFF"), "no way from mode LAB"),
    "cut short.png": (file(RGB, "PNG")[:90], "truncated"),
    "cut short.jpg": (file(RGB, "JPEG")[:300], "Truncated"),
    "cut short.tif": (file(RGB, "TIFF")[:3000], "truncated|cannot|not enough|unpack"),
    "empty.png": (b"", "not an image in any format Pillow knows"),
    "a page.jpg": (b"<html></html>", "not an image in any format Pillow knows"),
    "huge.png": (file(Image.new("1", (20000, 9000)), "PNG"), "more pixels than Pillow opens .*; scale it down"),
}
LOSSY = (".jpg",)


@pytest.fixture(scope="module")
def model() -> HookedViT:
    return HookedViT.from_hf(make_hf("vit"), processor=ViTImageProcessorPil(size={"height": IMAGE, "width": IMAGE}))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    where = tmp_path_factory.mktemp("pictures") / "all"
    where.mkdir()
    for name, (content, _) in READ.items():
        (where / name).write_bytes(content)
    return where


def colours(url: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))).convert("RGB")).astype(int)


def test_every_loader_reads_the_picture_that_was_meant(folder: Path) -> None:
    (batch,) = load_data(f"imagefolder:{folder.parent}").batches(100)
    assert len(batch) == len(READ)
    data = load_data(f"imagefolder:{folder.parent}")
    for i, picture in zip(batch.index.tolist(), batch.images, strict=True):
        name = data.name_of(i).partition("/")[2]
        want = READ[name][1].convert("RGB")
        assert (picture.size, picture.mode) == (want.size, "RGB"), name
        near = 6 if name.endswith(LOSSY) else 0
        assert np.abs(np.asarray(picture).astype(int) - np.asarray(want)).max() <= near, name


def test_models_and_what_is_shown_of_them_see_that_picture(model: HookedViT, folder: Path) -> None:
    for name, (_, want) in READ.items():
        pixels, meant = model.preprocess(folder / name), model.preprocess(want)
        torch.testing.assert_close(pixels, meant, rtol=0, atol=0.05 if name.endswith(LOSSY) else 0, msg=name)
        assert torch.equal(model(folder / name), model(pixels)), name
        shown = show(model, folder / name, attention_map(model, folder / name, layer=0)).layout.images[0].source
        small = thumbnail(open_rgb(folder / name, name))
        wanted = np.asarray(want.convert("RGB").resize((IMAGE, IMAGE), Image.Resampling.BILINEAR)).astype(int)
        assert np.abs(colours(shown) - wanted).max() <= 6, name
        assert np.abs(colours(small).mean((0, 1)) - np.asarray(want.convert("RGB")).mean((0, 1))).max() < 4, name
        wide, tall = colours(small).shape[1::-1]
        assert (wide > tall) == (want.width > want.height), name


def test_the_explorer_shows_that_picture(model: HookedViT, folder: Path) -> None:
    for name in ("16 bits, white is zero.tif", "on its side.png", "palette, one transparent.png", "tiny.png"):
        page = explore(model, folder / name, patches=False).html
        shown = colours(re.findall(r"data:image/png;base64,[A-Za-z0-9+/=]+", page)[0])
        wanted = READ[name][1].convert("RGB").resize((IMAGE, IMAGE), Image.Resampling.BILINEAR)
        assert np.abs(shown - np.asarray(wanted)).max() <= 6, name


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_read_is_refused_with_the_reason_by_all_of_them(name: str, model: HookedViT, tmp_path) -> None:
    content, why = REFUSED[name]
    path = tmp_path / name
    path.write_bytes(content)
    ways: list[Callable[[], object]] = [
        lambda: model.preprocess(path), lambda: model(str(path)), lambda: explore(model, path),
        lambda: attention_map(model, path, layer=0),
    ]  # fmt: skip
    for way in ways:
        with pytest.raises(ValueError, match=f"image 0 cannot be read: .*{name}.*({why})"):
            way()
    with pytest.raises(UnreadableImageError, match=f"cannot read image it: .*({why})"):
        open_rgb(path, "it")
    assert len(list(find_unreadable([(0, name, str(path))]))) == 1
