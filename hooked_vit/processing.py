"""Images to pixels, by the checkpoint's own image processor."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor


def preprocess(processor: Any, images: Any, like: Tensor) -> Float[Tensor, "b c h w"]:
    """Pixels of one PIL image, a list of them, or a `datasets` column, on the device and in the dtype of `like`.

    >>> preprocess(model.processor, [Image.new("RGB", (300, 200))], model.W_E).shape  # doctest: +SKIP
    torch.Size([1, 3, 224, 224])

    Raises ValueError where the checkpoint came without an image processor, and for something that is no image.
    """
    if processor is None:
        raise ValueError(
            "this model came without an image processor; load one beside the checkpoint, or set "
            "model.processor = AutoImageProcessor.from_pretrained(...)"
        )
    pictures = [images] if isinstance(images, Image.Image) else images
    if not isinstance(pictures, Iterable):
        raise ValueError(f"images are PIL images or a list or column of them, got {type(images).__name__}")
    pictures = list(pictures)
    if strange := next((type(p).__name__ for p in pictures if not isinstance(p, Image.Image)), None):
        raise ValueError(f"images are PIL images, got {strange}")
    if not pictures:
        raise ValueError("there are no images to preprocess")
    pixels = processor([p.convert("RGB") for p in pictures], return_tensors="pt")["pixel_values"]
    return torch.as_tensor(pixels).to(like.device, like.dtype)


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


def _cropping_again(settings: dict[str, Any]) -> Any:
    return centre_cropping(**settings)


def load_processor(name_or_path: str, **kw: Any) -> Any:
    """The image processor saved beside a checkpoint, None where there is none.

    The PIL backend always: the same numbers with and without torchvision.
    """
    from transformers import AutoImageProcessor

    try:
        return AutoImageProcessor.from_pretrained(name_or_path, backend="pil", trust_remote_code=False, **kw)
    except OSError:
        return None
