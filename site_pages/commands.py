"""The page of the command line, written from the parser: what each command takes, in its own words."""

from __future__ import annotations

import argparse

from analyses.command_line.cli import build_parser


def command_page() -> str:
    """Every command with its help."""
    parser, _ = build_parser()
    lines = [
        "# The command line",
        "",
        "What `hooked-vit COMMAND --help` says. An analysis has options of its own beside those of `run`:",
        "`hooked-vit run ANALYSIS --help` adds them, and [the gallery](../gallery/index.md) lists the analyses.",
        "",
        *_block(parser),
    ]
    for name, sub in commands().items():
        lines += [f"## {name}", "", *_block(sub)]
    return "\n".join(lines)


def commands() -> dict[str, argparse.ArgumentParser]:
    """The commands by name."""
    (group,) = (action for action in build_parser()[0]._actions if isinstance(action, argparse._SubParsersAction))
    return dict(group.choices)


def _block(parser: argparse.ArgumentParser) -> list[str]:
    # not for the terminal of whoever builds: as wide as a page
    parser.formatter_class = lambda prog: argparse.RawDescriptionHelpFormatter(prog, width=100)
    return ["```text", parser.format_help().rstrip(), "```", ""]
