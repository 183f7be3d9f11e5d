"""Every analysis that walks a data set, in one, two and three processes, and what its results are in each of them.

The processes are forked, so that torch is imported once; `accelerate` finds what it would find in those it launches.
"""

from __future__ import annotations

import inspect
import os
import pickle
import sys
import traceback
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from transformers import ViTImageProcessorPil

from analyses.processes import group
from analyses.processes.launching import free_port
from analyses.running.catalogue import Analysis, registered_analyses
from analyses.running.notes import progress_batches
from hooked_vit import HookedViT
from hooked_vit.components import pieces
from hooked_vit.loading import placing
from tests import matrix
from tests.interventions.cases import unchecked_types
from tests.tiny import IMAGE, make_hf

MEASURED, FITTED, BATCH = 19, 27, 6
"""Images: the last batch of those that are measured takes in the one behind it where tokens are exchanged."""
MODEL = "registers"
MORE: dict[str, tuple[str, dict[str, Any]]] = {
    "a head that is fitted": ("cls-causality", {"head": "ridge"}),
    "probes under every shuffle": ("restoration", {"probe_fit": "refit"}),
    "a batch size that is found": ("cls-causality", {"batch_size": "auto"}),
    "probes of fewer images": ("decodability", {"learning_curve": True}),
}
"""What the smallest settings leave out: analysis and options by what it is."""


def runs() -> dict[str, tuple[Analysis, dict[str, Any]]]:
    """Analysis and options by name."""
    there = {name: entry for name, entry in registered_analyses().items() if entry.is_command}
    named: dict[str, tuple[str, dict[str, Any]]] = {name: (name, {}) for name in there}
    return {name: (there[analysis], options) for name, (analysis, options) in {**named, **MORE}.items()}


def frames() -> dict[str, pd.DataFrame]:
    """The frame of every run, and what its result says of the images."""
    processor = ViTImageProcessorPil(size={"height": IMAGE, "width": IMAGE})
    model = HookedViT.from_hf(make_hf(MODEL), processor=processor)
    found = {}
    for name, (entry, more) in runs().items():
        takes = inspect.signature(entry.run).parameters
        options = {key: value for key, value in matrix.SMALL.items() if key in takes}
        options |= {"batch_size": BATCH} | more
        options |= {key: matrix.images("train", FITTED) for key in ("fit_data",) if key in takes}
        asked = matrix.counting(model) if entry.name == "counting" else model
        result = entry.run({"model": asked}, matrix.images("test", MEASURED), **options)
        found[name] = result.frame
        about = result.meta.get("data", {})
        found[f"{name}: images"] = pd.DataFrame([{"duplicates": about.get("duplicates"), "n": about.get("n")}])
    read: list[int] = []
    mine = [batch.number for batch in progress_batches(matrix.images("test", MEASURED), BATCH, "reading", into=[read])]
    found["batches read"] = pd.DataFrame({"number": mine})
    return found


def main(folder: Path) -> None:
    """Keep the frames of every process."""
    torch.set_num_threads(1)
    registered_analyses()
    matrix.images("test", MEASURED), matrix.images("train", FITTED)
    with pytest.MonkeyPatch.context() as patch:  # once more in one process, a block taking image by image
        patch.setattr(pieces, "PIECE_BYTES", 1)
        child = _forked(folder, 1, 0, free_port(), "pieces")
    if status := os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]):
        sys.exit(f"in pieces it failed: {status}")
    for count in (1, 2, 3):
        port = free_port()
        children = [_forked(folder, count, rank, port) for rank in range(count)]
        failed = [status for child in children if (status := os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))]
        if failed:
            sys.exit(f"of {count} processes, some failed: {failed}")


def _forked(folder: Path, count: int, rank: int, port: int, name: str = "") -> int:
    if child := os.fork():
        return child
    status = 1
    try:
        told = {"WORLD_SIZE": count, "RANK": rank, "LOCAL_RANK": rank, "MASTER_PORT": port}
        os.environ |= {"MASTER_ADDR": "127.0.0.1", **{name: str(value) for name, value in told.items()}}
        placing.fitting_batch = lambda model: BATCH + rank  # as where one process has more to do than another
        with unchecked_types():
            mine = frames()
        (folder / f"{name or count}-{group.rank()}.pickle").write_bytes(pickle.dumps(mine))
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
