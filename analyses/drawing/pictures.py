"""Pictures inside a page: the pixels a model saw, as colours, and as an address that holds the picture itself."""

from __future__ import annotations

import base64
import io

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from hooked_vit import HookedViT


def colours_of(model: HookedViT, pixels: Float[Tensor, "c h w"]) -> NDArray[np.uint8]:
    """The pixels the model saw [h w 3]; stretched to the whole range where nobody knows how they were scaled."""
    mean, std = (getattr(model.processor, f"image_{which}", None) for which in ("mean", "std"))
    shown = pixels.float().cpu()
    if mean is not None and std is not None and len(mean) == len(shown):
        shown = shown * torch.tensor(std)[:, None, None] + torch.tensor(mean)[:, None, None]
    else:
        shown = (shown - shown.min()) / (shown.max() - shown.min()).clamp(min=1e-9)
    return (shown.clamp(0, 1).expand(3, -1, -1) * 255).round().byte().permute(1, 2, 0).numpy()


def as_url(picture: NDArray[np.uint8] | Image.Image) -> str:
    """A picture as a data URL of a PNG file."""
    file = io.BytesIO()
    (picture if isinstance(picture, Image.Image) else Image.fromarray(picture)).save(file, "PNG")
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
