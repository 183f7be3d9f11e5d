"""The built-in digit scenes as a Hugging Face data set, and as rows rendered when they are needed."""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import pyarrow as pa
from datasets import ClassLabel, Dataset, DatasetInfo, Features, Image, NamedSplit, Value
from numpy.typing import NDArray
from PIL import Image as Picture

from analyses.data.scenes import Scene, check_split, render_scenes
from analyses.data.sources import IndexedSource
from hooked_vit.loading.digests import digest
from hooked_vit.loading.progress import tqdm

CLASS_NAMES = [str(digit) for digit in range(10)]
FEATURES = Features(
    {
        "image": Image(),
        "label": ClassLabel(names=CLASS_NAMES),
        "count": Value("int64"),
        "mask": Image(),
        "pair": Image(),
        "removed": Value("int64"),
    }
)
IMAGES = {"image", "mask", "pair"}
BLOCK = 256
"""Scenes rendered together; 32 blocks, 130 MB at most, are remembered for the next pass."""


def digit_scenes(split: str = "test", n: int = 1000, seed: int = 0) -> Dataset:
    """`n` scenes of one to five handwritten copies of a digit; scene i is the same whatever `n` is.

    >>> scene = digit_scenes("test", n=3)[0]
    >>> scene["image"].size, scene["mask"].mode, scene["count"] == max(scene["mask"].get_flattened_data())
    ((48, 48), 'L', True)

    Columns: `image`; `label`, the digit; `count`, the number of objects; `mask`, an L image of 0 for background and
    1..count for the objects; `pair`, the same scene without object `removed`. Splits are train, validation and test,
    and share no handwriting. Held in memory, 17 KB a scene; nothing is written to disk.
    Raises ValueError for an unknown split and for n below 1.
    """
    check_scenes(split, n)
    columns: dict[str, list[Any]] = {name: [] for name in FEATURES}
    tables = []
    for i, scene in enumerate(tqdm(render_scenes(split, n, seed=seed), total=n, desc=f"{split} scenes", delay=2)):
        for name, values in columns.items():
            value = getattr(scene, name)
            values.append({"bytes": _bmp(value), "path": None} if name in IMAGES else value)
        if len(columns["label"]) == 1024 or i == n - 1:
            tables.append(pa.table(columns, schema=FEATURES.arrow_schema))
            columns = {name: [] for name in FEATURES}
    return Dataset(pa.concat_tables(tables), info=DatasetInfo(features=FEATURES.copy()), split=NamedSplit(split))


class SceneSource(IndexedSource):
    """The rows of `digit_scenes`, rendered when read: memory does not depend on their number."""

    def __init__(self, split: str, n: int, seed: int) -> None:
        check_scenes(split, n)
        self._split = split
        self._seed = seed
        self.columns = list(FEATURES)
        self.image_columns = IMAGES
        self.n = n

    def read(self, positions: list[int], columns: Sequence[str]) -> dict[str, Sequence[Any]]:
        scenes = [_block(self._split, self._seed, i // BLOCK)[i % BLOCK] for i in positions]
        return {column: [_value(scene, column) for scene in scenes] for column in columns}

    def labels(self, column: str) -> NDArray[np.int64]:
        positions: Iterable[int] = tqdm(range(self.n), desc=f"{self._split} scenes", delay=2, leave=False)
        return np.array([self.read([i], [column])[column][0] for i in positions])

    def name_of(self, position: int) -> str:
        return f"scene {position}"

    def digest(self, keep: NDArray[np.int64] | None) -> str:
        """What the pixels follow from: drawing them again would only say the same."""
        return digest("scenes", self._split, self._seed, np.arange(self.n) if keep is None else keep)

    def marks(self, keep: NDArray[np.int64] | None, column: str) -> list[str]:
        """What the pixels follow from, again."""
        positions = range(self.n) if keep is None else keep.tolist()
        return [f"scenes {self._split} {self._seed} {i} {column}" for i in positions]


def check_scenes(split: str, n: int) -> None:
    """Raise ValueError, naming the rule, for scenes there cannot be."""
    check_split(split)
    if n < 1:
        raise ValueError(f"a data set has at least one scene; got n={n}")


@lru_cache(maxsize=32)
def _block(split: str, seed: int, block: int) -> list[Scene]:
    return list(render_scenes(split, BLOCK, seed=seed, start=block * BLOCK))


def _value(scene: Scene, column: str) -> Any:
    value = getattr(scene, column)
    return Picture.fromarray(value) if column in IMAGES else value


def _bmp(pixels: NDArray[np.uint8]) -> bytes:
    # Written five times faster than PNG, read three times faster; the noise leaves little to compress.
    buffer = io.BytesIO()
    Picture.fromarray(pixels).save(buffer, format="BMP")
    return buffer.getvalue()
