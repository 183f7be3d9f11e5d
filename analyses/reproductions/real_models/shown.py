"""What a table of the page is, and the conditions that several tables share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from analyses.running.results import Result


@dataclass(frozen=True)
class Published:
    """A published value of a recipe: its `what`, and the model it is of."""

    recipe: str
    what: str
    model: str


@dataclass(frozen=True)
class Table:
    """`columns` are conditions on the result's frame (or on its `part`) by heading; rows that agree in `down` share a
    line, and where there is no `down`, a column is a line. Of lines `most` are shown, those of the largest values in
    the first column. `published` stands beside them, by heading.
    """

    caption: str
    columns: Mapping[str, str]
    down: tuple[str, ...] = ()
    most: int | None = None
    part: str | None = None
    published: Mapping[str, Published] = field(default_factory=dict)


@dataclass(frozen=True)
class Shown:
    """What a reader is told of a run: the question, the claim with its source, the tables, and what `found` says of
    the claim, asked of the result.
    """

    title: str
    claim: str
    tables: tuple[Table, ...]
    found: Callable[[Result], list[str]] = lambda result: []


def heads(effect: str) -> dict[str, str]:
    """What taking out one head costs the margin, by the way it is taken out."""
    rows = "measure == 'drop' and part == 'head' and effect == '{}' and way == '{}'"
    return {f"{way}, {effect}": rows.format(effect, way) for way in ("mean", "zero", "resample")}


def together(way: str) -> dict[str, str]:
    """Heads taken out together, in the order found and at random."""
    rows = "measure == 'together_drop' and way == '{}' and order == '{}'"
    return {f"{order} heads, {way}": rows.format(way, order) for order in ("ranked", "random")}


def replaced(measure: str, token: str) -> dict[str, str]:
    """A token replaced, by what is put in its place."""
    rows = "measure == '{}' and token == '{}' and replaced == '{}'"
    return {how: rows.format(measure, token, how) for how in ("zero", "mean", "noise", "shuffle")}


def variants(measure: str) -> dict[str, str]:
    """With neurons moved, and the controls."""
    told = ("untouched", "register neurons", "random neurons", "empty token", "switched off")
    return {variant: f"measure == '{measure}' and variant == '{variant}'" for variant in told}


def reading(measure: str, role: str) -> str:
    """A measure of the probes of one role."""
    return f"measure == '{measure}' and role == '{role}'"


def lens(measure: str, *readers: str) -> dict[str, str]:
    """A measure of several readers."""
    return {reader.replace("_", " "): f"measure == '{measure}' and reader == '{reader}'" for reader in readers}


def arm(mode: str) -> str:
    """What a closed form reads on test images."""
    return f"measure == 'accuracy' and split == 'test' and mode == '{mode}'"


NOTE_1, NOTE_2 = "cls-not-used", "multiple-readouts"
RESTORED = "measure == 'restoration' and probe_layer == "
RESTORATION = Table(
    "Restoration, (read − floor) / (clean − floor): 0 is another image's CLS, 1 is no exchange.",
    {
        "one block later": f"{RESTORED}shuffled_layer + 1",
        "three blocks later": f"{RESTORED}shuffled_layer + 3",
        "behind the last block": f"{RESTORED}probe_layer.max()",
    },
    ("shuffled_layer",),
)
CLEAN_AND_FLOOR = Table(
    "What the probes read: nothing exchanged, and the control, a probe that reads another image's CLS.",
    {
        "nothing exchanged": "measure == 'accuracy' and shuffled_layer.isna()",
        "exchanged one block before": "measure == 'accuracy' and shuffled_layer == probe_layer - 1",
        "another image's CLS": "measure == 'accuracy' and shuffled_layer == probe_layer",
    },
    ("probe_layer",),
)
AS_PUBLISHED = {
    "published, nothing exchanged": Published(NOTE_2, "Accuracy of the probe, nothing exchanged", "vit"),
    "published, one block before": Published(NOTE_2, "Accuracy one layer behind the exchange", "vit"),
}
