"""The small runs whose figures the gallery shows: each is the command that stands below its figure, run here.

Results are kept in `out/gallery` and shown again only while no source file of the three packages has changed.
"""

from __future__ import annotations

import hashlib
import inspect
import shutil
from collections.abc import Mapping
from functools import cache
from inspect import Parameter
from pathlib import Path
from typing import Any

from analyses.running.catalogue import Analysis, get_analysis
from site_pages import ROOT

IMAGES = 128
PAIRS = 24
SMALL: Mapping[str, Any] = {
    **{"seeds": 1, "random_models": 1, "permutations": 2, "n_permutations": 199, "n_shuffles": 199, "points": 6},
    **{"draws": 2, "bands": 6, "steps": 100, "permuted_heads": 2, "memories": 3, "images": 3, "max_pairs": 24},
}
"""Options that make any analysis short, where it has them."""

OWN: Mapping[str, Mapping[str, Any]] = {
    "aligned-subspace": {"layer": 5, "dims": (1, 4, 16), "steps": 60},
    "attribution-patching": {"steps": 4},
    "circuit-discovery": {"steps": 3, "exact": 16},
    "class-embedding": {"parts": ("class-projection", "residual-updates", "class-values", "key-values")},
    "perturbation-tests": {"orders": ("attention_last", "gradient")},
    "random-readouts": {"layers": (3, 5, 7)},
    "sparse-features": {},
}
"""Settings of one analysis, beside those of all; what has none here is run as SMALL says."""

FEWER = {"head-ablation": 32, "perturbation-tests": 32}
MODELS = {"cls-causality": ("zoo:vit", "zoo:deit", "zoo:beit", "zoo:dinov2", "zoo:clip")}


def options(entry: Analysis) -> dict[str, Any]:
    """The options an analysis is run with here."""
    takes = inspect.signature(entry.run).parameters
    short = {
        name: value for name, value in SMALL.items() if name in takes and takes[name].default is not Parameter.empty
    }
    return short | dict(OWN.get(entry.name, {}))


def models(entry: Analysis) -> tuple[str, ...]:
    """The built-in models that are asked: one that was trained for what the analysis is about."""
    return MODELS.get(entry.name) or (("zoo:vit",) if entry.zoo_target == "label" else ("zoo:vit-count",))


def n_images(entry: Analysis) -> int:
    """How many scenes it is measured on."""
    return FEWER.get(entry.name, IMAGES) if entry.is_command else 2 * PAIRS


def command(entry: Analysis) -> str:
    """What a reader types, or calls, to see the figure."""
    if not entry.is_command:
        return _python(entry)
    words = ["hooked-vit run", entry.name, "--model", *models(entry), "--n", str(n_images(entry))]
    for name, value in options(entry).items():
        values = value if isinstance(value, tuple) else (value,)
        words += [f"--{name.replace('_', '-')}", *map(str, values)]
    return " ".join(words)


def figure(entry: Analysis) -> str | None:
    """The figure as plotly's JSON, None for an analysis that draws none."""
    from analyses.running.results import Result

    folder = ROOT / "out" / "gallery" / entry.name
    said = folder / "source.txt"
    stamp = f"{_source()} {command(entry)}"
    if not (said.is_file() and said.read_text(encoding="utf-8") == stamp):
        shutil.rmtree(folder, ignore_errors=True)
        _run(entry).save(folder)
        said.write_text(stamp, encoding="utf-8")
    try:
        return str(Result.load(folder).figure().to_json())
    except LookupError as error:
        if isinstance(error, (KeyError, IndexError)):  # a bug in the drawing
            raise
        return None


def _run(entry: Analysis) -> Any:
    from analyses.data import load_data
    from analyses.questions.patching.path_patching import Receiver
    from analyses.running.models import load_models

    asked = load_models(list(models(entry)))
    if entry.is_command:
        return entry.run(asked, load_data("scenes:test", n_images(entry), seed=0), **options(entry))
    (model,) = asked.values()
    batch = next(load_data("scenes:test", 2 * PAIRS, seed=0).batches(2 * PAIRS))
    pixels = model.preprocess(batch.images)
    if "corrupt" in (takes := inspect.signature(entry.run).parameters):
        receiver = {"receiver": Receiver("logits")} if "receiver" in takes else {}
        return entry.run(model, pixels[:PAIRS], pixels[PAIRS:], **receiver, **options(entry))
    return entry.run(model, pixels, classes=batch.labels, **options(entry))


def _python(entry: Analysis) -> str:
    """The same in Python, for an analysis that takes tensors."""
    takes = inspect.signature(entry.run).parameters
    receiver = "receiver" in takes
    given = ', receiver=Receiver("logits")' * receiver
    given += "".join(f", {name}={value!r}" for name, value in options(entry).items())
    images = f"pixels[:{PAIRS}], pixels[{PAIRS}:]" if "corrupt" in takes else "pixels, classes=batch.labels"
    function = entry.run.__name__
    return "\n".join(
        [
            f"from analyses import {function}, load_data",
            *(["from analyses.questions.patching.path_patching import Receiver"] * receiver),
            "from hooked_vit import zoo",
            "",
            f'model = zoo.load("{models(entry)[0].removeprefix("zoo:")}")',
            f'batch = next(load_data("scenes:test", n={2 * PAIRS}).batches({2 * PAIRS}))',
            "pixels = model.preprocess(batch.images)",
            f"result = {function}(model, {images}{given})",
            "result.figure()",
        ]
    )


@cache
def _source() -> str:
    """A fingerprint of everything that could change a figure."""
    files = sorted(
        path
        for package in ("hooked_vit", "interventions", "analyses")
        for path in Path(ROOT / package).rglob("*")
        if path.suffix in (".py", ".json", ".toml", ".safetensors")
    )
    sums = hashlib.sha256()
    for path in files:
        sums.update(path.relative_to(ROOT).as_posix().encode() + b"\0" + path.read_bytes())
    return sums.hexdigest()


def check(name: str) -> None:
    """Raises TypeError where an analysis does not take what it would be run with here."""
    entry = get_analysis(name)
    takes = inspect.signature(entry.run).parameters
    if unknown := [option for option in options(entry) if option not in takes]:
        raise TypeError(f"site_pages/runs.py gives {name} {', '.join(unknown)}, which it does not take")
