"""The documentation's pages, which go along with the package: in a wheel inside it, in a checkout beside it."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from analyses.command_line import terminal

PACKAGE = Path(__file__).parents[1]


def docs(args: argparse.Namespace) -> int:
    """`docs`: the pages there are, or one of them."""
    found = pages()
    if args.page is None:
        console = terminal.console()
        rows = [[name, _title(path)] for name, path in found.items()]
        terminal.print_table(console, ["page", "about"], rows, "hooked-vit docs PAGE")
        return 0
    if args.page not in found:
        from hooked_vit.errors import nearest

        raise LookupError(f"there is no page {args.page!r}{nearest(args.page, found)}")
    sys.stdout.write(found[args.page].read_text(encoding="utf-8"))
    return 0


def pages() -> dict[str, Path]:
    """The pages by name, in alphabetical order.

    >>> "families" in pages()
    True

    Raises FileNotFoundError where the package was installed without them.
    """
    inside, beside = PACKAGE / "docs", PACKAGE.parent / "docs"
    folder = beside if (PACKAGE.parent / "pyproject.toml").is_file() else inside
    found = {path.relative_to(folder).with_suffix("").as_posix(): path for path in sorted(folder.rglob("*.md"))}
    if not found:
        raise FileNotFoundError(f"the documentation is not where it was installed, {folder}")
    return found


def _title(page: Path) -> str:
    lines = page.read_text(encoding="utf-8").splitlines()
    return next((line.removeprefix("# ") for line in lines if line.startswith("# ")), "")
