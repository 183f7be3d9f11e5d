"""Where rows come from: every source is an ordered collection that can be read through, in whole or in part."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from datasets import ClassLabel, Dataset, Features, Image, IterableDataset, Value
from numpy.typing import NDArray

from analyses.data.digests import file_digest, image_digests, rows_digest
from hooked_vit.loading.digests import digest

CHUNK = 64
"""Rows read at a time."""

IMAGE_NAMES = ("image", "img", "picture", "photo", "path", "file", "file_name")
LABEL_NAMES = ("label", "labels", "fine_label")


class Row(NamedTuple):
    """One row: its position in the source, and its values by column."""

    position: int
    values: dict[str, Any]


class Source(ABC):
    """Rows in a fixed order; `n` is how many, None where that is unknown.

    `image_columns` are the columns that hold images, still encoded.
    """

    columns: list[str]
    image_columns: set[str]
    n: int | None

    @abstractmethod
    def rows(self, keep: NDArray[np.int64] | None, columns: Sequence[str]) -> Iterator[Row]:
        """The rows at positions `keep` (ascending; None for all), with these columns."""

    @abstractmethod
    def labels(self, column: str) -> Sequence[Any] | NDArray[Any] | None:
        """The column for all rows in order, without reading images; None where only a full pass could tell."""

    @abstractmethod
    def name_of(self, position: int) -> str:
        """What an error calls the row."""

    def digest(self, keep: NDArray[np.int64] | None) -> str:
        """Text that differs where the rows at `keep` differ, images included."""
        return rows_digest((row.values for row in self.rows(keep, self.columns)), self.image_columns)

    def marks(self, keep: NDArray[np.int64] | None, column: str) -> list[str]:
        """A digest of the file, or the pixels in memory, of each image at `keep`; "" where there is none."""
        return image_digests(row.values[column] for row in self.rows(keep, [column]))


class IndexedSource(Source):
    """A source whose rows can be read in any order."""

    n: int

    @abstractmethod
    def read(self, positions: list[int], columns: Sequence[str]) -> dict[str, Sequence[Any]]:
        """These rows, by column."""

    def rows(self, keep: NDArray[np.int64] | None, columns: Sequence[str]) -> Iterator[Row]:
        positions = list(range(self.n)) if keep is None else keep.tolist()
        for start in range(0, len(positions), CHUNK):
            part = positions[start : start + CHUNK]
            table = self.read(part, columns)
            for i, position in enumerate(part):
                yield Row(position, {column: table[column][i] for column in columns})

    def name_of(self, position: int) -> str:
        return f"row {position}"


class DatasetSource(IndexedSource):
    """A Hugging Face data set on disk or in memory, in the order of `order` (row numbers)."""

    def __init__(self, dataset: Dataset, order: NDArray[np.int64]) -> None:
        self._dataset = without_decoding(dataset)
        self._views: dict[tuple[str, ...], Dataset] = {}
        self._order = order
        self.columns = list(dataset.column_names)
        self.image_columns = image_columns(dataset.features)
        self.n = len(order)

    def read(self, positions: list[int], columns: Sequence[str]) -> dict[str, Sequence[Any]]:
        key = tuple(columns)
        if key not in self._views:  # choosing columns costs more than reading a few rows
            self._views[key] = self._dataset.select_columns(list(columns))
        return self._views[key][self._order[positions].tolist()]

    def labels(self, column: str) -> list[Any]:
        values = self._dataset[column][:]
        return [values[i] for i in self._order.tolist()]

    def name_of(self, position: int) -> str:
        return f"row {self._order[position]}"


class StreamSource(Source):
    """A Hugging Face stream, of which the first `n` rows are taken; gone through anew each time."""

    def __init__(self, dataset: IterableDataset, features: Features, n: int | None, name: str) -> None:
        self.read_from(dataset)
        self._files = files_of(dataset)
        self._name = name
        self.columns = list(features)
        self.image_columns = image_columns(features)
        self.n = n

    def read_from(self, dataset: IterableDataset) -> None:
        """Take the rows from here, as they are or in another order."""
        self._dataset = without_decoding(dataset)

    def rows(self, keep: NDArray[np.int64] | None, columns: Sequence[str]) -> Iterator[Row]:
        wanted = iter(()) if keep is None else iter(keep.tolist())
        following = next(wanted, None)
        for position, values in enumerate(self._dataset):
            if (self.n is not None and position >= self.n) or (keep is not None and following is None):
                return
            if keep is None or position == following:
                following = next(wanted, None)
                yield Row(position, {column: values[column] for column in columns})

    def labels(self, column: str) -> None:
        return None

    def name_of(self, position: int) -> str:
        return f"row {position} of the stream"

    def digest(self, keep: NDArray[np.int64] | None) -> str:
        """What can be said without going through the stream, which may mean the network: its name, columns and files.

        Files on the hub are named with the commit they are of; those on this machine are told by their bytes.
        """
        files = [file if "://" in file else file_digest(Path(file)) for file in self._files]
        return digest("stream", self._name, self.columns, files, keep)

    def marks(self, keep: NDArray[np.int64] | None, column: str) -> list[str]:
        """Nothing: that would mean going through the stream."""
        return []


class FileSource(IndexedSource):
    """Image files under one folder with a label each; read when needed."""

    def __init__(self, root: Path, files: list[Path], labels: list[int]) -> None:
        self.columns, self.image_columns = ["image", "label"], {"image"}
        self._root = root
        self._files = files
        self._labels = labels
        self.n = len(files)

    def read(self, positions: list[int], columns: Sequence[str]) -> dict[str, Sequence[Any]]:
        values: dict[str, Sequence[Any]] = {
            "image": [self._files[i] for i in positions],
            "label": [self._labels[i] for i in positions],
        }
        return {column: values[column] for column in columns}

    def labels(self, column: str) -> list[int]:
        return self._labels

    def name_of(self, position: int) -> str:
        return self._files[position].relative_to(self._root).as_posix()


class MemorySource(IndexedSource):
    """Images and labels that are already in memory."""

    def __init__(self, images: Any, labels: Sequence[Any], order: NDArray[np.int64]) -> None:
        self.columns, self.image_columns = ["image", "label"], {"image"}
        self._images = images
        self._labels = labels
        self._order = order
        self.n = len(order)

    def read(self, positions: list[int], columns: Sequence[str]) -> dict[str, Sequence[Any]]:
        rows = self._order[positions].tolist()
        values = {"image": self._images, "label": self._labels}
        return {column: [values[column][i] for i in rows] for column in columns}

    def labels(self, column: str) -> list[Any]:
        return [self._labels[i] for i in self._order.tolist()]

    def name_of(self, position: int) -> str:
        return f"image {self._order[position]}"


def files_of(dataset: IterableDataset) -> list[str]:
    """The files a stream is read from, as it was opened; none for one that is made by a function."""
    told = getattr(getattr(dataset, "_ex_iterable", None), "kwargs", None)
    files = told.get("files") if isinstance(told, dict) else None
    return [str(file) for file in files] if isinstance(files, list) else []


def without_decoding(dataset: Any) -> Any:
    """The data set with its images left as file bytes: they are decoded where an error can name the row."""
    for column, feature in (dataset.features or {}).items():
        if isinstance(feature, Image) and feature.decode:
            dataset = dataset.cast_column(column, Image(mode=feature.mode, decode=False))
    return dataset


def image_columns(features: Features) -> set[str]:
    """Columns of type Image, or of files' bytes as parquet holds them when nobody said that they are images.

    >>> sorted(image_columns(Features({"photo": Image(), "n": Value("int64")})))
    ['photo']
    """

    def is_image(name: str, feature: Any) -> bool:
        if isinstance(feature, Image):
            return True
        if isinstance(feature, dict):
            return {"bytes"} <= feature.keys() <= {"bytes", "path"}
        dtype = feature.dtype if isinstance(feature, Value) else None
        return dtype in ("binary", "large_binary") or (dtype in ("string", "large_string") and name in IMAGE_NAMES)

    return {name for name, feature in features.items() if is_image(name, feature)}


def find_image_column(features: Features, name: str) -> str:
    """The column the images are in. Raises ValueError, naming the columns there are, unless there is just one.

    >>> find_image_column(Features({"mask": Image(), "image": Image()}), "scenes")
    'image'
    """
    found = image_columns(features)
    typed = {c for c in found if isinstance(features[c], Image)} or found
    if len(typed) == 1:
        return typed.pop()
    for candidate in IMAGE_NAMES:
        if candidate in typed:
            return candidate
    if found:
        raise ValueError(f"{name} has several image columns, {sorted(typed)}: choose one with image=…")
    raise ValueError(f"images need a column of type Image; {name} has {describe(features)}")


def find_label_column(features: Features, name: str) -> str:
    """The column the labels are in: the ClassLabel, or one called label, labels or fine_label.

    >>> find_label_column(Features({"image": Image(), "label": Value("int64")}), "photos")
    'label'

    Raises ValueError, naming the columns there are.
    """
    typed = [c for c, f in features.items() if isinstance(f, ClassLabel)]
    if len(typed) == 1:
        return typed[0]
    for candidate in LABEL_NAMES:
        if candidate in (typed or features):
            return candidate
    if typed:
        raise ValueError(f"{name} has several label columns, {typed}: choose one with label=…")
    raise ValueError(
        f"a dataset without labels: {name} has no column of type ClassLabel nor one called {', '.join(LABEL_NAMES)}; "
        f"it has {describe(features)}. Choose one with label=…"
    )


def describe(features: Features) -> str:
    """Columns and types in words, for errors.

    >>> describe(Features({"n": Value("int64")}))
    'n (int64)'
    """
    return ", ".join(f"{name} ({getattr(f, 'dtype', None) or type(f).__name__})" for name, f in features.items())
