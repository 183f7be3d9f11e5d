"""Data sets that stream, from a local folder in the layout of the hub."""

import datasets
import pyarrow.parquet as pq
import pytest
from datasets import Dataset, Features, Image, Value

from analyses.data import (
    UnreadableImageError,
    as_data,
    load_data,
    loading,
)
from analyses.running.notes import about_data
from analyses.running.notice import data_notes
from tests.analyses.data.photos import COLOURS, encoded, everything, in_memory, photo, write_hub


@pytest.fixture
def hub(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "SLEEP_TIME_ON_THREADS_SHUTDOWN", 0)  # 5 seconds a pass, not needed here
    return write_hub(tmp_path / "repo")


def test_a_hub_data_set_in_one_sorted_file_is_mixed(hub, monkeypatch):
    monkeypatch.setattr(loading, "BUFFER", 6)
    assert {label for label, _ in everything(load_data(f"hf:{hub}:train", 9))} == {0, 1, 2}


def test_a_hub_data_set_streams(hub):
    data = load_data(f"hf:{hub}:train", 20, seed=1)
    seen = everything(data)
    assert data.class_names == list(COLOURS)
    assert data.labels is None
    assert len(seen) == len(data) == 20
    assert seen == everything(data) == everything(load_data(f"hf:{hub}:train", 20, seed=1))
    assert seen != everything(load_data(f"hf:{hub}:train", 20, seed=2))
    assert set(seen) <= set(everything(as_data(in_memory())))


def test_a_draw_from_a_stream_says_that_it_is_none(hub):
    assert "its first 9 rows are no random draw over the whole of it" in load_data(f"hf:{hub}:train", 9).drawn
    whole = load_data(f"hf:{hub}:train").drawn
    assert "mixed within a buffer of 2000 rows from 8 of its 8 parts" in whole
    assert "no random draw" not in whole
    plain = in_memory().to_iterable_dataset()
    assert (
        as_data(plain, n=5).drawn == "the first 5 rows of a stream, in its order: no random draw over the whole of it"
    )
    assert as_data(plain).drawn == load_data("scenes:test", 5).drawn == ""
    about = about_data(as_data(plain, n=5))
    assert data_notes({"fit_data": about}) == [f"stream: {about['drawn']}."]


def test_a_stream_of_files_is_told_by_them(hub):
    before = load_data(f"hf:{hub}:train", 9).fingerprint()
    assert load_data(f"hf:{hub}:train", 9).fingerprint() == before
    pq.write_table(in_memory().with_format("arrow")[:], hub / "train-00000.parquet", row_group_size=4)
    assert load_data(f"hf:{hub}:train", 9).fingerprint() != before


def test_a_stream_of_unknown_length(hub):
    data = load_data(f"hf:{hub}:train")
    assert data.n is None
    assert len(everything(data)) == 30
    with pytest.raises(TypeError, match="unknown length"):
        len(data)
    with pytest.raises(ValueError, match=r"load .* with n="):
        data.split(0.5)


def test_a_stream_splits_by_position(hub):
    data = load_data(f"hf:{hub}:train", 20)
    first, second = data.split(0.75, seed=4)
    assert (len(first), len(second)) == (15, 5)
    assert sorted(everything(first) + everything(second)) == sorted(everything(data))


def test_a_damaged_image_in_a_stream(tmp_path):
    rows = {
        "image": [{"bytes": encoded(photo((9, 9, 9))), "path": None}, {"bytes": b"no", "path": None}],
        "label": [0, 1],
    }
    features = Features({"image": Image(decode=False), "label": Value("int64")})
    stream = Dataset.from_dict(rows, features=features).cast_column("image", Image()).to_iterable_dataset()
    with pytest.raises(UnreadableImageError, match="row 1 of the stream of stream"):
        everything(as_data(stream))
    data = as_data(stream, skip_bad=True)
    assert [label for label, _ in everything(data)] == [0]
    everything(data)
    assert len(data.skipped) == 1


def test_the_hub_is_away():
    with pytest.raises(ConnectionError, match=r"cannot reach the hub for data set 'someone/photos'.*imagefolder"):
        load_data("hf:someone/photos:test")


def test_a_hub_data_set_there_is_not(monkeypatch):
    def missing(*_, **__):
        raise datasets.exceptions.DatasetNotFoundError("Dataset 'a/b' doesn't exist on the Hub")

    monkeypatch.setattr(datasets, "load_dataset", missing)
    with pytest.raises(FileNotFoundError, match="cannot read data set 'a/b'"):
        load_data("hf:a/b:test")


def test_a_split_there_is_not(hub):
    with pytest.raises(ValueError, match="tset"):
        load_data(f"hf:{hub}:tset")


def test_a_configuration_is_passed_on(monkeypatch):
    asked = []

    def load(*args, **kwargs):
        asked.append((args, kwargs))
        return in_memory().to_iterable_dataset()

    monkeypatch.setattr(datasets, "load_dataset", load)
    load_data("hf:a/b:small:test", 2)
    load_data("hf:a/b:test", 2)
    assert asked == [(("a/b", c), {"split": "test", "streaming": True}) for c in ("small", None)]
    load_data("hf:a/b@0c1d:small:test", 2)
    assert asked[2:] == [(("a/b", "small"), {"split": "test", "streaming": True, "revision": "0c1d"})]


@pytest.mark.parametrize("spec", ["hf:cifar10", "hf::test", "hf:a:b:c:d"])
def test_a_hub_spec_without_its_parts(spec):
    with pytest.raises(ValueError, match="hf:NAME:SPLIT"):
        load_data(spec)


def test_a_stream_that_does_not_say_what_its_columns_are():
    def generate():
        for i in range(4):
            yield {"image": photo((9, 9, 9), seed=i), "label": i % 2}

    stream = datasets.IterableDataset.from_generator(generate)
    assert stream.features is None
    assert [label for label, _ in everything(as_data(stream, n=3))] == [0, 1, 0]
