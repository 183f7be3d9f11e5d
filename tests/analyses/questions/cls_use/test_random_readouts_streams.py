"""Inputs of blocks on disk: what the model computes, found again by anybody, and never believed when damaged."""

from __future__ import annotations

import errno
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

from analyses import random_readouts
from analyses.activations.sites import SiteReader
from analyses.activations.store import Store, store_activations
from analyses.activations.store.serving import activations_in_use
from analyses.data import ImageData, as_data
from analyses.probes.passes import read_images
from analyses.questions.cls_use.random_readouts.streams import Plan, Stream, check_room, plan, streams
from hooked_vit import HookedViT
from tests.analyses.questions.cls_use.test_cls_causality import coloured, model
from tests.tiny import FAMILIES

LAYERS = [0, 1]
N = 10
READOUTS = {"layers": (0, 1), "modes": ("replace_mean_cls",), "seeds": 1}


def written(vit: HookedViT, data: ImageData, folder: Path, **kw: str) -> tuple[Plan, dict[int, Stream], list[str]]:
    made = plan(vit, data, LAYERS, folder, name="s", **kw)
    found, notes = streams(made, vit, {"all": data}, what="caching")
    return made, found["all"], notes


def content(stream: Stream) -> tuple[bytes, list[int]]:
    x, labels = stream.batch(torch.arange(N))
    return x.numpy().tobytes(), labels.tolist()


def shard_of(made: Plan) -> Path:
    (shard,) = made.folder.glob("*.safetensors")
    return shard


@pytest.fixture
def data() -> ImageData:
    return coloured(N, 1)


@pytest.fixture
def vit() -> HookedViT:
    return model("vit")


@pytest.mark.parametrize("family", FAMILIES)
def test_a_stream_is_what_enters_the_block(family, data, tmp_path):
    vit = model(family)
    _, found, notes = written(vit, data, tmp_path)
    batch = next(data.batches(N))
    with torch.no_grad():
        _, cache = vit.run_with_cache(vit.preprocess(batch.images))
    for layer, stream in found.items():
        x, labels = stream.batch(torch.tensor([7, 0, 3]))
        assert torch.allclose(x, cache["resid_pre", layer][[7, 0, 3]], atol=1e-5)
        assert labels.tolist() == batch.labels[[7, 0, 3]].tolist()
        assert stream.layout.same_as(vit.tokens)
    assert not notes


def test_what_is_there_is_not_computed_again_and_what_is_missing_is_added(vit, data, tmp_path):
    first = plan(vit, data, [1], tmp_path, name="s")
    one = streams(first, vit, {"all": data}, what="c")[0]["all"][1]
    both, found, notes = written(vit, data, tmp_path)
    assert (both.layers, list(both.found), notes) == ((0,), [1], [])
    assert content(found[1]) == content(one)
    runs = vit.run.n_forwards
    made, again, notes = written(vit, data, tmp_path)
    assert (vit.run.n_forwards, made.bytes_missing, notes) == (runs, 0, [])
    assert [content(s) for s in again.values()] == [content(s) for s in found.values()]


def test_parts_are_rows_of_the_whole(vit, data, tmp_path):
    made = plan(vit, data, [1], tmp_path, name="s")
    parts = dict(zip("ab", data.split(0.6), strict=True))
    found, _ = streams(made, vit, {"all": data, **parts}, what="c")
    everything = found["all"][1].batch(torch.arange(N))
    for name, part in parts.items():
        for seen, whole in zip(found[name][1].batch(torch.arange(len(part))), everything, strict=True):
            assert torch.equal(seen, whole[part.positions])
    assert len({stream[1].checksum for stream in found.values()}) == 3


def test_labels_are_those_of_now_and_of_the_checksum(vit, data, tmp_path):
    """A training goes by its checksum whether it may go on."""
    (batch,) = data.batches(N)
    other = as_data((batch.images, batch.labels.flip(0).tolist()))
    first = written(vit, as_data((batch.images, batch.labels.tolist())), tmp_path)[1][1]
    runs = vit.run.n_forwards
    second = written(vit, other, tmp_path)[1][1]
    assert vit.run.n_forwards == runs
    assert second.labels.tolist() == other.labels.tolist() != first.labels.tolist()
    assert second.checksum != first.checksum


def test_the_folder_serves_other_questions_and_any_store_in_it_serves_this_one(vit, data, tmp_path):
    fitted = coloured(30, 2)
    ours, mine = tmp_path / "ours", tmp_path / "mine"
    ran = random_readouts({"m": vit}, data, fit_data=fitted, keep_in=str(ours), **READOUTS)
    runs = vit.run.n_forwards
    with activations_in_use(str(ours), {"m": vit}):
        for images in (data, fitted):
            readings = list(read_images(SiteReader(vit, ("patches",), layers=[-1, 0]), images, 64, "reading"))
            assert sum(len(reading.batch.labels) for reading in readings) == len(images)
    assert vit.run.n_forwards == runs
    for name, images in (("one", data), ("another", fitted)):
        store_activations(vit, images, ("embedding", "resid_post", "mlp_out"), ("cls", "all"), to=mine / name)
    kept = random_readouts({"m": vit}, data, fit_data=fitted, keep_in=str(mine), **READOUTS)
    assert sorted(path.name for path in mine.iterdir()) == ["another", "one"]
    assert kept.frame.equals(ran.frame)


def test_the_size_is_known_beforehand(vit, data, tmp_path):
    made = plan(vit, data, LAYERS, tmp_path, name="s")
    assert not list(tmp_path.iterdir())
    written(vit, data, tmp_path)
    assert made.bytes_missing == 0
    assert shard_of(made).stat().st_size == pytest.approx(made.missing.bytes, abs=2_000)


def a_byte(shard: Path) -> None:
    spoilt = bytearray(shard.read_bytes())
    spoilt[-5000] ^= 1
    shard.write_bytes(spoilt)


def half_of_it(shard: Path) -> None:
    shard.write_bytes(shard.read_bytes()[:9000])


def nothing_left(shard: Path) -> None:
    shard.write_bytes(b"")


@pytest.mark.parametrize("damage", [a_byte, half_of_it, nothing_left, Path.unlink])
def test_damage_is_found_and_written_anew(vit, data, tmp_path, damage):
    made, first, _ = written(vit, data, tmp_path)
    before = content(first[1]), shard_of(made).read_bytes()
    damage(shard_of(made))
    _, second, notes = written(vit, data, tmp_path)
    assert (content(second[1]), shard_of(made).read_bytes()) == before
    assert len(notes) == 1
    assert "activations-00000.safetensors" in notes[0]


def test_a_damaged_store_of_somebody_else_is_left_alone(vit, data, tmp_path):
    store_activations(vit, data, ("embedding", "resid_post"), ("all",), to=tmp_path / "mine")
    (shard,) = (tmp_path / "mine").glob("*.safetensors")
    a_byte(shard)
    spoilt = shard.read_bytes()
    made, found, notes = written(vit, data, tmp_path)
    assert made.folder.parent == tmp_path
    assert len(found) == len(LAYERS)
    assert shard.read_bytes() == spoilt
    (note,) = notes
    assert "is damaged" in note
    assert note.endswith("it is not used")


def test_a_damaged_manifest_is_refused(vit, data, tmp_path):
    made, _, _ = written(vit, data, tmp_path)
    manifest = made.folder / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"n": 10', '"n": 11'))
    with pytest.raises(ValueError, match=r"is damaged: .* remove .*, and store anew"):
        written(vit, data, tmp_path)


def test_a_store_of_another_model_stays_and_is_said(vit, data, tmp_path, capsys):
    made, _, _ = written(vit, data, tmp_path)
    vit.blocks[0].mlp.fc_in.bias.data[0] += 1e-3
    _, _, (note,) = written(vit, data, tmp_path)
    assert note.startswith(f"{made.folder.name} is not used: it differs in weights (")
    assert "readout" not in note
    assert note in " ".join(capsys.readouterr().err.split())
    assert Store(made.folder).check() is None


def test_what_an_earlier_version_kept_is_said(vit, data, tmp_path):
    (tmp_path / "m-test-layer1-0123456789abcdef.stream").write_bytes(b"hooked-vit stream 1{}")
    notes = random_readouts({"m": vit}, data, fit_data=coloured(30, 2), keep_in=str(tmp_path), **READOUTS).meta["notes"]
    assert [note for note in notes if "of an earlier version cannot be read" in note]
    assert (tmp_path / "m-test-layer1-0123456789abcdef.stream").exists()


def test_a_folder_of_something_else_is_refused_and_left_alone(vit, data, tmp_path):
    folder = plan(vit, data, LAYERS, tmp_path, name="s").folder
    folder.mkdir()
    (folder / "thesis.tex").write_text("my thesis")
    with pytest.raises(ValueError, match=r"is no store of activations \(it holds thesis\.tex\)"):
        written(vit, data, tmp_path)
    assert (folder / "thesis.tex").read_text() == "my thesis"


def test_other_weights_images_or_settings_have_other_folders(vit, data, tmp_path):
    def name(vit: HookedViT, data: ImageData, **kw: str) -> str:
        return plan(vit, data, LAYERS, tmp_path, name="s", **kw).folder.name

    assert name(vit, data) == name(model("vit"), coloured(N, 1))
    changed = model("vit")
    changed.blocks[1].mlp.fc_in.bias.data[0] += 1e-3
    inverted = [Image.fromarray(255 - np.asarray(i)) for b in data.batches(N) for i in b.images]
    others = [name(changed, data), name(vit, coloured(N + 1, 1)), name(vit, data, dtype="float16")]
    others.append(name(vit, as_data((inverted, data.labels.tolist()))))
    assert len({name(vit, data), *others}) == 5


def test_no_room_is_said_before_anything_is_run(vit, data, tmp_path, monkeypatch):
    made = plan(vit, data, LAYERS, tmp_path, name="s")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=made.bytes_missing - 1))
    with pytest.raises(OSError, match=r"need about 4\d\.\d kB, .* has 4\d\.\d kB left; .*float16") as error:
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


def test_a_disk_that_fills_up_meanwhile_says_what_is_needed(vit, data, tmp_path):
    with files_up_to(20_000), pytest.raises(OSError, match=r"could not be written: .* and about 4\d\.\d kB are needed"):
        written(vit, data, tmp_path)
    assert not list(tmp_path.rglob("*.safetensors"))
    assert len(written(vit, data, tmp_path)[1]) == 2


def test_half_precision_is_half_as_large_and_close(vit, data, tmp_path):
    exact, half = written(vit, data, tmp_path)[1][1], written(vit, data, tmp_path, dtype="float16")[1][1]
    (x, _), (y, _) = (stream.batch(torch.arange(N)) for stream in (exact, half))
    assert (x.dtype, y.dtype) == (torch.float32, torch.float16)
    assert torch.allclose(y.float(), x, rtol=1e-3, atol=1e-3)
    vit.embed.cls.data.fill_(1e6)
    with pytest.raises(ValueError, match=r"values up to 1e\+06, which float16 cannot hold"):
        written(vit, data, tmp_path, dtype="float16")


def test_memory_does_not_grow_with_the_images(vit, tmp_path, monkeypatch):
    monkeypatch.setattr("analyses.activations.store.plan.SHARD", 1)
    monkeypatch.setattr("analyses.questions.cls_use.random_readouts.streams.CACHING", 4)

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
