"""Run one analysis on one checkpoint and note what it cost: seconds, peak memory, the checkpoint, the code."""

from __future__ import annotations

import hashlib
import inspect
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from analyses.data import ImageData, load_data
from analyses.probes.classifier_heads import with_ridge_head
from analyses.processes.memory import peak_memory
from analyses.reproductions.real_models.runs import Run
from analyses.running.catalogue import get_analysis
from analyses.running.models import load_model, short_name
from analyses.running.notes import about_data, about_model
from analyses.running.results import Result

MEASURED = "measured"
"""The entry of `meta` that says what a run cost and what it was of."""


@dataclass(frozen=True)
class Study:
    """A checkpoint and images: `data` is measured on, `fit_data` fitted on; `provenance` is what is known of the
    weights, said on the page, as is what `about.md` in the folder of the `dictionary` says of that.
    """

    model: str
    data: str
    fit_data: str
    image_size: int | None = None
    provenance: str = ""
    dictionary: str | None = None
    layout: str = "saelens"
    seed: int = 0


def measure(run: Run, study: Study) -> Result:
    """The result of a run, with what it cost under `meta["measured"]`.

    Memory is the peak of this process, so that of a single run is seen where each has a process of its own. Raises
    LookupError for a run that needs a dictionary where there is none, and what `resize_` and the analysis raise.
    """
    if run.needs_dictionary and study.dictionary is None:
        raise LookupError(f"{run.name} needs a trained dictionary: say where one is with --dictionary")
    name, entry = short_name(study.model), get_analysis(run.asks)
    model = load_model(study.model, image_size=study.image_size)
    takes = inspect.signature(entry.run).parameters
    n = run.n if entry.is_command else 4 * run.n
    data, fitted = load_data(study.data, n, seed=study.seed), load_data(study.fit_data, run.n_fit, seed=study.seed)
    options = {**run.options, **({"seed": study.seed} if "seed" in takes else {})}
    if run.needs_dictionary:
        options |= {"dictionary": study.dictionary, "layout": study.layout}
    started, worked = time.perf_counter(), time.process_time()
    if entry.is_command:
        result = entry.run({name: model}, data, fit_data=fitted, **options)
    else:
        answering = with_ridge_head(model, fitted)
        result = entry.run(answering, *pairs(data, run.n), **options)
    seconds, processor = time.perf_counter() - started, time.process_time() - worked
    result.meta[MEASURED] = {
        **{"run": run.name, "model": name, "checkpoint": about_model(model), "provenance": study.provenance},
        **{"files": dict(digests(study.model)), "image_size": list(model.processor_size or model.cfg.image_size)},
        **{"data": about_data(data), "fit_data": about_data(fitted), "options": options, "code": code_version()},
        **({"dictionary": told_of(study.dictionary)} if run.needs_dictionary and study.dictionary else {}),
        **{"seconds": seconds, "processor_seconds": processor, "peak_memory": peak_memory()},
    }
    return result


def save_measured(run: Run, study: Study, folder: Path) -> None:
    """`measure`, saved; what a process of its own does."""
    measure(run, study).save(folder)


def pairs(data: ImageData, n: int) -> tuple[list[Image.Image], list[Image.Image]]:
    """`n` clean images, and for each another one of another class; no image is used twice.

    Raises ValueError where there are too few.
    """
    batch = next(data.batches(len(data)))
    labels, left = batch.labels.tolist(), list(range(len(batch)))
    clean: list[Image.Image] = []
    corrupt: list[Image.Image] = []
    while left and len(clean) < n:
        first = left.pop(0)
        second = next((i for i in left if labels[i] != labels[first]), None)
        if second is not None:
            left.remove(second)
            clean.append(batch.images[first])
            corrupt.append(batch.images[second])
    if len(clean) < n:
        raise ValueError(f"{len(labels)} images make {len(clean)} pairs of different classes; {n} are asked for")
    return clean, corrupt


def digests(model: str) -> Iterator[tuple[str, str]]:
    """The SHA-256 of every file of weights in a local folder; of a model by another name none."""
    for path in sorted(Path(model).expanduser().glob("*.safetensors")):
        with path.open("rb") as file:
            yield path.name, hashlib.file_digest(file, "sha256").hexdigest()


def told_of(dictionary: str) -> str:
    """What stands in `about.md` of a dictionary's folder; that nothing is known, where there is none."""
    about = Path(dictionary).expanduser() / "about.md"
    known = " ".join(about.read_text(encoding="utf-8").split()) if about.is_file() else ""
    return known or "Of how the dictionary was trained nothing is known."


def code_version() -> str | None:
    """The commit this code is of, and whether it was changed since; None outside a repository."""
    here = Path(__file__).parent

    def git(*args: str) -> str:
        return subprocess.run(["git", *args], cwd=here, capture_output=True, text=True, check=True).stdout.strip()

    try:
        return git("rev-parse", "--short=12", "HEAD") + (" and changes" if git("status", "--porcelain") else "")
    except (OSError, subprocess.CalledProcessError):
        return None
