"""What was typed, refused in one line that offers the nearest name."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Sequence
from typing import Any

from analyses.running.text import visible
from hooked_vit.errors import nearest


class UsageError(Exception):
    """Arguments that no command has."""


class Parser(argparse.ArgumentParser):
    """argparse, with an error of one line."""

    def error(self, message: str) -> Any:
        """Raise, instead of printing the usage and leaving."""
        raise UsageError(f"{message} (see {self.prog} --help)")


def flags_of(parser: argparse.ArgumentParser) -> list[str]:
    """The options of a parser, written out, but those that are taken and not shown."""
    shown = [action for action in parser._actions if action.help != argparse.SUPPRESS]
    return [flag for action in shown for flag in action.option_strings if flag.startswith("--")]


def refuse_strange(parser: argparse.ArgumentParser, strange: Sequence[str]) -> None:
    """Raises UsageError for what a command could not take: the first option it has not, or a word too many."""
    if flag := next((word for word in strange if word.startswith("-")), None):
        raise UsageError(f"{no_option(flag.partition('=')[0], flags_of(parser))} (see {parser.prog} --help)")
    if strange:
        models = "; models stand behind --model" if "--model" in flags_of(parser) else ""
        raise UsageError(f"{visible(strange[0])!r} is a word too many{models} (see {parser.prog} --help)")


def no_option(flag: str, known: Iterable[str]) -> str:
    """What to say of an option there is not."""
    return f"there is no option {visible(flag)}{nearest(flag, known)}"


def check_command(argv: Sequence[str], commands: Iterable[str], analyses: Iterable[str]) -> None:
    """Raises UsageError for a first word that is no command, offering the nearest; an analysis is one behind `run`."""
    if not argv or argv[0].startswith("-") or argv[0] in (known := list(commands)):
        return
    run = {name: f"run {name}" for name in analyses}
    name = argv[0].replace("_", "-")
    near = nearest(name, known) or nearest(f"run {name}", run.values())
    meant = f"; did you mean {run[name]!r}?" if name in run else near
    raise UsageError(f"there is no command {visible(argv[0])!r}{meant or '.'} There are {', '.join(known)}")
