"""What an analysis can be told on the command line: its keyword parameters, read from its signature."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

from analyses.command_line.values import Number, Once, data, path, text
from analyses.running.arguments import PLACES, READ_FROM, Option, options_of


def add_options(parser: argparse.ArgumentParser, function: Callable, reserved: set[str]) -> None:
    """Give a parser the options of an analysis, but those the command has for every analysis."""
    group = parser.add_argument_group("options of this analysis")
    for option in options_of(function):
        if option.name in reserved:
            continue
        shown = " ".join(map(str, option.default)) if option.many and option.default else option.default
        about: dict[str, Any] = {
            "dest": f"option_{option.name}",
            "default": argparse.SUPPRESS,
            "help": _help(option, shown),
        }
        if option.kind is bool:
            group.add_argument(option.flag, action=argparse.BooleanOptionalAction, **about)
            continue
        about |= {"type": _value(option), "metavar": None if option.choices else _metavar(option), "action": Once}
        group.add_argument(option.flag, choices=option.choices, nargs="+" if option.many else None, **about)


def given(args: argparse.Namespace, function: Callable) -> dict[str, Any]:
    """The options of an analysis that were given, under their parameters' names."""
    values = {option: getattr(args, f"option_{option.name}", None) for option in options_of(function)}
    return {o.name: tuple(v) if o.many else v for o, v in values.items() if v is not None}


def _help(option: Option, shown: Any) -> str:
    if option.name in READ_FROM:
        return "folders of `hooked-vit cache` to read from, where the models would be run"
    return "the analysis chooses if not given" if option.default in (None, ()) else f"default: {shown}"


def _value(option: Option) -> Callable[[str], Any]:
    if option.kind in (int, float):
        return Number(option.range, option.kind)
    return path if option.name in PLACES + READ_FROM else data if option.is_data else text


def _metavar(option: Option) -> str:
    if option.name in PLACES + READ_FROM:
        return "PATH"
    return "DATA" if option.is_data else {int: "N", float: "X", str: "NAME"}[option.kind]
