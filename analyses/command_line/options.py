"""What an analysis can be told on the command line: its keyword parameters, read from its signature."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

from analyses.command_line.values import Number, Once, data, path, text
from analyses.running.arguments import PLACES, Option, former_names, options_of

PREFIX = "option_"


def add_options(parser: argparse.ArgumentParser, function: Callable, reserved: set[str]) -> None:
    """Give a parser the options of an analysis, but those the command has for every analysis."""
    group = parser.add_argument_group("options of this analysis")
    for former in former_names(function):
        dest, flag = f"{PREFIX}{former}", f"--{former.replace('_', '-')}"
        group.add_argument(flag, dest=dest, action=Once, type=data, default=argparse.SUPPRESS, help=argparse.SUPPRESS)
    for option in options_of(function):
        if option.name in reserved:
            continue
        shown = " ".join(map(str, option.default)) if option.many and option.default else option.default
        about: dict[str, Any] = {
            "dest": f"{PREFIX}{option.name}",
            "default": argparse.SUPPRESS,
            "help": "the analysis chooses if not given" if option.default in (None, ()) else f"default: {shown}",
        }
        if option.kind is bool:
            group.add_argument(option.flag, action=argparse.BooleanOptionalAction, **about)
            continue
        about |= {"type": _value(option), "metavar": None if option.choices else _metavar(option), "action": Once}
        group.add_argument(option.flag, choices=option.choices, nargs="+" if option.many else None, **about)


def given(args: argparse.Namespace, function: Callable) -> dict[str, Any]:
    """The options of an analysis that were given, under their parameters' names, or the former ones as they were."""
    told = {name.removeprefix(PREFIX): value for name, value in vars(args).items() if name.startswith(PREFIX)}
    many = {option.name for option in options_of(function) if option.many}
    return {name: tuple(value) if name in many else value for name, value in told.items()}


def _value(option: Option) -> Callable[[str], Any]:
    if option.kind in (int, float):
        return Number(option.range, option.kind)
    return path if option.name in PLACES else data if option.is_data else text


def _metavar(option: Option) -> str:
    if option.name in PLACES:
        return "PATH"
    return "DATA" if option.is_data else {int: "N", float: "X", str: "NAME"}[option.kind]
