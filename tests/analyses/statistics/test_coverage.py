"""No interval covers less than .90 for .95, and no test calls nothing something more often than .10 for .05."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import pytest

import analyses
from analyses.statistics.coverage import (
    COVERED,
    LEAST,
    MODULES,
    MOST,
    NO_INTERVAL,
    REJECTING,
    SAME_AS,
    simulate,
)
from analyses.statistics.coverage_page import page

ROOT = Path(analyses.__file__).parent
DRAWS = 150

OWN = re.compile(
    r"1\.96|\bquantile\(|percentile\(|multinomial\(|\bwilcoxon\b|ttest|mannwhitney|binomtest|NormalDist|\.ppf\(|_ci\("
)
"""What somebody writes who makes an interval or a test of their own."""
NONE_OF_ITS_OWN = {
    "questions/patching/head_ablation/ranking.py": "the spread of rank correlations over splits, said to be that",
    "questions/features/head_words/figure.py": "the middle half of the heads, said to be that",
    "questions/class_space/measures/rank_counts.py": "box plots, and Wilcoxon's test over tokens as published",
}


@pytest.mark.parametrize("of", COVERED)
def test_intervals_cover(of: str) -> None:
    for one in simulate(DRAWS, only=of):
        assert one.share >= LEAST - one.error, one


@pytest.mark.parametrize("of", REJECTING)
def test_nothing_is_rarely_called_something(of: str) -> None:
    for one in simulate(DRAWS, only=of):
        assert one.share <= MOST + one.error, one


def test_a_simulation_that_cannot_fail_tries_nothing() -> None:
    shown = [one for of in COVERED for one in simulate(20, only=of)]
    assert {one.of for one in shown} == set(COVERED)
    for of in COVERED:
        assert any(one.shown > 0.9 for one in shown if one.of == of), of


def test_every_interval_and_test_is_tried() -> None:
    tried = {name.split()[0] for name in [*COVERED, *REJECTING]}
    for module in MODULES:
        for name, function in inspect.getmembers(module, inspect.isfunction):
            if function.__module__ == module.__name__ and not name.startswith("_"):
                assert name in tried | SAME_AS.keys() | NO_INTERVAL, f"{module.__name__}.{name}: add it to the registry"
    assert set(SAME_AS.values()) <= tried


def test_no_analysis_has_an_interval_of_its_own() -> None:
    for path in sorted(ROOT.rglob("*.py")):
        name = path.relative_to(ROOT).as_posix()
        if name.startswith("statistics/") or name in NONE_OF_ITS_OWN:
            continue
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
            assert not OWN.search(line), f"{name}:{number} makes an interval or a test: put it into analyses.statistics"


def test_the_page_holds_every_situation_and_nothing_below() -> None:
    text = (ROOT.parent / "docs" / "coverage.md").read_text(encoding="utf-8")
    rows = [(one.of, one.situation) for of in [*COVERED, *REJECTING] for one in simulate(2, only=of)]
    for of, situation in dict.fromkeys(rows):
        part = text.partition(f"## `{of}` ")[2].partition("\n## ")[0]
        assert f"| {situation} |" in part, f"{of}, {situation}: run python -m analyses.statistics.coverage_page"
    covers = "".join(part for part in text.split("\n## ") if " covers" in part.partition("\n")[0])
    shares = [float(x) for x in re.findall(r"(?<![\w.])(\.\d{3}|1)(?= [|(])", covers)]
    assert len(shares) > 200
    assert min(shares) >= LEAST
    assert page(list(simulate(2, only="wilson"))).startswith("# What the intervals cover")
