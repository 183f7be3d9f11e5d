"""Everything a recipe compares, with where it was reported: a line per number and per claim."""

from __future__ import annotations

from collections.abc import Iterator

from analyses.reproductions.entries import KINDS
from analyses.reproductions.recipe import Recipe


def reported(recipe: Recipe) -> Iterator[tuple[str, str, str, str, str, str]]:
    """(step, what, model, at, published, source) of every compared number, as text, then of every claim.

    >>> from analyses.reproductions.recipe import load_recipe
    >>> next(reported(load_recipe("stand-in")))
    ('shuffle', 'Accuracy, nothing changed', 'vit', '', '0.985 ± 0.005', 'this repository (this repository)')

    A layer below 0 counts from the end. Models a recipe was told to leave out have no line.
    """
    for step in recipe.steps:
        for value in step.published:
            source = f"{value.source} ({KINDS[value.kind]})"
            for model in (m for m in step.models if m in value.values):
                for at, number in value.pairs(model):
                    where = "" if at is None else f"{value.by} {at}"
                    yield step.name, value.what, model, where, _shown(number, value.reading, value.percent), source
        for claim in step.claims:
            for model in claim.about(step.models):
                yield step.name, claim.what, model, "", "a claim", f"{claim.source} ({KINDS[claim.kind]})"


def _shown(number: float, reading: float, percent: bool) -> str:
    """A number as a share, and where it was read off a figure by how much it may be off."""
    slack = reading * (0.01 if percent else 1.0)
    return f"{number:.6g}" + (f" ± {slack:.3g}" if slack >= 0.001 else "")
