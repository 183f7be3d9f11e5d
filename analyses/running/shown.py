"""A result as a figure may draw it: plotly reads links and markup in every text, and has no switch against it."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pandas as pd
import plotly.graph_objects as go

from analyses.running.results import Result
from analyses.running.text import visible

WRITTEN = str.maketrans({"&": "&amp;", "<": "&lt;", ">": "&gt;", "$": "&#36;"})


def plain(text: object) -> str:
    """Text that plotly draws as it stands: no tags, entities or formulas, and no places that a template fills.

    >>> plain("<a href='https://x.org'>cat</a> %{x}")
    "&lt;a href='https://x.org'&gt;cat&lt;/a&gt; &#37;{x}"
    """
    return visible(text).translate(WRITTEN).replace("%{", "&#37;{")


class Shown(Result):
    """A result whose texts are written for plotly, keys included; never saved."""


def shown(result: Result) -> Shown:
    """The result with every text in its rows and in what it says of itself made plain; one that is so already as it is.

    >>> shown(Result(pd.DataFrame({"model": ["<b>"]}), {})).frame.model.item()
    '&lt;b&gt;'
    """
    return result if isinstance(result, Shown) else Shown(plain_frame(result.frame), _plain(result.meta))


def plain_frame(frame: pd.DataFrame) -> pd.DataFrame:
    """The rows with every text made plain; types stay."""
    return frame.assign(**{str(name): _column(frame[name]) for name in frame.columns if _has_text(frame[name])})


def drawn_plain(draw: Callable[..., go.Figure]) -> Callable[..., go.Figure]:
    """Let a function that draws a result draw it with plain texts."""

    @functools.wraps(draw)
    def figure(result: Result, *args: Any, **kwargs: Any) -> go.Figure:
        return draw(shown(result), *args, **kwargs)

    return figure


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
