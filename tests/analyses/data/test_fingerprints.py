"""A fingerprint of images sees whatever an analysis reads: pixels, labels, other columns, their order."""

from __future__ import annotations

import os
import time
from pathlib import Path
from types import SimpleNamespace

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from datasets import Dataset, Features, Value
from datasets import Image as ImageFeature
from PIL import Image

from analyses.data import as_data, digests, load_data
from analyses.data.digests import file_digest
from tests.analyses.data.photos import encoded, photo, write_hub


def flip_last(path: Path) -> None:
    """One bit of a file, whose size and time of change stay."""
    before, content = path.stat(), bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def arrays() -> list[np.ndarray]:
    return [np.random.default_rng(i).integers(0, 255, (8, 8, 3), np.uint8) for i in range(6)]


@pytest.mark.parametrize("form", [np.asarray, Image.fromarray, lambda a: torch.from_numpy(a.copy()).permute(2, 0, 1)])
def test_pixels_in_memory(form):
    labels = [0, 1, 0, 1, 0, 1]
    changed = arrays()
    changed[4][7, 7, 2] ^= 1
    marks = [as_data(([form(a) for a in held], labels)).fingerprint() for held in (arrays(), changed, arrays())]
    assert marks[0] == marks[2] != marks[1]


def test_pixels_written_to_in_place_and_labels_too():
    held, labels = arrays(), [0, 1, 0, 1, 0, 1]
    data = as_data((held, labels))
    first = data.fingerprint()
    held[0][0, 0, 0] ^= 1
    second = data.fingerprint()
    labels[0] = 1
    assert len({first, second, data.fingerprint()}) == 3


def test_an_image_file_of_equal_size_and_time(tmp_path):
    for i in range(4):
        (folder := tmp_path / "photos" / "ab"[i % 2]).mkdir(parents=True, exist_ok=True)
        photo((9, 9, 9), (8, 8), seed=i).save(folder / f"{i}.bmp")
    data = load_data(f"imagefolder:{tmp_path / 'photos'}")
    half = data.split(0.5)[0]
    before, of_half = data.fingerprint(), half.fingerprint()
    flip_last(tmp_path / "photos" / "a" / "0.bmp")
    assert data.fingerprint() != before
    assert load_data(f"imagefolder:{tmp_path / 'photos'}").fingerprint() == data.fingerprint()
    rest = data.split(0.5)[1]
    assert (half.fingerprint() != of_half) != (rest.fingerprint() != load_data(data.name).split(0.5)[1].fingerprint())


def test_an_edited_row_of_parquet_and_of_a_data_set(tmp_path):
    """In the image, its label, and a column an analysis may ask for."""
    rows = {"image": [encoded(photo((9, 9, 9), (8, 8), seed=i), "PNG") for i in range(4)], "label": [0, 1, 0, 1]}
    rows |= {"count": [1, 2, 3, 4]}
    edits = [rows]
    for column, value in (("image", encoded(photo((9, 9, 9), (8, 8), seed=7), "PNG")), ("label", 1), ("count", 9)):
        edits.append({**rows, column: [value, *rows[column][1:]]})
    features = Features({"image": ImageFeature(), "label": Value("int64"), "count": Value("int64")})
    marks = []
    for i, edited in enumerate(edits):
        held = {**edited, "image": [{"bytes": b, "path": None} for b in edited["image"]]}
        marks.append(as_data(Dataset.from_dict(held, features=features)).fingerprint())
        pq.write_table(pa.table(edited), tmp_path / "x.parquet")
        marks.append(load_data(f"parquet:{tmp_path / 'x.parquet'}").fingerprint())
        assert load_data(f"parquet:{tmp_path / 'x.parquet'}").fingerprint() == marks[-1], i
    assert len(set(marks)) == len(marks)


def test_files_that_a_table_names(tmp_path):
    photo((9, 9, 9), (8, 8)).save(tmp_path / "a.bmp")
    photo((9, 9, 9), (8, 8), seed=1).save(tmp_path / "b.bmp")
    pq.write_table(pa.table({"image": ["a.bmp", "b.bmp"], "label": [0, 1]}), tmp_path / "x.parquet")
    data = load_data(f"parquet:{tmp_path / 'x.parquet'}")
    before = data.fingerprint()
    flip_last(tmp_path / "b.bmp")
    assert data.fingerprint() != before


def test_a_stream_says_what_a_pass_has_read(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "SLEEP_TIME_ON_THREADS_SHUTDOWN", 0)
    hub = write_hub(tmp_path / "hub")
    data = load_data(f"hf:{hub}:train", 6)
    assert data.content is None
    first = data.fingerprint()
    for _ in data.batches(4):
        pass
    seen = data.content
    assert seen is not None
    assert data.fingerprint() == first
    for _ in data.batches(2):
        pass
    assert data.content == seen
    other = as_data((arrays(), [0, 1, 0, 1, 0, 1]))
    for _ in other.batches(2):
        pass
    assert other.content is None


def test_a_settled_file_is_read_once_and_again_when_it_changes(tmp_path, monkeypatch):
    file = tmp_path / "a.bin"
    file.write_bytes(b"one")
    first, reads = file_digest(file), []
    opened = Path.open
    monkeypatch.setattr(Path, "open", lambda self, *a, **kw: reads.append(self) or opened(self, *a, **kw))
    assert file_digest(file) == first
    assert reads, "just written: it may be written again within one tick of the clock"
    later = time.time() + 10
    monkeypatch.setattr(digests, "time", SimpleNamespace(time=lambda: later))
    assert file_digest(file) == first
    reads.clear()
    assert file_digest(file) == first
    assert not reads
    flip_last(file)
    assert file_digest(file) != first
    assert reads
    file.unlink()
    assert file_digest(file) == "absent"
