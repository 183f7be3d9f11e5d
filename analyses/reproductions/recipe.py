"""What a recipe says, checked as far as it can be without running anything."""

from __future__ import annotations

import inspect
import os
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.resources import files
from pathlib import Path
from typing import Any

from analyses.reproductions.checks import check_claim, check_value
from analyses.reproductions.entries import Claim, DataEntry, ModelEntry, PublishedValue, Side, Step
from analyses.reproductions.tables import RecipeError, listed, made, table
from analyses.running.arguments import PLACES, check_options, former_names
from analyses.running.catalogue import get_analysis
from analyses.running.models import PUBLISHED, ZOO
from analyses.running.text import check_component, check_seen
from hooked_vit.config.showing import counted
from hooked_vit.errors import nearest

FOLDER = "recipes"
OF_THE_RESULT = ("report.html", "result.parquet", "result.json")


@dataclass(frozen=True)
class Recipe:
    """A published experiment. `not_reproduced` says what of it is left out, and why; `changes`, what was put in place
    of the recipe's own models, data and numbers of images. `dtype` and `image_size` are those of `load_model`.
    """

    name: str
    title: str
    source: str
    models: Mapping[str, ModelEntry]
    data: Mapping[str, DataEntry]
    steps: tuple[Step, ...]
    about: str = ""
    not_reproduced: tuple[str, ...] = ()
    changes: tuple[str, ...] = ()
    dtype: str = "float32"
    image_size: int | None = None

    def changed(
        self,
        *,
        models: Mapping[str, str] | None = None,
        data: Mapping[str, str] | None = None,
        n: int | None = None,
        steps: Sequence[str] = (),
        without: Sequence[str] = (),
        dtype: str | None = None,
        image_size: int | None = None,
    ) -> Recipe:
        """The same with other checkpoints or data, at most `n` images of each, only some steps, without some models,
        computed in another dtype, or on images of another size.

        Raises ValueError for a name the recipe has not, and where nothing is left.
        """
        for kind, asked, known in (
            ("model", [*(models or ()), *without], self.models),
            ("data", list(data or ()), self.data),
            ("step", list(steps), [step.name for step in self.steps]),
        ):
            if strange := next((name for name in asked if name not in known), None):
                raise ValueError(f"{self.name} has no {kind} {strange!r}{nearest(strange, known)}; {', '.join(known)}")
        kept = {
            name: replace(entry, checkpoint=_instead(entry.checkpoint, (models or {}).get(name)))
            for name, entry in self.models.items()
            if name not in without
        }
        images = {
            name: replace(
                entry,
                spec=(data or {}).get(name, entry.spec),
                n=entry.n if n is None else min(n, entry.n or n),
            )
            for name, entry in self.data.items()
        }
        left = [
            replace(step, models=tuple(m for m in step.models if m in kept))
            for step in self.steps
            if not steps or step.name in steps
        ]
        left = [step for step in left if step.models]
        if not left:
            raise ValueError(f"nothing of {self.name} is left to run")
        used = {m for step in left for m in step.models}
        needed = {d for step in left for d in step.data.values()}
        kept = {name: entry for name, entry in kept.items() if name in used}
        images = {name: entry for name, entry in images.items() if name in needed}
        changes = [
            *(f"{m} is {kept[m].checkpoint}" for m in kept if kept[m].checkpoint != self.models[m].checkpoint),
            *(f"{d} is {images[d].spec}" for d in images if images[d].spec != self.data[d].spec),
            *(f"of {d} only {counted(images[d].n or 0, 'image')}" for d in images if images[d].n != self.data[d].n),
            *([f"models compute in {dtype}"] if dtype not in (None, self.dtype) else []),
            *([f"images are {image_size} × {image_size} pixels"] if image_size is not None else []),
        ]
        said: dict[str, Any] = {
            "models": kept,
            "data": images,
            "steps": tuple(left),
            "changes": (*self.changes, *changes),
        }
        return replace(self, **said, dtype=dtype or self.dtype, image_size=image_size or self.image_size)


def _instead(checkpoint: str, given: str | None) -> str:
    """What is given in place of a checkpoint: for a published model, its weights, which are then used as it says."""
    if given is None:
        return checkpoint
    weights = checkpoint.startswith(PUBLISHED) and not given.startswith((PUBLISHED, ZOO))
    return f"{checkpoint.partition('=')[0]}={given}" if weights else given


def names() -> list[str]:
    """The published experiments there are recipes of.

    >>> "cls-not-used" in names()
    True
    """
    folder = files(__package__).joinpath(FOLDER)
    return sorted(entry.name.removesuffix(".toml") for entry in folder.iterdir() if entry.name.endswith(".toml"))


def load_recipe(name: str) -> Recipe:
    """A recipe by name, or the path of a .toml file.

    >>> [step.analysis for step in load_recipe("cls-not-used").steps]
    ['cls-causality', 'lenses']

    Raises LookupError for a name there is not, FileNotFoundError for a file, RecipeError for what it says.
    """
    if name.endswith(".toml"):
        path = Path(os.path.expanduser(name))
        if not path.is_file():
            raise FileNotFoundError(f"there is no recipe {name}")
        text, name = _read(path), check_component(path.stem, "a recipe's name")
    elif name in names():
        text = files(__package__).joinpath(FOLDER, f"{name}.toml").read_text(encoding="utf-8")
    else:
        raise LookupError(
            f"there is no recipe {name!r}{nearest(name, names())}; there are {', '.join(names())}, or a file of your "
            "own that ends in .toml"
        )
    try:
        told = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError, ValueError) as error:  # deep brackets, numbers of 5,000 digits
        raise RecipeError(f"{name}: no TOML: {error}") from error
    return _recipe(name, told)


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise RecipeError(f"{path.name}: no TOML, which is UTF-8: {error}") from error


def _recipe(name: str, told: dict[str, Any]) -> Recipe:
    models, data = (table(f"{name}, {key}", told.pop(key, {})) for key in ("models", "data"))
    models = {key: made(ModelEntry, f"{name}, model {key}", entry) for key, entry in models.items()}
    data = {key: made(DataEntry, f"{name}, data {key}", entry) for key, entry in data.items()}
    steps = []
    for number, entry in enumerate(listed(f"{name}, steps", told.pop("steps", []))):
        entry = table(f"{name}, step {number}", entry)
        where = f"{name}, step {entry.get('name', '?')}"
        published = [
            made(PublishedValue, where, value) for value in listed(f"{where}, published", entry.pop("published", []))
        ]
        claims = [_claim(where, value) for value in listed(f"{where}, claims", entry.pop("claims", []))]
        run = listed(f"{where}, models", entry.pop("models", list(models)))
        told_of = {"published": tuple(published), "claims": tuple(claims)}
        steps.append(made(Step, where, {**entry, "models": run, **told_of}))
    left_out = listed(f"{name}, not_reproduced", told.pop("not_reproduced", []))
    told |= {"name": name, "not_reproduced": left_out, "models": models, "data": data, "steps": tuple(steps)}
    recipe = made(Recipe, name, told)
    check(recipe)
    return recipe


def _claim(where: str, entry: Any) -> Claim:
    entry = table(f"{where}, claims", entry)
    for side in ("more", "less"):
        if side in entry:
            told = table(f"{where}, {side}", entry[side])
            told["within"] = listed(f"{where}, within", told.get("within", []))
            entry[side] = made(Side, f"{where}, {side}", told)
    entry["models"] = listed(f"{where}, models of a claim", entry.get("models", []))
    return made(Claim, where, entry)


def check(recipe: Recipe) -> None:
    """Make sure that every step is a call that its analysis can take, and that what it names exists.

    Raises RecipeError.
    """
    _check_names(recipe)
    for name, model in recipe.models.items():
        if model.layers is not None and model.layers < 1:
            raise RecipeError(f"{recipe.name}, model {name}: layers are how many it has, at least 1")
    for name, drawn in recipe.data.items():
        if drawn.seed < 0 or (drawn.n is not None and drawn.n < 1):
            raise RecipeError(f"{recipe.name}, data {name}: n is at least 1 and seed at least 0")
    for step in recipe.steps:
        where = f"{recipe.name}, step {step.name}"
        try:
            entry = get_analysis(step.analysis)
            check_options(entry.run, step.options)
        except (LookupError, ValueError, TypeError) as error:
            raise RecipeError(f"{where}: {error}") from error
        if not entry.is_command:
            raise RecipeError(f"{where}: {entry.name} takes tensors, not data")
        takes = inspect.signature(entry.run).parameters
        images = [name for name in takes if name == "data" or name.endswith("_data")]
        for kind, named, known in (
            ("data of its analysis", step.data, [*images, *former_names(entry.run)]),
            ("option of its analysis", step.options, [name for name in list(takes)[2:] if name not in images]),
            ("model of the recipe", step.models, recipe.models),
            ("data of the recipe", step.data.values(), recipe.data),
        ):
            if strange := [name for name in named if name not in known]:
                raise RecipeError(
                    f"{where}: no {kind} is called {strange[0]!r}{nearest(strange[0], known)}; {', '.join(known)}"
                )
        if written := [name for name in step.options if name in PLACES]:
            raise RecipeError(f"{where}: {written[0]} says where files go, which is for --out to say; leave it out")
        if "data" not in step.data:
            raise RecipeError(f"{where}: data = {{ data = … }} says what is measured on")
        for value in step.published:
            check_value(f"{where}, {value.what}", value, step)
        for claim in step.claims:
            check_claim(f"{where}, {claim.what}", claim, step)


def _check_names(recipe: Recipe) -> None:
    """Steps become folders, whose names some disks do not tell apart by case; models stand in tables and figures."""
    steps = [step.name for step in recipe.steps]
    if len({name.casefold() for name in steps}) < len(steps) or not steps:
        raise RecipeError(f"{recipe.name}: steps have names of their own, and there is one at least")
    try:
        for name in steps:
            check_component(name, "a step's name")
        for name in (*recipe.models, *recipe.data):
            check_seen(name, "the name of a model or of data")
    except ValueError as error:
        raise RecipeError(f"{recipe.name}: {error}") from error
    if taken := [name for name in steps if name.casefold() in OF_THE_RESULT]:
        raise RecipeError(f"{recipe.name}: a step cannot be called {taken[0]}, as a file of the result is")
