"""The parts of a recipe: models, images, steps, the values that were reported and the claims that were made."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

KINDS = {
    "table": "paper, table",
    "text": "paper, text",
    "figure": "paper, figure read by eye",
    "notebook": "author's notebook output",
    "notebook-figure": "author's notebook, figure read by eye",
    "page": "author's web page",
    "note": "lab note, text",
    "note-figure": "lab note, figure read by eye",
    "own": "this repository",
}
"""What the source of a reported value is, as a recipe writes it and as it is shown."""

READ_BY_EYE = ("figure", "notebook-figure", "note-figure")


@dataclass(frozen=True)
class ModelEntry:
    """A model: where its checkpoint is, and what should be kept in mind when its numbers are compared.

    `layers` is how many the published model has, which places its layers in a stand-in of another depth. `settings` are
    entries of the checkpoint's config that were changed for the study.
    """

    checkpoint: str
    layers: int | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    note: str = ""


@dataclass(frozen=True)
class DataEntry:
    """Images: a data specification, how many of them, drawn with which seed."""

    spec: str
    n: int | None = None
    seed: int = 0
    note: str = ""


@dataclass(frozen=True)
class PublishedValue:
    """A reported number, or several along `by`, and which rows of our result they are compared with.

    `rows` are conditions (see `parse_rows`) on a model's part of the result's frame that leave one row (one per value
    of `by`). `values` are by model: a number, or along `by` a list beginning at layer `first`, or a table layer →
    number; a layer below 0 counts from the end. `points` says that a curve has this many points whatever the depth,
    each the mean of equally many layers. `kind` is one of KINDS. `reading` is by how much a value may be wrong: one
    read by eye by what can be seen, a printed one by half of its last digit. `percent` says that values and reading
    are in percent.
    """

    what: str
    rows: str
    values: Mapping[str, Any]
    source: str
    kind: str
    by: str | None = None
    first: int = 0
    points: int | None = None
    reading: float = 0.0
    percent: bool = False
    note: str = ""

    def pairs(self, model: str) -> list[tuple[int | None, float]]:
        """(value of `by` or None, published value as a share) of a model; a dash in the list was not reported."""
        told = self.values[model]
        scale = 0.01 if self.percent else 1.0
        if self.by is None:
            return [(None, told * scale)]
        along = told.items() if isinstance(told, Mapping) else enumerate(told, self.first)
        return [(int(at), value * scale) for at, value in along if not isinstance(value, str)]


@dataclass(frozen=True)
class Side:
    """One side of a claim: `rows` that leave one row, or the mean of those `within` two shares of the depth along `by`,
    where 0 is the first layer and 1 the last. Of another `model` of the step, where one is named.
    """

    rows: str
    by: str | None = None
    within: tuple[int | float, ...] = ()
    model: str | None = None


@dataclass(frozen=True)
class Claim:
    """What was said without a number: that one thing of our result is `more` than another, or than nothing.

    Of the models in `models`, by default all of the step. `rare` says that the result has such rows only where there
    was enough to measure; without them nothing can be told, which is no error.
    """

    what: str
    more: Side
    source: str
    kind: str
    less: Side | None = None
    models: tuple[str, ...] = ()
    rare: bool = False
    note: str = ""

    def about(self, run: Iterable[str]) -> list[str]:
        """Those of the models that are run which it can be asked of."""
        run = tuple(run)
        beside = [side.model for side in (self.more, self.less) if side is not None and side.model is not None]
        return [m for m in run if (not self.models or m in self.models) and all(b in run for b in beside)]


@dataclass(frozen=True)
class Step:
    """One run of an analysis on some of the models, what was published about it and what was claimed."""

    name: str
    analysis: str
    models: tuple[str, ...]
    data: Mapping[str, str]
    options: Mapping[str, Any] = field(default_factory=dict)
    published: tuple[PublishedValue, ...] = ()
    claims: tuple[Claim, ...] = ()
    note: str = ""
