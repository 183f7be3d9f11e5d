"""Every kind of kept work against every input that matters: done anew or refused, never used as if it fitted."""

from __future__ import annotations

import os
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from analyses import intervention_sweep, random_readouts
from analyses.activations.store import plan as stores
from analyses.data import ImageData, as_data, load_data
from analyses.probes.fitted import FittedProbes
from analyses.probes.fitting import fit_probes
from analyses.questions.cls_use.random_readouts.streams import plan, streams
from analyses.reproductions import prepared
from analyses.reproductions import run as reproducing
from analyses.reproductions.recipe import load_recipe
from analyses.running import fingerprint as fingerprints
from analyses.running.results import environment
from interventions import grid, shuffle_cls
from tests.analyses.questions.cls_use.test_cls_causality import CLASSES, IMAGE, model

NAMES = tuple("abcde")[:CLASSES]
N = 20


class World:
    """All that kept work depends on, and a folder to keep it in."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder, self.monkeypatch = folder, monkeypatch
        self.vit = model("vit")
        self.vit.cfg = self.vit.cfg.replace(class_names=NAMES)
        self.vit.processor = deepcopy(self.vit.processor)
        rng = np.random.default_rng(0)
        self.pixels = [rng.integers(0, 255, (IMAGE, IMAGE, 3), np.uint8) for _ in range(N)]
        self.labels = [i % CLASSES for i in range(N)]
        for i, (picture, label) in enumerate(zip(self.pixels, self.labels, strict=True)):
            (place := folder / "photos" / NAMES[label]).mkdir(parents=True, exist_ok=True)
            Image.fromarray(picture).save(place / f"{i}.bmp")
        self.in_memory = as_data((self.pixels, self.labels))  # the same object all along: it must look again
        self.in_memory.class_names = list(NAMES)
        self.in_files = load_data(f"imagefolder:{folder / 'photos'}")
        self.data: ImageData = self.in_memory
        self.fit = as_data(([255 - picture for picture in self.pixels[::-1]], self.labels[::-1]))
        self.fit.class_names = list(NAMES)
        self.interventions = grid(shuffle_cls, layer=range(2))

    def sweep(self, keep: Path) -> pd.DataFrame:
        keep.mkdir(exist_ok=True)
        file = str(keep / "rows.jsonl")
        ran = intervention_sweep(
            {"vit": self.vit}, self.data, interventions=self.interventions, file=file, batch_size=8
        )
        return ran.frame

    def streams(self, keep: Path) -> pd.DataFrame:
        keep.mkdir(exist_ok=True)
        planned = plan(self.vit, self.data, [1], keep, name="vit")
        x, labels = streams(planned, self.vit, {"all": self.data}, what="c")[0]["all"][1].batch(torch.arange(N))
        return pd.DataFrame({"x": x.flatten()}).assign(labels=str(labels.tolist()))

    def step(self, keep: Path) -> pd.DataFrame:
        file = self.folder / "mine.toml"
        file.write_text(
            'title = "t"\nsource = "s"\n[models.vit]\ncheckpoint = "zoo:vit"\n[data.d]\nspec = "scenes:test"\n'
            '[[steps]]\nname = "s"\nanalysis = "intervention-sweep"\ndata = { data = "d" }\noptions = { }\n'
        )
        recipe = load_recipe(str(file))
        self.monkeypatch.setattr(prepared, "load_model", lambda *a, **kw: self.vit)
        self.monkeypatch.setattr(prepared, "load_data", lambda *a, **kw: self.data)
        self.monkeypatch.setattr(reproducing, "write_report", lambda result, folder, **_: result.save(folder))
        return reproducing._run_step(recipe, recipe.steps[0], keep / "s", "cpu").frame


def a_byte_of_the_weights(world: World) -> None:
    world.vit.blocks[0].attn.q.weight.data.view(torch.int32)[0, 0] ^= 1


def a_permuted_head(world: World) -> None:
    head = world.vit.head.weight.data
    head.copy_(head.roll(1, 0))


def a_sign_flipped_head(world: World) -> None:
    world.vit.head.weight.data.neg_()


def an_activation_function(world: World) -> None:
    world.vit.blocks[1].mlp.act = F.relu


def an_epsilon(world: World) -> None:
    world.vit.ln_final.eps = 1e-2


def an_image_processor(world: World) -> None:
    world.vit.processor.image_mean = (0.1, 0.2, 0.3)


def pixels_in_memory(world: World) -> None:
    world.pixels[3][0, 0, 0] ^= 1


def an_image_file_of_equal_size_and_time(world: World) -> None:
    file = world.folder / "photos" / NAMES[1] / "1.bmp"
    before, content = file.stat(), bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))


def a_label(world: World) -> None:
    world.labels[0], world.labels[1] = world.labels[1], world.labels[0]


def a_version(world: World) -> None:
    for module in (fingerprints, stores):
        world.monkeypatch.setattr(module, "environment", lambda: {**environment(), "torch": "0.0"})


def an_interventions_parameter(world: World) -> None:
    world.interventions = grid(shuffle_cls, layer=range(2), seed=[1])


def an_interventions_code(world: World) -> None:
    """A notebook's cell run again: the same name and parameters, another function."""
    factory = world.interventions[0]._factory
    before = factory.function
    world.monkeypatch.setattr(factory, "function", lambda model, **params: before(model, **params))


OF_MODELS = [a_byte_of_the_weights, a_permuted_head, a_sign_flipped_head, an_activation_function, an_epsilon]
OF_MODELS += [an_image_processor]
CHANGES = [*OF_MODELS, pixels_in_memory, an_image_file_of_equal_size_and_time, a_label, a_version]
BEHIND = [a_permuted_head, a_sign_flipped_head, an_epsilon, a_label]
"""What the inputs of the blocks do not depend on: they are read again, with the labels of now."""
OF_SWEEPS = [an_interventions_parameter, an_interventions_code]
CASES = [(kept, change) for kept in (World.sweep, World.streams, World.step) for change in CHANGES]
CASES += [(World.sweep, change) for change in OF_SWEEPS]


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    return World(tmp_path, monkeypatch)


@pytest.mark.parametrize(
    ("kept", "change"), CASES, ids=[f"{kept.__name__}-{change.__name__}" for kept, change in CASES]
)
def test_what_does_not_fit_is_done_anew_or_refused(
    world: World, kept: Callable[[World, Path], pd.DataFrame], change: Callable[[World], None]
) -> None:
    if change is an_image_file_of_equal_size_and_time:
        world.data = world.in_files
    first = kept(world, world.folder / "kept")
    runs = world.vit.run.n_forwards
    pd.testing.assert_frame_equal(kept(world, world.folder / "kept"), first)
    assert world.vit.run.n_forwards == runs, "nothing changed, and it was done again"
    change(world)
    runs = world.vit.run.n_forwards
    if kept is World.sweep:
        with pytest.raises(ValueError, match="belongs to another sweep.*They differ in"):
            kept(world, world.folder / "kept")
        return
    again = kept(world, world.folder / "kept")
    fits = kept is World.streams and change in BEHIND
    assert fits == (world.vit.run.n_forwards == runs), "what was kept is used where, and only where, it fits"
    pd.testing.assert_frame_equal(again, kept(world, world.folder / "fresh"))


def test_trainings_are_those_of_their_streams(world: World) -> None:
    def kept(folder: str) -> pd.DataFrame:
        few = {"layers": (1,), "epochs": 1, "draws": 2, "batch_size": 8, "keep_in": str(world.folder / folder)}
        few |= {"modes": ("trained",), "seeds": 1, "lr": 1e-3}
        return random_readouts({"vit": world.vit}, world.data, fit_data=world.fit, **few).frame

    def files() -> dict[str, int]:
        return {path.name: path.stat().st_mtime_ns for path in (world.folder / "kept").glob("*.training")}

    kept("kept")
    before = files()
    kept("kept")
    assert files() == before
    an_activation_function(world)
    again = kept("kept")
    assert before.items() <= files().items()
    assert len(files()) == 2 * len(before)
    pd.testing.assert_frame_equal(again, kept("fresh"))


@pytest.mark.parametrize("change", OF_MODELS, ids=[change.__name__ for change in OF_MODELS])
def test_loaded_probes_say_that_they_read_another_model(world: World, change, capsys) -> None:
    probes = fit_probes(world.vit, world.fit, roles=("cls",))
    loaded = FittedProbes.load(probes.save(world.folder / "probes"))
    capsys.readouterr()
    loaded.evaluate(world.vit, world.data)
    assert "fitted on another model" not in capsys.readouterr().err
    change(world)
    loaded.evaluate(world.vit, world.data)
    assert "note: these probes were fitted on another model: it differs in" in capsys.readouterr().err


def test_a_step_says_why_it_is_run_again(world: World, capsys) -> None:
    world.step(world.folder / "kept")
    a_sign_flipped_head(world)
    capsys.readouterr()
    world.step(world.folder / "kept")
    said = capsys.readouterr().err
    assert "step s was finished before and is run again: it differs in weights of vit (" in said
    (world.folder / "kept" / "s" / "result.parquet").write_bytes(b"edited")
    world.step(world.folder / "kept")
    assert "is not the file that result.json describes" in capsys.readouterr().err


def test_what_a_result_says_of_its_models_and_images(world: World) -> None:
    first = intervention_sweep({"vit": world.vit}, world.data, interventions=world.interventions).meta
    a_permuted_head(world)
    pixels_in_memory(world)
    second = intervention_sweep({"vit": world.vit}, world.data, interventions=world.interventions).meta
    assert first["models"]["vit"]["weights"] != second["models"]["vit"]["weights"]
    assert first["data"]["fingerprint"] != second["data"]["fingerprint"]
    assert (first["models"]["vit"]["device"], first["models"]["vit"]["dtype"]) == ("cpu", "float32")
    assert first["computing"]["threads"] == torch.get_num_threads()
