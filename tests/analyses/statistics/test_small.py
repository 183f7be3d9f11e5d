"""Small numbers are said to be small in terminal, report and figure, and many tests how they are corrected."""

from __future__ import annotations

import re

import pandas as pd
import plotly.graph_objects as go
import pytest

from analyses.command_line import terminal
from analyses.command_line.commands import _print_result
from analyses.running.catalogue import REGISTERED, registered_analyses
from analyses.running.registry import analysis
from analyses.running.report import write_report
from analyses.running.results import Result
from analyses.statistics.intervals import wilson
from analyses.statistics.small import WIDE, half_width, said_small
from tests.analyses.everything import results

# all results are made once, in one process
pytestmark = pytest.mark.xdist_group("everything")

INTERVALS_DECIDE = (
    *("random-readouts", "low-frequency", "head-ablation", "causality-vs-decodability", "lenses"),
    "context-tokens",
)


def rows(n: int, **more: object) -> pd.DataFrame:
    return pd.DataFrame([{"value": 0.5, "low": 0.3, "high": 0.7, "n": n, **more}])


def test_small_is_where_a_tenth_may_be_nothing() -> None:
    small = [n for n in range(1, 200) if said_small(rows(n), {"data": {"n": n}})]
    assert small == [n for n in range(1, 200) if half_width(n) > WIDE]
    assert max(small) == 92
    for n in (10, 93):
        assert half_width(n) == pytest.approx((wilson(n // 2, n).high - wilson(n // 2, n).low) / 2)


def test_few_behind_one_number_are_said_where_there_are_many_images() -> None:
    (said,) = said_small(rows(500, n_right=497, n_wrong=3), {"data": {"n": 500}})
    assert "rest on 3 images answered wrongly" in said
    assert said_small(rows(500, n_right=400, n_wrong=100), {"data": {"n": 500}}) == []
    (classes,) = said_small(pd.concat([rows(500), rows(4)]), {"data": {"n": 500}})
    assert "rest on 4 images, pairs or classes" in classes
    assert said_small(pd.DataFrame({"head": [1]}), {}) == []


def test_it_is_said_everywhere(tmp_path, capsys: pytest.CaptureFixture[str]) -> None:
    def draw(result: Result) -> go.Figure:
        return go.Figure(go.Bar(y=result.frame.value))

    @analysis(name="few-images-for-a-test", figure=draw, more_figures={"again": draw})
    def few(data: int) -> Result:
        """How many?"""
        about = {"name": "photos", "n": data, "skipped": ["cannot read image a.jpg"], "duplicates": 1}
        return Result(rows(data), {"data": about, "summary": ["a finding"]})

    try:
        result, many = few(20), few(2000)
        sentence = result.meta["small"][0]
        assert sentence.startswith("Small: 20 images")
        assert f"note: {sentence}" in capsys.readouterr().err
        _print_result(terminal.console(), REGISTERED["few-images-for-a-test"], result)
        said = " ".join(capsys.readouterr().out.split())
        assert said.index("Small: 20 images") < said.index("a finding")
        assert "photos: 1 image was left out: cannot read image a.jpg." in said
        assert "photos: 1 image is a copy of another, to the pixel." in said
        page = write_report(result, tmp_path).read_text(encoding="utf-8")
        assert page.index("Small: 20 images") < page.index("a finding")
        for figure in (result.figure(), REGISTERED["few-images-for-a-test"].figures(result)["again"](result)):
            assert "Small: 20 images" in figure.layout.title.text
        assert many.meta["small"] == []
        assert many.figure().layout.title.text is None
    finally:
        del REGISTERED["few-images-for-a-test"]


@pytest.mark.parametrize("name", [name for name, entry in registered_analyses().items() if entry.is_command])
def test_what_is_corrected_over_what_is_said(name: str) -> None:
    result = results()[name]
    frame = result.frame
    tested = [column for column in frame.columns if re.fullmatch(r"p|p_\w+", str(column))]
    said = " ".join(result.meta.get("corrected", []))
    for measure in frame.loc[frame[tested].notna().any(axis=1), "measure"].unique() if tested else ():
        assert str(measure) in said, f"{name}: what are the p-values of {measure} corrected over?"
    assert said or not tested
    if name in INTERVALS_DECIDE:
        assert "not corrected over" in said
