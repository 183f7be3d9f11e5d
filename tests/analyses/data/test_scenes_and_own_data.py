"""Digit scenes, and data that somebody already holds: batches, splits, fingerprints; what is refused, and how."""

import os
import threading
import tracemalloc

import datasets
import numpy as np
import pytest
import torch
from datasets import Value
from PIL import Image as Picture

from analyses.data import (
    as_data,
    digit_scenes,
    load_data,
    scenes,
)
from tests.analyses.data.photos import everything, in_memory, photo, write_folder, write_hub, write_parquets


@pytest.fixture
def folder(tmp_path):
    return write_folder(tmp_path / "photos")


@pytest.fixture
def parquets(tmp_path):
    return write_parquets(tmp_path / "parquet")


@pytest.fixture
def hub(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "SLEEP_TIME_ON_THREADS_SHUTDOWN", 0)  # 5 seconds a pass, not needed here
    return write_hub(tmp_path / "repo")


# Digit scenes


def test_scene_i_does_not_depend_on_how_many_there_are():
    few, many = digit_scenes("test", 3), digit_scenes("test", 7)
    for i in range(3):
        assert [np.asarray(v).tobytes() for v in few[i].values()] == [np.asarray(v).tobytes() for v in many[i].values()]
    shifted = next(scenes.render_scenes("test", 1, start=2))
    assert np.array_equal(shifted.image, np.asarray(many[2]["image"]))


def test_seeds_and_splits_give_different_scenes():
    pictures = [
        digit_scenes(split, 1, seed)[0]["image"].tobytes()
        for split in ("train", "validation", "test")
        for seed in (0, 1)
    ]
    assert len(set(pictures)) == 6


def test_no_handwriting_is_in_two_splits():
    seen = {
        split: {glyph.tobytes() for members in scenes._glyphs(split) for glyph in members} for split in scenes.SPLITS
    }
    sizes = {split: sum(len(members) for members in scenes._glyphs(split)) for split in scenes.SPLITS}
    assert sum(sizes.values()) == 1797
    assert all(members for split in scenes.SPLITS for members in scenes._glyphs(split))
    assert not seen["train"] & seen["test"]
    assert not seen["train"] & seen["validation"]
    assert not seen["validation"] & seen["test"]


def test_the_counterpart_differs_only_where_the_object_was():
    for row in digit_scenes("validation", 40):
        image, pair, mask = (np.asarray(row[name]) for name in ("image", "pair", "mask"))
        assert mask.dtype == np.uint8
        assert sorted(np.unique(mask)) == list(range(row["count"] + 1))
        assert 1 <= row["removed"] <= row["count"]
        changed = (image != pair).any(-1)
        there = mask == row["removed"]
        # Faint ink around the object is not in its mask, but in the square the object was drawn into.
        ys, xs = np.nonzero(there)
        near = np.zeros_like(there)
        near[max(0, ys.min() - 8) : ys.max() + 9, max(0, xs.min() - 8) : xs.max() + 9] = True
        assert not (changed & ~near).any()
        assert not (changed & (mask > 0) & ~there).any()
        assert changed[there].mean() > 0.9


def test_scenes_as_a_data_set():
    rows = digit_scenes("test", 5)
    assert rows.features["label"].names == [str(d) for d in range(10)]
    assert rows[0]["image"].mode == rows[0]["pair"].mode == "RGB"
    assert rows[0]["mask"].mode == "L"
    assert isinstance(rows[0]["count"], int)
    assert rows.cache_files == []


def test_scenes_by_name_are_those_of_the_data_set():
    lazy, made = load_data("scenes:test", 12, seed=2), as_data(digit_scenes("test", 12, seed=2))
    assert everything(lazy, extra=["count"]) == everything(made, extra=["count"])
    masks = [
        np.stack([np.asarray(m) for b in d.batches(5, extra=["mask"]) for m in b.extra["mask"]]) for d in (lazy, made)
    ]
    assert np.array_equal(*masks)
    assert lazy.labels is not None
    assert made.labels is not None
    assert torch.equal(lazy.labels, made.labels)
    assert lazy.class_names == made.class_names == [str(d) for d in range(10)]
    assert len(load_data("scenes:test")) == 1000


@pytest.mark.parametrize(
    ("split", "n", "says"), [("tset", 1, "train, validation, test; got 'tset'"), ("test", 0, "at least")]
)
def test_scenes_there_cannot_be(split, n, says):
    with pytest.raises(ValueError, match=says):
        digit_scenes(split, n)
    with pytest.raises(ValueError, match=says):
        load_data(f"scenes:{split}", n)


# What somebody already holds


def test_a_data_set_keeps_its_order_unless_a_seed_is_given():
    rows = in_memory()
    plain = everything(as_data(rows))
    assert plain == [(row["label"], row["image"].tobytes()) for row in rows]
    shuffled = everything(as_data(rows, seed=0))
    assert shuffled != plain
    assert sorted(shuffled) == sorted(plain)
    assert everything(as_data(rows, seed=0, n=5)) == shuffled[:5]


def test_images_and_labels():
    arrays = np.stack([np.asarray(photo((9, 9, 9), seed=i)) for i in range(5)])
    labels = torch.tensor([4, 0, 1, 2, 3])
    data = as_data((arrays, labels))
    assert data.labels.tolist() == labels.tolist()
    assert everything(data) == everything(as_data((list(map(Picture.fromarray, arrays)), labels.tolist())))
    assert data.class_names is None


def test_other_forms_of_data():
    data = as_data(in_memory())
    assert as_data(data) is data
    assert as_data("scenes:test", n=3).name == "scenes:test"
    formatted = as_data(in_memory().with_format("torch"))
    assert everything(formatted) == everything(data)
    counted = as_data(digit_scenes("test", 4), label="count")
    assert counted.labels.tolist() == digit_scenes("test", 4)["count"][:]
    assert [p.mode for b in as_data(digit_scenes("test", 2), image="mask").batches(2) for p in b.images] == ["RGB"] * 2


@pytest.mark.parametrize(
    ("obj", "more", "error", "says"),
    [
        (3, {}, TypeError, "got a int"),
        (datasets.DatasetDict({"train": in_memory(2)}), {}, TypeError, r"data\['train'\]"),
        (in_memory(2).with_transform(dict), {}, ValueError, "transform"),
        (in_memory(2), {"image": "picture"}, ValueError, "no column 'picture'; it has image"),
        (in_memory(2), {"label": "class"}, ValueError, "no column 'class'"),
        (in_memory(2).select([]), {}, ValueError, "empty"),
        (in_memory(2).remove_columns("label"), {}, ValueError, "without labels"),
        (in_memory(2), {"n": 0}, ValueError, "at least 1"),
        (([1], [1, 2]), {}, ValueError, "1 images and 2 labels"),
        (([1], ["a"]), {}, ValueError, "whole numbers"),
        ("scenes:test", {"label": "count"}, ValueError, "found, not named"),
    ],
)
def test_data_we_cannot_use(obj, more, error, says):
    with pytest.raises(error, match=says):
        as_data(obj, **more)


def test_data_taken_as_it_is_cannot_be_changed_on_the_way():
    with pytest.raises(ValueError, match="where it is made"):
        as_data(as_data(in_memory(2)), n=1)


def test_labels_beyond_the_class_names():
    data = as_data((["x", "y"], [0, 5]))
    data.class_names = ["a", "b"]
    with pytest.raises(ValueError, match="label 5 and 2 names"):
        data.check_labels([0, 5])


@pytest.mark.parametrize("spec", ["", "photos", "folder:x", "scenes:", "scenes", "imagefolder:"])
def test_specs_that_are_none(spec):
    with pytest.raises(
        ValueError, match="scenes:SPLIT, hf:NAME:SPLIT, imagefolder:PATH, parquet:PATH, imagenet-s:PATH; got"
    ):
        load_data(spec)


def test_a_path_without_its_scheme(folder):
    with pytest.raises(ValueError, match="did you mean imagefolder:"):
        load_data(str(folder))


@pytest.mark.parametrize("spec", ["imagefolder:/nowhere", "parquet:/nowhere", "parquet:/nowhere/*.parquet"])
def test_places_that_are_not(spec):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        load_data(spec)


def test_a_batch_holds_something():
    data = as_data(in_memory(2))
    with pytest.raises(ValueError, match="batch_size=0"):
        data.batches(0)
    with pytest.raises(ValueError, match=r"columns \['image', 'label'\]; got \['mask'\]"):
        data.batches(1, extra=["mask"])


# Splits, fingerprints, memory


@pytest.mark.parametrize("fraction", [0.1, 0.5, 0.8])
def test_a_split_is_disjoint_complete_stratified_and_repeats(fraction):
    data = as_data(in_memory(60))
    first, second = data.split(fraction, seed=5)
    assert sorted(everything(first) + everything(second)) == sorted(everything(data))
    assert torch.bincount(first.labels).tolist() == [round(20 * fraction)] * 3
    assert everything(first) == everything(data.split(fraction, seed=5)[0])
    assert everything(first) != everything(data.split(fraction, seed=6)[0])


def test_a_split_of_a_split():
    data = as_data(in_memory(60), seed=1)
    train, rest = data.split(0.5)
    validation, test = rest.split(0.5)
    assert sorted(row for part in (train, validation, test) for row in everything(part)) == sorted(everything(data))
    index = torch.cat([b.index for part in (train, validation, test) for b in part.batches(7)])
    assert sorted(index.tolist()) == list(range(60))


@pytest.mark.parametrize("fraction", [0.0, 1.0, -1.0, 2.0, 1e-6])
def test_a_split_leaves_something_on_both_sides(fraction):
    with pytest.raises(ValueError, match="both sides"):
        as_data(in_memory(6)).split(fraction)


def test_fingerprints_tell_data_apart(folder, parquets, hub):
    def made():
        whole = as_data(in_memory())
        return [
            whole,
            as_data(in_memory(), seed=0),
            as_data(in_memory(), n=29),
            as_data(in_memory(29)).split(0.5)[0],
            as_data(in_memory(29)).split(0.5)[1],
            as_data(in_memory().cast_column("label", Value("int64"))),
            as_data((["a", "b"], [0, 1])),
            as_data((["a", "b"], [1, 0])),
            load_data("scenes:test", 3),
            load_data("scenes:test", 4),
            load_data("scenes:test", 3, seed=1),
            load_data("scenes:train", 3),
            load_data(f"imagefolder:{folder}", 5),
            load_data(f"imagefolder:{folder}", 5, seed=1),
            load_data(f"parquet:{parquets}/part*", 5),
            load_data(f"parquet:{parquets}/part*", 5, seed=1),
            load_data(f"hf:{hub}:train", 5),
            load_data(f"hf:{hub}:train", 6),
        ]

    first, again = ([data.fingerprint() for data in made()] for _ in range(2))
    assert first == again
    assert len(set(first)) == len(first)
    assert all(len(f) == 16 for f in first)


def test_memory_does_not_grow_with_images(tmp_path):
    (tmp_path / "cat").mkdir()
    photo((9, 9, 9), (200, 200)).save(tmp_path / "cat" / "0.jpg")
    for i in range(1, 60):
        os.link(tmp_path / "cat" / "0.jpg", tmp_path / "cat" / f"{i}.jpg")

    def peak(n):
        data = load_data(f"imagefolder:{tmp_path}", n)
        tracemalloc.start()
        for _ in data.batches(4):
            pass
        highest = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return highest

    peak(8)
    file_size = (tmp_path / "cat" / "0.jpg").stat().st_size
    assert peak(60) - peak(8) < 52 * file_size / 4


def test_a_pass_given_up_half_way_leaves_no_threads():
    before = threading.active_count()
    batches = as_data(in_memory()).batches(2)
    next(batches)
    batches.close()
    assert threading.active_count() == before
