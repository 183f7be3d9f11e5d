"""docs/real_models.md: what came out on one real checkpoint, written from the saved results and nothing else."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from analyses.reproductions.filters import rows_where
from analyses.reproductions.real_models.measuring import MEASURED
from analyses.reproductions.real_models.runs import RUNS, Run, saved_in
from analyses.reproductions.real_models.shown import Published, Shown, Table
from analyses.reproductions.real_models.tables import SHOWN
from analyses.reproductions.recipe import load_recipe
from analyses.running.files import write_whole
from analyses.running.results import Result
from hooked_vit.config.showing import counted

NOT_TRIED = ("Other checkpoints: CLIP and SigLIP with their texts, models with trained registers.",)


def write_page(folder: Path, to: Path) -> Path:
    """Write the page of the results saved in `folder`, one folder per run. Returns `to`.

    Raises FileNotFoundError for a folder without any, ValueError for results that were not measured here or are of
    different weights.
    """
    text = page(saved_in(folder))
    write_whole(to, lambda part: part.write_text(text, encoding="utf-8"))
    return to


def page(found: Mapping[str, Result]) -> str:
    """The page, as `write_page` writes it, of results by the name of their run."""
    if strange := next((name for name, result in found.items() if MEASURED not in result.meta), None):
        raise ValueError(f"{strange} does not say what it cost and what it is of: save it with `run`")
    measured = [result.meta[MEASURED] for result in found.values()]
    of = {(m["checkpoint"]["weights"], m["provenance"]) for m in measured}
    if len(of) > 1:
        raise ValueError(f"a page is of one checkpoint with one provenance; these are {sorted(of)}")
    lines = [HEAD.strip(), "", *_checkpoint(measured[0]), "", *_overview(found)]
    for run in RUNS:
        if run.name in found:
            lines += ["", *_section(SHOWN[run.name], found[run.name])]
    return "\n".join([*lines, "", *_not_run(found)]) + "\n"


def _checkpoint(measured: Mapping[str, Any]) -> Iterator[str]:
    model = measured["checkpoint"]
    yield "## The checkpoint"
    yield ""
    yield (
        f"`{measured['model']}`, a `{model['class']}` of {counted(model['n_layers'], 'layer')}, run in "
        f"{model['dtype']}. {measured['provenance']}".rstrip()
    )
    yield ""
    for name, digest in measured["files"].items():
        yield f"* `{name}`: SHA-256 `{digest}`"
    yield f"* digests of weights `{model['weights']}`, config `{model['config']}`, processor `{model['processor']}`"


def _overview(found: Mapping[str, Result]) -> Iterator[str]:
    yield "## What was run, and what it cost"
    yield ""
    yield "| run | pixels | measured on | fitted on | seconds | of the processor | peak memory | threads | code |"
    yield "|---|---|---|---|---|---|---|---|---|"
    for name, result in found.items():
        m = result.meta[MEASURED]
        pairs = result.meta.get("n_pairs")
        on = counted(m["data"]["n"], "image") if pairs is None else counted(pairs, "pair")
        fitted = counted(m["fit_data"]["n"], "image")
        cells = [_pixels(m), on, fitted, f"{m['seconds']:.0f}", f"{m['processor_seconds']:.0f}"]
        cells += [f"{m['peak_memory'] / 2**30:.2f} GiB", str(result.meta["computing"]["threads"])]
        cells += [m["code"] or f"version {result.meta['versions'].get('hooked-vit', 'unknown')}"]
        yield f"| `{name}` | {' | '.join(cells)} |"
    first = next(iter(found.values())).meta
    yield ""
    images = ", ".join(f"{said} `{_file(first[MEASURED][key]['name'])}`" for key, said in IMAGES.items())
    versions = ", ".join(f"{name} {first['versions'][name]}" for name in ("python", "torch", "transformers"))
    yield f"Images: {images}. {versions}. Memory counts pages of files that are read, which the system may take back."


def _file(name: str) -> str:
    """What a data set is called, without how it is read and where it lies.

    >>> _file("parquet:photos/test.parquet"), _file("parquet:test.parquet")
    ('test.parquet', 'test.parquet')
    """
    return Path(name.partition(":")[2] or name).name


def _section(shown: Shown, result: Result) -> Iterator[str]:
    measured = result.meta[MEASURED]
    asked = {key: Path(value).name if key == "dictionary" else value for key, value in measured["options"].items()}
    options = ", ".join(f"{name} {_plain(value)}" for name, value in asked.items())
    yield f"## {shown.title}"
    yield ""
    yield f"*Run* `{measured['run']}` at {_pixels(measured)} pixels ({options}). *Claimed* {shown.claim}"
    told = [measured["dictionary"]] if "dictionary" in measured else []
    said = [*result.meta.get("small", []), *result.meta.get("summary", []), *shown.found(result)]
    for sentence in [*told, *said]:
        yield ""
        yield sentence
    for table in shown.tables:
        yield ""
        yield from _table(table, result)
    if notes := [*result.meta.get("notes", []), *result.meta.get("corrected", [])]:
        yield ""
        yield from (f"* {note}" for note in notes)


def _table(table: Table, result: Result) -> Iterator[str]:
    frame = result.part(table.part).frame if table.part else result.frame
    found = {heading: rows_where(frame, rows) for heading, rows in table.columns.items()}
    if empty := next((rows for heading, rows in table.columns.items() if found[heading].empty), None):
        raise ValueError(f"the saved {result.meta['analysis']} has no row where {empty}, which the page shows")
    columns = {heading: _cells(rows, table.down) for heading, rows in found.items()}
    beside = {heading: _published(told) for heading, told in table.published.items()}
    yield f"{table.caption} {_sizes(found)}"
    yield ""
    if not table.down:
        yield "| | |"
        yield "|---|---|"
        yield from (f"| {heading} | {_shown(cells.get((), None))} |" for heading, cells in columns.items())
        return
    places = list(dict.fromkeys(place for cells in columns.values() for place in cells))
    first = next(iter(columns.values()))
    if table.most is not None:
        places = sorted(first, key=lambda place: -first[place][0])[: table.most]
        yield f"The {len(places)} largest of {len(first)}, by the first column:"
        yield ""
    yield "| " + " | ".join([*(name.replace("_", " ") for name in table.down), *columns, *beside]) + " |"
    yield "|---" * (len(table.down) + len(columns) + len(beside)) + "|"
    for place in places:
        cells = [*map(_plain, place), *(_shown(cells.get(place)) for cells in columns.values())]
        cells += [_number(told[place[0]]) if place[0] in told else "" for told in beside.values()]
        yield "| " + " | ".join(cells) + " |"


def _pixels(measured: Mapping[str, Any]) -> str:
    return " × ".join(str(side) for side in measured["image_size"])


def _sizes(found: Mapping[str, pd.DataFrame]) -> str:
    """What a column is a measure of: how many images, pairs or splits."""
    sizes = sorted({int(n) for rows in found.values() for n in rows["n"].dropna()})
    return f"n = {sizes[0]}{f' to {sizes[-1]}' if len(sizes) > 1 else ''}." if sizes else ""


Cell = tuple[float, float, float]


def _cells(rows: pd.DataFrame, down: tuple[str, ...]) -> dict[tuple[Any, ...], Cell]:
    """Value and interval by place; of several draws the mean, and the ends that lie furthest out."""
    rows = rows.dropna(subset=["value", *down])
    groups = rows.groupby(list(down), sort=False) if down else [((), rows)] * bool(len(rows))
    return {place: (float(group["value"].mean()), _end(group, "low"), _end(group, "high")) for place, group in groups}


def _end(group: pd.DataFrame, end: str) -> float:
    if end not in group or group[end].isna().any():
        return math.nan
    return float(group[end].min() if end == "low" else group[end].max())


def _published(told: Published) -> dict[int | None, float]:
    """The published values by layer."""
    recipe = load_recipe(told.recipe)
    values = [value for step in recipe.steps for value in step.published if value.what == told.what]
    if not values:
        raise LookupError(f"the recipe {told.recipe} publishes no {told.what!r}")
    layers = recipe.models[told.model].layers or 0  # layers below 0 count from the end
    return {at + layers if at is not None and at < 0 else at: x for at, x in values[0].pairs(told.model)}


def _shown(cell: Cell | None) -> str:
    if cell is None:
        return ""
    value, low, high = cell
    if math.isnan(low) or low == high == value:  # known exactly, or without an interval
        return _number(value)
    return f"{_number(value)} [{_number(low)}, {_number(high)}]"


def _number(value: float) -> str:
    """Three places, or two digits of what is smaller; less than a millionth is nothing but rounding.

    >>> _number(0.57), _number(0.00012), _number(-412.3), _number(-5e-8)
    ('0.570', '0.00012', '-412', '0.000')
    """
    if abs(value) < 1e-6:
        return "0.000"
    if abs(value) < 0.01:
        return f"{value:.2g}"
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3f}"


def _plain(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)


def _not_run(found: Mapping[str, Result]) -> Iterator[str]:
    yield "## What was not run"
    yield ""
    missing: list[Run] = [run for run in RUNS if run.name not in found]
    yield from (f"* `{run.name}`: {SHOWN[run.name].title}" for run in missing)
    yield from (f"* {sentence}" for sentence in NOT_TRIED)


IMAGES = {"data": "measured on", "fit_data": "fitted on"}
HEAD = """
# What real models do

Written by `python -m analyses.reproductions.real_models page FOLDER` from the results that `… run MODEL` saved: every
number of ours is one of theirs, and `hooked-vit report FOLDER/RUN` shows the rest. They stand in `docs/results/`,
where `--keep` put them, without photographs. Brackets hold the 95 % interval over images (`docs/methods.md` §28); a
number without them has none to be had. Where a cell is of several draws it is their mean, and the interval reaches to
the ends that lie furthest out. Runs are as large as one core of a shared machine allows: what n allows is said beside
each. Claims are of other models and data, as said there; they stand here for orientation, whatever came out.
"""
