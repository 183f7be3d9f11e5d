"""Stored activations are those of a run, answer in its place, and are never taken for others."""

from __future__ import annotations

import errno
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch.utils.data import DataLoader

from analyses import (
    Result,
    class_projection,
    cls_causality,
    decodability,
    lenses,
    low_frequency,
    random_readouts,
    register_controls,
    registers,
    restoration,
)
from analyses.activations.store import Store, StoredTokens, plan, store_activations, writing
from analyses.activations.store.serving import activations_in_use
from analyses.activations.store.stats import stats_over
from analyses.command_line.cli import main
from analyses.controls.random_weights import with_random_weights
from analyses.data import ImageData, as_data
from analyses.running import places
from hooked_vit import HookedViT
from interventions import apply, zero_attention
from tests.analyses.questions.cls_use.test_cls_causality import coloured, model
from tests.analyses.running.test_kills import killed_at

BATCH = 8
FAMILIES = ("dinov2-model", "deit-teacher", "clip-classifier")


@contextmanager
def counted() -> Iterator[list[HookedViT]]:
    """Every model that runs meanwhile, once for each time."""
    ran: list[HookedViT] = []
    forward = HookedViT.forward
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(HookedViT, "forward", lambda self, *a, **kw: (ran.append(self), forward(self, *a, **kw))[1])
        yield ran


@pytest.fixture(scope="module")
def data() -> ImageData:
    return coloured(20, 1)


@pytest.fixture(scope="module")
def kept(vit: HookedViT, data: ImageData, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("kept") / "store"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("analyses.activations.store.plan.SHARD", 1)  # a batch a shard
        store_activations(vit, data, ("resid_post", "mlp_out"), ("cls", "patches", "all"), to=folder, batch_size=BATCH)
    return folder


def copied(kept: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(kept, tmp_path / "copy"))


def test_it_holds_what_a_run_holds(vit: HookedViT, data: ImageData, kept: Path) -> None:
    store = Store(kept)
    store.check()
    rows = torch.tensor([17, 0, 9, 3])
    read = store.read(list(store.shapes), rows)
    for batch, start in zip(data.batches(BATCH), range(0, 20, BATCH), strict=True):
        with torch.no_grad():
            _, cache = vit.run_with_cache(vit.preprocess(batch.images))
        for place in ((rows >= start) & (rows < start + BATCH)).nonzero().flatten().tolist():
            i = int(rows[place]) - start
            for site in ("hook_resid_post", "hook_mlp_out"):
                at = cache[f"blocks.1.{site}"][i]
                assert torch.equal(read[f"blocks.1.{site}.all"][place], at)
                assert torch.equal(read[f"blocks.1.{site}.cls"][place], at[0])
                assert torch.allclose(read[f"blocks.1.{site}.patches"][place], at[1:].mean(0), atol=1e-6)
            assert torch.equal(read["hook_pooled"][place], cache["hook_pooled"][i])
    assert torch.equal(store.images["label"], data.labels)
    assert store.places(data.marks()) == list(range(20))


def test_its_size_is_said_beforehand(
    vit: HookedViT, data: ImageData, kept: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store_activations(vit, data, to=tmp_path / "s", batch_size=BATCH)
    said = float(re.search(r"take ([\d.]+) kB", capsys.readouterr().err)[1]) * 1000
    written = sum(path.stat().st_size for path in (tmp_path / "s").glob("*.safetensors"))
    assert said <= written + 100
    assert written <= said + 4000


ANALYSES: dict[str, tuple[Callable[..., Result], dict[str, Any], bool]] = {
    "decodability": (
        decodability,
        {"controls": ("permuted", "pca", "selectivity", "memorised"), "permutations": 2, "embedding": True},
        True,
    ),
    "head-input": (
        decodability,
        {"controls": ("none",), "roles": ("head_input",), "probe": "logistic"},
        True,
    ),
    "lenses": (lenses, {"random_models": 0, "steps": 4}, True),
    "low-frequency": (low_frequency, {"radii": (3.0,), "bands": 2, "seeds": 1}, False),
    "cls-causality": (cls_causality, {"seeds": 1}, False),
    "restoration": (restoration, {"seeds": 1}, False),
}


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[HookedViT, ImageData, ImageData, Path]]:
    found = {}
    for family in FAMILIES:
        folder, net, measured, fitted = tmp_path_factory.mktemp(family), model(family), coloured(24, 1), coloured(30, 2)
        for name, images in (("measured", measured), ("fitted", fitted)):
            sites = ("resid_post", "embedding")
            store_activations(net, images, sites, to=folder / name, batch_size=10)
        found[family] = net, measured, fitted, folder
    return found


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", ANALYSES)
def test_a_second_question_runs_nothing_and_reads_the_same(stores: Any, family: str, name: str) -> None:
    net, measured, fitted, folder = stores[family]
    run, options, all_of_it = ANALYSES[name]
    fit = {"fit_data": fitted}
    with counted() as before:
        ran = run({"m": net}, measured, **fit, batch_size=10, **options)
    with counted() as after:
        read = run({"m": net}, measured, **fit, batch_size=10, **options, activations=(str(folder),))
    assert not after if all_of_it else len(after) <= len(before) - 3
    pd.testing.assert_frame_equal(ran.frame, read.frame, check_exact=True)
    assert read.meta["activations"]["read"]
    read.meta["notes"] = [note for note in read.meta["notes"] if "a control: it was run" not in note]
    assert {k: v for k, v in read.meta.items() if k != "activations"} == ran.meta


OF_EVERY_TOKEN: dict[str, tuple[Callable[..., Result], dict[str, Any]]] = {
    "registers": (registers, {"calibration": 20, "min_images": 1}),
    "register-controls": (register_controls, {"seeds": 1}),
    "register-controls by CLS": (register_controls, {"seeds": 1, "reads": "cls"}),
}


@pytest.fixture(scope="module")
def whole_stores(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[HookedViT, ImageData, ImageData, Path]]:
    found = {}
    for family in FAMILIES:
        folder, net, measured, fitted = tmp_path_factory.mktemp(family), model(family), coloured(24, 1), coloured(30, 2)
        for name, images in (("measured", measured), ("fitted", fitted)):
            store_activations(net, images, ("resid_post",), ("all",), to=folder / name, batch_size=10)
        found[family] = net, measured, fitted, folder
    return found


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", OF_EVERY_TOKEN)
def test_where_every_token_is_stored_only_what_is_edited_runs(whole_stores: Any, family: str, name: str) -> None:
    net, measured, fitted, folder = whole_stores[family]
    run, options = OF_EVERY_TOKEN[name]
    options = {"fit_data": fitted, "batch_size": 10, **options}
    ran = run({"m": net}, measured, **options)
    with counted() as after:
        read = run({"m": net}, measured, **options, activations=(str(folder),))
    own = [one for one in after if one.embed.patch.weight.data_ptr() == net.embed.patch.weight.data_ptr()]
    n_batches, ways = 3, 4  # a sweep, which `registers` exchanges tokens in, is no run of a model
    targets = read.meta["models"]["m"]["targets"]
    assert len(own) == (n_batches * ways * len(targets) if "controls" in name else 0)
    pd.testing.assert_frame_equal(ran.frame, read.frame, check_exact=True)
    assert len(read.meta["activations"]["read"]) == 2
    read.meta["notes"] = [note for note in read.meta["notes"] if "a control: it was run" not in note]
    assert {k: v for k, v in read.meta.items() if k != "activations"} == ran.meta


def test_layers_that_are_measured_are_all_that_has_to_be_stored(
    vit: HookedViT, data: ImageData, tmp_path: Path
) -> None:
    fitted = coloured(30, 2)
    for name, images in (("measured", data), ("fitted", fitted)):
        store_activations(vit, images, ("resid_post",), ("all",), to=tmp_path / name, layers=(1,), batch_size=10)
    options = {"fit_data": fitted, "calibration": 20, "min_images": 1, "batch_size": 10}
    ran = registers({"m": vit}, data, **options, layers=(1,))
    read = registers({"m": vit}, data, **options, layers=(-1,), activations=(str(tmp_path),))
    pd.testing.assert_frame_equal(ran.frame, read.frame, check_exact=True)
    with pytest.raises(ValueError, match=r"lacks blocks\.0\.hook_resid_post\.all, which is read here; store that site"):
        registers({"m": vit}, data, **options, activations=(str(tmp_path),))


def test_means_and_covariances_of_a_dictionary_s_place(vit: HookedViT, data: ImageData, kept: Path) -> None:
    sites = [(site, layer, role) for site in ("resid_post", "mlp_out") for layer in range(2) for role in ("all", "cls")]
    with counted() as ran, activations_in_use(str(kept), {"m": vit}):
        read = stats_over(vit, data, sites, batch_size=BATCH)
    assert not ran
    run = stats_over(vit, data, sites, batch_size=BATCH)
    for site, layer, role in sites:
        assert torch.equal(read.mean(site, layer, role), run.mean(site, layer, role))
        assert torch.equal(read.covariance(site, layer, role), run.covariance(site, layer, role))
    with activations_in_use(str(kept), {"m": vit}), pytest.raises(ValueError, match="lacks blocks.0.attn.hook_z.all"):
        stats_over(vit, data, [("z", 0, "cls")])


def test_random_readouts_read_whole_streams(vit: HookedViT, data: ImageData, tmp_path: Path) -> None:
    fitted = coloured(40, 2)
    for name, images in (("measured", data), ("fitted", fitted)):
        store_activations(vit, images, ("resid_post", "embedding"), ("all",), to=tmp_path / name)
    options = {"layers": (0, 1), "modes": ("replace_mean_cls", "null"), "epochs": 1, "seeds": 1, "lr": 0.01}
    with counted() as before:
        ran = random_readouts({"m": vit}, data, fit_data=fitted, **options)
    with counted() as after:
        read = random_readouts({"m": vit}, data, fit_data=fitted, **options, activations=(str(tmp_path),))
    assert len(after) == len(before) - 2  # two sets of images; the rest are blocks under other tokens
    pd.testing.assert_frame_equal(ran.frame, read.frame)


WHOLE = ("embedding", "attn_out", "mlp_out", "resid_post")


@pytest.mark.parametrize("family", FAMILIES)
def test_class_projection_reads_every_token(family: str, tmp_path: Path) -> None:
    net, measured, fitted = model(family), coloured(24, 1), coloured(30, 2)
    store_activations(net, measured, WHOLE, ("all",), to=tmp_path / "own", batch_size=10)
    store_activations(net, fitted, to=tmp_path / "fitted", batch_size=10)  # what a ridge head reads is in every store
    options = {"fit_data": fitted, "random_models": 1, "batch_size": 10}
    ran = class_projection({"m": net}, measured, **options)
    with counted() as after:
        read = class_projection({"m": net}, measured, **options, activations=(str(tmp_path),))
    assert len(after) == 3  # of the control
    assert net not in after
    assert "a control: it was run" in read.meta["notes"].pop()
    pd.testing.assert_frame_equal(ran.frame, read.frame, check_exact=True)
    assert {k: v for k, v in read.meta.items() if k != "activations"} == ran.meta


def test_class_projection_opens_no_picture_where_its_controls_are_stored_too(vit: HookedViT, tmp_path: Path) -> None:
    """Of some layers it needs those, and what enters them."""
    for name, net in (("own", vit), ("control", with_random_weights(vit, 0))):
        store_activations(net, coloured(24, 1), WHOLE[1:], ("all",), layers=(0, 1), to=tmp_path / name, batch_size=10)
    options = {"random_models": 1, "batch_size": 10, "layers": (-1,)}
    ran = class_projection({"m": vit}, coloured(24, 1), **options)
    with counted() as after, pytest.MonkeyPatch.context() as patch:
        patch.setattr(ImageData, "batches", lambda *_, **__: pytest.fail("pictures were opened"))
        read = class_projection({"m": vit}, coloured(24, 1), **options, activations=(str(tmp_path),))
    assert not after
    pd.testing.assert_frame_equal(ran.frame, read.frame, check_exact=True)
    assert {k: v for k, v in read.meta.items() if k != "activations"} == ran.meta


def test_class_projection_says_which_tokens_a_store_lacks(vit: HookedViT, data: ImageData, kept: Path) -> None:
    def projected(**options: Any) -> Result:
        return class_projection({"m": vit}, data, random_models=1, **options, activations=(str(kept),))

    with counted() as ran:
        with pytest.raises(ValueError, match=r"lacks blocks\.0\.hook_resid_pre\.all, .* --sites embedding"):
            projected()
        with pytest.raises(ValueError, match=r"lacks blocks\.1\.hook_attn_out\.all, which is read here"):
            projected(layers=(1,))
    assert not ran


def test_restoration_is_not_run_without_a_shuffle(vit: HookedViT, data: ImageData, tmp_path: Path) -> None:
    """21 images in batches of 10: the last one joins the batch before, in which it exchanges tokens."""
    measured = coloured(21, 1)
    for name, images in (("measured", measured), ("fitted", coloured(40, 2))):
        store_activations(vit, images, ("resid_post",), ("cls", "all"), to=tmp_path / name, batch_size=10)
    options = {"fit_data": coloured(40, 2), "seeds": 1, "batch_size": 10}
    with counted() as before:
        ran = restoration({"m": vit}, measured, **options)
    with counted() as after:
        read = restoration({"m": vit}, measured, **options, activations=(str(tmp_path),))
    n_blocks, n_batches, shuffled = 2, 2, 1  # behind block 0 a shuffle passes block 1
    assert len(after) == n_batches * shuffled
    assert len(before) == 4 + n_batches * (1 + n_blocks + shuffled)
    pd.testing.assert_frame_equal(ran.frame, read.frame)


def test_halves_of_what_is_stored_and_a_stored_control(vit: HookedViT, data: ImageData, tmp_path: Path) -> None:
    """Images are known by what they hold, so any part of them is. A control of random weights is a model too."""
    store_activations(vit, data, to=tmp_path / "own")
    options = {"controls": ("random_weights",), "random_models": 1, "learning_curve": False, "batch_size": BATCH}
    with counted() as ran:
        result = decodability({"m": vit}, data, **options, activations=(str(tmp_path),))
    assert ran
    assert vit not in ran
    assert any("a control: it was run" in note for note in result.meta["notes"])
    store_activations(with_random_weights(vit, 0), data, to=tmp_path / "control")
    with counted() as ran:
        again = decodability({"m": vit}, data, **options, activations=(str(tmp_path),))
    assert not ran
    pd.testing.assert_frame_equal(again.frame, result.frame)


def test_the_images_are_kept_apart_all_the_same(vit: HookedViT, data: ImageData, tmp_path: Path) -> None:
    """One photo in two files is found by its pixels, which the store remembers."""
    (batch,) = data.batches(20)
    for kind in ("bmp", "png"):
        (tmp_path / kind).mkdir()
        for i, image in enumerate(batch.images):
            image.save(tmp_path / kind / f"{i}.{kind}")
    sets = [as_data((sorted((tmp_path / kind).iterdir()), data.labels.tolist())) for kind in ("bmp", "png")]
    for kind, images in zip(("bmp", "png"), sets, strict=True):
        store_activations(vit, images, to=tmp_path / "stores" / kind)
    with pytest.raises(ValueError, match="has the pixels of"):
        decodability({"m": vit}, sets[0], fit_data=sets[1], activations=(str(tmp_path / "stores"),))


def asked(vit: HookedViT, data: ImageData, folder: Path | str, **options: Any) -> Result:
    options = {"controls": ("none",), "learning_curve": False, "roles": ("cls",), **options}
    return decodability({"m": vit}, data, activations=(str(folder),), **options)


def test_a_store_of_something_else_is_refused_with_what_differs(
    vit: HookedViT, data: ImageData, kept: Path, tmp_path: Path
) -> None:
    other = model("vit")
    with torch.no_grad():
        other.embed.cls.add_(1)
    with pytest.raises(ValueError, match=r"not those of m: they differ in weights \("):
        asked(other, data, kept)
    larger = model("vit")
    larger.processor = type(larger.processor)(size={"height": 48, "width": 48})
    with pytest.raises(ValueError, match=r"they differ in processor \("):
        asked(larger, data, kept)
    with pytest.raises(ValueError, match=r"of the 10 images of .*, 0 are in .*, which holds 20 of"):
        asked(vit, coloured(20, 7), kept)
    with pytest.raises(ValueError, match=r"lacks blocks\.0\.hook_resid_pre\.cls, which is read here"):
        asked(vit, data, kept, embedding=True)
    with pytest.raises(ValueError, match=r"they differ in weights .* and device \(cpu, float64, not cpu, float32\)"):
        asked(model("vit").double(), data, kept)
    store_activations(vit, data, to=tmp_path / "half", dtype="float16")
    with pytest.raises(ValueError, match="holds activations as float16, and m runs in float32"):
        asked(vit, data, tmp_path / "half")


def test_a_store_of_another_version_or_under_an_intervention(
    vit: HookedViT, data: ImageData, kept: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store_activations(vit, data, to=tmp_path / "s", intervention=zero_attention("cls", "patches", layers=0))
    with pytest.raises(ValueError, match="they differ in interventions"):
        asked(vit, data, tmp_path / "s")
    monkeypatch.setattr(plan, "environment", lambda: {"torch": "1.0"})
    with pytest.raises(ValueError, match=r"torch \(1\.0, not "):
        asked(vit, data, kept)


def test_a_store_knows_nothing_of_hooks(vit: HookedViT, data: ImageData, kept: Path) -> None:
    with apply(vit, zero_attention("cls", "patches", layers=0)), pytest.raises(ValueError, match="hooks are attached"):
        asked(vit, data, kept)


def damaged(folder: Path, how: str) -> None:
    shard = folder / "activations-00001.safetensors"
    content = shard.read_bytes()
    if how == "truncated":
        shard.write_bytes(content[:-10])
    elif how == "altered":
        shard.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    elif how == "missing":
        shard.unlink()
    else:
        manifest = folder / "manifest.json"
        manifest.write_text(manifest.read_text().replace('"n": 20', '"n": 21'))


@pytest.mark.parametrize("how", ["truncated", "altered", "missing", "manifest"])
def test_damage_is_refused_and_mended(vit: HookedViT, data: ImageData, kept: Path, tmp_path: Path, how: str) -> None:
    folder = copied(kept, tmp_path)
    damaged(folder, how)
    with pytest.raises(ValueError, match="is damaged|lacks activations-00001"):
        asked(vit, data, folder)
    if how == "manifest":
        (folder / "manifest.json").unlink()
        with pytest.raises(ValueError, match="is no store of activations"):
            again(vit, data, folder)
        return
    again(vit, data, folder)
    assert content(folder) == content(kept)


def again(vit: HookedViT, data: ImageData, folder: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("analyses.activations.store.plan.SHARD", 1)
        store_activations(vit, data, ("resid_post", "mlp_out"), ("cls", "patches", "all"), to=folder, batch_size=BATCH)


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_folders_of_something_else(vit: HookedViT, data: ImageData, kept: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"is no store of activations \(it holds mine\.txt\)"):
        store_activations(vit, data, to=tmp_path)
    with pytest.raises(FileNotFoundError, match=r"holds no activations: it has no manifest\.json"):
        asked(vit, data, tmp_path)
    (tmp_path / "manifest.json").write_text('{"format": "other 3", "checksum": ""}')
    with pytest.raises(ValueError, match="holds 'other 3'; this version reads"):
        asked(vit, data, tmp_path)
    (tmp_path / "manifest.json").write_text("{")
    with pytest.raises(ValueError, match="is no manifest of activations"):
        asked(vit, data, tmp_path)
    with pytest.raises(ValueError, match=r"holds other activations: these differ in tensors \(.* and batch size \(4"):
        store_activations(vit, data, to=kept, batch_size=4)


def test_a_folder_in_the_place_of_a_shard(vit: HookedViT, data: ImageData, kept: Path, tmp_path: Path) -> None:
    folder = copied(kept, tmp_path)
    shard = folder / "activations-00001.safetensors"
    shard.unlink()
    shard.mkdir()
    with pytest.raises(ValueError, match=r"00001\.safetensors: it is a folder, not a file"):
        asked(vit, data, folder)
    with pytest.raises(ValueError, match=r"should be a file of activations: it is a folder, not a file; move it away"):
        again(vit, data, folder)


def test_what_is_pooled_is_of_one_readout(vit: HookedViT, data: ImageData, tmp_path: Path) -> None:
    """A model whose readout was changed does not go on with what another has begun: its shards would be mixed."""
    died = killed_at(20, lambda: again(vit, data, tmp_path / "s"))
    assert died
    assert any((tmp_path / "s").glob("*.safetensors"))
    other = model("vit")
    with torch.no_grad():
        other.ln_final.w.add_(1)
    with pytest.raises(ValueError, match=r"these differ in readout \("):
        again(other, data, tmp_path / "s")


def test_what_cannot_be_stored(vit: HookedViT, data: ImageData, tmp_path: Path, monkeypatch: Any) -> None:
    for options, said in (
        ({"sites": ("resid",)}, "a site is one of"),
        ({"roles": ("registers",)}, "has no 'registers' to read"),
        ({"dtype": "float64"}, "activations are stored as float32"),
        ({"layers": (5,)}, "layers are 0 to 1"),
    ):
        with pytest.raises(ValueError, match=said):
            store_activations(vit, data, to=tmp_path / "s", **options)
    free = SimpleNamespace(total=0, used=0, free=100)
    monkeypatch.setattr(places.shutil, "disk_usage", lambda folder: free)
    with counted() as ran, pytest.raises(OSError, match="need about|needs|have") as error:
        store_activations(vit, data, to=tmp_path / "s")
    assert error.value.errno == errno.ENOSPC
    assert not ran
    assert not (tmp_path / "s").exists()
    monkeypatch.undo()
    loud = model("vit")
    with torch.no_grad():
        loud.embed.cls.mul_(1e6)
    with pytest.raises(ValueError, match="float16 cannot hold; use float32"):
        store_activations(loud, data, to=tmp_path / "s", dtype="float16")


def test_a_disk_that_fills_up(
    vit: HookedViT, data: ImageData, kept: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is said, with what is still needed; what was written stays, and the same call goes on."""
    put = writing._put

    def full(content: bytes, to: Path) -> None:
        if "00002" in to.name:
            raise OSError(errno.ENOSPC, "No space left on device")
        put(content, to)

    monkeypatch.setattr(writing, "_put", full)
    with pytest.raises(OSError, match=r"activations-00002\.safetensors could not be written: .* and about .* kB are"):
        again(vit, data, tmp_path / "s")
    monkeypatch.undo()
    assert {path.name for path in (tmp_path / "s").glob("*safetensors")} == {
        f"activations-0000{i}.safetensors" for i in range(2)
    }
    with pytest.raises(FileNotFoundError, match="was not finished, and the same call goes on"):
        asked(vit, data, tmp_path / "s")
    again(vit, data, tmp_path / "s")
    assert content(tmp_path / "s") == content(kept)


def test_on_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images = ["--data", "scenes:train", "--n", "40"]
    assert main(["cache", "zoo:vit", *images, "--roles", "cls", "--to", str(tmp_path / "s")]) == 0
    assert "blocks.7.hook_resid_post" in capsys.readouterr().out
    told = ["run", "decodability", "--model", "zoo:vit", *images, "--roles", "cls", "--controls", "none"]
    told += ["--out", str(tmp_path / "out"), "--activations", str(tmp_path / "s"), "--no-learning-curve"]
    with counted() as ran:
        assert main(told) == 0
    assert not ran
    assert main([*told, "--embedding"]) == 2
    assert "lacks blocks.0.hook_resid_pre.cls" in capsys.readouterr().err
    assert main(["cache", "zoo:vit", "--n", "30", "--to", str(tmp_path / "s")]) == 2
    assert "holds other activations: these differ in" in capsys.readouterr().err


def test_a_process_killed_at_any_moment(vit: HookedViT, data: ImageData, kept: Path, tmp_path: Path) -> None:
    """At 20 moments of one write, the last of them behind its end: the same call ends with the same bytes."""
    whole, deaths = content(kept), 0
    moments = [*np.linspace(1, 40, 19).astype(int).tolist(), 10_000]
    for moment in moments:
        folder = tmp_path / str(moment)
        deaths += killed_at(moment, lambda folder=folder: again(vit, data, folder))
        again(vit, data, folder)
        assert content(folder) == whole
        shutil.rmtree(folder)
    assert 15 <= deaths < len(moments)


def test_tokens_for_a_dictionary(kept: Path) -> None:
    store = Store(kept)
    name = "blocks.1.hook_resid_post.all"
    tokens = StoredTokens(store, name, batch_size=32)
    everything = torch.cat(list(store.shards(name))).flatten(0, 1)
    for _ in range(2):
        seen = torch.cat(list(DataLoader(tokens, batch_size=None)))
        assert torch.equal(seen.sort(0).values, everything.sort(0).values)
    assert not torch.equal(seen, everything)
    mean, scale = tokens.moments()
    assert torch.allclose(mean, everything.mean(0), atol=1e-5)
    assert scale == pytest.approx(float((everything - mean).square().mean().sqrt()), rel=1e-5)


def test_the_readers_of_the_page(kept: Path, tmp_path: Path) -> None:
    """What docs/activation_store.md shows runs as it stands there, without a line of ours."""
    page = (Path(__file__).parents[3] / "docs" / "activation_store.md").read_text(encoding="utf-8")
    (reader,) = [block for block in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if "safe_open" in block]
    assert "hooked_vit" not in reader
    assert len(reader.strip().splitlines()) <= 12
    space: dict[str, Any] = {}
    exec(reader.replace('"activations"', repr(str(kept))).replace("blocks.8.", "blocks.1."), space)
    found = torch.cat([torch.as_tensor(x) for x in space["tokens"]("blocks.1.hook_resid_post.all")])
    assert torch.equal(found, torch.cat(list(Store(kept).shards("blocks.1.hook_resid_post.all"))).flatten(0, 1))
