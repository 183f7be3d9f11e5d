"""Batches of decoded images, and how many of what size there are."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from jaxtyping import Int64
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from analyses.data.sources import Row
from hooked_vit.config.showing import Displayed, counted, one_line, some
from hooked_vit.loading.digests import digest

T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class Batch(Displayed):
    """b images, mode RGB, and their labels; no images where nobody looks at them.

    `index` numbers the images within the source, parts of a split included; `extra` holds the columns asked for.
    """

    images: list[Image.Image]
    labels: Int64[Tensor, "b"]
    index: Int64[Tensor, "b"]
    extra: dict[str, list[Any]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.labels)

    def __repr__(self) -> str:
        extra = f", {', '.join(self.extra)}" if self.extra else ""
        return one_line(f"Batch({counted(len(self), 'image')}, labels {some(self.labels.tolist())}{extra})")

    def _rows(self) -> dict[str, object]:
        sizes = list(dict.fromkeys(f"{picture.width} x {picture.height}" for picture in self.images))
        about = {"images": len(self), "pixels": some(sizes), "labels": some(self.labels.tolist())}
        return {**about, "columns": some(list(self.extra))}

    def digest(self) -> str:
        """A digest of the pixels as decoded, and of the labels."""
        return digest(self.images, self.labels)


class Opened(NamedTuple):
    """A row whose image could be read: the picture, the digest of its pixels where it was not known, and the rest."""

    row: Row
    picture: Image.Image
    pixels: bytes | None
    extra: dict[str, Any]


def grouped(items: Iterable[T], size: int, least: int = 1) -> Iterator[list[T]]:
    """Lists of `size` items in order; a rest of fewer than `least` joins the list before it.

    >>> [len(group) for group in grouped(range(9), 4, least=2)]
    [4, 5]
    """
    items, ahead = iter(items), list[T]()
    while group := [*ahead, *islice(items, size - len(ahead))]:
        ahead = list(islice(items, least)) if least > 1 else []
        if len(ahead) < least > 1:
            group, ahead = [*group, *ahead], []
        yield group


def batch_sizes(n: int, size: int, least: int = 1) -> list[int]:
    """How many items are in each of the lists that `grouped` makes of n.

    >>> batch_sizes(9, 4), batch_sizes(9, 4, least=2), batch_sizes(1, 4, least=2)
    ([4, 4, 1], [4, 5], [1])
    """
    sizes, rest = [size] * (n // size), n % size
    if 0 < rest < least and sizes:
        return [*sizes[:-1], size + rest]
    return [*sizes, rest] if rest else sizes


def as_labels(
    values: Sequence[Any] | NDArray[Any], name: str, column: str, class_names: Sequence[str] | None
) -> Int64[Tensor, "b"]:
    """Labels as a tensor, of the data set `name` whose column they are.

    Raises ValueError for labels that are missing, are no whole numbers, or have no class name.
    """
    array = np.asarray(values)
    if array.dtype.kind not in "iu":
        sample = next((v for v in values if v is None or isinstance(v, str)), values[0])
        raise ValueError(
            f"labels are whole numbers; column {column!r} of {name} holds {sample!r}. "
            f"For text use dataset.class_encode_column({column!r}) first"
        )
    if array.min() < 0:
        raise ValueError(f"labels start at 0; {name} has {array.min()}, which stands for an unlabelled image")
    if class_names is not None and array.max() >= len(class_names):
        raise ValueError(f"every label has a class name; {name} has label {array.max()} and {len(class_names)} names")
    return torch.from_numpy(array.astype(np.int64))
