"""The site has every analysis and every public name, is built without a warning, and needs nothing from elsewhere."""

from __future__ import annotations

import ast
import re
import warnings
from html import unescape
from pathlib import Path

import pytest

from analyses.running.catalogue import in_source, registered_analyses
from hooked_vit.hook_table import without_layer
from site_pages import ROOT, hooks, names, runs
from site_pages.commands import commands
from site_pages.gallery import by_subject, gallery_pages
from site_pages.methods import about
from site_pages.mkdocs_hooks import NO_FIGURES, on_config
from tests.tiny import LOADED, tiny

pytestmark = pytest.mark.xdist_group("site")  # which is built once
NOT_FOR_USERS = {"analyses.command_line.commands"}  # its names are commands, on the page of the command line


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site as `make docs` builds it, without figures, which take minutes."""
    from mkdocs.commands.build import build
    from mkdocs.config import load_config

    folder = tmp_path_factory.mktemp("site")
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Python's own, of mkdocs and its plugins; a warning of the build is an error
        patch.setenv(NO_FIGURES, "1")
        patch.chdir(ROOT)
        config = load_config(str(ROOT / "mkdocs.yml"), strict=True, site_dir=str(folder))
        config.plugins.on_startup(command="build", dirty=False)
        build(config)
        config.plugins.on_shutdown()
    return folder


def html(site: Path, page: str) -> str:
    return (site / page).read_text(encoding="utf-8")


def ids(text: str) -> set[str]:
    return {unescape(found) for found in re.findall(r'\bid="([^"]+)"', text)}


def test_the_gallery_has_every_registered_analysis(site):
    pages = {subject: html(site, f"gallery/{subject}.html") for subject in by_subject()}
    index = html(site, "gallery/index.html")
    shown = {}
    for subject, entries in by_subject().items():
        for entry in entries:
            shown[entry.name] = pages[subject]
            assert entry.name in ids(pages[subject]), entry.name
            assert f'href="{subject}.html#{entry.name}"' in index, entry.name
    assert shown.keys() == in_source().keys()
    for name in shown:
        assert about(name), name


def test_an_entry_says_question_source_control_formula_and_command():
    pages = "\n".join(gallery_pages(drawn=False).values())
    for name, source in in_source().items():
        (entry,) = re.findall(rf"^## {name}\n(.*?)(?=^## |\Z)", pages, flags=re.MULTILINE | re.DOTALL)
        assert source.summary in entry
        assert re.search(r"^\*Source\* \S", entry, flags=re.MULTILINE), name
        assert re.search(r"^\*Control\* \S", entry, flags=re.MULTILINE), name
        assert "What is measured: §" in entry
        assert runs.command(registered_analyses()[name]) in entry


@pytest.mark.parametrize("name", sorted(in_source()))
def test_the_command_of_a_figure_is_one_that_is_understood(name):
    runs.check(name)
    said = runs.command(registered_analyses()[name])
    if not in_source()[name].is_command:
        ast.parse(said)
        return
    from analyses.command_line.cli import parse

    assert parse(said.split()[1:]).analysis == name


def test_every_public_name_has_an_entry(site):
    pages = "\n".join(html(site, f"reference/{page.name}") for page in sorted((site / "reference").glob("*.html")))
    there = ids(pages)
    for package in (*names.PACKAGES, *names.ROOMS):
        missing = [name.public for name in names.names_of(package) if not {name.public, name.path} & there]
        assert missing == [], package
    ours = {n for n, made in names.registered().items() if not made.function.__module__.startswith("tests.")}
    assert {f"interventions.{name}" for name in ours} <= there
    assert {f"analyses.{source.function}" for source in in_source().values()} <= there


def test_no_package_has_public_names_that_are_not_documented():
    found = set()
    for package in ("hooked_vit", "interventions", "analyses"):
        for path in sorted((ROOT / package).rglob("*.py")):
            tree = ast.parse(path.read_text(encoding="utf-8"))
            if any(isinstance(n, ast.Assign) and ast.unparse(n.targets[0]) == "__all__" for n in tree.body):
                parts = path.relative_to(ROOT).with_suffix("").parts
                found.add(".".join(parts[:-1] if parts[-1] == "__init__" else parts))
    assert found - NOT_FOR_USERS - set(names.ROOMS) == set(names.PACKAGES)


def test_every_hook_of_every_family_has_a_row():
    page = hooks.hook_page()
    kinds = {without_layer(name).replace("blocks.", "blocks.l.") for name in LOADED for name in tiny(name)[1].hook_dict}
    assert len(kinds) > 40
    assert [kind for kind in kinds if f"| `{kind}` |" not in page] == []


def test_every_command_is_on_its_page(site):
    assert commands().keys() <= ids(html(site, "reference/commands.html"))


def test_examples_are_code(site):
    """No prompt of an example is left in running text, no flag of doctest anywhere."""
    for page in (site / "reference").glob("*.html"):
        text = re.sub(
            r'<details class="mkdocstrings-source">.*?</details>', "", html(site, f"reference/{page.name}"), flags=re.S
        )
        assert "doctest:" not in text, page.name
        assert not re.search(r"<p>\s*&gt;&gt;&gt;|<blockquote>", text), page.name


def test_nothing_is_fetched_from_elsewhere(site):
    fetched = re.compile(r'<(?:script|img|iframe|source)\b[^>]*?\bsrc="[^"]*"|<link\b[^>]*?\bhref="[^"]*"|@import[^;]*')
    for page in site.rglob("*.html"):
        for found in fetched.finditer(page.read_text(encoding="utf-8")):
            assert not re.search(r"(https?:)?//", found[0]), f"{page.name}: {found[0]}"
    for style in site.rglob("*.css"):
        assert not re.search(r"url\((['\"]?)(https?:)?//", style.read_text(encoding="utf-8")), style.name


def test_the_search_works_in_a_page_that_is_opened_as_a_file(site):
    """The stand-in for its worker is there before the theme's script starts one, and the index is a script."""
    page = html(site, "index.html")
    assert page.index("search_of_files.js") < page.index("assets/javascripts/bundle.")
    assert html(site, "search/search_index.js") == f"var __index = {html(site, 'search/search_index.json')}"


def test_every_page_is_in_the_navigation(site):
    start = html(site, "index.html")
    docs = {path.relative_to(ROOT / "docs").with_suffix(".html").as_posix() for path in (ROOT / "docs").rglob("*.md")}
    docs = {f"gallery/{subject}.html" for subject in by_subject()} | docs - {"index.html"}  # which is this one
    assert [page for page in docs if f'href="{page}" class="md-nav__link"' not in start] == []


def test_a_page_that_nobody_listed_is_below_how_to(tmp_path):
    from types import SimpleNamespace

    (tmp_path / "new.md").write_text("# New")
    config = SimpleNamespace(nav=[{"Start": "index.md"}, {"How to": [{"One": "one.md"}]}], docs_dir=str(tmp_path))
    assert on_config(config).nav[1] == {"How to": [{"One": "one.md"}, "new.md"]}
