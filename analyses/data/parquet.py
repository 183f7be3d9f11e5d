"""Parquet files, drawn from and shuffled exactly, without a converted copy on disk or all of it in memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Features
from numpy.typing import NDArray

from analyses.data.sources import CHUNK, Row, Source, image_columns
from hooked_vit.loading.files import why_no_file

WINDOW_BYTES = 256 * 2**20
"""Encoded rows held in memory at once, about."""


class ParquetSource(Source):
    """`n` rows drawn at random from all of the files (all rows for None), in a random order; `seed` decides both.

    A parquet file is read in row groups. Groups are taken in random order, and the drawn rows of as many as fit a
    window are shuffled among each other, so that classes mix even in files sorted by class.
    """

    n: int

    def __init__(self, files: list[Path], n: int | None, seed: int) -> None:
        self._files = files
        schema = _read_schema(files[0])
        groups: list[tuple[int, int]] = []
        rows: list[int] = []
        size: list[int] = []
        for f, file in enumerate(files):
            if not (other := _read_schema(file)).equals(schema):
                raise ValueError(
                    f"parquet files that are read together have the same columns; {file.name} has {_columns(other)}, "
                    f"{files[0].name} has {_columns(schema)}"
                )
            metadata = pq.read_metadata(file)
            for g in range(metadata.num_row_groups):
                groups.append((f, g))
                rows.append(metadata.row_group(g).num_rows)
                size.append(metadata.row_group(g).total_byte_size)
        self.features = Features.from_arrow_schema(schema)
        self.columns = list(self.features)
        self.image_columns = image_columns(self.features)
        self._groups = groups
        self._starts = np.cumsum([0, *rows])

        rng = np.random.default_rng(seed)
        drawn = np.sort(rng.permutation(self._starts[-1])[:n])
        share = np.bincount(self._group_of(drawn), minlength=len(groups)) / np.maximum(rows, 1)
        order = rng.permutation(len(groups))
        window = np.zeros(len(groups), np.int64)
        window[order] = np.cumsum((share * size)[order]) // WINDOW_BYTES
        mixed = rng.permutation(drawn)
        self._ids = mixed[np.argsort(window[self._group_of(mixed)], kind="stable")]
        self._window = window[self._group_of(self._ids)]
        self.n = len(self._ids)

    def rows(self, keep: NDArray[np.int64] | None, columns: Sequence[str]) -> Iterator[Row]:
        positions = np.arange(self.n) if keep is None else keep
        edges = np.flatnonzero(np.diff(self._window[positions], prepend=-1, append=-1))
        for start, stop in pairwise(edges):
            inside = positions[start:stop]
            table = self._read(self._ids[inside], list(columns))
            for first in range(0, len(inside), CHUNK):
                values = table.slice(first, CHUNK).to_pylist()
                for position, row in zip(inside[first : first + CHUNK].tolist(), values, strict=True):
                    for column in self.image_columns & row.keys():
                        row[column] = self._resolve(row[column], position)
                    yield Row(position, row)

    def labels(self, column: str) -> list[Any]:
        # Through Python lists, as an array would turn a column with gaps into floating-point numbers.
        values: list[Any] = []
        for file in self._files:
            with _reading(file):
                values += pq.read_table(file, columns=[column])[column].to_pylist()
        return [values[i] for i in self._ids.tolist()]

    def name_of(self, position: int) -> str:
        row = int(self._ids[position])
        file = self._groups[int(self._group_of(np.array([row]))[0])][0]
        first = int(self._starts[[f for f, _ in self._groups].index(file)])
        return f"row {row - first} of {self._files[file].name}"

    def _group_of(self, ids: NDArray[np.int64]) -> NDArray[np.int64]:
        return np.searchsorted(self._starts, ids, side="right") - 1

    def _read(self, ids: NDArray[np.int64], columns: list[str]) -> pa.Table:
        """The rows with these numbers, in this order."""
        ascending = np.sort(ids)
        group = self._group_of(ascending)
        parts = []
        for g in np.unique(group):
            f, i = self._groups[g]
            with _reading(self._files[f]), pq.ParquetFile(self._files[f]) as file:
                whole = file.read_row_group(i, columns=columns)
            parts.append(whole.take(ascending[group == g] - self._starts[g]))
        return pa.concat_tables(parts).take(np.searchsorted(ascending, ids))

    def _resolve(self, value: Any, position: int) -> Any:
        """Paths to image files may be meant from where the parquet file is."""
        path = value.get("path") if isinstance(value, dict) and value.get("bytes") is None else value
        if not isinstance(path, str) or "://" in path or Path(path).is_absolute():
            return value
        file = self._files[self._groups[int(self._group_of(self._ids[[position]])[0])][0]]
        return str(file.parent / path)


def _read_schema(file: Path) -> pa.Schema:
    with _reading(file):
        return pq.read_schema(file)


@contextmanager
def _reading(file: Path) -> Iterator[None]:
    """Raises ValueError, naming the file, for one that is damaged, has gone, or is none at all."""
    try:
        if (why := why_no_file(file)) is not None:
            raise ValueError(why)
        yield
    except (ValueError, OSError, pa.ArrowException) as error:
        raise ValueError(f"{file} is not a parquet file that can be read: {error}") from error


def _columns(schema: pa.Schema) -> str:
    return ", ".join(f"{field.name} ({field.type})" for field in schema)
