"""Images and labels, whatever they come from: built-in scenes, a hub data set, a folder of photos, parquet files.

Names are looked up when asked for, so that `analyses.data.scenes` can be used without importing torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from analyses.data.batches import Batch
    from analyses.data.builtin import digit_scenes
    from analyses.data.imagedata import ImageData
    from analyses.data.images import UnreadableImageError
    from analyses.data.labels import LabelMap, map_labels
    from analyses.data.loading import as_data, load_data

_HOMES = {
    "Batch": "batches",
    "ImageData": "imagedata",
    "LabelMap": "labels",
    "UnreadableImageError": "images",
    "as_data": "loading",
    "digit_scenes": "builtin",
    "load_data": "loading",
    "map_labels": "labels",
}

__all__ = [
    "Batch",
    "ImageData",
    "LabelMap",
    "UnreadableImageError",
    "as_data",
    "digit_scenes",
    "load_data",
    "map_labels",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
