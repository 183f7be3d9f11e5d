"""A pipe or a device where a kept file is expected would be waited for without end: it is refused by name."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from analyses import intervention_sweep
from analyses.activations.store import Store
from analyses.data import load_data
from analyses.probes.fitted import FittedProbes
from analyses.reproductions.recipe import load_recipe
from analyses.running.results import Result
from hooked_vit import zoo
from hooked_vit.loading.checkpoints import read_tensors
from hooked_vit.loading.inspection import read_json
from interventions import Stats, shuffle_cls


def sweep_into(path: Path) -> None:
    intervention_sweep(
        {"vit": zoo.load("vit")}, load_data("scenes:test", n=4), interventions=[shuffle_cls(layer=0)], file=str(path)
    )


# what opens a file a user has named, and the name the file has there
READERS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "result": (lambda path: Result.load(path.parent), "result.json"),
    "table": (lambda path: Result.load(path.parent), "result.parquet"),
    "probes": (lambda path: FittedProbes.load(path.parent), "probes.safetensors"),
    "stats": (Stats.load, "stats.safetensors"),
    "recipe": (lambda path: load_recipe(str(path)), "it.toml"),
    "activations": (lambda path: Store(path.parent), "manifest.json"),
    "sweep": (sweep_into, "rows.jsonl"),
    "weights": (read_tensors, "it.pth"),
    "config": (read_json, "config.json"),
}
NO_FILES: dict[str, Callable[[Path], Any]] = {
    "pipe": os.mkfifo,
    "device": lambda path: path.symlink_to("/dev/zero"),
    "folder": Path.mkdir,
}


@pytest.mark.parametrize("kind", NO_FILES)
@pytest.mark.parametrize("reader", READERS)
def test_it_is_refused_by_name(tmp_path, reader, kind):
    load, name = READERS[reader]
    NO_FILES[kind](tmp_path / name)
    with pytest.raises((ValueError, FileNotFoundError), match=name.replace(".", r"\.")):
        load(tmp_path / name)


def test_damaged_stats(tmp_path):
    (tmp_path / "it.safetensors").write_bytes(b"\x08" + bytes(20))
    with pytest.raises(ValueError, match="holds no stats of collect_stats"):
        Stats.load(tmp_path / "it.safetensors")
