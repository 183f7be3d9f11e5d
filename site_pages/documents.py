"""Pages that stand beside `docs/` in the repository, or that a script writes there: each is on the site either way."""

from __future__ import annotations

import re

from site_pages import ROOT

NOT_YET = """# Benchmarks

This page is written by a script from ratios against other tools, both measured in one run on one machine, and this
copy of the documentation was built where it had not been written. `python -m benchmarks` in a checkout measures and
prints them in a few minutes; `python -m benchmarks --help` says what each one compares.
"""


def pages() -> dict[str, str]:
    """CONTRIBUTING and CHANGELOG, and a page of benchmarks for where none was measured."""
    return {
        "contributing.md": _moved("CONTRIBUTING.md"),
        "changelog.md": _moved("CHANGELOG.md"),
        "benchmarks.md": NOT_YET,
    }


def _moved(name: str) -> str:
    """A page of the repository's root, its links to `docs/` as they are from there."""
    text = (ROOT / name).read_text(encoding="utf-8")
    return re.sub(r"\]\(docs/([^)]+)\)", r"](\1)", text)
