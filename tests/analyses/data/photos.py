"""Photographs, made up, and the places they can come from."""

import io
import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from datasets import ClassLabel, Dataset, Features, Image
from PIL import Image as Picture

from analyses.data import ImageData

COLOURS = {"cat": (200, 10, 10), "dog": (10, 200, 10), "eel": (10, 10, 200)}


def everything(data: ImageData, batch_size: int = 4, **more) -> list[tuple]:
    """(label, pixels, extra columns) of each image, in order."""
    return [
        (int(label), picture.tobytes(), *(batch.extra[c][i] for c in batch.extra))
        for batch in data.batches(batch_size, **more)
        for i, (label, picture) in enumerate(zip(batch.labels, batch.images, strict=True))
    ]


def photo(colour, size=(24, 16), seed=0) -> Picture.Image:
    noise = np.random.default_rng(seed).integers(0, 50, (size[1], size[0], 3))
    return Picture.fromarray((np.array(colour) + noise).clip(0, 255).astype(np.uint8))


def encoded(picture: Picture.Image, form="PNG") -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, format=form)
    return buffer.getvalue()


def in_memory(n=30, seed=0) -> Dataset:
    rows = {"image": [photo((seed, 10 * i, 0), (8, 8), i) for i in range(n)], "label": [i % 3 for i in range(n)]}
    return Dataset.from_dict(rows, features=Features({"image": Image(), "label": ClassLabel(names=list(COLOURS))}))


def sorted_by_class() -> pa.Table:
    return in_memory().with_format("arrow")[:].sort_by("label")


def write_folder(root: Path) -> Path:
    """Ten photos of each of three classes, by class folder, in several formats and one level deeper for some."""
    for name, colour in COLOURS.items():
        (root / name / "more").mkdir(parents=True)
        for i in range(10):
            where = root / name / "more" if i == 9 else root / name
            photo(colour, seed=i).save(where / f"{i}.{('jpg', 'png', 'JPEG', 'webp')[i % 4]}")
    (root / "cat" / "notes.txt").write_text("not a photo")
    (root / "cat" / ".hidden.jpg").write_text("not a photo either")
    (root / ".cache").mkdir()
    return root


def write_parquets(folder: Path) -> Path:
    """The rows of `in_memory` in two files with small row groups, sorted by class: the worst order there is."""
    os.makedirs(folder, exist_ok=True)
    for k in range(2):
        pq.write_table(sorted_by_class().slice(15 * k, 15), folder / f"part-{k}.parquet", row_group_size=4)
    return folder


def write_hub(repository: Path) -> Path:
    """The same rows as a data set on the hub lies, in one file sorted by class."""
    os.makedirs(repository, exist_ok=True)
    pq.write_table(sorted_by_class(), repository / "train-00000.parquet", row_group_size=4)
    return repository
