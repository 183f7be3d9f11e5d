"""What can be typed for an option, checked while it is read: numbers in range, text that can be shown, usable paths."""

from __future__ import annotations

import argparse
import math
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from analyses.running.arguments import Range
from analyses.running.places import usable_path
from analyses.running.text import check_seen, visible

WHOLE = re.compile(r"[-+]?[0-9]{1,30}")
DECIMAL = re.compile(r"[-+]?([0-9]+\.?|[0-9]*\.[0-9]+)(e[-+]?[0-9]{1,3})?", re.IGNORECASE)
SCHEMES_WITH_PATH = ("imagefolder:", "parquet:", "imagenet-s:")


@dataclass(frozen=True)
class Number:
    """What reads a number of a range, for argparse.

    >>> Number(Range(1, 10), int)("3")
    3

    Called, it raises ArgumentTypeError for anything else, infinity and nan among them.
    """

    range: Range
    kind: type

    def __call__(self, typed: str) -> int | float:
        """The number."""
        value: int | float = math.nan
        if self.kind is float and DECIMAL.fullmatch(typed):
            value = float(typed)
        elif self.kind is int and WHOLE.fullmatch(typed):
            value = int(typed)
        if fault := self.range.fault(value, self.kind):
            raise argparse.ArgumentTypeError(f"{fault} is needed, got {visible(typed)[:80]!r}")
        return value


def processes_here() -> Range:
    """How many processes or threads make sense on this machine: a few for each core, not so many that it dies."""
    return Range(1, max(64, 4 * (os.cpu_count() or 1)))


def text(typed: str) -> str:
    """Text that can be shown, and is not empty. Raises ArgumentTypeError."""
    if not typed.strip():
        raise argparse.ArgumentTypeError("it is empty")
    try:
        return check_seen(typed, "it")
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def path(typed: str) -> str:
    """A path that a file system can hold, `~` as it stands. Raises ArgumentTypeError for what `usable_path` refuses."""
    try:
        usable_path(text(typed))
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    return typed


def model(typed: str) -> str:
    """A model: a name, a hub id or a path. Raises what `path` does."""
    return path(typed)


def data(typed: str) -> str:
    """A data specification. Raises what `path` does for the path in it."""
    for scheme in SCHEMES_WITH_PATH:
        if typed.startswith(scheme):
            return scheme + path(typed.removeprefix(scheme))
    return text(typed)


@dataclass(frozen=True)
class Assigned:
    """What reads NAME=VALUE. Called, it raises ArgumentTypeError where one of them is missing or its value is wrong."""

    value: Callable[[str], str]

    def __call__(self, typed: str) -> tuple[str, str]:
        """The name and the value."""
        name, _, given = typed.partition("=")
        if not name.strip() or not given.strip():
            raise argparse.ArgumentTypeError(f"it is NAME=VALUE, got {visible(typed)!r}")
        return text(name), self.value(given)


class Once(argparse.Action):
    """Keep a value that may be given once; of an option that takes several (or of NAME=VALUE) add each once."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        """Raises ArgumentError for what was given before; of NAME=VALUE the names count."""
        before = vars(namespace).setdefault("_given", {}).setdefault(self.dest, [])
        several = self.nargs == "+" or isinstance(values, tuple)
        if before and not several:
            raise argparse.ArgumentError(self, "it is given twice")
        for value in values if self.nargs == "+" else [values]:
            if (name := _name(value)) in map(_name, before):
                raise argparse.ArgumentError(self, f"{name!r} is given twice")
            before.append(value)
        setattr(namespace, self.dest, list(before) if several else values)


def _name(value: Any) -> Any:
    return value[0] if isinstance(value, tuple) else value
