"""What do a model's tokens know of the image's class, where does it come from, and does it matter?

The whole study of class embedding space (Vilas et al., NeurIPS 2023; methods §7–23) on the same models and images: how
identifiable the class is in every token and block, which sub-layers and memories write it, what it takes from other
tokens, and whether explanations read off it are faithful. Each part is an analysis of its own, with the controls it has
there; here are their main numbers side by side, and below all their figures.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from analyses.activations.layers import said_layers
from analyses.data import ImageData
from analyses.data.sets import one_set
from analyses.questions.class_space.class_embedding.figure import figures_of_parts, overview_figure, overview_table
from analyses.reproductions.beside import published_beside
from analyses.reproductions.recipe import load_recipe
from analyses.running.catalogue import get_analysis
from analyses.running.notes import about_data, about_model
from analyses.running.registry import analysis
from analyses.running.results import Result
from hooked_vit import HookedViT
from hooked_vit.loading.progress import tqdm

DEFAULT_IMAGES = 300


@dataclass(frozen=True)
class Part:
    """An analysis of the study: which column its data need, whether it explains answers by what CLS
    attends to, and whether it needs a vector of every class."""

    column: str | None = None
    explains: bool = False
    vectors: bool = False


PARTS = {
    "class-projection": Part(),
    "residual-updates": Part(),
    "class-values": Part(vectors=True),
    "key-values": Part(vectors=True),
    "attention-knockouts": Part(),
    "context-tokens": Part(column="mask"),
    "token-removal": Part(column="mask"),
    "gradient-explanations": Part(explains=True),
    "perturbation-tests": Part(explains=True),
}


@analysis(figure=overview_figure, more_figures=figures_of_parts, zoo_models=("vit",))
def class_embedding(
    models: Mapping[str, HookedViT],
    data: ImageData | Any = None,
    *,
    parts: tuple[str, ...] = tuple(PARTS),
    layers: tuple[int, ...] | None = None,
    batch_size: int = 64,
    seed: int = 0,
    repro: bool = False,
) -> Result:
    """What do a model's tokens know of the image's class, where does it come from, and does it matter?

    >>> result = class_embedding({"vit": zoo.load("vit")})  # doctest: +SKIP
    >>> result.frame.query("study == 'class-projection' and measure == 'rate'")  # doctest: +SKIP
    >>> result.part("token-removal").figure()  # doctest: +SKIP

    The frame has the rows of every part, named in the column `study`; `result.part(name)` is the `Result` of one. Parts
    that need object masks are left out where the data has none, those that explain answers leave out models without
    CLS, and `notes` say so. `layers` are those measured in every part that has some to choose from, `repro` is the
    published code's setting in every part that knows one. `data` is 300 scenes:test by default.
    Where models and data are the paper's, and no layers are named, its values stand beside ours in `meta["published"]`
    and the report.
    Raises ValueError for an unknown part, and what the parts raise.
    """
    unknown = [name for name in parts if name not in PARTS]
    if unknown or not parts:
        raise ValueError(f"the study has the parts {', '.join(PARTS)}; got {', '.join(unknown) or 'none'}")
    data = one_set(data, n=DEFAULT_IMAGES)
    results: dict[str, Result] = {}
    notes: list[str] = []
    for name in tqdm(parts, desc="class embedding space", leave=False):
        part = PARTS[name]
        if part.column is not None and part.column not in data.columns:
            notes.append(f"{name}: left out, as {data.name} has no column {part.column!r}.")
            continue
        lacks = {m: why for m, model in models.items() if (why := _lacks(part, model))}
        chosen = {m: model for m, model in models.items() if m not in lacks}
        notes += [f"{name}: without {m}, which has {why}." for m, why in lacks.items()]
        if chosen:
            settings = {"layers": layers, "batch_size": batch_size, "seed": seed, "repro": repro}
            results[name] = _run(name, chosen, data, settings)
            if layers is not None and "layers" not in _takes(name):
                notes.append(f"{name}: has no layers to choose from, and is of all of them.")
    meta: dict[str, Any] = {
        "models": {name: _about(name, model, results) for name, model in models.items()},
        "data": about_data(data),
        "seeds": [seed],
        "batch_size": batch_size,
        "repro": repro,
    }
    result = Result.joined(results, meta)
    result.meta["table"] = overview_table(result)
    result.meta["published"] = [] if layers is not None else _published(results, models, data)
    result.meta["summary"] = [sentence for part in results.values() for sentence in part.meta.get("summary", [])]
    said = said_layers({"layers": layers})  # once for all parts
    of_parts = [(name, note) for name, part in results.items() for note in part.meta.get("notes", [])]
    notes += [f"{name}: {note}" for name, note in of_parts if note not in said]
    result.meta["notes"] = list(dict.fromkeys(notes))
    return result


def _about(name: str, model: HookedViT, results: Mapping[str, Result]) -> dict[str, Any]:
    """The model as the parts had it: with the head that answered."""
    told = (part.meta["models"][name] for part in results.values() if name in part.meta["models"])
    return next(told, None) or about_model(model)


def _lacks(part: Part, model: HookedViT) -> str | None:
    """What a part needs that a model has not."""
    if part.vectors and not model.cfg.is_linear_readout:
        return "no vector per class: its readout is no sum over tokens"
    return "no CLS token" if part.explains and not model.cfg.has_cls else None


def _published(results: Mapping[str, Result], models: Mapping[str, HookedViT], data: ImageData) -> list[dict[str, Any]]:
    """What the paper reports of these models on these data, beside what came out; its settings are those of `repro`."""
    recipe = load_recipe("class-embedding")
    checkpoints = {name: model.cfg.name or "" for name, model in models.items()}
    return [
        row
        for name, result in results.items()
        for row in published_beside(recipe, name, result.frame, checkpoints, data.spec)
    ]


def _run(name: str, models: Mapping[str, HookedViT], data: ImageData, settings: Mapping[str, Any]) -> Result:
    """One part, told what it takes of the study's settings."""
    takes = _takes(name)
    return get_analysis(name)(models, data, **{key: value for key, value in settings.items() if key in takes})


def _takes(name: str) -> Mapping[str, Any]:
    return inspect.signature(get_analysis(name).run).parameters
