"""A reported number beside ours."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import pandas as pd

from analyses.reproductions.filters import rows_where
from analyses.reproductions.recipe import PublishedValue, Recipe
from analyses.reproductions.tables import RecipeError
from analyses.running.models import PUBLISHED
from hooked_vit.loading.published import get

COLUMNS = [
    *("step", "analysis", "what", "model", "by", "at", "published", "reading", "value", "low", "high", "n"),
    *("difference", "agrees", "source"),
]


def rows_beside(
    where: str,
    told: PublishedValue,
    models: Iterable[str],
    frame: pd.DataFrame,
    *,
    called: Mapping[str, str] | None = None,
) -> Iterator[dict[str, Any]]:
    """A row per reported number of these models: published, ours with its interval, and whether they agree.

    `models` are the recipe's; `called` says what the frame calls them, where that is something else. `where` begins an
    error. Raises RecipeError where a row of ours is not there, or is not one.
    """
    where = f"{where}, {told.what}"
    for model in (m for m in models if m in told.values):
        ours = _asked(where, frame[frame["model"] == (called or {}).get(model, model)], told)
        for at, published in told.pairs(model):
            row = ours if told.by is None else ours[ours[told.by] == at]
            if told.by is not None and row.empty:
                continue  # another model, with fewer layers, was put in its place
            if len(row) != 1:
                place = "" if told.by is None else f" at {told.by} {at}"
                raise RecipeError(f"{where}: {told.rows!r} means {len(row)} rows of {model}{place}; it has to be one")
            found = row.iloc[0]
            # a number without an interval has none: it agrees where it is the published one
            low, high = (float(found[edge]) if edge in row else float("nan") for edge in ("low", "high"))
            ends = (float(found["value"]),) * 2 if pd.isna(low) or pd.isna(high) else (low, high)
            yield {
                "what": told.what,
                "model": model,
                "by": told.by,
                "at": at,
                "published": published,
                "reading": told.reading * (0.01 if told.percent else 1.0),
                "value": float(found["value"]),
                "low": low,
                "high": high,
                "n": found["n"] if "n" in row and pd.notna(found["n"]) else None,
                "difference": float(found["value"]) - published,
                "agrees": bool(ends[0] - _slack(told, published) <= published <= ends[1] + _slack(told, published)),
                "source": told.source,
            }


def _asked(where: str, frame: pd.DataFrame, told: PublishedValue) -> pd.DataFrame:
    try:
        found = rows_where(frame, told.rows)
    except (ValueError, LookupError, TypeError) as error:
        raise RecipeError(f"{where}: {told.rows!r} cannot be asked of the result: {error}") from error
    if told.by is not None and told.by not in found:
        raise RecipeError(f"{where}: the result has no column {told.by!r} that values could go along")
    return found


def _slack(told: PublishedValue, published: float) -> float:
    """What reading a number costs, as a share; what adding in binary costs is never a disagreement."""
    return told.reading * (0.01 if told.percent else 1.0) + 1e-9 * abs(published)


def published_beside(
    recipe: Recipe, analysis: str, frame: pd.DataFrame, checkpoints: Mapping[str, str], spec: str
) -> list[dict[str, Any]]:
    """What the recipe reports of an analysis, beside the rows of `frame`, where model and data are the recipe's.

    `checkpoints` are the frame's models by the checkpoint they came from, `spec` is what its data are. A recipe's model
    is matched by its name or by the checkpoint it stands for, its data by their kind, such as imagenet-s. Rows this
    frame cannot answer, being of other settings, are left out.
    """
    rows: list[dict[str, Any]] = []
    for step in recipe.steps:
        kinds = {recipe.data[name].spec.partition(":")[0] for name in step.data.values()}
        called = {
            ours: name
            for ours in step.models
            for name, checkpoint in checkpoints.items()
            if checkpoint in _checkpoints(recipe.models[ours].checkpoint)
        }
        if step.analysis != analysis or spec.partition(":")[0] not in kinds:
            continue
        for told in step.published:
            for model in called:
                try:
                    found = list(rows_beside(f"{recipe.name}, step {step.name}", told, [model], frame, called=called))
                except RecipeError:
                    continue
                rows += [{"step": step.name, "analysis": analysis, **row, "model": called[model]} for row in found]
    return rows


def _checkpoints(checkpoint: str) -> set[str]:
    """A checkpoint, and what a published model's name stands for."""
    if not checkpoint.startswith(PUBLISHED):
        return {checkpoint}
    name = checkpoint.removeprefix(PUBLISHED).partition("=")[0]
    return {checkpoint, name, *filter(None, [get(name).checkpoint])}
