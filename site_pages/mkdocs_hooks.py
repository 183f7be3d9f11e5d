"""What mkdocs calls while it builds: the generated pages join those of `docs/`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

from site_pages import documents, reference
from site_pages.commands import command_page
from site_pages.gallery import by_subject, gallery_pages, title_of
from site_pages.hooks import hook_page

GALLERY, UNLISTED = "gallery/index.md", "How to"
NO_FIGURES = "HOOKED_VIT_DOCS_WITHOUT_FIGURES"
"""Set to 1 it leaves the figures out, so that words can be looked at within seconds; the pages say so."""


def on_config(config: Any) -> Any:
    """Put the subjects of the gallery into the navigation, and pages of `docs/` that nobody listed below How to."""
    for section in config.nav:
        for title, pages in section.items():
            if title == UNLISTED:
                listed = set(_places(config.nav))
                there = {path.relative_to(config.docs_dir).as_posix() for path in Path(config.docs_dir).rglob("*.md")}
                pages += sorted(there - listed)
            if GALLERY in pages:
                at = pages.index(GALLERY) + 1
                pages[at:at] = [{title_of(subject): f"gallery/{subject}.md"} for subject in by_subject()]
    return config


def _places(nav: Any) -> list[str]:
    if isinstance(nav, str):
        return [nav]
    return [place for part in (nav.values() if isinstance(nav, dict) else nav) for place in _places(part)]


def on_files(files: Files, config: Any) -> Files:
    """Add every generated page; one that stands in `docs/` already is left as it is."""
    drawn = os.environ.get(NO_FIGURES) != "1"
    pages = {
        **gallery_pages(drawn=drawn),
        **reference.pages(),
        "reference/hooks.md": hook_page(),
        "reference/commands.md": command_page(),
        **documents.pages(),
    }
    for place, text in pages.items():
        if files.get_file_from_path(place) is None:
            files.append(File.generated(config, place, content=text))
    if drawn:
        files.append(File.generated(config, "assets/plotly.min.js", content=_plotly()))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """The start page stands alone in its tab: a column for its neighbours would be empty."""
    if page.file.src_uri == "index.md":
        page.meta["hide"] = ["navigation"]
    return markdown


def on_post_build(config: Any) -> None:
    """The search's index as a script too, which a page that is opened as a file may load."""
    folder = Path(config.site_dir) / "search"
    index = (folder / "search_index.json").read_text(encoding="utf-8")
    (folder / "search_index.js").write_text(f"var __index = {index}", encoding="utf-8")


def _plotly() -> str:
    from plotly.offline import get_plotlyjs

    return str(get_plotlyjs())
