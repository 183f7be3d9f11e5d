"""What a step runs on, loaded as its recipe says, and whether the step would begin."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from analyses.data import ImageData, load_data
from analyses.reproductions.entries import ModelEntry, Step
from analyses.reproductions.recipe import Recipe
from analyses.running.catalogue import get_analysis
from analyses.running.models import load_model, locate
from hooked_vit import HookedViT
from hooked_vit.config.showing import counted
from hooked_vit.loading.described import config_json

STREAMED = "hf"


class _BegunError(Exception):
    """An analysis has refused nothing and is about to run a model."""


def load_entry(entry: ModelEntry, *, class_names: Sequence[str] | None = None, **how: Any) -> HookedViT:
    """The model of a recipe, with those `settings` of the study that its checkpoint's own config has otherwise.

    `class_names` are the classes of a model that answers in prompts; `how` it computes, and what is raised, as in
    `load_model`.
    """
    place = locate(entry.checkpoint)
    told = config_json(place) if entry.settings and not Path(place).is_file() else {}
    settings = {name: value for name, value in entry.settings.items() if told.get(name) != value}
    return load_model(entry.checkpoint, class_names=class_names, **how, **settings)


def load_step(
    recipe: Recipe, step: Step, device: str = "cpu"
) -> tuple[dict[str, HookedViT], dict[str, ImageData], dict[str, Any]]:
    """Models by name, images by parameter and the options of a step, as its analysis takes them."""
    images = {
        parameter: load_data(recipe.data[name].spec, recipe.data[name].n, seed=recipe.data[name].seed)
        for parameter, name in step.data.items()
    }
    how: dict[str, Any] = {"device": device, "dtype": recipe.dtype, "image_size": recipe.image_size}
    how |= {"class_names": images["data"].class_names}
    models = {name: load_entry(recipe.models[name], **how) for name in step.models}
    options = {name: tuple(value) if isinstance(value, list) else value for name, value in step.options.items()}
    return models, images, options


def obstacles(recipe: Recipe) -> Iterator[str]:
    """Why steps cannot run, one sentence each; of what is there, up to where a first image would go through a model.

    >>> list(obstacles(load_recipe("stand-in")))  # doctest: +SKIP
    []

    Published layers that a model has not, and whatever an analysis refuses before it begins: layers, roles and heads
    that are not there, images without masks or pairs, labels nobody knows. Steps on images that are streamed from the
    hub are not tried.
    """
    for step in recipe.steps:
        if any(recipe.data[name].spec.partition(":")[0] == STREAMED for name in step.data.values()):
            continue
        try:
            models, images, options = load_step(recipe, step)
            _begin(step, models, images, options)
        except (ValueError, TypeError, LookupError, OSError) as error:
            yield f"step {step.name}: {error}"
            continue
        for name, model in models.items():
            yield from (f"step {step.name}: {why}" for why in _too_deep(step, name, model.cfg.n_layers))


def _begin(step: Step, models: dict[str, HookedViT], images: dict[str, ImageData], options: dict[str, Any]) -> None:
    """Call the analysis until it gives a model its first images; raises what it refuses. The models are used up."""

    def stop(images: Any) -> None:
        raise _BegunError

    for model in models.values():
        model.preprocess = stop  # type: ignore[method-assign,assignment]
    with suppress(_BegunError):
        get_analysis(step.analysis).run(models, images.pop("data"), **images, **options)


def _too_deep(step: Step, name: str, n_layers: int) -> Iterator[str]:
    """Values reported so many layers from the end that this model has no such layer."""
    for value in (v for v in step.published if name in v.values):
        deep = -min((at for at, _ in value.pairs(name) if at is not None), default=0)
        if deep > n_layers:
            yield f"{value.what}: {name} has {counted(n_layers, 'layer')}, and values are of the last {deep}"
