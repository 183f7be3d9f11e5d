"""Run a recipe step by step, and put what was published beside what came out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from analyses.reproductions.beside import COLUMNS, claims_beside, rows_beside
from analyses.reproductions.entries import Step
from analyses.reproductions.figures import comparison_figure, curve_figures
from analyses.reproductions.missing import missing
from analyses.reproductions.prepared import load_step
from analyses.reproductions.recipe import Recipe
from analyses.running.catalogue import get_analysis
from analyses.running.files import check_writable, clean
from analyses.running.fingerprint import Fingerprint, fingerprint
from analyses.running.locks import hold_folder
from analyses.running.notice import notice
from analyses.running.report import Section, write_report
from analyses.running.results import Result
from analyses.statistics.small import said_small
from hooked_vit.config.showing import counted

NOT_ALL_THERE = "this machine lacks what the recipe needs, and nothing was run"


def run_recipe(recipe: Recipe, out: str | Path, *, device: str = "cpu", say: Callable[[str], object] = str) -> Path:
    """Run every step into `out`, write the comparison there as a page and as numbers, and return the page's path.

    >>> run_recipe(load_recipe("stand-in"), "out/stand-in")  # doctest: +SKIP

    `say` is told of each step. A step that was finished in `out` before, with the same weights, images and settings, is
    read back instead; one of others is run again, and that is said.
    Raises FileNotFoundError, listing all of it, where a model or data set cannot be had, InUseError where another
    process writes into `out`.
    """
    out = check_writable(out)
    if lacking := missing(recipe):
        raise FileNotFoundError(f"{NOT_ALL_THERE}: {'; '.join(lacking)}")
    with hold_folder(out, "--out"):
        clean(out)
        results = {}
        for step in recipe.steps:
            say(step.name)
            results[step.name] = _run_step(recipe, step, out / step.name, device)
        result = compare(recipe, results)
        result.meta["small"] = [notice(sentence) for sentence in said_small(result.frame, {})]
        return write_report(
            result, out, title=recipe.title, intro=_intro(recipe), sections=lambda: _sections(result.frame)
        )


ONE_BY_ONE = (
    "Every interval is for one number. They are not corrected for how many there are: of a hundred that are right, "
    "five leave out the published value."
)


def _sections(frame: pd.DataFrame) -> list[Section]:
    curves = [Section(step, figure=figure) for step, figure in curve_figures(frame)]
    return [Section("All values", "", comparison_figure(frame)), *curves]


def compare(recipe: Recipe, results: dict[str, Result]) -> Result:
    """What was published beside ours: one row per reported number.

    `value` is ours with its interval `low`, `high` over `n` images; `difference` is ours minus published, and `agrees`
    says whether the published number, give or take what reading it off a figure costs (`reading`), is in the interval.
    Behind them a row per claim (see `claims_beside`), whose `published` is missing.
    Raises RecipeError where a row of ours is not there, or is not one.
    """
    rows = [{"step": s.name, "analysis": s.analysis, **row} for s in recipe.steps for row in _rows(recipe, s, results)]
    frame = pd.DataFrame(rows, columns=COLUMNS).astype({"at": "Int64", "n": "Int64"})
    notes = [*recipe.not_reproduced, *_notes(recipe), ONE_BY_ONE]
    meta: dict[str, Any] = {
        "recipe": recipe.name,
        "source": recipe.source,
        "models": {name: {"checkpoint": entry.checkpoint} for name, entry in recipe.models.items()},
        "data": {name: {"spec": entry.spec, "n": entry.n, "seed": entry.seed} for name, entry in recipe.data.items()},
        "steps": {
            s.name: {"analysis": s.analysis, "options": dict(s.options), "data": dict(s.data)} for s in recipe.steps
        },
        "changes": list(recipe.changes),
        "summary": [*_warned(recipe), *_in_words(frame)],
        "notes": notes,
        "table": _table(frame),
    }
    return Result(frame, meta)


def _rows(recipe: Recipe, step: Step, results: Mapping[str, Result]) -> Iterator[dict[str, Any]]:
    where, result = f"{recipe.name}, step {step.name}", results[step.name]
    about = result.meta.get("models", {})
    depths = {m: (recipe.models[m].layers, about.get(m, {}).get("n_layers")) for m in step.models}
    for value in step.published:
        yield from rows_beside(where, value, step.models, result.frame, depths=depths)
    for claim in step.claims:
        yield from claims_beside(where, claim, step.models, result.frame)


def _run_step(recipe: Recipe, step: Step, folder: Path, device: str) -> Result:
    entry = get_analysis(step.analysis)
    models, images, options = load_step(recipe, step, device)
    mark = fingerprint(models, images, {"analysis": step.analysis, "options": dict(step.options)})
    before, why = _finished(folder, mark)
    if before is not None:
        return before
    notes = [notice(f"step {step.name} was finished before and is run again: {why}")] if why else []
    result = entry.run(models, images.pop("data"), **images, **options)
    result.meta["reproduction"] = {"fingerprint": mark.key, "of": dict(mark.parts)}
    result.meta["notes"] = [*result.meta.get("notes", []), *notes]
    write_report(
        result,
        folder,
        title=entry.summary,
        sections=lambda: [Section(heading, figure=draw(result)) for heading, draw in entry.figures(result).items()],
    )
    return result


def _finished(folder: Path, mark: Fingerprint) -> tuple[Result | None, str]:
    """The result of this very step in a folder, or why what is there is not it; neither where nothing is there."""
    try:
        with hold_folder(folder):
            clean(folder)
        before = Result.load(folder)
    except FileNotFoundError:
        return None, ""
    except ValueError as error:
        return None, str(error)
    kept = before.meta.get("reproduction")
    kept = kept if isinstance(kept, Mapping) else {}
    if kept.get("fingerprint") == mark.key:
        return before, ""
    return None, f"it differs in {mark.differences(kept.get('of'))}"


def _notes(recipe: Recipe) -> Iterator[str]:
    said = [
        *((name, m.note) for name, m in recipe.models.items()),
        *((name, d.note) for name, d in recipe.data.items()),
    ]
    yield from (f"{name}: {note}" for name, note in said if note)
    for step in recipe.steps:
        if step.note:
            yield f"{step.name}: {step.note}"
        yield from (f"{value.what}: {value.note}" for value in step.published if value.note)
        yield from (f"{claim.what}: {claim.note}" for claim in step.claims if claim.note)


def _warned(recipe: Recipe) -> list[str]:
    if not recipe.changes:
        return []
    return [
        f"This was not the experiment that was published: {'; '.join(recipe.changes)}. Agreement and difference mean "
        "what they say only as far as these are copies of the same."
    ]


def _in_words(frame: pd.DataFrame) -> Iterator[str]:
    claimed = frame["published"].isna()
    for (step, what), part in frame[~claimed].groupby(["step", "what"], sort=False):
        worst = part.loc[part["difference"].abs().idxmax()]
        at = worst["model"] if pd.isna(worst["at"]) else f"{worst['model']} at {worst['by']} {worst['at']}"
        yield (
            f"{what} ({step}): {int(part['agrees'].sum())} of "
            f"{counted(len(part), 'published value lies', 'published values lie')} in our intervals, each by itself; "
            f"the largest difference is {worst['difference']:+.3f} ({at}: {worst['published']:.3f} published, "
            f"{worst['value']:.3f} here)."
        )
    for row in frame[claimed].to_dict("records"):
        if pd.isna(row["difference"]):
            yield f"{row['what']} ({row['step']}): it cannot be told here, as {row['model']} has too few of them."
            continue
        found = "so it is here" if row["agrees"] else "not so here"
        apart = "the intervals are apart" if row["low"] > 0 or row["high"] < 0 else "the intervals overlap"
        yield f"{row['what']} ({row['step']}): {found}, {row['model']} {row['difference']:+.3f}; {apart}."


def _table(frame: pd.DataFrame) -> list[dict[str, Any]]:
    return [
        {
            "what": row["what"],
            "model": row["model"],
            "at": _at(row),
            "published": "more" if pd.isna(row["published"]) else row["published"],
            "ours": row["value"],
            "interval": "none" if pd.isna(row["low"]) else f"{row['low']:.3f} – {row['high']:.3f}",
            "difference": row["difference"],
            "agrees": None if pd.isna(row["difference"]) else row["agrees"],
            "source": f"{row['source']} ({row['kind']})",
        }
        for row in frame.to_dict("records")
    ]


def _at(row: Mapping[str, Any]) -> str:
    """The published layer, and ours where it is another."""
    if pd.isna(row["at"]):
        return ""
    ours = "" if row["layers"] in (str(row["at"]), "") else f" (ours {row['layers']})"
    return f"{row['by']} {row['at']}{ours}"


def _intro(recipe: Recipe) -> str:
    return f"{recipe.about}\n\nPublished: {recipe.source}"
