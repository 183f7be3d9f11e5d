"""The commands that show what stands there already: saved results, their figures, and the documentation's pages.

In a wheel the pages are inside the package, in a checkout beside it.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from analyses.command_line import terminal

PACKAGE = Path(__file__).parents[1]


def list_results(args: argparse.Namespace) -> int:
    """`list`: a row per saved result; 1 where one of them cannot be read."""
    from analyses.command_line.collected import described, saved_below

    rows = [described(folder) for folder in saved_below(args.folder)]
    console = terminal.console()
    if not rows:
        terminal.say(console, f"{args.folder} holds no saved result; a run leaves one in its --out folder.")
        return 0
    terminal.print_table(console, list(rows[0]), [list(row.values()) for row in rows], f"results in {args.folder}")
    return int(any(row["state"] != "whole" for row in rows))


def report(args: argparse.Namespace) -> int:
    """`report`: one page of saved results."""
    from analyses.command_line.collected import write_collected

    terminal.quiet()
    terminal.say(terminal.console(), write_collected(args.folder, args.out))
    return 0


def figure(args: argparse.Namespace) -> int:
    """`figure`: the figure of a saved result, as a file."""
    from analyses.running.files import check_writable
    from analyses.running.results import Result

    check_writable(Path(args.out).expanduser().parent)
    result = Result.load(args.folder)
    try:
        drawn = result.savefig(args.out, args.size)
    except ImportError as error:  # it says what to install
        raise ValueError(str(error)) from error
    terminal.say(terminal.console(), drawn)
    return 0


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
