"""docs/coverage.md: what every interval covers, and how often every test is wrong, situation by situation.

`python -m analyses.statistics.coverage_page` writes it.
"""

from __future__ import annotations

import sys
from pathlib import Path

from analyses.statistics.coverage import COVERED, REJECTING, Tried, simulate

DRAWS = 600


def page(tried: list[Tried]) -> str:
    """docs/coverage.md: a row per interval or test and situation, a column per number of images."""
    lines = [HEAD.strip(), ""]
    for registry, what in ((COVERED, "covers"), (REJECTING, "rejects")):
        for of in registry:
            mine = [t for t in tried if t.of == of]
            sizes = list(dict.fromkeys(t.n for t in mine))
            wide = len(sizes) <= 12
            lines += [f"## `{of}` {what}", ""]
            columns = sizes if wide else ["share"]
            lines += ["| situation | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]
            for situation in dict.fromkeys(t.situation for t in mine):
                here = {t.n: _cell(t) for t in mine if t.situation == situation}
                cells = [here.get(n, "") for n in sizes] if wide else [" ".join(here.values())]
                lines.append(f"| {situation} | " + " | ".join(cells) + " |")
            lines.append("")
    return "\n".join(lines).rstrip() + "\n"


def _cell(t: Tried) -> str:
    if t.shown == 0:
        return "none"
    number = f"{t.share:.3f}".replace("0.", ".", 1) if t.share < 1 else "1"
    return number if t.shown > 0.995 else f"{number} ({t.shown:.0%})"


HEAD = """
# What the intervals cover, and how often the tests are wrong

Written by `python -m analyses.statistics.coverage_page`; `tests/analyses/statistics/test_coverage.py` tries the same
with fewer draws. Columns are numbers of images. Of intervals for a nominal .95: the share of draws in which the truth
is covered, where there is an interval; in brackets how often there is one, *none* where there never is. Nothing is
below .90. Of tests at .05: the share of draws in which nothing was called something. Nothing is above .10. Shares have
a standard error of .009 (600 draws); those of rates, McNemar's test and chance are sums over all that can happen.
"""


def main() -> None:
    """Write docs/coverage.md."""
    folder = Path(__file__).parents[2] / "docs"
    if not folder.is_dir():
        sys.exit(f"docs/coverage.md belongs to a checkout of the repository; there is no {folder}")
    (folder / "coverage.md").write_text(page(list(simulate(DRAWS))), encoding="utf-8")


if __name__ == "__main__":
    main()
