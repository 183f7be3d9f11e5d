"""Results that were saved, wherever they stand: what there is, and one page of several."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from analyses.running.catalogue import get_analysis
from analyses.running.files import check_writable, write_whole
from analyses.running.places import page_path
from analyses.running.report import escape, html_page, told
from analyses.running.results import ABOUT, Result
from analyses.running.text import visible
from hooked_vit.config.showing import counted


def saved_below(folder: str | Path) -> Iterator[Path]:
    """The folders of saved results at and below a folder, in the order of their names; hidden ones are passed over.

    Raises ValueError for what is no folder.
    """
    if not Path(folder).is_dir():
        raise ValueError(f"results are looked for in a folder; {folder} is none: say another, hooked-vit list FOLDER")
    for here, inside, names in os.walk(folder):
        inside[:] = sorted(name for name in inside if not name.startswith("."))
        if ABOUT in names:
            yield Path(here)


def described(folder: Path) -> dict[str, str]:
    """A row about a saved result: what was asked of what, how many rows, when, by which version, and its state.

    One that cannot be read says why in place of all that.
    """
    row = {"folder": str(folder), "analysis": "", "models": "", "data": "", "rows": "", "saved": "", "version": ""}
    row["saved"] = f"{datetime.fromtimestamp((folder / ABOUT).stat().st_mtime):%Y-%m-%d %H:%M}"
    try:
        result = Result.load(folder)
    except (OSError, ValueError) as error:
        return {**row, "state": visible(error)}
    meta = result.meta
    return {
        **row,
        "analysis": str(meta.get("analysis", "")),
        "models": ", ".join(map(str, meta.get("models") or ())),
        "data": _data(meta.get("data")),
        "rows": str(len(result.frame)),
        "version": str((meta.get("versions") or {}).get("hooked-vit", "")),
        "state": "whole",
    }


def methods_text(result: Result) -> str:
    """What a methods section says of a result, from what its run left: question, models, images, settings, versions.

    >>> import pandas as pd
    >>> methods_text(Result(pd.DataFrame(), {"data": {"name": "a:b", "n": 40}, "seed": 3}))
    'A result of no registered analysis. Data: a:b, 40 images. Settings: seed 3.'
    """
    meta = result.meta
    said = [_question(meta)]
    if isinstance(models := meta.get("models"), Mapping):
        said.append(f"Models: {'; '.join(_model(name, about) for name, about in models.items())}.")
    said += [f"Read: {name}, {what}." for name, what in (meta.get("read") or {}).items()]
    images = [key for key in meta if key == "data" or key.endswith("_data")]
    said += [f"{_words(key).capitalize()}: {_data(meta[key])}." for key in images]
    plain = {k: v for k, v in meta.items() if k not in (*SAID, *images) and _is_short(v)}
    if plain:
        said.append(f"Settings: {', '.join(f'{_words(k)} {_value(v)}' for k, v in plain.items())}.")
    if versions := meta.get("versions"):
        said.append(f"Versions: {', '.join(f'{name} {number}' for name, number in versions.items())}.")
    if command := meta.get("command"):
        said.append(f"Command: {command}.")
    return " ".join(said)


def write_collected(folders: Sequence[str | Path], page: str | Path) -> Path:
    """One page of saved results, each with its figure, numbers, notes and what its methods section would say.

    >>> write_collected(["out/cls-causality", "out/registers"], "out/both.html")  # doctest: +SKIP

    A folder may hold several. Returns the page's path, as `page_path` understands it. Raises ValueError for folders
    without a result, for one that is damaged or of an analysis there is not, and OSError where the page cannot be
    written.
    """
    page = page_path(page, "report.html")
    check_writable(page.parent)
    found = list(dict.fromkeys(path for folder in folders for path in _results_of(folder)))
    parts = ["<h1>Results</h1>", _contents(found)]
    for i, folder in enumerate(found):
        try:
            parts += _part(folder, i)
        except ValueError as error:
            raise ValueError(f"{folder} cannot be shown: {error}") from error
    page.parent.mkdir(parents=True, exist_ok=True)
    write_whole(page, lambda file: file.write_text(html_page("Results", parts), encoding="utf-8"))
    return page


SAID = {"models", "summary", "notes", "table", "versions", "analysis", "command", "parts", "read", "small", "corrected"}


def _part(folder: Path, number: int) -> list[str]:
    result = Result.load(folder)
    head = [f'<h2 id="r{number}">{escape(_title(result))}</h2>', f'<p class="kind">{escape(str(folder))}</p>']
    return [*head, *told(result, level=3), f"<h3>Methods</h3><p>{escape(methods_text(result))}</p>"]


def _results_of(folder: str | Path) -> list[Path]:
    found = list(saved_below(folder))
    if not found:
        raise ValueError(f"{folder} holds no saved result; a run leaves one in its --out folder")
    return found


def _contents(found: Sequence[Path]) -> str:
    rows = [f'<li><a href="#r{i}">{escape(str(folder))}</a></li>' for i, folder in enumerate(found)]
    return f"<ul>{''.join(rows)}</ul>"


def _title(result: Result) -> str:
    name = result.meta.get("analysis")
    try:
        return get_analysis(name).summary if name else "A result of no registered analysis"
    except LookupError as error:
        version = (result.meta.get("versions") or {}).get("hooked-vit", "a version it does not say")
        raise ValueError(f"it is of hooked-vit {version}, and {error.args[0]}") from error


def _question(meta: Mapping[str, Any]) -> str:
    name = meta.get("analysis")
    return f"We ran {name}: {get_analysis(name).summary}" if name else "A result of no registered analysis."


def _model(name: str, about: Any) -> str:
    facts = [f"{_words(k)} {_value(v)}" for k, v in about.items() if _is_short(v)] if isinstance(about, Mapping) else []
    return f"{name} ({', '.join(facts)})" if facts else str(name)


def _data(about: Any) -> str:
    if not isinstance(about, Mapping):
        return "" if about is None else str(about)
    n = "" if about.get("n") is None else f", {counted(about['n'], 'image')}"
    more = [f"{_words(k)} {_value(v)}" for k, v in about.items() if k not in ("name", "n") and _is_short(v)]
    return f"{about.get('name', '')}{n}{''.join(f', {fact}' for fact in more)}"


def _is_short(value: Any) -> bool:
    if isinstance(value, list):
        return 0 < len(value) <= 12 and all(not isinstance(v, (list, Mapping)) for v in value)
    return value not in (None, "") and not isinstance(value, Mapping)


def _value(value: Any) -> str:
    return " and ".join(map(str, value)) if isinstance(value, list) else str(value)


def _words(key: str) -> str:
    return key.replace("_", " ")
