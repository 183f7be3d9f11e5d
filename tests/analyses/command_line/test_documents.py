"""`hooked-vit docs`: the pages that messages point to are there, and listed."""

from __future__ import annotations

import re
from pathlib import Path

from analyses.command_line.cli import main
from analyses.command_line.saved import pages

ROOT = Path(__file__).parents[3]


def test_all_are_listed(capsys):
    assert main(["docs"]) == 0
    listed = capsys.readouterr().out
    assert [name for name in pages() if name not in listed] == []
    assert "howto/intervention" in pages()


def test_one_is_printed_as_it_is(capsys):
    assert main(["docs", "families"]) == 0
    assert capsys.readouterr().out == (ROOT / "docs" / "families.md").read_text(encoding="utf-8")


def test_a_typo_is_told_the_nearest(capsys):
    assert main(["docs", "familes"]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "families" in said


def test_pages_that_the_code_points_to_are_there():
    named = set()
    for package in ("hooked_vit", "interventions", "analyses"):
        for path in (ROOT / package).rglob("*.py"):
            text = re.sub(r'"\s*\n\s*"', "", path.read_text(encoding="utf-8"))  # a sentence over several lines
            named |= set(re.findall(r"`hooked-vit docs ([\w/]+)`", text))
    assert "families" in named
    assert named <= pages().keys()
