"""A result as a figure may draw it: plotly reads links and markup in every text, and has no switch against it."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Mapping
from html import unescape
from textwrap import wrap
from typing import Any

import pandas as pd
import plotly.graph_objects as go

from analyses.pages.album import PICTURES
from analyses.running.results import Result
from analyses.running.text import visible
from hooked_vit.config.showing import one_line

SMALL_TAG = '<span style="font-size:12px">'
SMALL_LINE = 22  # pixels of a line on what is small
LETTER = 7.8  # pixels that a bold letter takes in it, in the widest of the fonts that browsers put in
TOP, EDGE = 100, 22  # plotly's own margin, and pixels above a title
TITLE, BELOW = 105, 160  # letters of a line of the title, and of what stands below it, in a figure 1080 pixels wide
MOST_LINES = 3  # of a finding; a longer one is read above the figure
PIECE = re.compile(r"[^\s/_\-.,:]*(?:[\s/_\-.,:]|$)")  # of a name, up to where it may be broken
WRITTEN = str.maketrans({"&": "&amp;", "<": "&lt;", ">": "&gt;", "$": "&#36;"})


def plain(text: object) -> str:
    """Text that plotly draws as it stands: no tags, entities or formulas, and no places that a template fills.

    >>> plain("<a href='https://x.org'>cat</a> %{x}")
    "&lt;a href='https://x.org'&gt;cat&lt;/a&gt; &#37;{x}"
    """
    return visible(text).translate(WRITTEN).replace("%{", "&#37;{")


def small(line: str) -> str:
    """A line of a figure's title that explains: of smaller letters, as far from the line above it as any other.

    >>> small("95 % intervals")
    '<span style="font-size:12px">95 % intervals</span>'
    """
    return f"{SMALL_TAG}{line}</span>"


def in_lines(name: str, letters: int, most: int = 3) -> str:
    """A name, made plain already, in lines of so many letters, broken where a name has joints; its middle is cut out
    where it has more lines than `most`.

    >>> in_lines("google/vit-base-patch16-224", 14)
    'google/vit-<br>base-patch16-<br>224'

    What holds markup of its own stays as it is.
    """
    told = unescape(name)
    if "<" in name or len(told) <= letters:
        return name
    lines = _broken(told, letters)
    if len(lines) > most:
        cut = one_line(told, most * letters)
        lines = [cut[i : i + letters] for i in range(0, len(cut), letters)]
    return "<br>".join(plain(line.strip()) for line in lines)


def _broken(text: str, letters: int) -> list[str]:
    lines = [""]
    for piece in PIECE.findall(text):
        if lines[-1] and len(lines[-1]) + len(piece.rstrip()) > letters:
            lines.append("")
        while len(piece) > letters:
            lines[-1:] = [piece[:letters], ""]
            piece = piece[letters:]
        lines[-1] += piece
    return [line for line in lines if line.strip()]


class Shown(Result):
    """A result whose texts are written for plotly, keys included; never saved."""


def shown(result: Result) -> Shown:
    """The result with every text in its rows and in what it says of itself made plain; one that is so already as it is.

    >>> shown(Result(pd.DataFrame({"model": ["<b>"]}), {})).frame.model.item()
    '&lt;b&gt;'
    """
    if isinstance(result, Shown):
        return result
    told = {key: value for key, value in result.meta.items() if key != PICTURES}  # which no figure draws
    return Shown(plain_frame(result.frame), _plain(told))


def plain_frame(frame: pd.DataFrame) -> pd.DataFrame:
    """The rows with every text made plain; types stay."""
    return frame.assign(**{str(name): _column(frame[name]) for name in frame.columns if _has_text(frame[name])})


def drawn_plain(draw: Callable[..., go.Figure]) -> Callable[..., go.Figure]:
    """Let a function that draws a result draw it with plain texts, and say in the picture what is small."""

    @functools.wraps(draw)
    def figure(result: Result, *args: Any, **kwargs: Any) -> go.Figure:
        if isinstance(result, Shown):  # whoever made it so says it
            return draw(result, *args, **kwargs)
        plain_result = shown(result)
        return _warned(draw(plain_result, *args, **kwargs), plain_result.meta.get("small") or [])

    return figure


def finding_first(draw: Callable[..., go.Figure]) -> Callable[..., go.Figure]:
    """Let a figure of one model, of which its result says one sentence, have that for a title, above its question."""

    @functools.wraps(draw)
    def figure(result: Result, *args: Any, **kwargs: Any) -> go.Figure:
        fig = draw(result, *args, **kwargs)
        return fig if (found := the_finding(shown(result).meta)) is None else _titled(fig, found)

    return figure


def the_finding(meta: Mapping[str, Any]) -> str | None:
    """The sentence of a result that says one of one model; None for several of either, and for what is no sentence.

    >>> the_finding({"models": {"vit": {}}, "summary": ["vit: CLS is used from layer 3 on."]})
    'vit: CLS is used from layer 3 on.'
    """
    models, summary = meta.get("models"), meta.get("summary") or []
    sentences = [summary] if isinstance(summary, str) else list(summary)
    if not isinstance(models, Mapping) or len(models) != 1 or len(sentences) != 1:
        return None
    said = " ".join(str(sentences[0]).split())
    return None if re.search(r"[.!?;] +[A-Z]", said) or len(said) < 2 else said.replace("`", "")


def _titled(fig: go.Figure, finding: str) -> go.Figure:
    """The figure with the finding as its title and the former title, which asks, below; as it is where that is long."""
    lines = str(fig.layout.title.text or "").split("<br>")
    asked = [line for line in lines if not line.startswith(SMALL_TAG)]
    by = (fig.layout.width or 1080) / 1080
    found = wrap(finding, int(TITLE * by), break_on_hyphens=False)
    if not any(asked) or len(found) > MOST_LINES:
        return fig
    below = [small(line) for line in wrap(" ".join(asked), int(BELOW * by), break_on_hyphens=False)]
    return _grown(fig, [*found, *below, *lines[len(asked) :]], len(found) + len(below) - len(asked))


def _warned(fig: go.Figure, too_small: list[str]) -> go.Figure:
    """The figure with what is small below its title, so that whoever copies the picture copies it too."""
    if not too_small:
        return fig
    wide = int((fig.layout.width or 1080) / LETTER)
    lines = [small(f"<b>{line}</b>") for sentence in too_small for line in wrap(sentence, wide)]
    return _grown(fig, [*filter(None, [fig.layout.title.text]), *lines], len(lines))


def _grown(fig: go.Figure, title: list[str], more: int) -> go.Figure:
    """The figure with this title, which has more lines than before, and everything else where it was."""
    top, height = fig.layout.margin.t, fig.layout.height
    fig.update_layout(title_text="<br>".join(title), margin_t=(TOP if top is None else top) + SMALL_LINE * more)
    if height is None:
        return fig
    higher, y, legend = height + SMALL_LINE * more, fig.layout.title.y, fig.layout.legend
    if y is None:  # plotly would have its middle in the middle of the margin, and its end on the figure
        fig.update_layout(title={"yref": "container", "yanchor": "top", "y": 1 - EDGE / higher})
    elif fig.layout.title.yref == "container":
        fig.update_layout(title_y=1 - (1 - y) * height / higher)
    if legend.y is not None and legend.yref == "container":
        fig.update_layout(legend_y=legend.y * height / higher)
    return fig.update_layout(height=higher)


def _has_text(column: pd.Series) -> bool:
    return not (pd.api.types.is_numeric_dtype(column) or pd.api.types.is_datetime64_any_dtype(column))


def _column(column: pd.Series) -> pd.Series:
    if isinstance(column.dtype, pd.CategoricalDtype):
        return column.cat.rename_categories(list(map(_plain, column.cat.categories)))
    return column.map(_plain).astype(column.dtype)


def _plain(value: Any) -> Any:
    if isinstance(value, str):
        return plain(value)
    if isinstance(value, dict):
        return {plain(key): _plain(inner) for key, inner in value.items()}
    return [_plain(inner) for inner in value] if isinstance(value, (list, tuple)) else value
