"""Images to pixels, by the checkpoint's own image processor."""

from __future__ import annotations

import io
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlparse

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image, ImageOps
from torch import Tensor

from hooked_vit.errors import CheckpointError
from hooked_vit.loading.files import why_no_file
from hooked_vit.loading.hub import pinned

PROCESSOR_FILES = ("preprocessor_config.json", "processor_config.json")
PROCESSOR_RANGES = {"image_mean": (-1e4, 1e4), "image_std": (1e-6, 1e4), "rescale_factor": (1e-6, 1e4)}
MOST_PIXELS = 2**14
"""Along a side of what an image processor makes; more is a slip."""
WHITE_IS_ZERO = (262, 0)
"""The tag of a TIFF file, and its value, that say so."""
EIGHT_BITS = ("1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "HSV")
"""Modes that Pillow converts to RGB without changing how bright they are."""


def preprocess(processor: Any, images: Any, like: Tensor, channels: str | None = None) -> Float[Tensor, "b c h w"]:
    """Pixels of an image, a list of images or a `datasets` column, on the device and in the dtype of `like`.

    >>> preprocess(model.processor, [Image.new("RGB", (300, 200))], model.W_E).shape  # doctest: +SKIP
    torch.Size([1, 3, 224, 224])

    An image is a PIL image, the path or file:// address of one, or an array or tensor: [h, w], or with `channels` said
    [c, h, w] ("first") or [h, w, c] ("last"), where one more axis in front is several images. Pictures are turned and
    brought to RGB by `upright_rgb`. Raises ValueError where the checkpoint came without an image processor, for
    something that is no image, and for one whose brightness, or order of axes, is not known.
    """
    if processor is None:
        raise ValueError(
            "this model came without an image processor; load one beside the checkpoint, or set "
            "model.processor = AutoImageProcessor.from_pretrained(...)"
        )
    check_processor(processor)
    upright = [_numbered(i, picture, channels) for i, picture in enumerate(_several(images))]
    if not upright:
        raise ValueError("there are no images to preprocess")
    return sent(_made(processor, upright), like.device, like.dtype)


def sent(pixels: Tensor, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Pixels on a device, known to be finite where they are: looked at before they leave, so that nobody waits there.

    To a GPU they go from pinned memory, while it computes on those of before.
    """
    pixels = pixels.to(dtype)
    finite = bool(pixels.isfinite().all())
    on_gpu = device.type == "cuda"
    there = pixels.pin_memory().to(device, non_blocking=True) if on_gpu else pixels.to(device)
    if finite and not there.is_inference():
        there._finite = there._version  # type: ignore[attr-defined]  # of an edit in place nothing is known
    return there


def known_finite(pixels: Tensor) -> bool:
    """Whether these are pixels as `sent` made them."""
    return getattr(pixels, "_finite", None) is not None and pixels._finite == pixels._version  # type: ignore[attr-defined]


def _several(images: Any) -> list[Any]:
    if isinstance(images, (Tensor, np.ndarray)):
        return list(images) if images.ndim == 4 else [images]
    if isinstance(images, (Image.Image, str, Path)):
        return [images]
    if not isinstance(images, Iterable):
        raise ValueError(f"images are pictures, paths or arrays, one or a list of them; got {type(images).__name__}")
    return list(images)


def _made(processor: Any, pictures: list[Image.Image]) -> Tensor:
    return torch.as_tensor(processor(pictures, return_tensors="pt")["pixel_values"])


def _numbered(i: int, image: Any, channels: str | None) -> Image.Image:
    """The picture upright and in RGB; an error says which one it is."""
    try:
        return upright_rgb(_as_picture(image, channels))
    except Exception as error:  # a damaged file makes Pillow raise anything from OSError to IndexError
        why = why_unreadable(error)
        named = f"{image}: " if isinstance(image, (str, Path)) and str(image) not in why else ""
        raise ValueError(f"image {i} cannot be read: {named}{why}") from error


def why_unreadable(error: Exception) -> str:
    """What the matter is with a picture, in the words of its reader or better ones."""
    if isinstance(error, Image.UnidentifiedImageError):
        return "not an image in any format Pillow knows"
    if isinstance(error, (Image.DecompressionBombError, Image.DecompressionBombWarning)):
        return f"it has more pixels than Pillow opens ({str(error).partition(',')[0]}); scale it down"
    return str(error) or type(error).__name__


def _as_picture(image: Any, channels: str | None) -> Image.Image:
    if isinstance(image, (Tensor, np.ndarray)):
        return picture_of(image.detach().cpu().numpy() if isinstance(image, Tensor) else image, channels)
    if isinstance(image, (str, Path)):
        address = urlparse(str(image))
        if "://" in str(image) and (address.scheme, address.netloc) not in (("file", ""), ("file", "localhost")):
            raise ValueError(f"{image} is not on this machine; download it first")
        path = unquote(address.path) if "://" in str(image) else image
        if (why := why_no_file(path)) is not None:
            raise ValueError(f"{path}: {why}")
        # read whole, so that no file stays open until the picture is collected
        return Image.open(io.BytesIO(Path(path).read_bytes()))
    if not isinstance(image, Image.Image):
        raise ValueError(f"images are PIL images, paths or arrays, got {type(image).__name__}")
    return image


def picture_of(array: np.ndarray, channels: str | None) -> Image.Image:
    """An array as a picture of 8 bits a channel, from whole numbers 0 to 255 or from 0.0 to 1.0.

    >>> picture_of(np.zeros((2, 3), np.uint8), None).size, picture_of(np.ones((3, 2, 5)), "first").size
    ((3, 2), (5, 2))

    `channels` says whether they are its "first" or "last" axis, where it has three. Raises ValueError where that is not
    said, for another number of axes or channels than pictures have, and for numbers of an unknown range.
    """
    if array.ndim == 3:
        if channels not in ("first", "last"):
            raise ValueError(
                f"an array of the shape {array.shape} is [c, h, w] or [h, w, c]: say channels='first' or 'last'"
            )
        array = np.moveaxis(array, 0, -1) if channels == "first" else array
        if array.shape[-1] not in (1, 3, 4):
            raise ValueError(
                f"with channels={channels!r} there are {array.shape[-1]} channels; 1, 3 or 4 make a picture"
            )
        array = array[..., 0] if array.shape[-1] == 1 else array
    elif array.ndim != 2:
        raise ValueError(f"an array of pixels has two or three axes, several images four; its shape is {array.shape}")
    if array.dtype == np.uint8:
        return Image.fromarray(np.ascontiguousarray(array))
    if not np.issubdtype(array.dtype, np.floating):
        raise ValueError(f"an array of pixels is uint8 from 0 to 255, or floating from 0 to 1; it is {array.dtype}")
    if not (array.size and array.min() >= 0 and array.max() <= 1):  # NaN is neither
        raise ValueError("floating pixels are from 0 to 1, and these are not; normalised ones go to the model itself")
    return Image.fromarray((array * 255).round().astype(np.uint8))


def upright_rgb(picture: Image.Image) -> Image.Image:
    """The picture in RGB, eight bits a channel, turned as its EXIF orientation says: the one way into a model.

    >>> upright_rgb(Image.fromarray(np.array([[0, 32896, 65535]], np.uint16))).getpixel((1, 0))
    (128, 128, 128)

    Transparency is dropped, not blended; greyscale of 16 bits is brought to 8, with 65535 as white.
    Raises ValueError for a mode whose range is not known (32 bits, floating point) or that Pillow cannot convert.
    """
    white_is_zero = getattr(picture, "tag_v2", {}).get(WHITE_IS_ZERO[0]) == WHITE_IS_ZERO[1]  # of a TIFF file
    picture = ImageOps.exif_transpose(picture)
    if picture.mode.startswith("I;16"):
        # Pillow's own conversion clips at 255 and leaves a white picture, and it minds this tag up to 8 bits alone.
        grey = (np.asarray(picture) // 257).astype(np.uint8)
        return Image.fromarray(255 - grey if white_is_zero else grey).convert("RGB")
    if picture.mode in ("I", "F"):
        raise ValueError(
            f"its pixels have 32 bits and an unknown range (mode {picture.mode}); save it with 8 or 16 bits a channel"
        )
    if picture.mode not in EIGHT_BITS:
        raise ValueError(
            f"there is no way from mode {picture.mode} to RGB; convert it to one of {', '.join(EIGHT_BITS)}"
        )
    if picture.mode == "RGB":
        picture.load()
        return picture
    # a palette with transparency converts in two steps, or Pillow warns; premultiplied colours have no way of their own
    step = {"RGBa": "RGBA", "La": "LA", "PA": "RGBA"}.get(picture.mode, picture.mode)
    step = "RGBA" if "transparency" in picture.info else step
    return (picture if step == picture.mode else picture.convert(step)).convert("RGB")


def processor_size(processor: Any) -> tuple[int, int] | None:
    """(height, width) of what an image processor makes of any picture; None where that depends on the picture.

    >>> grey = [0.5] * 3
    >>> processor_size(centre_cropping(size={"shortest_edge": 8}, crop=(6, 4), resample=2, mean=grey, std=grey))
    (6, 4)

    Found by asking it: a wide and a tall picture are processed. None without a processor too.
    """
    if processor is None:
        return None
    # beside the shortest edge of any processor, so that what is kept of the shape would show
    shapes = [(96, 64), (64, 96), (300, 500)]
    try:
        made = [_made(processor, [Image.new("RGB", shape)]) for shape in shapes]
    except Exception:  # it may be anything, and what it cannot do shows, with its reason, when it is given pictures
        return None
    sizes = {(pixels.shape[-2], pixels.shape[-1]) for pixels in made if pixels.ndim == 4}
    return sizes.pop() if len(sizes) == 1 else None


def centre_cropping(
    *, size: dict[str, int], crop: tuple[int, int], resample: int, mean: list[float], std: list[float]
) -> Any:
    """An image processor that resizes, crops (height, width) pixels out of the centre, scales to 0..1 and normalises.

    >>> squash = {"height": 8, "width": 8}
    >>> to_pixels = centre_cropping(size=squash, crop=(4, 4), resample=2, mean=[0.5] * 3, std=[0.5] * 3)
    >>> to_pixels([Image.new("RGB", (30, 20))], return_tensors="pt")["pixel_values"].shape
    torch.Size([1, 3, 4, 4])

    `size` is {"shortest_edge": …} or {"height": …, "width": …}, the latter not keeping the aspect ratio. Where an odd
    number of pixels is cut off, the crop lies as torchvision lays it, half a pixel off the centre to the even side.
    """
    from transformers import BitImageProcessorPil

    class CentreCropping(BitImageProcessorPil):
        def center_crop(self, image: Any, size: Any, **kw: Any) -> Any:  # type: ignore[override]
            top, left = (round((have - want) / 2) for have, want in zip(image.shape[-2:], crop, strict=True))
            return image[..., top : top + crop[0], left : left + crop[1]]

        def __reduce__(self) -> Any:
            return _cropping_again, (settings,)

    settings = {"size": size, "crop": crop, "resample": resample, "mean": mean, "std": std}
    shape = {"height": crop[0], "width": crop[1]}
    return CentreCropping(size=size, crop_size=shape, resample=resample, image_mean=mean, image_std=std)


def check_processor(processor: Any) -> None:
    """Refuse settings under which pixels would be none, or upside down.

    Raises ValueError for what is no number in PROCESSOR_RANGES, as a standard deviation of 0 or a negative factor, and
    for sizes that are no numbers of pixels, or more than MOST_PIXELS.
    """

    def numbers(name: str) -> list[Any]:
        value = getattr(processor, name, None)
        return [] if value is None else list(value) if isinstance(value, (list, tuple)) else [value]

    for name, (least, most) in PROCESSOR_RANGES.items():
        bad = [v for v in numbers(name) if type(v) not in (int, float) or not least <= v <= most]
        if bad:
            raise ValueError(f"{name} of an image processor is a number from {least:g} to {most:g}, got {bad[0]!r}")
    for name in ("size", "crop_size"):
        asked = getattr(processor, name, None)
        sides = {} if asked is None else {name: asked} if isinstance(asked, (int, float, str)) else dict(asked)
        for side, n in sides.items():
            if side in ("min_pixels", "max_pixels"):  # of a whole picture
                continue
            if type(n) is not int or not 1 <= n <= MOST_PIXELS:
                raise ValueError(f"{name} of an image processor is 1 to {MOST_PIXELS} pixels, got {side}={n!r}")


def _cropping_again(settings: dict[str, Any]) -> Any:
    return centre_cropping(**settings)


def load_processor(name_or_path: str, **kw: Any) -> Any:
    """The image processor saved beside a checkpoint, None where there is none.

    The PIL backend always: the same numbers with and without torchvision.
    Raises CheckpointError for one that is there and cannot be used.
    """
    from transformers import AutoImageProcessor

    folder = Path(name_or_path)
    is_there = any(os.path.lexists(folder / name) for name in PROCESSOR_FILES)
    if folder.is_dir() and not is_there:
        return None
    place, kw = pinned(name_or_path, kw)
    try:
        processor = AutoImageProcessor.from_pretrained(place, backend="pil", trust_remote_code=False, **kw)
        check_processor(processor)
    except Exception as error:  # whatever transformers makes of a damaged file
        if isinstance(error, OSError) and not is_there:
            return None
        raise CheckpointError(
            f"the image processor saved with {name_or_path!r} ({' or '.join(PROCESSOR_FILES)}) cannot be used: {error}"
        ) from error
    return processor
