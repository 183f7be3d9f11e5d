"""The images and labels of an analysis: read batch by batch, in the same order every time, never all in memory."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import numpy as np
import torch
from jaxtyping import Int64
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from tqdm.auto import tqdm

from analyses.data.images import UnreadableImageError, find_unreadable, open_plain, open_rgb
from analyses.data.sources import Row, Source, StreamSource
from hooked_vit.loading.digests import digest


@dataclass(frozen=True, eq=False)
class Batch:
    """b images, mode RGB, and their labels.

    `index` numbers the images within the source, parts of a split included; `extra` holds the columns asked for.
    """

    images: list[Image.Image]
    labels: Int64[Tensor, "b"]
    index: Int64[Tensor, "b"]
    extra: dict[str, list[Any]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.images)

    def __repr__(self) -> str:
        extra = f", {', '.join(self.extra)}" if self.extra else ""
        labels = ", ".join(map(str, self.labels[:8].tolist())) + ", ..." * (len(self) > 8)
        return f"Batch({len(self)} images, labels {labels}{extra})"

    def digest(self) -> str:
        """A digest of the pixels as decoded, and of the labels."""
        return digest(self.images, self.labels)


class ImageData:
    """Labelled images in a fixed order. Made by `load_data` and `as_data`.

    >>> from analyses.data import load_data
    >>> data = load_data("scenes:test", n=5)
    >>> [len(batch) for batch in data.batches(2)]
    [2, 2, 1]

    `name` is the spec it came from; `class_names` the names of classes 0, 1, … or None; `columns` what a row has;
    `image` and `label` which of them are used; `n` the number of images, None for a stream of unknown length;
    `skipped` the unreadable images left out (with `skip_bad`); `content` 16 hex digits of the images and labels that
    the last whole pass through a stream has read, None before it and where `fingerprint` tells as much.
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
    ) -> None:
        self.name = name
        self.image = image
        self.label = label
        self.class_names = None if class_names is None else list(class_names)
        if strange := [n for n in self.class_names or [] if any("\ud800" <= letter <= "\udfff" for letter in str(n))]:
            raise ValueError(f"class names are UTF-8, or no result could be saved; rename {strange[0]!a} of {name!a}")
        self.seed = seed
        self.skip_bad = skip_bad
        self.skipped: list[str] = []
        self.content: str | None = None
        self._source = source
        self._keep: NDArray[np.int64] | None = None
        self._labels: Int64[Tensor, "n"] | None = None

    @property
    def spec(self) -> str:
        """The same as `name`: what `load_data` takes, where that made it."""
        return self.name

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
        classes = "unnamed classes" if self.class_names is None else f"{len(self.class_names)} classes"
        return f"<{self.name}: {'?' if self.n is None else self.n} images, {classes}>"

    @property
    def labels(self) -> Int64[Tensor, "n"] | None:
        """All labels in order, without reading an image; None for a stream.

        Raises ValueError for labels that are missing, are no whole numbers, or have no class name.
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

    def batches(self, batch_size: int, *, extra: Sequence[str] = ()) -> Iterator[Batch]:
        """Go through all images in order, `batch_size` at a time; the last batch may be smaller. Again each call.

        `extra` names further columns, such as "mask": images in them come as saved, everything else as it is.
        Raises ValueError for a batch size below 1 or a column the data does not have, UnreadableImageError for a
        damaged image unless `skip_bad`, which notes it in `skipped` and leaves it out.
        """
        if batch_size < 1:
            raise ValueError(f"a batch holds at least one image; got batch_size={batch_size}")
        if unknown := [c for c in extra if c not in self.columns]:
            raise ValueError(f"{self.name} has the columns {self.columns}; got {unknown}")
        return self._batches(batch_size, list(extra))

    def _batches(self, batch_size: int, extra: list[str]) -> Iterator[Batch]:
        rows = self._source.rows(self._keep, [self.image, self.label, *extra])
        seen: list[str] | None = [] if isinstance(self._source, StreamSource) else None
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            while chunk := list(islice(rows, batch_size)):
                opened = pool.map(self._open, chunk)
                good = [(row, picture) for row, picture in zip(chunk, opened, strict=True) if picture is not None]
                if not good:
                    continue
                batch = Batch(
                    images=[picture for _, picture in good],
                    labels=self.check_labels([row.values[self.label] for row, _ in good]),
                    index=torch.tensor([row.position for row, _ in good]),
                    extra={c: [self._extra(row, c) for row, _ in good] for c in extra},
                )
                if seen is not None:
                    seen += pool.map(digest, batch.images, batch.labels.tolist())
                yield batch
        self.content = None if seen is None else digest(seen)[:16]

    def split(self, fraction: float, seed: int = 0) -> tuple[ImageData, ImageData]:
        """Two parts that share no image: `fraction` of each class, and the rest; the same for the same seed.

        A stream is divided without regard to class, as its labels are not known beforehand.
        Raises ValueError for a fraction that leaves a part empty, and for a stream of unknown length.
        """
        if self.n is None:
            raise ValueError(f"a split needs to know how many images there are: load {self.name} with n=…")
        labels = self.labels
        strata = np.zeros(self.n, np.int64) if labels is None else labels.numpy()
        rng = np.random.default_rng(seed)
        in_first = np.zeros(self.n, bool)
        for label in np.unique(strata):
            members = np.flatnonzero(strata == label)
            # The random offset rounds each class up or down so that the total comes out right on average.
            place = rng.permutation(len(members)) + rng.uniform()
            in_first[members] = place < fraction * len(members)
        if in_first.all() or not in_first.any():
            raise ValueError(
                f"a split leaves images on both sides; a fraction of {fraction} of {self.n} images does not"
            )
        positions = self._positions()
        return self._part(positions[in_first]), self._part(positions[~in_first])

    def per_class(self, n: int, seed: int = 0) -> ImageData:
        """`n` images of every class that occurs, drawn at random; the same for the same seed.

        Raises ValueError for a class with fewer images, and for a stream, whose labels are not known beforehand.
        """
        labels = self.labels
        if labels is None:
            raise ValueError(f"drawing images of every class needs labels known beforehand; {self.name} is a stream")
        classes, counts = labels.unique(return_counts=True)
        if n < 1 or int(counts.min()) < n:
            least = f"class {classes[counts.argmin()]} has {counts.min()}"
            raise ValueError(f"a class has at least the number of images asked for, 1 or more; got {n}, and {least}")
        rng = np.random.default_rng(seed)
        members = [rng.permutation(np.flatnonzero(labels.numpy() == c))[:n] for c in classes.tolist()]
        return self._part(self._positions()[np.sort(np.concatenate(members))])

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
        bad = list(find_unreadable(items))
        if not bad:
            return self
        if not self.skip_bad:
            named = "; ".join(text for _, text in bad[:5]) + ("; …" if len(bad) > 5 else "")
            count = "1 image" if len(bad) == 1 else f"{len(bad)} images"
            raise UnreadableImageError(
                f"{self.name}: cannot read {count}: {named}. Mend or skip with skip_bad (--skip-bad)"
            )
        if len(bad) == self.n:
            raise UnreadableImageError(f"{self.name}: none of the {self.n} images can be read; the first: {bad[0][1]}")
        part = self._part(np.setdiff1d(self._positions(), [position for position, _ in bad]))
        part.skipped = [text for _, text in bad]
        return part

    def _positions(self) -> NDArray[np.int64]:
        return np.arange(len(self)) if self._keep is None else self._keep

    def _part(self, keep: NDArray[np.int64]) -> ImageData:
        part = ImageData(
            self._source,
            name=self.name,
            image=self.image,
            label=self.label,
            class_names=self.class_names,
            seed=self.seed,
            skip_bad=self.skip_bad,
        )
        part._keep = keep
        part.skipped = list(self.skipped)
        return part

    def _open(self, row: Row) -> Image.Image | None:
        name = f"{self._source.name_of(row.position)} of {self.name}"
        try:
            return open_rgb(row.values[self.image], name)
        except UnreadableImageError as error:
            if not self.skip_bad:
                raise
            if str(error) not in self.skipped:
                self.skipped.append(str(error))
            return None

    def _extra(self, row: Row, column: str) -> Any:
        value = row.values[column]
        if column not in self._source.image_columns:
            return value
        return open_plain(value, f"{column} of {self._source.name_of(row.position)} of {self.name}")

    def check_labels(self, values: Sequence[Any] | NDArray[Any]) -> Int64[Tensor, "b"]:
        """Labels as a tensor. Raises ValueError for what `labels` refuses."""
        array = np.asarray(values)
        if array.dtype.kind not in "iu":
            sample = next((v for v in values if v is None or isinstance(v, str)), values[0])
            raise ValueError(
                f"labels are whole numbers; column {self.label!r} of {self.name} holds {sample!r}. "
                f"For text use dataset.class_encode_column({self.label!r}) first"
            )
        if array.min() < 0:
            raise ValueError(f"labels start at 0; {self.name} has {array.min()}, which stands for an unlabelled image")
        if self.class_names is not None and array.max() >= len(self.class_names):
            raise ValueError(
                f"every label has a class name; {self.name} has label {array.max()} and {len(self.class_names)} names"
            )
        return torch.from_numpy(array.astype(np.int64))
