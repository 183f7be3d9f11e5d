"""What a recipe needs and this machine lacks, all of it and at once, before anything is run."""

from __future__ import annotations

import os
from pathlib import Path

from analyses.reproductions.recipe import Recipe
from analyses.running.models import ZOO, check_model, locate
from hooked_vit.errors import CheckpointError, UnsupportedModelError
from hooked_vit.loading.hub import is_cached, on_hub


def missing(recipe: Recipe) -> list[str]:
    """One sentence for each model and data set that cannot be had, and how to give it; quick, and nothing is loaded.

    >>> from analyses.reproductions.recipe import load_recipe
    >>> missing(load_recipe("stand-in"))
    []
    """
    lacking = []
    for name, entry in recipe.models.items():
        if why := _model(entry.checkpoint):
            lacking.append(f"model {name} ({entry.checkpoint}): {why}. A local copy: --model {name}=PATH")
    for name, images in recipe.data.items():
        if why := _data(images.spec):
            lacking.append(
                f"data {name} ({images.spec}): {why}. A local copy: --data {name}={_local(images.spec)}:PATH"
            )
    return lacking


def _model(spec: str) -> str | None:
    try:
        place = locate(spec)
    except UnsupportedModelError as error:
        return str(error)
    if spec.startswith(ZOO) or Path(place).exists():
        try:
            check_model(spec)
        except (UnsupportedModelError, CheckpointError) as error:
            return str(error)
        return None
    return None if is_cached(place) else on_hub(place, "model")


def _local(spec: str) -> str:
    scheme = spec.partition(":")[0]
    return "imagefolder" if scheme == "hf" else scheme


def _data(spec: str) -> str | None:
    scheme, _, rest = spec.partition(":")
    if scheme == "scenes":
        return None
    if scheme == "hf":
        return on_hub(rest.partition(":")[0], "dataset")
    path = Path(os.path.expanduser(rest))
    if "*" not in rest and not path.exists():
        return f"there is no {path}"
    return None
