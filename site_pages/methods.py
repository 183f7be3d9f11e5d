"""What `docs/methods.md` says of an analysis: its sections, where they come from, what they are held against."""

from __future__ import annotations

import re
from functools import cache
from typing import NamedTuple

from site_pages import ROOT

SECTION = re.compile(r"^## (§\d+ [^\n]+)\n(.*?)(?=^## |\Z)", flags=re.MULTILINE | re.DOTALL)


class Section(NamedTuple):
    """One section: its title, what is measured, and of its last line what each word in stars says."""

    title: str
    body: str
    said: dict[str, str]

    @property
    def anchor(self) -> str:
        """Where it stands on the page of methods.

        >>> Section("§4 The final head on earlier layers", "", {}).anchor
        '4-the-final-head-on-earlier-layers'
        """
        from markdown.extensions.toc import slugify

        return str(slugify(self.title, "-"))


@cache
def sections() -> tuple[Section, ...]:
    """All sections in their order."""
    page = (ROOT / "docs" / "methods.md").read_text(encoding="utf-8")
    return tuple(_section(title, body.strip()) for title, body in SECTION.findall(page))


def about(analysis: str) -> list[Section]:
    """The sections whose last line names an analysis."""
    return [
        section
        for section in sections()
        if any(f"`{analysis}`" in said for word, said in section.said.items() if word.startswith("Anal"))
    ]


def _section(title: str, text: str) -> Section:
    body, _, last = text.rpartition("\n")
    if not last.startswith("*Anal"):
        return Section(title, text, {})
    parts = re.split(r"\*(Analys[ei]s|Source|Control)\*", last)[1:]
    return Section(title, body.strip(), {w: s.strip() for w, s in zip(parts[::2], parts[1::2], strict=True)})
