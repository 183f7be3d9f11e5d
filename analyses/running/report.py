"""One HTML file that shows a result to somebody who was not there: it needs no network and no other file."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from html import escape as as_html
from pathlib import Path
from typing import Any, NamedTuple

import plotly.graph_objects as go
from plotly.offline import get_plotlyjs

from analyses.pages.album import PICTURES
from analyses.pages.columns import meaning_of
from analyses.pages.fitting import FITTING
from analyses.pages.gallery import gallery, pictures_of, without_pictures
from analyses.pages.style import STYLE
from analyses.running.files import check_writable
from analyses.running.results import REPORT, Result
from analyses.running.text import visible
from hooked_vit.config.showing import counted

ROWS = 60
CELL = 60
"""Letters of a cell of the models' table; what is longer would make every row as high as it, and stands below."""
TOLD = {"summary", "notes", "read", "table", "analysis", "versions", "small", "corrected", PICTURES}
"""Entries of `meta` that have a place of their own in the report."""

# Nothing from anywhere else, whatever a figure or a model name may contain.
POLICY = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:; font-src data:"
)

# What helps to read a figure; the rest would cover its titles, and one button uploads it.
BUTTONS = {
    "modeBarButtonsToRemove": [
        *("sendChartToCloud", "select2d", "lasso2d", "zoom2d", "pan2d", "zoomIn2d", "zoomOut2d", "autoScale2d")
    ]
}


class Section(NamedTuple):
    """A further part of a report: a heading, what it shows, and a figure."""

    heading: str
    text: str = ""
    figure: go.Figure | None = None


def write_report(
    result: Result,
    folder: str | Path,
    *,
    title: str | None = None,
    intro: str = "",
    sections: Sequence[Section] | Callable[[], Sequence[Section]] = (),
) -> Path:
    """Save a result with its report, `report.html`: findings, figure, key numbers, what ran. Returns the page's path.

    >>> write_report(result, "out", title="Is CLS used?", sections=[Section("Closer", "…", fig)])  # doctest: +SKIP

    `result.meta` may hold `summary` (sentences, shown first), `notes` (sentences: what to keep in mind) and `table`
    (one dictionary per row; without it the first rows of the frame are shown), and `pictures` (`Album.entries`). Text
    may hold `code`, *stress* and blank lines between paragraphs; everything is escaped. The page is self-contained.
    Page and numbers appear at once or not at all; where drawing fails, also in `sections` that are a function, the
    numbers are saved without a page.
    Raises OSError where the folder is not writable.
    """
    folder = check_writable(folder)
    try:
        drawn = sections() if callable(sections) else sections
        page = _page(result, title or str(result.meta.get("analysis", "Result")), intro, drawn)
    except Exception:
        result.save(folder)
        raise
    return result.save(folder, report=page) / REPORT


def key_numbers(result: Result, limit: int = ROWS) -> tuple[list[str], list[list[str]], str]:
    """The numbers worth printing: headings, rows of text, and a remark where there are more.

    >>> import pandas as pd
    >>> key_numbers(Result(pd.DataFrame({"layer": [0], "best_probe": [0.91234]}), {}))
    (['layer', 'best probe'], [['0', '0.912']], '')
    """
    table = result.meta.get("table")
    if not table:
        table = json.loads(result.frame.head(limit).to_json(orient="records", default_handler=str))
    columns = list(dict.fromkeys(column for row in table for column in row))
    by_column = [_column([row.get(column) for row in table]) for column in columns]
    rows = [list(row) for row in zip(*by_column, strict=True)][:limit]
    total = len(result.meta.get("table") or result.frame)
    remark = f"The first {limit} of {counted(total, 'row')}; all are in result.parquet." if total > limit else ""
    return [column.replace("_", " ") for column in columns], rows, remark


def _numbers(result: Result) -> list[str]:
    """The table, and below it what its columns hold."""
    columns, rows, remark = key_numbers(result)
    meanings = {column: meaning_of(column, result.meta.get("analysis")) for column in columns}
    told = [f"<i>{escape(column)}</i>: {escape(meaning)}" for column, meaning in meanings.items() if meaning]
    below = f'<p class="columns">{"; ".join(told)}.</p>' if told else ""
    return [_table(columns, rows, remark, meanings), below]


def _column(values: list[Any]) -> list[str]:
    """A column as text; numbers that are all whole without decimals, the others with three."""
    numbers = [v for v in values if isinstance(v, (int, float)) and not isinstance(v, bool) and math.isfinite(v)]
    # a column of ones and zeros may well be accuracies
    counts = not any(isinstance(v, float) for v in numbers) or any(abs(v) > 1 for v in numbers)
    whole = counts and all(float(v).is_integer() for v in numbers)
    return [_text(v, whole) for v in values]


def _text(value: Any, whole: bool = False) -> str:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, (int, float)):
        if whole:
            return f"{value:.0f}"
        return f"{value:.3f}" if value == 0 or 1e-3 <= abs(value) < 1e4 else f"{value:.3g}"
    if isinstance(value, Mapping):
        told = {k: v for k, v in value.items() if v not in (None, "", [], {})}
        return ", ".join(f"{k} {_text(v, isinstance(v, int))}" for k, v in told.items()) or "–"
    if isinstance(value, (list, tuple)):
        return ", ".join(_text(v, isinstance(v, int)) for v in value) or "–"
    return str(value)


def _page(result: Result, title: str, intro: str, sections: Sequence[Section]) -> str:
    n = len(result.frame)
    footer = (
        f"<footer>{'All ' * (n != 1)}{counted(n, 'measurement is', 'measurements are')} in "
        "<code>result.parquet</code> beside this file, what ran is in <code>result.json</code>; in Python: "
        "<code>Result.load(folder)</code>.</footer>"
    )
    head = [f'<p class="kind">hooked-vit{_kind(result.meta)}</p>', f"<h1>{escape(title)}</h1>"]
    return html_page(title, [*head, *told(result, intro, sections), footer])


def told(result: Result, intro: str = "", sections: Sequence[Section] = (), level: int = 2) -> list[str]:
    """What a page says of a result below its title: findings, figure, numbers, notes, what ran."""

    def heading(text: str) -> str:
        return f"<h{level}>{escape(text)}</h{level}>"

    meta = result.meta
    parts = [f'<div class="found small">{_bullets(small)}</div>'] if (small := meta.get("small")) else []
    parts += [f'<div class="found">{_bullets(found)}</div>'] if (found := meta.get("summary")) else []
    parts.append(_prose(intro))
    parts += [_figure(figure)] if (figure := _own_figure(result)) is not None else []
    for section in sections:
        parts += [heading(section.heading), _prose(section.text)]
        parts += [_figure(section.figure)] if section.figure is not None else []
    parts += [heading("Key numbers"), *_numbers(result)]
    if pictures := pictures_of(meta):
        parts += [heading("Images"), *gallery(pictures, escape, level + 1)]
    if notes := meta.get("notes"):
        parts += [heading("To keep in mind"), _bullets(notes)]
    if corrected := meta.get("corrected"):
        parts += [heading("Many tests: what is corrected over what"), _bullets(corrected)]
    if read := meta.get("read"):
        parts += [heading("What was read"), _bullets([f"{name}: {what}" for name, what in read.items()])]
    return [*parts, heading("What ran"), _what_ran(meta)]


def html_page(title: str, parts: Sequence[str]) -> str:
    """A whole page, which needs no network and no other file."""
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE}</style>\n<script>{get_plotlyjs()}</script>\n<script>{FITTING}</script>\n</head>\n<body>\n"
        f"<main>\n{chr(10).join(filter(None, parts))}\n</main>\n</body>\n</html>\n"
    )


def escape(text: str) -> str:
    """Text that is neither markup nor anything else that acts."""
    return as_html(visible(text))


def _kind(meta: Mapping[str, Any]) -> str:
    data = meta.get("data")
    data = data.get("name") if isinstance(data, Mapping) else data
    said = [meta.get("analysis"), data]
    return "".join(f" · {escape(str(text))}" for text in said if text)


def _own_figure(result: Result) -> go.Figure | None:
    """The figure of the analysis, None where it has none."""
    try:
        return result.figure()
    except LookupError as error:
        if isinstance(error, (KeyError, IndexError)):  # a bug in the drawing
            raise
        return None


def _figure(figure: go.Figure) -> str:
    drawn = figure.to_html(full_html=False, include_plotlyjs=False, config={"displaylogo": False, **BUTTONS})
    return f'<div class="scroll drawn">{drawn}</div>'


def _prose(text: str) -> str:
    """Paragraphs; `code` in backticks, *stress* between stars that no space follows."""
    paragraphs = [" ".join(p.split()) for p in text.split("\n\n") if p.strip()]
    return "\n".join(f"<p>{_marked(p)}</p>" for p in paragraphs)


def _marked(text: str) -> str:
    parts = re.split(r"(`[^`]+`)", escape(text))  # nothing within code is stressed
    parts[1::2] = [f"<code>{code[1:-1]}</code>" for code in parts[1::2]]
    parts[::2] = [re.sub(r"(?<![\w*])\*(\w[^*`]*)(?<=\w)\*(?![\w*])", r"<em>\1</em>", plain) for plain in parts[::2]]
    return "".join(parts)


def _bullets(sentences: str | Sequence[str]) -> str:
    items = [sentences] if isinstance(sentences, str) else sentences
    return f"<ul>{''.join(f'<li>{_marked(str(item))}</li>' for item in items)}</ul>"


def _table(
    columns: Sequence[str], rows: Sequence[Sequence[str]], remark: str = "", meanings: Mapping[str, str] | None = None
) -> str:
    """The first column names the row; a column of numbers is set to the right. `meanings` are shown over its name."""
    right = [
        i > 0 and all(re.fullmatch(r"[-+]?[\d.]+(e[-+]?\d+)?|–", row[i]) for row in rows) for i in range(len(columns))
    ]
    kind = [' class="number"' if r else "" for r in right]
    over = [f' title="{escape(meaning)}"' if (meaning := (meanings or {}).get(column)) else "" for column in columns]
    head = "".join(f"<th{k}{o}>{escape(c)}</th>" for k, o, c in zip(kind, over, columns, strict=True))
    body = "".join(
        "<tr>" + "".join(f"<td{k}>{_marked(cell)}</td>" for k, cell in zip(kind, row, strict=True)) + "</tr>"
        for row in rows
    )
    caption = f"<caption>{escape(remark)}</caption>" if remark else ""
    return f'<div class="scroll"><table>{caption}<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _what_ran(meta: Mapping[str, Any]) -> str:
    """Everything in `meta` that has not been told yet, versions last."""
    parts, facts = [], []
    models = meta.get("models")
    if isinstance(models, Mapping) and all(isinstance(entry, Mapping) for entry in models.values()):
        columns = list(dict.fromkeys(key for entry in models.values() for key in entry if entry[key] not in ("", None)))
        columns = [column for column in columns if column != "reads"]  # told above
        cells = {column: _column([entry.get(column) for entry in models.values()]) for column in columns}
        short = {column: told for column, told in cells.items() if max(map(len, told), default=0) <= CELL}
        rows = [[name, *row] for name, row in zip(models, zip(*short.values(), strict=True), strict=True)]
        rows = rows or [[name] for name in models]
        parts.append(_table(["model", *(column.replace("_", " ") for column in short)], rows))
        for column in (column for column in columns if column not in short):
            of = {name: entry[column] for name, entry in models.items() if entry.get(column) not in ("", None)}
            facts.append(f"<tr><th>{escape(column.replace('_', ' '))}</th><td>{_fact(column, of)}</td></tr>")
    for key, value in meta.items():
        if key in TOLD or (key == "models" and parts):
            continue
        facts.append(f"<tr><th>{escape(key.replace('_', ' '))}</th><td>{_fact(key, value)}</td></tr>")
    if versions := meta.get("versions"):
        facts.append(f"<tr><th>versions</th><td>{escape(_text(versions))}</td></tr>")
    parts.append(f"<h3>Settings</h3>\n<table><tbody>{''.join(facts)}</tbody></table>" if facts else "")
    return "\n".join(parts)


def _fact(key: str, value: Any) -> str:
    if key == "command":
        return f"<code>{escape(str(value))}</code>"
    deep = isinstance(value, (list, Mapping)) and any(
        isinstance(v, (list, Mapping)) and v for v in (value.values() if isinstance(value, Mapping) else value)
    )
    if not deep and len(text := _text(value, isinstance(value, int))) <= 300:
        return escape(text)
    return (
        f"<details><summary>show</summary><pre>{as_html(json.dumps(without_pictures(value), indent=1))}</pre></details>"
    )
