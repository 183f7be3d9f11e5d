"""A figure at the width of a page or of a column, with letters that can be read there."""

from __future__ import annotations

from textwrap import wrap

import plotly.graph_objects as go

WIDTHS = {"paper": 672, "column": 336}
"""Pixels, 96 to the inch: 7 inches, as wide as the text of a page, and 3.5, one of its two columns."""
FONT = 10  # 7.5 points
LETTER, KEY = 5.4, 44  # pixels of a letter of the legend, and of the line in front of it
LINE, AXIS, ABOVE = 17, 52, 36  # pixels of a line of the legend, of ticks and title of an axis, above the panels


def at_paper_size(figure: go.Figure, size: str) -> go.Figure:
    """A copy of the figure for print: 7 inches wide ("paper") or 3.5 ("column"), letters of 7.5 points, no title.

    The title and what stands below it belong in the caption: `figure.layout.title.text`.
    Raises ValueError for another size, and for a column where panels stand side by side.
    """
    if size not in WIDTHS:
        raise ValueError(
            f"a figure has the size {' or '.join(map(repr, WIDTHS))}, or None as on a screen; got {size!r}"
        )
    drawn, width = go.Figure(figure), WIDTHS[size]
    starts = {round(axis.domain[0], 3) for axis in drawn.select_xaxes() if axis.domain}
    if size == "column" and len(starts) > 1:
        raise ValueError(f"{len(starts)} panels side by side cannot be read in a column: size='paper', or fewer models")
    was, margin = drawn.layout.width or 1080, drawn.layout.margin
    area = (drawn.layout.height or 450) - (margin.t or 100) - (margin.b or 80)
    left, right = min(margin.l or 60, 60), min(margin.r or 20, 90)
    lines = _legend_lines(drawn, width - left - right)
    top, bottom = ABOVE, AXIS + LINE * lines
    height = round(max(150, area * max(0.62, width / was))) + top + bottom
    drawn.update_layout(
        width=width, height=height, title=None, font={"size": FONT},
        margin={"l": left, "r": right, "t": top, "b": bottom},
    )  # fmt: skip
    if lines:
        drawn.update_layout(legend={"font": {"size": FONT - 1}, "orientation": "h", "x": 0, "yref": "container"})
        drawn.update_layout(legend={"y": 4 / height, "yanchor": "bottom"})
    room = (width - left - right) / max(1, len(starts))
    drawn.for_each_annotation(lambda note: note.update(text=_wrapped(note.text, room), font_size=FONT))
    drawn.update_xaxes(title_standoff=4, tickfont_size=FONT - 1, title_font_size=FONT)
    drawn.update_yaxes(title_standoff=4, tickfont_size=FONT - 1, title_font_size=FONT)
    for axis in drawn.select_yaxes():
        share = axis.domain[1] - axis.domain[0] if axis.domain else 1
        if axis.title.text:
            axis.title.text = _wrapped(axis.title.text, share * (height - top - bottom) + 30)
    return drawn.update_traces(marker_size=4, selector={"type": "scatter", "mode": "lines+markers"})


def _wrapped(text: str | None, room: float | int) -> str | None:
    """Text in lines of so many pixels; what is in lines already, or holds an entity, as it is."""
    if not text or "<br>" in text or "&" in text:
        return text
    return "<br>".join(wrap(text, max(8, int(room / LETTER))))


def _legend_lines(figure: go.Figure, room: float | int) -> int:
    used, lines = 0.0, 0
    for trace in figure.data:
        if getattr(trace, "showlegend", None) and trace.name:
            wide = KEY + LETTER * len(trace.name)
            if not lines or used + wide > room:
                used, lines = 0.0, lines + 1
            used += wide
    return lines
