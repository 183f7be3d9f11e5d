"""In how many processes a command runs, and which of them does what."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from analyses.processes import group

SHARED = ("run", "demo", "cache")
"""Commands whose work several processes share."""


def dispatch(args: argparse.Namespace, argv: Sequence[str]) -> int:
    """Do what was typed: here, in as many processes as were asked for, or as one of several that were started."""
    if group.count() > 1:
        return _as_one_of_several(args)
    if (getattr(args, "num_processes", None) or 1) > 1:
        from analyses.processes.launching import launch

        return launch(argv, args.num_processes)
    return _command(args)


def _command(args: argparse.Namespace) -> int:
    from analyses.command_line import commands

    return int(getattr(commands, args.command)(args))


def _as_one_of_several(args: argparse.Namespace) -> int:
    """The first process that fails says why. What is not shared, the first one does."""
    try:
        group.join()
        if args.command in SHARED:
            return _command(args)
        with group.alone():
            return _command(args) if group.leads() else 0
    except BaseException:
        if group.first_to_fail():
            raise
        return group.FOLLOWED
