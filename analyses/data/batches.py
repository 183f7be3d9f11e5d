"""Batches of decoded images, and how many of what size there are."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, islice
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
    `number` is that of the batch in its pass, `first` that of its first image; draws and limits go by these, since a
    process may see every third batch only. `pixels` are digests of the images that were not read before, else None.
    """

    images: list[Image.Image]
    labels: Int64[Tensor, "b"]
    index: Int64[Tensor, "b"]
    extra: dict[str, list[Any]] = field(default_factory=dict)
    number: int = 0
    first: int = 0
    pixels: tuple[bytes | None, ...] = ()

    def __len__(self) -> int:
        return len(self.labels)

    def __repr__(self) -> str:
        extra = f", {', '.join(self.extra)}" if self.extra else ""
        return one_line(f"Batch({counted(len(self), 'image')}, labels {some(self.labels.tolist())}{extra})")

    def _rows(self) -> dict[str, object]:
        sizes = list(dict.fromkeys(f"{picture.width} x {picture.height}" for picture in self.images))
        about = {"images": len(self), "pixels": some(sizes), "labels": some(self.labels.tolist())}
        return {**about, "columns": some(list(self.extra))}

    @classmethod
    def of(
        cls, group: Sequence[Opened], labels: Int64[Tensor, "b"], extra: Sequence[str], number: int, first: int
    ) -> Batch:
        """Rows that were opened, and their labels, as batch `number` of a pass."""
        return cls(
            images=[opened.picture for opened in group],
            labels=labels,
            index=torch.tensor([opened.row.position for opened in group]),
            extra={column: [opened.extra[column] for opened in group] for column in extra},
            number=number,
            first=first,
            pixels=tuple(opened.pixels for opened in group),
        )

    def content(self) -> bytes:
        """What a stream is told by: the pixels' digests, and the labels."""
        each = zip(self.pixels, self.labels.tolist(), strict=True)
        return b"".join((pixels or b"") + str(label).encode() for pixels, label in each)

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


def shared_out(sizes: Sequence[int], first: int, step: int) -> Iterator[tuple[int, slice]]:
    """Every `step`-th batch from the `first` on: its number, and the places of its images.

    >>> list(shared_out([4, 4, 1], 0, 2))
    [(0, slice(0, 4, None)), (2, slice(8, 9, None))]
    """
    ends = [0, *accumulate(sizes)]
    yield from ((i, slice(ends[i], ends[i + 1])) for i in range(first, len(sizes), step))


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


def part_of_each(strata: NDArray[np.int64], fraction: float, seed: int) -> NDArray[np.bool_]:
    """True for `fraction` of the places of each stratum, drawn at random."""
    rng = np.random.default_rng(seed)
    drawn = np.zeros(len(strata), bool)
    for label in np.unique(strata):
        members = np.flatnonzero(strata == label)
        # The random offset rounds each class up or down so that the total comes out right on average.
        place = rng.permutation(len(members)) + rng.uniform()
        drawn[members] = place < fraction * len(members)
    return drawn


def some_of_each(labels: NDArray[np.int64], n: int, seed: int) -> NDArray[np.int64]:
    """`n` places of every class that occurs, in order, drawn at random. Raises ValueError for a class with fewer."""
    classes, counts = np.unique(labels, return_counts=True)
    if n < 1 or int(counts.min()) < n:
        least = f"class {classes[counts.argmin()]} has {counts.min()}"
        raise ValueError(f"a class has at least the number of images asked for, 1 or more; got {n}, and {least}")
    rng = np.random.default_rng(seed)
    members = [rng.permutation(np.flatnonzero(labels == c))[:n] for c in classes.tolist()]
    return np.sort(np.concatenate(members))
