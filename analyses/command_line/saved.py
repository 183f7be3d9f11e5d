"""The commands that look at saved results."""

from __future__ import annotations

import argparse

from analyses.command_line import terminal


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
