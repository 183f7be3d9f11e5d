"""Folders of photos and parquet files; every kind of picture; damage is named before long work."""

import io

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image as Picture

from analyses.data import (
    Batch,
    UnreadableImageError,
    as_data,
    load_data,
    parquet,
)
from analyses.data.images import open_rgb
from tests.analyses.data.photos import COLOURS, encoded, everything, in_memory, photo, write_folder, write_parquets


@pytest.fixture
def folder(tmp_path):
    return write_folder(tmp_path / "photos")


@pytest.fixture
def parquets(tmp_path):
    return write_parquets(tmp_path / "parquet")


# Folders


def test_a_folder_of_photos(folder):
    data = load_data(f"imagefolder:{folder}")
    assert data.class_names == ["cat", "dog", "eel"]
    assert data.n == len(data) == 30
    assert data.columns == ["image", "label"]
    batches = list(data.batches(8))
    assert [len(b) for b in batches] == [8, 8, 8, 6]
    assert all(isinstance(b, Batch) and b.labels.dtype == torch.int64 for b in batches)
    for batch in batches:
        for picture, label in zip(batch.images, batch.labels, strict=True):
            assert picture.mode == "RGB"
            assert np.asarray(picture).mean((0, 1)).argmax() == label
    assert torch.equal(torch.cat([b.labels for b in batches]), data.labels)
    assert len(set(batches[0].labels.tolist())) > 1


def test_a_draw_is_random_and_repeats(folder):
    def draw(n=None, seed=0):
        return everything(load_data(f"imagefolder:{folder}", n, seed=seed))

    assert draw(7) == draw(7) == draw()[:7]
    assert draw(7) != draw(7, seed=1)
    assert sorted(draw()) == sorted(draw(seed=1))
    assert len(draw(1000)) == 30


def test_an_unreadable_photo_is_named_at_once(folder):
    (folder / "dog" / "broken.jpg").write_bytes(b"no image")
    with pytest.raises(UnreadableImageError, match=r"cannot read 1 image: dog/broken.jpg \(not an image.*skip_bad"):
        load_data(f"imagefolder:{folder}")


@pytest.mark.parametrize("form", ["jpg", "png", "webp"])
def test_half_a_file_is_unreadable(folder, form):
    whole = encoded(photo((9, 9, 9), (200, 200)), {"jpg": "JPEG"}.get(form, form))
    (folder / "dog" / f"half.{form}").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UnreadableImageError, match=f"dog/half.{form}"):
        load_data(f"imagefolder:{folder}")


def test_unreadable_photos_are_skipped_on_request_and_listed(folder):
    for name in ("a.jpg", "b.png"):
        (folder / "dog" / name).write_bytes(b"")
    data = load_data(f"imagefolder:{folder}", skip_bad=True)
    assert data.n == 30
    assert sorted(text.split(" ")[0] for text in data.skipped) == ["dog/a.jpg", "dog/b.png"]
    assert len(everything(data)) == 30
    assert load_data(f"imagefolder:{folder / '..' / 'photos'}", skip_bad=True).fingerprint() == data.fingerprint()


def test_a_photo_pillow_has_no_decoder_for_is_not_passed_over(folder):
    (folder / "cat" / "from_a_phone.HEIC").write_bytes(b"....ftypheic")
    with pytest.raises(UnreadableImageError, match="from_a_phone"):
        load_data(f"imagefolder:{folder}")


def test_nothing_readable_at_all(tmp_path):
    (tmp_path / "cat").mkdir()
    (tmp_path / "cat" / "a.jpg").write_bytes(b"")
    with pytest.raises(UnreadableImageError, match="none of the 1 images"):
        load_data(f"imagefolder:{tmp_path}", skip_bad=True)


def test_photos_without_class_folders(folder):
    with pytest.raises(ValueError, match="dataset without labels"):
        load_data(f"imagefolder:{folder / 'cat' / 'more'}")


def test_photos_beside_the_class_folders(folder):
    photo((0, 0, 0)).save(folder / "stray.png")
    with pytest.raises(ValueError, match=r"1 images, such as stray.png, lie beside"):
        load_data(f"imagefolder:{folder}")


def test_a_folder_of_splits(folder, tmp_path):
    (tmp_path / "all").mkdir()
    folder.rename(tmp_path / "all" / "train")
    with pytest.raises(ValueError, match=r"splits, not classes.*imagefolder:.*train"):
        load_data(f"imagefolder:{tmp_path / 'all'}")


def test_class_folders_without_photos(tmp_path):
    (tmp_path / "cat").mkdir()
    with pytest.raises(ValueError, match="no images in the class folders"):
        load_data(f"imagefolder:{tmp_path}")


def test_a_photo_that_goes_missing_is_named(folder):
    data = load_data(f"imagefolder:{folder}")
    (folder / "cat" / "0.jpg").unlink()
    with pytest.raises(UnreadableImageError, match=r"cat/0.jpg of imagefolder.*no such file"):
        everything(data)


# Pictures


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "HSV"])
def test_every_mode_becomes_rgb(mode):
    picture = Picture.new("RGB", (4, 3), (200, 100, 50)).convert(mode)
    assert open_rgb(picture, "it").mode == "RGB"
    assert open_rgb(picture, "it").size == (4, 3)


def test_a_palette_with_transparency_becomes_rgb_without_a_warning():
    picture = photo((9, 9, 9)).convert("P")
    picture.info["transparency"] = b"\x00\x80"
    assert open_rgb(encoded(picture), "it").mode == "RGB"


def test_sixteen_bits_become_eight():
    deep = Picture.fromarray(np.array([[0, 257, 65535]], np.uint16))
    assert np.asarray(open_rgb(encoded(deep), "it"))[0, :, 0].tolist() == [0, 1, 255]


def test_the_camera_may_have_been_turned():
    upright = photo((9, 9, 9), (6, 4))
    exif = Picture.Exif()
    exif[Picture.ExifTags.Base.Orientation] = 6
    buffer = io.BytesIO()
    upright.rotate(90, expand=True).save(buffer, format="PNG", exif=exif)
    assert open_rgb(buffer.getvalue(), "it").tobytes() == upright.tobytes()


def test_forms_of_one_image_agree(tmp_path):
    array = np.asarray(photo((9, 9, 9)))
    (tmp_path / "it.png").write_bytes(encoded(Picture.fromarray(array)))
    forms = [
        array,
        Picture.fromarray(array),
        torch.from_numpy(array.copy()).permute(2, 0, 1),
        encoded(Picture.fromarray(array)),
        tmp_path / "it.png",
        str(tmp_path / "it.png"),
        {"path": str(tmp_path / "it.png"), "bytes": None},
    ]
    assert {open_rgb(form, "it").tobytes() for form in forms} == {array.tobytes()}
    grey = np.arange(6, dtype=np.uint8).reshape(2, 3)
    assert open_rgb(grey[..., None], "it").tobytes() == open_rgb(torch.from_numpy(grey)[None], "it").tobytes()


@pytest.mark.parametrize(
    ("value", "says"),
    [
        (np.zeros((4, 4, 3), np.float32), "uint8"),
        (torch.zeros(3, 4, 4), "uint8"),
        (torch.zeros(4, 4, dtype=torch.uint8), "channels, height, width"),
        (Picture.new("F", (2, 2)), "unknown range"),
        (None, "NoneType"),
        ({"bytes": None, "path": None}, "neither a file nor its bytes"),
        (b"", "not an image"),
        ("/nowhere/it.png", "no such file"),
    ],
)
def test_what_is_no_image(value, says):
    with pytest.raises(UnreadableImageError, match=f"cannot read image it: .*{says}"):
        open_rgb(value, "it")


# Parquet


def test_parquet_gives_the_rows_that_are_in_it(parquets):
    expected = sorted(everything(as_data(in_memory())))
    for where in (parquets, parquets / "part-*.parquet"):
        data = load_data(f"parquet:{where}")
        assert data.n == 30
        assert data.class_names == list(COLOURS)
        assert sorted(everything(data)) == expected
    assert len(load_data(f"parquet:{parquets / 'part-0.parquet'}")) == 15


def test_a_parquet_draw_is_random_mixed_and_repeats(parquets):
    def draw(n=None, seed=0):
        return everything(load_data(f"parquet:{parquets}", n, seed=seed))

    assert draw(9) == draw(9)
    assert draw(9) != draw(9, seed=1)
    assert {label for label, *_ in draw(9)} == {0, 1, 2}
    assert set(draw(9)) <= set(draw())


def test_labels_are_in_the_order_of_the_batches_whatever_the_window(parquets, monkeypatch):
    for size in (2**28, 2000, 1):
        monkeypatch.setattr(parquet, "WINDOW_BYTES", size)
        data = load_data(f"parquet:{parquets}", 20, seed=3)
        assert len(np.unique(data._source._window)) == 1 if size > 10_000 else len(np.unique(data._source._window)) > 1
        whole = everything(data)
        assert [label for label, *_ in whole] == data.labels.tolist()
        first, second = data.split(0.5)
        assert sorted(everything(first) + everything(second)) == sorted(whole)
        assert [label for label, *_ in everything(first)] == first.labels.tolist()


def test_parquet_without_notes_on_what_its_columns_mean(tmp_path):
    files = [encoded(photo((9, 9, 9), seed=i)) for i in range(4)]
    pq.write_table(
        pa.table({"img": [{"bytes": f, "path": None} for f in files], "labels": [0, 1, 0, 1]}), tmp_path / "a.parquet"
    )
    pq.write_table(pa.table({"raw": files, "label": [0, 1, 0, 1]}), tmp_path / "b.parquet")
    (tmp_path / "files").mkdir()
    for i, file in enumerate(files):
        (tmp_path / "files" / f"{i}.png").write_bytes(file)
    pq.write_table(
        pa.table({"image": [f"files/{i}.png" for i in range(4)], "label": [0, 1, 0, 1]}), tmp_path / "c.parquet"
    )
    seen = [sorted(everything(load_data(f"parquet:{tmp_path / name}.parquet"))) for name in "abc"]
    assert seen[0] == seen[1] == seen[2]
    assert load_data(f"parquet:{tmp_path / 'a.parquet'}").class_names is None


def test_a_bad_image_in_parquet_is_named(tmp_path):
    table = pa.table({"image": [encoded(photo((9, 9, 9))), b"no"], "label": [0, 1]})
    pq.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(UnreadableImageError, match="row 1 of a"):
        load_data(f"parquet:{tmp_path}")
    assert load_data(f"parquet:{tmp_path}", skip_bad=True).labels.tolist() == [0]


@pytest.mark.parametrize(
    ("columns", "says"),
    [
        ({"image": [b"x"]}, r"without labels: .*it has image \(binary\)"),
        ({"image": [b"x"], "label": ["cat"]}, "whole numbers; column 'label' of .* holds 'cat'.*class_encode_column"),
        ({"image": [b"x"], "label": [0.5]}, "whole numbers"),
        ({"image": [b"x", b"y"], "label": [1, None]}, "holds None"),
        ({"image": [b"x"], "label": [-1]}, "unlabelled"),
        ({"x": [1], "label": [1]}, r"type Image; .* has x \(int64\), label \(int64\)"),
        ({"a": [b"x"], "b": [b"x"], "label": [1]}, r"several image columns, \['a', 'b'\]"),
    ],
)
def test_parquet_we_cannot_use(tmp_path, columns, says):
    pq.write_table(pa.table(columns), tmp_path / "a.parquet")
    with pytest.raises(ValueError, match=says):
        load_data(f"parquet:{tmp_path}")


def test_parquet_files_that_do_not_belong_together(parquets):
    pq.write_table(pa.table({"image": [b"x"], "label": [0]}), parquets / "z.parquet")
    with pytest.raises(ValueError, match="same columns; z"):
        load_data(f"parquet:{parquets}")


def test_parquet_of_several_splits(parquets):
    for k, name in enumerate(("train-0000", "test-0000")):
        (parquets / f"part-{k}.parquet").rename(parquets / f"{name}.parquet")
    with pytest.raises(ValueError, match=r"several splits, \['test', 'train'\]"):
        load_data(f"parquet:{parquets}")
    assert len(load_data(f"parquet:{parquets}/train*.parquet")) == 15


def test_what_is_no_parquet(tmp_path):
    (tmp_path / "a.parquet").write_text("hello")
    with pytest.raises(ValueError, match="is not a parquet file"):
        load_data(f"parquet:{tmp_path}")
