"""Whether what a recipe reports and claims can mean anything, before anything runs."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from analyses.reproductions.entries import KINDS, READ_BY_EYE, Claim, PublishedValue, Side, Step
from analyses.reproductions.filters import parse_rows
from analyses.reproductions.tables import RecipeError


def check_value(where: str, value: PublishedValue, step: Step) -> None:
    """Raises RecipeError for values of a model that is not run, of another shape than `by` says, and no numbers."""
    _check_models(where, value.values, step, "values of")
    _check_source(where, value.kind)
    for model, told in value.values.items():
        several = isinstance(told, (Sequence, Mapping)) and not isinstance(told, str)
        if several != (value.by is not None):
            raise RecipeError(f"{where}: `values` of {model} are a list or a table if, and only if, there is a `by`")
        for number in _numbers(where, model, told) if several else [told]:
            if not (_is_number(number) or (several and number == "-")):
                raise RecipeError(f"{where}: {number!r} of {model} is no number, and no '-' for one not reported")
    if value.reading < 0 or (value.reading == 0 and value.kind in READ_BY_EYE):
        rule = "above 0 where it was read by eye, otherwise 0 or more"
        raise RecipeError(f"{where}: reading is how far off a number may be, {rule}; got {value.reading}")
    if value.points is not None and (value.points < 1 or value.by is None):
        raise RecipeError(f"{where}: points are those of a curve along `by`, at least 1; got {value.points}")
    _check_rows(where, value.rows)


def check_claim(where: str, claim: Claim, step: Step) -> None:
    """Raises RecipeError for a claim about a model that is not run, and for a side that selects nothing sensible."""
    _check_models(where, claim.models, step, "a claim about")
    _check_source(where, claim.kind)
    for side in _sides(claim):
        _check_rows(where, side.rows)
        _check_models(where, [side.model] if side.model else [], step, "a side of")
        if (side.by is None) != (not side.within):
            raise RecipeError(f"{where}: `within` are two shares of the depth along `by`; give both or none")
        if side.within and not (len(side.within) == 2 and 0 <= side.within[0] <= side.within[1] <= 1):
            raise RecipeError(f"{where}: `within` are two shares of the depth, 0 to 1; got {list(side.within)}")


def _sides(claim: Claim) -> Iterator[Side]:
    yield claim.more
    if claim.less is not None:
        yield claim.less


def _numbers(where: str, model: str, told: Any) -> list[Any]:
    """What is reported along `by`; keys of a table are layers."""
    if not isinstance(told, Mapping):
        return list(told)
    for key in told:
        try:
            int(key)
        except ValueError as error:
            raise RecipeError(f"{where}: {key!r} of {model} is no layer, a whole number") from error
    return list(told.values())


def _check_models(where: str, named: Any, step: Step, what: str) -> None:
    if strange := [model for model in named if model not in step.models]:
        raise RecipeError(f"{where}: {what} {', '.join(strange)}, which the step does not run")


def _check_source(where: str, kind: str) -> None:
    if kind not in KINDS:
        raise RecipeError(f"{where}: kind says what the source is: {', '.join(KINDS)}; got {kind!r}")


def _check_rows(where: str, rows: str) -> None:
    try:
        parse_rows(rows)
    except ValueError as error:
        raise RecipeError(f"{where}: {error}") from error


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
