"""Streams on disk: they hold what the model computes, are found again, and are never believed when damaged."""

from __future__ import annotations

import errno
import json
import resource
import shutil
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from analyses.data import ImageData, as_data
from analyses.questions.cls_use.random_readouts import store
from analyses.questions.cls_use.random_readouts.store import PAGE, Plan, Stream, check_room, plan, streams
from hooked_vit import HookedViT
from tests.analyses.questions.cls_use.test_cls_causality import coloured, model
from tests.tiny import FAMILIES

LAYERS = [0, 1]


def written(vit: HookedViT, data: ImageData, folder: Path, **kw: str) -> tuple[Plan, dict[int, Stream], list[str]]:
    made = plan(vit, data, LAYERS, folder, name="s", **kw)
    return made, *streams(made, vit, data, batch_size=4, what="caching")


def content(stream: Stream) -> tuple[bytes, list[int]]:
    return stream.x.tobytes(), stream.labels.tolist()


@pytest.fixture
def data() -> ImageData:
    return coloured(10, 1)


@pytest.fixture
def vit() -> HookedViT:
    return model("vit")


@pytest.mark.parametrize("family", FAMILIES)
def test_a_stream_is_what_enters_the_block(family, data, tmp_path):
    vit = model(family)
    _, found, notes = written(vit, data, tmp_path)
    batch = next(data.batches(10))
    with torch.no_grad():
        _, cache = vit.run_with_cache(vit.preprocess(batch.images))
    for layer, stream in found.items():
        x, labels = stream.batch(torch.tensor([7, 0, 3]))
        assert torch.allclose(x, cache["resid_pre", layer][[7, 0, 3]], atol=1e-5)
        assert labels.tolist() == batch.labels[[7, 0, 3]].tolist()
        assert stream.layout.same_as(vit.tokens)
    assert not notes


def test_what_is_there_is_not_computed_again(vit, data, tmp_path):
    made, first, _ = written(vit, data, tmp_path)
    runs = vit.run.n_forwards
    _, second, notes = written(vit, data, tmp_path)
    assert vit.run.n_forwards == runs
    assert made.bytes_missing == 0
    assert [content(s) for s in second.values()] == [content(s) for s in first.values()]
    assert not notes


def test_the_size_is_known_beforehand(vit, data, tmp_path):
    made = plan(vit, data, LAYERS, tmp_path, name="s")
    assert not list(tmp_path.iterdir())
    assert made.bytes_missing == 2 * made.bytes_each
    written(vit, data, tmp_path)
    assert {path.stat().st_size for path in tmp_path.iterdir()} == {made.bytes_each}


@pytest.mark.parametrize("where", [60, PAGE, PAGE + 5000, -1])
def test_one_wrong_byte_is_found_wherever_it_is(vit, data, tmp_path, where):
    made, first, _ = written(vit, data, tmp_path)
    before = content(first[1])
    path = made.paths[1]
    spoilt = bytearray(path.read_bytes())
    spoilt[where] ^= 1
    path.write_bytes(spoilt)
    _, second, notes = written(vit, data, tmp_path)
    assert content(second[1]) == before
    assert len(notes) == 1
    assert path.name in notes[0]
    assert "written anew" in notes[0]


def test_a_wrong_shape_in_the_header_is_damage_too(vit, data, tmp_path):
    made, _, _ = written(vit, data, tmp_path)
    path = made.paths[0]
    page = path.read_bytes()
    path.write_bytes(page[:PAGE].replace(b"[10, 17, 32]", b"[10, 32, 17]") + page[PAGE:])
    assert "damaged" in written(vit, data, tmp_path)[2][0]


def test_half_a_file_is_written_anew(vit, data, tmp_path):
    made, first, _ = written(vit, data, tmp_path)
    before = content(first[0])
    path = made.paths[0]
    path.write_bytes(path.read_bytes()[: PAGE + 100])
    _, second, notes = written(vit, data, tmp_path)
    assert content(second[0]) == before
    assert len(notes) == 1


def test_a_file_of_something_else_is_refused_and_left_alone(vit, data, tmp_path):
    path = plan(vit, data, LAYERS, tmp_path, name="s").paths[1]
    path.write_text("my thesis")
    with pytest.raises(ValueError, match="is not a file of hooked-vit"):
        written(vit, data, tmp_path)
    assert path.read_text() == "my thesis"


def test_a_file_under_another_ones_name_is_not_believed(vit, data, tmp_path):
    made, first, _ = written(vit, data, tmp_path)
    before = content(first[1])
    shutil.copy(made.paths[0], made.paths[1])
    _, second, notes = written(vit, data, tmp_path)
    assert content(second[1]) == before
    assert "another stream" in notes[0]


def test_other_weights_images_or_settings_have_other_files(vit, data, tmp_path):
    def names(vit: HookedViT, data: ImageData, **kw: str) -> set[str]:
        return {path.name for path in plan(vit, data, LAYERS, tmp_path, name="s", **kw).paths.values()}

    assert names(vit, data) == names(model("vit"), coloured(10, 1))
    changed = model("vit")
    changed.blocks[1].mlp.fc_in.bias.data[0] += 1e-3
    resized = model("vit")
    resized.processor = SimpleNamespace()
    inverted = [Image.fromarray(255 - np.asarray(i)) for b in data.batches(10) for i in b.images]
    others = [names(changed, data), names(vit, coloured(11, 1)), names(vit, data, dtype="float16")]
    others.append(names(vit, as_data((inverted, data.labels.tolist()))))
    assert all(not names(vit, data) & other for other in others)
    assert len(set.union(*others)) == 8


def test_no_room_is_said_before_anything_is_run(vit, data, tmp_path, monkeypatch):
    made = plan(vit, data, LAYERS, tmp_path, name="s")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=made.bytes_missing - 1))
    with pytest.raises(OSError, match=r"needs 51\.9 kB .* and 51\.9 kB are free; .*float16") as error:
        check_room([made], tmp_path)
    assert error.value.errno == errno.ENOSPC
    assert vit.run.n_forwards == 0
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=made.bytes_missing))
    assert check_room([made], tmp_path) == made.bytes_missing


@contextmanager
def files_up_to(n_bytes: int) -> Iterator[None]:
    """The system refuses to let a file grow beyond this."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_disk_that_fills_up_meanwhile_leaves_nothing_behind(vit, tmp_path):
    data = coloured(60, 1)
    needed = store.size(2 * plan(vit, data, LAYERS, tmp_path, name="s").bytes_each)
    with files_up_to(50_000), pytest.raises(OSError, match=f"needs {needed} .*the disk is full"):
        written(vit, data, tmp_path)
    assert not list(tmp_path.iterdir())
    assert len(written(vit, data, tmp_path)[1]) == 2


def test_an_interrupted_pass_leaves_no_stream(vit, data, tmp_path, monkeypatch):
    made = plan(vit, data, LAYERS, tmp_path, name="s")
    made.paths[0].with_suffix(".unfinished").write_bytes(b"left by a run that was killed")
    monkeypatch.setattr(store, "progress_batches", lambda *_: iter([next(data.batches(4)), None]))
    with pytest.raises(AttributeError):
        streams(made, vit, data, batch_size=4, what="caching")
    assert not list(tmp_path.iterdir())


def test_half_precision_is_half_as_large_and_close(vit, data, tmp_path):
    exact, half = written(vit, data, tmp_path)[1], written(vit, data, tmp_path, dtype="float16")[1]
    assert 2 * half[1].x.nbytes == exact[1].x.nbytes
    assert np.allclose(half[1].x, exact[1].x, rtol=1e-3, atol=1e-3)
    vit.embed.cls.data.fill_(1e6)
    with pytest.raises(ValueError, match=r"values up to 1e\+06, which float16 cannot hold"):
        written(vit, data, tmp_path, dtype="float16")


def test_memory_does_not_grow_with_the_images(vit, tmp_path, monkeypatch):
    monkeypatch.setattr(store, "CHUNK", 1 << 14)

    def peak(n: int) -> int:
        data = coloured(n, 1)
        assert sum(len(batch) for batch in data.batches(4)) == n  # so that the pictures themselves are there
        tracemalloc.start()
        found = written(vit, data, tmp_path / str(n))[1]
        for rows in torch.arange(n).split(4):
            found[0].batch(rows)
        top = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return top

    for n in (4, 16, 96):
        (tmp_path / str(n)).mkdir()
    peak(4)  # what is loaded the first time
    assert peak(96) < peak(16) + 40_000, "96 images have 209 kB in each of two streams"


def test_what_cannot_be_cached_is_refused(vit, data, tmp_path):
    with pytest.raises(ValueError, match="float32 or float16"):
        plan(vit, data, LAYERS, tmp_path, name="s", dtype="int8")
    vit.add_hook("blocks.0.hook_resid_pre", lambda x, hook: x)
    with pytest.raises(ValueError, match="hooks are attached"):
        plan(vit, data, LAYERS, tmp_path, name="s")


def test_the_first_page_can_be_read_by_a_person(vit, data, tmp_path):
    made, _, _ = written(vit, data, tmp_path)
    page = made.paths[1].read_bytes()[:PAGE].decode()
    assert page.startswith("hooked-vit stream 1{")
    assert json.loads(page.removeprefix("hooked-vit stream 1"))["shape"] == [10, 17, 32]
