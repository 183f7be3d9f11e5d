"""What an analysis can be told on the command line: its keyword parameters, read from its signature."""

from __future__ import annotations

import argparse
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, get_args, get_origin, get_type_hints

SIMPLE = (bool, int, float, str)


@dataclass(frozen=True)
class Option:
    """A keyword parameter as a command line option.

    `kind` is the type of one value, `many` says that it takes several, `is_data` that it is a data specification.
    """

    name: str
    kind: type
    default: Any
    choices: tuple | None = None
    many: bool = False
    is_data: bool = False

    @property
    def flag(self) -> str:
        """How it is written."""
        return f"--{self.name.replace('_', '-')}"


def options_of(function: Callable) -> list[Option]:
    """The options of an analysis: every parameter behind models and data whose value can be typed in.

    >>> def shuffled(models, data, *, seeds: int = 3, layers: tuple[int, ...] = (0, 1), probe_data=None): ...
    >>> [option.flag for option in options_of(shuffled)]
    ['--seeds', '--layers', '--probe-data']

    That is a number, a text, a switch, several of them, or data; the default or, where it is None, the annotation
    tells. A parameter called `..._data` takes a data specification. Other parameters are for Python only.
    """
    try:
        hints = get_type_hints(function)
    except (NameError, TypeError):  # an annotation that is imported for type checkers only
        hints = {}
    behind = list(inspect.signature(function).parameters.values())[2:]
    found = (_option(parameter, hints.get(parameter.name)) for parameter in behind)
    return [option for option in found if option is not None]


def _option(parameter: inspect.Parameter, hint: Any) -> Option | None:
    name, default = parameter.name, parameter.default
    if default is None and name.endswith("_data"):
        return Option(name, str, None, is_data=True)
    kinds = [hint, *get_args(hint)] if hint is not None else []
    for kind in kinds:
        if get_origin(kind) is Literal:
            return Option(name, type(get_args(kind)[0]), default, choices=get_args(kind))
    if default is not None and default is not parameter.empty:
        if isinstance(default, tuple):
            values = {type(value) for value in default} or {str}
            return (
                Option(name, kind, default, many=True) if (kind := values.pop()) in SIMPLE[1:] and not values else None
            )
        return Option(name, type(default), default) if type(default) in SIMPLE else None
    for kind in kinds:
        if kind in SIMPLE:
            return Option(name, kind, None)
        if get_origin(kind) is tuple and (inner := get_args(kind)[0]) in SIMPLE[1:]:
            return Option(name, inner, None, many=True)
    return None


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
            "help": "the analysis chooses if not given" if option.default in (None, ()) else f"default: {shown}",
        }
        if option.kind is bool:
            group.add_argument(option.flag, action=argparse.BooleanOptionalAction, **about)
            continue
        about |= {"type": option.kind, "metavar": None if option.choices else _metavar(option)}
        group.add_argument(option.flag, choices=option.choices, nargs="+" if option.many else None, **about)


def given(args: argparse.Namespace, function: Callable) -> dict[str, Any]:
    """The options of an analysis that were given, under their parameters' names."""
    values = {option: getattr(args, f"option_{option.name}", None) for option in options_of(function)}
    return {o.name: tuple(v) if o.many else v for o, v in values.items() if v is not None}


def _metavar(option: Option) -> str:
    return "DATA" if option.is_data else {int: "N", float: "X", str: "NAME"}[option.kind]
