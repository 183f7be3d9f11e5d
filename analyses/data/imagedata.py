"""The images and labels of an analysis: read batch by batch, in the same order every time, never all in memory."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from copy import copy
from itertools import islice
from typing import Any

import numpy as np
from jaxtyping import Int64
from numpy.typing import NDArray
from torch import Tensor

from analyses.data.batches import Batch, Opened, as_labels, batch_sizes, grouped, part_of_each, shared_out, some_of_each
from analyses.data.contents import Apart, Contents, Remembering, pixel_digest
from analyses.data.images import UnreadableImageError, find_unreadable, open_plain, open_rgb, refuse_unreadable
from analyses.data.sources import CHUNK, Row, Source, StreamSource
from hooked_vit.config.showing import Displayed, counted, one_line, some
from hooked_vit.loading.digests import digest
from hooked_vit.loading.progress import tqdm


class ImageData(Remembering, Displayed):
    """Labelled images in a fixed order. Made by `load_data` and `as_data`.

    >>> from analyses.data import load_data
    >>> data = load_data("scenes:test", n=5)
    >>> [len(batch) for batch in data.batches(2)]
    [2, 2, 1]

    `name` is the spec it came from; `class_names` the names of classes 0, 1, … or None; `columns` what a row has;
    `image` and `label` which of them are used; `n` the number of images, None for a stream of unknown length;
    `skipped` the unreadable images left out (with `skip_bad`); `drawn` how the images were chosen, where that is no
    plain draw or order; `content` 16 hex digits of the images and labels that the last whole pass through a stream has
    read, None before it and where `fingerprint` tells as much.
    """

    def __init__(
        self,
        source: Source,
        *,
        name: str,
        image: str,
        label: str,
        class_names: Sequence[str] | None,
        seed: int | None = None,
        skip_bad: bool = False,
        drawn: str = "",
    ) -> None:
        self.name = name
        self.image = image
        self.label = label
        self.class_names = None if class_names is None else list(class_names)
        if strange := [n for n in self.class_names or [] if any("\ud800" <= letter <= "\udfff" for letter in str(n))]:
            raise ValueError(f"class names are UTF-8, or no result could be saved; rename {strange[0]!a} of {name!a}")
        self.seed, self.skip_bad, self.drawn = seed, skip_bad, drawn
        self.skipped: list[str] = []
        self.content: str | None = None
        self._source = source
        self._keep: NDArray[np.int64] | None = None
        self._labels: Int64[Tensor, "n"] | None = None
        self._contents = Contents()
        self._apart: tuple[Apart, ...] = ()

    @property
    def spec(self) -> str:
        """The same as `name`, where `load_data` made it."""
        return self.name

    def name_of(self, index: int) -> str:
        """What the image is called that has this number in a batch's `index`: its file below the folder, or its row."""
        return self._source.name_of(index)

    @property
    def columns(self) -> list[str]:
        return list(self._source.columns)

    @property
    def n(self) -> int | None:
        return self._source.n if self._keep is None else len(self._keep)

    def __len__(self) -> int:
        if self.n is None:
            raise TypeError(f"{self.name} is a stream of unknown length; load it with n=…")
        return self.n

    def __repr__(self) -> str:
        named = "unnamed classes" if self.class_names is None else counted(len(self.class_names), "class", "classes")
        return one_line(f"<{self.name}: {'? images' if self.n is None else counted(self.n, 'image')}, {named}>")

    def _rows(self) -> dict[str, object]:
        named = "unnamed" if self.class_names is None else f"{len(self.class_names)}: {some(self.class_names)}"
        about = {"images": self.n or "a stream", "classes": named, "columns": some(self.columns), "drawn": self.drawn}
        return {"data": self.name, **about, "unreadable": some(self.skipped)}

    @property
    def labels(self) -> Int64[Tensor, "n"] | None:
        """All labels in order, without reading an image; None for a stream.

        Raises ValueError for what `as_labels` refuses.
        """
        if self._labels is None:
            values = self._source.labels(self.label)
            if values is None:
                return None
            self._labels = self.check_labels(values if self._keep is None else [values[i] for i in self._keep])
        return self._labels

    def column(self, name: str) -> list[Any] | None:
        """A column without images for all images in order, without reading one; None for a stream.

        Raises ValueError for a column the data does not have, or one that holds images.
        """
        if name not in self.columns or name in self._source.image_columns:
            raise ValueError(f"{self.name} has the columns {self.columns}; {name!r} is none, or holds images")
        values = self._source.labels(name)
        if values is None:
            return None
        values = values.tolist() if isinstance(values, np.ndarray) else list(values)
        return values if self._keep is None else [values[i] for i in self._keep]

    def batches(
        self, batch_size: int, *, extra: Sequence[str] = (), least: int = 1, share: tuple[int, int] = (0, 1)
    ) -> Iterator[Batch]:
        """Go through all images in order, `batch_size` at a time; the last batch may be smaller. Again each call.

        `extra` names further columns, such as "mask": images in them come as saved, everything else as it is. A rest of
        fewer than `least` images joins the batch before it. Of the share (r, P) only batches r, r + P, … are read.
        Raises ValueError for a batch size below 1 or a column the data does not have, and for an image that is among
        those of a set that this one is kept apart from; UnreadableImageError for a damaged image unless `skip_bad`,
        which notes it in `skipped` and leaves it out.
        """
        if batch_size < 1:
            raise ValueError(f"a batch holds at least one image; got batch_size={batch_size}")
        if unknown := [c for c in extra if c not in self.columns]:
            raise ValueError(f"{self.name} has the columns {self.columns}; got {unknown}")
        how = batch_size, list(extra), least
        return self._batches(*how) if share[1] == 1 else self._share(*how, share)

    @property
    def can_be_shared(self) -> bool:
        """Whether it is known, without reading an image, which of them are in which batch."""
        return self.n is not None and not self.skip_bad and not isinstance(self._source, StreamSource)

    def _share(self, batch_size: int, extra: list[str], least: int, share: tuple[int, int]) -> Iterator[Batch]:
        mine = list(shared_out(batch_sizes(len(self), batch_size, least), *share))
        part = self._part(np.concatenate([self.positions[places] for _, places in mine]))
        opened = part._opened(min(batch_size, CHUNK), extra)
        for number, at in mine:
            yield part._batch(list(islice(opened, at.stop - at.start)), extra, number, at.start)

    def _batch(self, group: Sequence[Opened], extra: list[str], number: int, first: int) -> Batch:
        labels = self.check_labels([opened.row.values[self.label] for opened in group])
        batch = Batch.of(group, labels, extra, number, first)
        self.note(batch.index.tolist(), batch.pixels)
        return batch

    def _batches(self, batch_size: int, extra: list[str], least: int) -> Iterator[Batch]:
        read, first = hashlib.sha256(), 0
        for number, group in enumerate(grouped(self._opened(min(batch_size, CHUNK), extra), batch_size, least)):
            batch, first = self._batch(group, extra, number, first), first + len(group)
            read.update(batch.content())
            yield batch
        self.content = read.hexdigest()[:16] if isinstance(self._source, StreamSource) else None

    def _opened(self, chunk: int, extra: list[str]) -> Iterator[Opened]:
        """The rows whose images can be read, decoded side by side, `chunk` at a time."""
        rows = self._source.rows(self._keep, [self.image, self.label, *extra])
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            while some := list(islice(rows, chunk)):
                yield from filter(None, pool.map(self._open, some, [extra] * len(some)))

    def kept_apart(self, *others: ImageData) -> ImageData:
        """The same images, remembering anew what is read, and an error at the first one that was read in `others` too.

        From here on images of `others` that were read here are errors as well.
        """
        same = self._part(self._keep)
        same.skipped, same._contents = list(self.skipped), Contents()
        same._apart = tuple(other._as_apart() for other in others)
        for other in others:
            other._apart += (same._as_apart(),)
        return same

    def marks(self) -> list[str]:
        """For each image in order a digest of its file or, in memory, its pixels: "" for no file; [] for a stream.

        Nothing is decoded, so that one photo saved in two ways has two marks.
        """
        return self._source.marks(self._keep, self.image)

    def split(self, fraction: float, seed: int = 0) -> tuple[ImageData, ImageData]:
        """Two parts that share no image: `fraction` of each class, and the rest; the same for the same seed.

        A stream is divided without regard to class, as its labels are not known beforehand.
        Raises ValueError for a fraction that leaves a part empty, and for a stream of unknown length.
        """
        if self.n is None:
            raise ValueError(f"a split needs to know how many images there are: load {self.name} with n=…")
        labels = self.labels
        in_first = part_of_each(np.zeros(self.n, np.int64) if labels is None else labels.numpy(), fraction, seed)
        if in_first.all() or not in_first.any():
            raise ValueError(f"a split leaves images on both sides; {fraction} of {self.n} images does not")
        return self._part(self.positions[in_first]), self._part(self.positions[~in_first])

    def per_class(self, n: int, seed: int = 0) -> ImageData:
        """`n` images of every class that occurs, drawn at random; the same for the same seed.

        Raises ValueError for a class with fewer images, and for a stream, whose labels are not known beforehand.
        """
        labels = self.labels
        if labels is None:
            raise ValueError(f"drawing images of every class needs labels known beforehand; {self.name} is a stream")
        return self._part(self.positions[some_of_each(labels.numpy(), n, seed)])

    def fingerprint(self) -> str:
        """16 hex digits that differ where anything differs that is read: pixels, labels, other columns, order, names.

        Images count by the bytes of their files, or their pixels where they are in memory; each call looks again,
        files that have not changed since aside. Where a folder lies does not matter. A stream is told by its name, its
        columns, seed and number of images, since looking would mean going through it; see `content`.
        """
        about = (self.image, self.label, self.class_names, self.seed, self.n)
        return digest(self._source.digest(self._keep), about)[:16]

    def check_images(self) -> ImageData:
        """Read every image once, so that damage shows before long work; returns itself, or the readable part.

        Raises UnreadableImageError, naming up to five, unless `skip_bad`.
        """
        rows = self._source.rows(self._keep, [self.image])
        bar = tqdm(rows, total=self.n, desc="checking images", delay=2, leave=False)
        items = ((row.position, self._source.name_of(row.position), row.values[self.image]) for row in bar)
        if not (bad := list(find_unreadable(items))):
            return self
        refuse_unreadable([text for _, text in bad], self.name, self.n, self.skip_bad)
        part = self._part(np.setdiff1d(self.positions, [position for position, _ in bad]))
        part.skipped = [*self.skipped, *(text for _, text in bad)]
        return part

    @property
    def positions(self) -> NDArray[np.int64]:
        return np.arange(len(self)) if self._keep is None else self._keep

    def only(self, places: Sequence[int]) -> ImageData:
        """The images at these places of the order."""
        return self._part(self.positions[list(places)])

    def without(self, places: Sequence[int]) -> ImageData:
        """The images but for those at these places of the order."""
        return self._part(np.delete(self.positions, places))

    def _part(self, keep: NDArray[np.int64] | None) -> ImageData:
        part = copy(self)
        part._keep, part.content, part._labels = keep, None, self._labels if keep is self._keep else None
        return part

    def _open(self, row: Row, extra: Sequence[str]) -> Opened | None:
        name = f"{self._source.name_of(row.position)} of {self.name}"
        try:
            picture = open_rgb(row.values[self.image], name)
            more = {column: self._extra(row, column) for column in extra}
        except UnreadableImageError as error:
            if not self.skip_bad:
                raise
            self.skipped += [told] if (told := str(error)) not in self.skipped else []
            return None
        known = row.position in self._contents and not isinstance(self._source, StreamSource)
        return Opened(row, picture, None if known else pixel_digest(picture), more)

    def _extra(self, row: Row, column: str) -> Any:
        value = row.values[column]
        if column not in self._source.image_columns:
            return value
        return open_plain(value, f"{column} of {self._source.name_of(row.position)} of {self.name}")

    def check_labels(self, values: Sequence[Any] | NDArray[Any]) -> Int64[Tensor, "b"]:
        """`as_labels` of this data set."""
        return as_labels(values, self.name, self.label, self.class_names)
