"""Images become pixels by the checkpoint's own processor, with the same numbers with and without torchvision."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from torch import Tensor

from analyses.data.images import open_rgb
from hooked_vit import HookedViT
from tests.tiny import make_hf, tiny

MODES = ("RGB", "L", "LA", "RGBA", "P", "CMYK", "YCbCr", "HSV", "1")
PROCESSORS = {
    "vit": transformers.ViTImageProcessorPil(size={"height": 32, "width": 32}),
    "deit": transformers.DeiTImageProcessorPil(size={"height": 40, "width": 40}, crop_size={"height": 32, "width": 32}),
    "beit-mean-both": transformers.BeitImageProcessorPil(size={"height": 32, "width": 32}),
    "dinov2": transformers.BitImageProcessorPil(size={"shortest_edge": 40}, crop_size={"height": 32, "width": 32}),
    "registers": transformers.BitImageProcessorPil(size={"shortest_edge": 40}, crop_size={"height": 32, "width": 32}),
    "clip-model": transformers.CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}),
}


def image(seed: int = 0, size: tuple[int, int] = (50, 37), mode: str = "RGB") -> Image.Image:
    noise = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    return Image.fromarray(noise).convert(mode)


@pytest.fixture(params=PROCESSORS)
def saved(request, tmp_path) -> tuple[HookedViT, transformers.BaseImageProcessor]:
    """A model from disk, and the processor that was saved beside it."""
    make_hf(request.param).save_pretrained(tmp_path)
    PROCESSORS[request.param].save_pretrained(tmp_path)
    return HookedViT.from_pretrained(tmp_path), PROCESSORS[request.param]


def test_pixels_are_those_of_the_checkpoints_processor(saved):
    model, processor = saved
    pictures = [image(0), image(1, (64, 90))]
    pixels = model.preprocess(pictures)
    assert torch.equal(pixels, processor(pictures, return_tensors="pt")["pixel_values"])
    assert pixels.shape == (2, 3, 32, 32)
    assert model(pixels).shape == (2, model.cfg.d_out)
    assert torch.equal(model.preprocess(pictures[1]), pixels[1:])


def with_processor(name: str = "vit", dtype: torch.dtype = torch.float32) -> HookedViT:
    return HookedViT.from_hf(make_hf(name).to(dtype), processor=PROCESSORS[name])


@pytest.mark.parametrize("mode", MODES)
def test_any_kind_of_picture_is_read_as_rgb(mode):
    model = with_processor()
    picture = image(mode=mode)
    assert torch.equal(model.preprocess(picture), model.preprocess(picture.convert("RGB")))


SIXTEEN = {"I;16": "<u2", "I;16B": ">u2"}


@pytest.mark.parametrize("mode", SIXTEEN)
def test_greys_of_sixteen_bits_keep_their_brightness(mode):
    grey = image(mode="L")
    deep = Image.frombytes(mode, grey.size, (np.asarray(grey).astype(SIXTEEN[mode]) * 257).tobytes())
    model = with_processor()
    assert torch.equal(model.preprocess(deep), model.preprocess(grey))
    assert np.array_equal(np.asarray(open_rgb(deep, "it")), np.asarray(grey.convert("RGB")))


@pytest.mark.parametrize("mode", ["I", "F", "LAB"])
def test_a_brightness_nobody_knows_is_refused(mode):
    picture = Image.new(mode, (8, 8))
    with pytest.raises(ValueError, match=f"image 1 cannot be read: .*mode {mode}"):
        with_processor().preprocess([image(), picture])
    with pytest.raises(ValueError, match=f"mode {mode}"):
        open_rgb(picture, "it")


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_picture_taken_on_its_side_is_turned_as_the_loaders_turn_it(orientation):
    exif = Image.Exif()
    exif[Image.ExifTags.Base.Orientation] = orientation
    file = io.BytesIO()
    image().save(file, format="PNG", exif=exif)
    model, sideways = with_processor(), Image.open(file)
    upright = open_rgb(file.getvalue(), "it")
    assert torch.equal(model.preprocess(sideways), model.preprocess(upright))
    assert torch.equal(model.preprocess(sideways), model.preprocess(image())) == (orientation == 1)


def test_anything_that_can_be_gone_through_is_a_list_of_pictures():
    import datasets

    model = with_processor()
    pictures = [image(0), image(1)]
    want = model.preprocess(pictures)
    column = datasets.Dataset.from_dict({"image": pictures}, features=datasets.Features({"image": datasets.Image()}))[
        "image"
    ]
    for form in (tuple(pictures), iter(pictures), column):
        assert torch.equal(model.preprocess(form), want)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_pixels_have_the_dtype_of_the_model(dtype):
    pixels: Tensor = with_processor(dtype=dtype).preprocess(image())
    assert pixels.dtype == dtype


@pytest.fixture
def arrays() -> dict[str, tuple[Any, str | None]]:
    """One small picture in every form an array has, with where it has its channels."""
    last = np.asarray(image(0))
    first = np.ascontiguousarray(last.transpose(2, 0, 1))
    return {
        "uint8, channels last": (last, "last"),
        "uint8, channels first": (torch.from_numpy(first.copy()), "first"),
        "floating, channels last": (last / 255, "last"),
        "floating, channels first": (torch.from_numpy(first / 255).float(), "first"),
        "several": (last[None], "last"),
    }


def test_arrays_paths_and_addresses_are_the_picture(arrays, tmp_path):
    model, picture = with_processor(), image(0)
    want = model.preprocess(picture)
    for name, (array, channels) in arrays.items():
        assert torch.equal(model.preprocess(array, channels=channels), want), name
    path = tmp_path / "it is 100% grey.png"
    picture.save(path)
    for form in (path, str(path), path.as_uri(), [path, picture][:1]):
        assert torch.equal(model.preprocess(form), want), form
    assert torch.equal(model(path), model(want))
    assert torch.equal(model.run_with_cache([picture])[0], model(want))
    grey = np.asarray(picture.convert("L"))
    assert torch.equal(model.preprocess(grey), model.preprocess(picture.convert("L")))
    assert torch.equal(model.preprocess(grey[None], channels="first"), model.preprocess(grey))


RGB = np.zeros((32, 32, 3))


@pytest.mark.parametrize(
    ("images", "channels", "says"),
    [
        (["cat.jpg"], None, "image 0 cannot be read: cat.jpg: there is no such file"),
        ("https://example.org/cat.jpg", None, "is not on this machine"),
        ("file://elsewhere/cat.jpg", None, "is not on this machine"),
        ("/", None, "it is a folder"),
        (RGB, None, r"\(32, 32, 3\) is \[c, h, w\] or \[h, w, c\]: say channels="),
        (RGB, "first", "with channels='first' there are 32 channels"),
        (RGB, "middle", "say channels="),
        (RGB + 2, "last", "from 0 to 1"),
        (RGB * np.nan, "last", "from 0 to 1"),
        (RGB.astype(int), "last", "it is int64"),
        (np.zeros(3), None, "two or three axes"),
        ([image(), None], None, "image 1 cannot be read: images are PIL images, paths or arrays, got NoneType"),
        (3, None, "images are pictures, paths or arrays, one or a list of them; got int"),
        ([], None, "there are no images"),
    ],
)
def test_what_is_no_picture_is_refused(images, channels, says):
    with pytest.raises(ValueError, match=says):
        with_processor().preprocess(images, channels=channels)


def test_without_a_processor_nothing_is_guessed(tmp_path):
    model = tiny("vit")[1]
    with pytest.raises(ValueError, match="came without an image processor"):
        model.preprocess(image())
    make_hf("vit").save_pretrained(tmp_path)
    assert HookedViT.from_pretrained(tmp_path).processor is None
