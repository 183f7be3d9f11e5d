"""The code of the pages that tell how to do something runs as it stands."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.interventions.cases import unchecked_types

DOCS = Path(__file__).parents[2] / "docs"
PAGES = [DOCS / "index.md", DOCS / "concepts.md", *sorted((DOCS / "howto").glob("*.md"))]
FEWER = {"n=256).batches(256)": "n=16).batches(16)", "n=64).batches(64)": "n=16).batches(16)"}


def code_of(page: Path) -> str:
    return "\n".join(re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), flags=re.DOTALL))


@pytest.mark.parametrize("page", [page for page in PAGES if code_of(page)], ids=lambda page: page.stem)
def test_it_runs(page, tmp_path, monkeypatch):
    from analyses.running.catalogue import REGISTERED
    from interventions.core import _REGISTRY

    monkeypatch.chdir(tmp_path)
    code = code_of(page)
    for many, few in FEWER.items():
        code = code.replace(many, few)
    try:
        with unchecked_types():
            exec(compile(code, f"{page.stem}.py", "exec"), {"__name__": page.stem})
    finally:  # what a page defines is not there for other tests
        for name in [name for name, entry in REGISTERED.items() if entry.run.__module__ == page.stem]:
            del REGISTERED[name]
        for name in [name for name, factory in _REGISTRY.items() if factory.function.__module__ == page.stem]:
            del _REGISTRY[name]


def test_every_page_that_shows_python_is_run():
    """`coming_from` and `families` have tests of their own; `dictionaries` trains one with a package we do not need."""
    elsewhere = {"coming_from", "families", "dictionaries"}
    shown = {path.stem for path in DOCS.rglob("*.md") if code_of(path)}
    assert shown - elsewhere <= {page.stem for page in PAGES}
