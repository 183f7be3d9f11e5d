"""A reported number beside ours."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import pandas as pd

from analyses.reproductions.depth import placed
from analyses.reproductions.entries import KINDS, Claim, PublishedValue, Side
from analyses.reproductions.filters import rows_where
from analyses.reproductions.recipe import Recipe
from analyses.reproductions.tables import RecipeError
from analyses.running.models import PUBLISHED
from hooked_vit.loading.published import get

COLUMNS = [
    *("step", "analysis", "what", "model", "by", "at", "layers", "published", "reading", "value", "low", "high", "n"),
    *("difference", "agrees", "kind", "source"),
]
AS_GOOD_AS = 1e-9
NOTHING = {"value": 0.0, "low": 0.0, "high": 0.0}


class NoRowError(RecipeError):
    """A side of a claim that selects no row of ours."""


def rows_beside(
    where: str,
    told: PublishedValue,
    models: Iterable[str],
    frame: pd.DataFrame,
    *,
    called: Mapping[str, str] | None = None,
    depths: Mapping[str, tuple[int | None, int | None]] | None = None,
) -> Iterator[dict[str, Any]]:
    """A row per reported number of these models: published, ours with its interval, and whether they agree.

    `models` are the recipe's; `called` says what the frame calls them, where that is something else, and `depths` how
    many layers the published model has and ours (see `placed`). `at` is the published layer, or where it counts from
    the end ours, and `layers` are those of ours it is compared with. `where` begins an error.
    Raises RecipeError where a row of ours is not there, or is not one.
    """
    where = f"{where}, {told.what}"
    for model in (m for m in models if m in told.values):
        ours = _asked(where, frame[frame["model"] == (called or {}).get(model, model)], told.rows, told.by)
        pairs = told.pairs(model)
        theirs, depth = (depths or {}).get(model, (None, None))
        layers = placed([at for at, _ in pairs if at is not None], theirs, depth, points=told.points)
        if told.by is not None and theirs != depth:  # a stand-in: a layer may lie where there is nothing to measure
            measured = set(ours[told.by].dropna().astype(int))
            layers = {at: places for at, places in layers.items() if measured >= set(places)}
            if not layers:
                raise RecipeError(f"{where}: {told.rows!r} means no row of {model}, a stand-in of {depth} layers")
        for at, published in pairs:
            if at is not None and at not in layers:
                continue  # of a shallower model that was put in its place, another layer stands here
            places = [None] if at is None else layers[at]
            found = [_one(f"{where}: {told.rows!r}", ours, model, told.by, place) for place in places]
            value, low, high = (sum(one[edge] for one in found) / len(found) for edge in ("value", "low", "high"))
            # a number without an interval has none: it agrees where it is the published one
            least, most = (value, value) if pd.isna(low) or pd.isna(high) else (low, high)
            slack = _slack(told, published)
            shown = layers[at][0] if at is not None and at < 0 else at
            yield {
                "what": told.what,
                "model": model,
                "by": told.by,
                "at": shown,
                "layers": "" if at is None else ", ".join(map(str, layers[at])),
                "published": published,
                "reading": told.reading * (0.01 if told.percent else 1.0),
                "value": value,
                "low": low,
                "high": high,
                "n": found[0]["n"],
                "difference": value - published,
                "agrees": bool(least - slack <= published <= most + slack),
                "kind": KINDS[told.kind],
                "source": told.source,
            }


def claims_beside(where: str, claim: Claim, models: Iterable[str], frame: pd.DataFrame) -> Iterator[dict[str, Any]]:
    """A row per model of a claim: `difference` of its two sides, and whether it goes the way that was claimed.

    `low` and `high` are as far apart as the sides' intervals allow. `published` is missing: there was no number.
    Of a rare claim that cannot be asked all numbers are missing.
    Raises RecipeError where a side selects no row of ours, or several without `within`.
    """
    where = f"{where}, {claim.what}"
    for model in claim.about(models):
        try:
            more = _side(where, frame, claim.more, model)
            less = {**NOTHING, **({} if claim.less is None else _side(where, frame, claim.less, model))}
        except NoRowError:
            if not claim.rare:
                raise
            more, less = {**NOTHING, "value": float("nan"), "n": None}, NOTHING
        difference = more["value"] - less["value"]
        yield {
            "what": claim.what,
            "model": model,
            "by": None,
            "at": None,
            "layers": "",
            "published": float("nan"),
            "reading": float("nan"),
            "value": difference,
            "low": more["low"] - less["high"],
            "high": more["high"] - less["low"],
            "n": more["n"],
            "difference": difference,
            "agrees": bool(difference > AS_GOOD_AS),
            "kind": f"claim; {KINDS[claim.kind]}",
            "source": claim.source,
        }


def _asked(where: str, frame: pd.DataFrame, rows: str, by: str | None) -> pd.DataFrame:
    try:
        found = rows_where(frame, rows)
    except (ValueError, LookupError, TypeError) as error:
        raise RecipeError(f"{where}: {rows!r} cannot be asked of the result: {error}") from error
    if by is not None and by not in found:
        raise RecipeError(f"{where}: the result has no column {by!r} that values could go along")
    return found


def _one(where: str, rows: pd.DataFrame, model: str, by: str | None, at: int | None) -> dict[str, Any]:
    """The only row, with its interval; NaN where it has none."""
    row = rows if by is None or at is None else rows[rows[by] == at]
    if len(row) != 1:
        place = "" if by is None or at is None else f" at {by} {at}"
        raise RecipeError(f"{where} means {len(row)} rows of {model}{place}; it has to be one")
    found = row.iloc[0]
    edges = {edge: found[edge] if edge in row else float("nan") for edge in ("low", "high")}
    n = found["n"] if "n" in row and pd.notna(found["n"]) else None
    return {"value": float(found["value"]), **{edge: float(value) for edge, value in edges.items()}, "n": n}


def _side(where: str, frame: pd.DataFrame, side: Side, model: str) -> dict[str, Any]:
    """One side of a claim; of several layers the mean, of their intervals' ends too."""
    model = side.model or model
    frame = frame[frame["model"] == model]
    rows = _asked(where, frame, side.rows, side.by)
    if rows.empty:
        raise NoRowError(f"{where}: {side.rows!r} means no row of {model}")
    if side.by is None:
        return _one(f"{where}: {side.rows!r}", rows, model, None, None)
    along = rows[side.by].astype(float)
    low, high = (share * float(frame[side.by].max()) for share in side.within)
    places = sorted(set(along[(along >= low - AS_GOOD_AS) & (along <= high + AS_GOOD_AS)].astype(int)))
    if not places:
        raise NoRowError(f"{where}: {side.rows!r} has no row of {model} within {list(side.within)} of {side.by}")
    found = [_one(f"{where}: {side.rows!r}", rows, model, side.by, place) for place in places]
    mean = {edge: sum(one[edge] for one in found) / len(found) for edge in NOTHING}
    return {**mean, "n": found[0]["n"]}


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
