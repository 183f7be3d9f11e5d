"""What an analysis can be told on the command line: its keyword parameters, read from its signature."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Sequence
from inspect import signature
from typing import Any

from analyses.command_line.meanings import default_of, meaning, what_it_may_be
from analyses.command_line.parser import UsageError, no_option
from analyses.command_line.values import Choice, Number, Once, data, path, text
from analyses.running.arguments import CHOICES, FORMER, PLACES, READ_FROM, Option, flag_of, former_names, options_of
from analyses.running.catalogue import Source, as_key

PREFIX, BATCH = "option_", "batch_size"
SHORT = 50
"""Letters of choices that are shown behind an option; longer ones stand in its help alone."""


def add_options(parser: argparse.ArgumentParser, function: Callable, reserved: set[str]) -> None:
    """Give a parser the options of an analysis, but those the command has for every analysis.

    The batch size is one of these, and has a default of its own in each.
    """
    if BATCH in reserved and (batches := signature(function).parameters.get(BATCH)) is not None:
        (action,) = (action for action in parser._actions if action.dest == BATCH)
        action.help = f"{action.help} (default: {batches.default})"
    group = parser.add_argument_group("options of this analysis")
    analysis = as_key(function.__name__) if function.__module__.startswith("analyses.") else None
    for former in former_names(function):
        dest, unseen = f"{PREFIX}{former}", argparse.SUPPRESS
        group.add_argument(flag_of(former), dest=dest, action=Once, type=data, default=unseen, help=unseen)
    for option in options_of(function):
        if option.name in reserved:
            continue
        said = [meaning(option, analysis) if analysis else "", what_it_may_be(option)]
        about: dict[str, Any] = {
            "dest": f"{PREFIX}{option.name}",
            "default": argparse.SUPPRESS,
            "help": f"{'; '.join(filter(None, said))} ({default_of(option)})".replace("%", "%%").strip(),
        }
        if option.kind is bool:
            group.add_argument(option.flag, action=argparse.BooleanOptionalAction, **about)
            continue
        about |= {"type": _value(option), "metavar": _metavar(option), "action": Once}
        group.add_argument(option.flag, nargs="+" if option.many else None, **about)


def check_typed(known: Iterable[str], source: Source, rest: Sequence[str]) -> None:
    """Make sure, before an analysis and torch are imported, that it has these options and their values are among those
    it lists; `known` are the command's own options, `rest` is what they left.

    Raises UsageError, offering the nearest.
    """
    ours = {flag_of(name): CHOICES.get(name) or listed for name, listed in source.options.items()}
    ours |= dict.fromkeys(flag_of(former) for former, name in FORMER.items() if name in source.options)
    flag, choices = "", None
    for word in rest:
        if not word.startswith("--"):
            if choices:
                _check_choice(flag, word, choices)
            continue
        flag, given, value = word.partition("=")
        meant = [one for one in (*known, *ours) if one.startswith(flag)] or [f"--{flag.removeprefix('--no-')}"]
        choices = ours.get(meant[0]) if len(meant) == 1 or flag in ours else None
        if not {*meant} & {*known, *ours}:
            raise UsageError(no_option(flag, [*known, *ours]))
        if given and choices:
            _check_choice(flag, value, choices)


def _check_choice(flag: str, word: str, choices: tuple[str, ...]) -> None:
    try:
        Choice(choices)(word)
    except argparse.ArgumentTypeError as error:
        raise UsageError(f"argument {flag}: {error}") from error


def given(args: argparse.Namespace, function: Callable) -> dict[str, Any]:
    """The options of an analysis that were given, under their parameters' names, or the former ones as they were."""
    told = {name.removeprefix(PREFIX): value for name, value in vars(args).items() if name.startswith(PREFIX)}
    many = {option.name for option in options_of(function) if option.many}
    return {name: tuple(value) if name in many else value for name, value in told.items()}


def _value(option: Option) -> Callable[[str], Any]:
    if option.kind in (int, float):
        return Number(option.range, option.kind)
    if option.choices:
        return Choice(option.choices)
    return path if option.name in PLACES + READ_FROM else data if option.is_data else text


def _metavar(option: Option) -> str:
    if option.name in PLACES + READ_FROM:
        return "PATH"
    if option.choices:
        return listed if len(listed := f"{{{','.join(option.choices)}}}") < SHORT else "NAME"
    return "DATA" if option.is_data else {int: "N", float: "X", str: "NAME"}[option.kind]
