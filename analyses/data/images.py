"""One image, in whatever form a data set holds it, as an RGB picture the right way up."""

from __future__ import annotations

import io
import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from hooked_vit.config.showing import counted
from hooked_vit.loading.files import why_no_file
from hooked_vit.processing import picture_of, upright_rgb, why_unreadable


class UnreadableImageError(ValueError):
    """An image that cannot be read; the message names it."""


def open_rgb(value: Any, name: str) -> Image.Image:
    """The picture in `value`, mode RGB, turned as its EXIF orientation says; `name` is what an error calls it.

    >>> open_rgb(np.zeros((2, 3), np.uint8), "dot").size
    (3, 2)

    `value` is a PIL image, a uint8 array [h, w] or [h, w, 3 or 4], a uint8 tensor [3 or 1, h, w], a path, the bytes of
    an image file, or the {"bytes", "path"} of a Hugging Face data set. Transparency is dropped, not blended; greyscale
    of 16 bits is brought to 8.
    Raises UnreadableImageError, with the reason.
    """
    try:
        return upright_rgb(_open(value))
    except Exception as error:  # a damaged file makes Pillow raise anything from OSError to IndexError
        raise UnreadableImageError(f"cannot read image {name}: {why_unreadable(error)}") from error


def open_plain(value: Any, name: str) -> Image.Image:
    """As `open_rgb`, but in the mode it was saved in: for masks, whose values are ids and not colours."""
    try:
        picture = _open(value)
        picture.load()
        return picture
    except Exception as error:
        raise UnreadableImageError(f"cannot read image {name}: {why_unreadable(error)}") from error


def find_unreadable(items: Iterable[tuple[int, str, Any]]) -> Iterator[tuple[int, str]]:
    """(position, message) for each of the (position, name, value) that cannot be read, found by decoding every one.

    JPEG files are decoded at an eighth of their size, which is several times faster and misses no missing byte.
    """

    def check(item: tuple[int, str, Any]) -> tuple[int, str] | None:
        position, name, value = item
        try:
            picture = _open(value)
            picture.draft("RGB", (picture.width // 8, picture.height // 8))
            upright_rgb(picture)
        except Exception as error:  # as in open_rgb
            return position, f"{name} ({why_unreadable(error)})"
        return None

    items = iter(items)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        while chunk := list(islice(items, 64)):
            yield from (found for found in pool.map(check, chunk) if found is not None)


def refuse_unreadable(bad: Sequence[str], name: str, n: int | None, skip_bad: bool) -> None:
    """Raises UnreadableImageError, naming up to five, unless `skip_bad`; then only where nothing of `n` is left."""
    if not skip_bad:
        named = "; ".join(bad[:5]) + ("; …" if len(bad) > 5 else "")
        raise UnreadableImageError(
            f"{name}: cannot read {counted(len(bad), 'image')}: {named}. Mend or skip with skip_bad (--skip-bad)"
        )
    if len(bad) == n:
        raise UnreadableImageError(f"{name}: none of the {n} images can be read; the first: {bad[0]}")


def _open(value: Any) -> Image.Image:
    if isinstance(value, Image.Image):
        return value
    if isinstance(value, torch.Tensor) and value.ndim != 3:
        raise ValueError(f"a tensor of pixels is [channels, height, width]; this one is {tuple(value.shape)}")
    if isinstance(value, (torch.Tensor, np.ndarray)):
        channels, array = ("first", value.cpu().numpy()) if isinstance(value, torch.Tensor) else ("last", value)
        if array.dtype != np.uint8:  # a column of a data set may hold numbers of any range
            raise ValueError(f"an array of pixels is uint8, 0 to 255; this one is {array.dtype}")
        return picture_of(array, channels)
    if isinstance(value, (str, Path)):
        value = {"path": str(value), "bytes": None}
    if isinstance(value, (bytes, bytearray)):
        value = {"path": None, "bytes": bytes(value)}
    if not isinstance(value, dict):
        kind = type(value).__name__
        raise ValueError(f"an image is a PIL image, an array, a path or the bytes of a file; this is a {kind}")
    if value.get("bytes") is not None:
        return Image.open(io.BytesIO(value["bytes"]))
    path = value.get("path")
    if path is None:
        raise ValueError("there is neither a file nor its bytes")
    if "://" in path:
        from datasets import Image as ImageFeature

        return ImageFeature().decode_example({"path": path, "bytes": None})
    if (why := why_no_file(path)) is not None:
        raise ValueError(why)
    # Read whole, so that no file stays open until the picture is collected.
    return Image.open(io.BytesIO(Path(path).read_bytes()))
