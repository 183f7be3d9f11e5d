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
from analyses.running.models import check_spelling
from analyses.running.places import usable_path
from analyses.running.text import check_seen, visible
from hooked_vit.errors import nearest

WHOLE = re.compile(r"[-+]?[0-9]{1,30}")
KINDS = {"scenes": "SPLIT", "hf": "NAME:SPLIT", "imagefolder": "PATH", "parquet": "PATH", "imagenet-s": "PATH"}
"""Those of `load_data`, known here without torch -> what stands behind their colon; a test compares."""
DECIMAL = re.compile(r"[-+]?([0-9]+\.?|[0-9]*\.[0-9]+)(e[-+]?[0-9]{1,3})?", re.IGNORECASE)


@dataclass(frozen=True)
class Number:
    """What reads a number of a range, for argparse.

    >>> Number(Range(1, 10), int)("3")
    3

    Called, it raises ArgumentTypeError for anything else, infinity and nan among them.
    """

    range: Range
    kind: type
    words: tuple[str, ...] = ()

    def __call__(self, typed: str) -> int | float | str:
        """The number, or one of the words that stand for one."""
        if typed in self.words:
            return typed
        value: int | float = math.nan
        if self.kind is float and DECIMAL.fullmatch(typed):
            value = float(typed)
        elif self.kind is int and WHOLE.fullmatch(typed):
            value = int(typed)
        if fault := self.range.fault(value, self.kind):
            fault += "".join(f", or {word}," for word in self.words)
            raise argparse.ArgumentTypeError(f"{fault} is needed, got {visible(typed)[:80]!r}")
        return value


def processes_here() -> Range:
    """How many processes or threads make sense on this machine: a few for each core, not so many that it dies."""
    return Range(1, max(64, 4 * (os.cpu_count() or 1)))


@dataclass(frozen=True)
class Choice:
    """What reads one of several texts. Called, it raises ArgumentTypeError for another one, offering the nearest."""

    known: tuple[str, ...]

    def __call__(self, typed: str) -> str:
        """The text."""
        if typed not in self.known:
            meant = nearest(typed, self.known) or "."
            known = ", ".join(self.known)
            raise argparse.ArgumentTypeError(f"no value is called {visible(typed)[:80]!r}{meant} There are {known}")
        return typed


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
    """A model: a name, a hub id or a path. Raises what `path` does, and for a name that is nearly another one."""
    try:
        check_spelling(path(typed))
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    return typed


def data(typed: str) -> str:
    """A data specification. Raises what `path` does for the path in it, and for a kind or a split there is not."""
    kind, colon, rest = text(typed).partition(":")
    if colon and kind not in KINDS:
        raise argparse.ArgumentTypeError(
            f"data is one of {', '.join(f'{name}:{what}' for name, what in KINDS.items())}; got {typed!r}"
            f"{nearest(kind, KINDS)}"
        )
    if KINDS.get(kind) == "PATH" and colon:
        path(rest)
    if kind == "scenes" and rest:
        from analyses.data.scenes import check_split  # with numpy, for which help does not wait

        try:
            check_split(rest)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from error
    return typed


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
