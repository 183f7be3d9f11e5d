"""Images that cannot be read are errors, never fewer images; a pipe in their place is named, not awaited."""

from __future__ import annotations

import os
import socket

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image as Picture

from analyses.activations.token_groups import aligned_masks
from analyses.data import UnreadableImageError, load_data
from tests.analyses.data.photos import write_folder, write_parquets
from tests.hooked_vit.loading.test_preprocess import with_processor


def pipe(path):
    os.mkfifo(path)


def lost(path):
    path.symlink_to(path.parent / "nowhere")


def plug(path):
    with socket.socket(socket.AF_UNIX) as s:
        # a path of at most some hundred characters fits into a socket's address
        os.chdir(path.parent)
        s.bind(path.name)


NO_FILES = {
    "pipe": (pipe, "it is a named pipe, not a file"),
    "device": (lambda path: path.symlink_to("/dev/zero"), "it is a device, not a file"),
    "socket": (plug, "it is a socket, not a file"),
    "lost": (lost, r"it is a link to .*nowhere, where there is no file"),
}


@pytest.fixture(autouse=True)
def back_home(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def folder(tmp_path):
    return write_folder(tmp_path / "photos")


@pytest.mark.parametrize("kind", NO_FILES)
def test_what_is_no_file_among_images(folder, kind):
    make, says = NO_FILES[kind]
    make(folder / "dog" / "last.jpg")
    with pytest.raises(UnreadableImageError, match=rf"cannot read 1 image: dog/last.jpg \({says}\)"):
        load_data(f"imagefolder:{folder}")
    data = load_data(f"imagefolder:{folder}", skip_bad=True)
    assert (data.n, len(data.skipped)) == (30, 1)
    assert data.fingerprint()


@pytest.mark.parametrize("kind", NO_FILES)
def test_what_is_no_file_in_the_place_of_parquet(tmp_path, kind):
    make, says = NO_FILES[kind]
    write_parquets(tmp_path / "there")
    make(tmp_path / "there" / "z.parquet")
    with pytest.raises(ValueError, match=rf"z.parquet is not a parquet file that can be read: {says}"):
        load_data(f"parquet:{tmp_path / 'there'}")


@pytest.mark.parametrize("kind", NO_FILES)
def test_what_is_no_file_in_a_column_of_paths(tmp_path, kind):
    make, says = NO_FILES[kind]
    make(tmp_path / "it.png")
    pq.write_table(pa.table({"image": ["it.png"], "label": [0]}), tmp_path / "a.parquet")
    with pytest.raises(UnreadableImageError, match=says):
        load_data(f"parquet:{tmp_path / 'a.parquet'}")


def test_parquet_that_is_damaged_behind_its_schema(tmp_path):
    file = write_parquets(tmp_path / "there") / "part-0.parquet"
    content = bytearray(file.read_bytes())
    content[4:2000] = b"\xff" * 1996
    file.write_bytes(content)
    with pytest.raises(ValueError, match=r"part-0.parquet is not a parquet file that can be read"):
        load_data(f"parquet:{file}")


def test_linked_folders_hold_images_too(folder, tmp_path):
    (folder / "cat" / "more").rename(tmp_path / "elsewhere")
    (folder / "cat" / "more").symlink_to(tmp_path / "elsewhere")
    (folder / "dog").rename(tmp_path / "dogs")
    (folder / "dog").symlink_to(tmp_path / "dogs")
    assert load_data(f"imagefolder:{folder}").n == 30


def test_a_folder_without_end(folder):
    (folder / "cat" / "more" / "again").symlink_to(folder / "cat")
    with pytest.raises(ValueError, match="again is a link to a folder it lies in"):
        load_data(f"imagefolder:{folder}")


def test_a_class_whose_link_leads_nowhere(folder):
    lost(folder / "fox")
    with pytest.raises(UnreadableImageError, match=r"fox is a link to something that is not there.*--skip-bad"):
        load_data(f"imagefolder:{folder}")
    data = load_data(f"imagefolder:{folder}", skip_bad=True)
    assert (data.n, data.class_names, len(data.skipped)) == (30, ["cat", "dog", "eel", "fox"], 1)


@pytest.mark.parametrize("at", ["", "dog", "dog/more"])
def test_a_folder_that_cannot_be_read(folder, at, monkeypatch):
    """Whoever runs the tests may read everything."""
    listdir, scandir = os.listdir, os.scandir

    def refusing(ask):
        def asked(path="."):
            if os.path.abspath(path) == os.path.abspath(folder / at):
                raise PermissionError(13, "Permission denied", str(path))
            return ask(path)

        return asked

    monkeypatch.setattr(os, "listdir", refusing(listdir))
    monkeypatch.setattr(os, "scandir", refusing(scandir))
    says = r"cannot be read \(Permission denied\), so its images would be missing"
    with pytest.raises(UnreadableImageError, match=says):
        load_data(f"imagefolder:{folder}")
    if not at:  # then nothing is known of it
        return
    data = load_data(f"imagefolder:{folder}", skip_bad=True)
    assert data.n == {"dog": 20, "dog/more": 29}[at]
    assert data.class_names == ["cat", "dog", "eel"]
    assert [at in told for told in data.skipped] == [True]


@pytest.mark.parametrize("mode", ["P", "I;16", "I", "L"])
def test_ids_of_masks_are_kept_in_every_mode(mode):
    ids = np.zeros((32, 32), np.uint8)
    ids[:, 8:], ids[:, 16:] = 2, 255
    mask = Picture.fromarray(ids.astype({"I;16": np.uint16, "I": np.int32}.get(mode, np.uint8)))
    if mode == "P":
        mask.putpalette([7] * 768)
    assert mask.mode == mode
    assert np.array_equal(aligned_masks(with_processor(), [mask])[0].numpy(), ids)


def test_ids_beyond_eight_bits():
    with pytest.raises(ValueError, match=r"ids in a mask are 0 to 255; this one \(mode I;16\) has 0 to 300"):
        aligned_masks(with_processor(), [Picture.fromarray(np.array([[0, 300]], np.uint16))])
