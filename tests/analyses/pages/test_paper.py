"""Figures for print: as wide as a page or a column, with letters that can be read there."""

from __future__ import annotations

import plotly.graph_objects as go
import pytest

from analyses.drawing.colours import BLUE
from analyses.drawing.panels import add, panels, place
from analyses.pages.paper import WIDTHS, at_paper_size


def drawn(n: int):

    fig = panels(
        ["one model with a rather long name"] * n, "Does it?", "Bars: 95 % intervals", y="a share of something"
    )
    for k in range(n):
        add(fig, place(fig, k), go.Scatter(x=[0, 1], y=[0, 1], line_color=BLUE), f"a curve no. {k}")
    return fig


@pytest.mark.parametrize(("n", "size"), [(1, "column"), (1, "paper"), (4, "paper")])
def test_letters_are_as_large_as_a_paper_needs(n, size):
    before = drawn(n)
    fig = at_paper_size(before, size)
    assert (fig.layout.width, fig.layout.title.text) == (WIDTHS[size], None)
    assert before.layout.title.text.startswith("Does it?")
    sizes = [fig.layout.font.size, fig.layout.legend.font.size, *(note.font.size for note in fig.layout.annotations)]
    sizes += [axis.title.font.size for axis in fig.select_yaxes()] + [axis.tickfont.size for axis in fig.select_xaxes()]
    assert min(sizes) * 0.75 >= 6.75  # points
    margin = fig.layout.margin
    assert fig.layout.height - margin.t - margin.b >= 150
    room = (WIDTHS[size] - margin.l - margin.r) / min(n, 3)
    assert all(5 * len(line) <= room for note in fig.layout.annotations for line in note.text.split("<br>"))


def test_what_cannot_be_read_is_refused():
    with pytest.raises(ValueError, match="3 panels side by side cannot be read in a column"):
        at_paper_size(drawn(3), "column")
    with pytest.raises(ValueError, match="the size 'paper' or 'column'"):
        at_paper_size(drawn(1), "poster")
