"""From the tables of a TOML file to dataclasses, every entry known, none missing, and each of the kind it has to be."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, fields
from types import UnionType
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from hooked_vit.errors import nearest

T = TypeVar("T")
KINDS: dict[Any, str] = {
    str: "a text",
    int: "a whole number",
    float: "a finite number",
    bool: "true or false",
    type(None): "nothing",
}


class RecipeError(ValueError):
    """A recipe that cannot mean anything: the file, the entry, and what it should be."""


def made(kind: type[T], where: str, entry: Any) -> T:
    """A dataclass from a table; `where` begins an error.

    Raises RecipeError for what is no table, a key there is not, one that is missing, and a value of another kind.
    """
    entry = table(where, entry)
    known = {f.name for f in fields(kind)}  # type: ignore[arg-type]
    if strange := sorted(set(entry) - known):
        raise RecipeError(f"{where}: unknown {', '.join(strange)}{nearest(strange[0], known)}")
    needed = [f.name for f in fields(kind) if f.default is MISSING and f.default_factory is MISSING]  # type: ignore[arg-type]
    if lacking := [name for name in needed if name not in entry]:
        raise RecipeError(f"{where}: lacks {', '.join(lacking)}")
    hints = get_type_hints(kind)
    for name, value in entry.items():
        if not _fits(value, hints[name]):
            raise RecipeError(f"{where}: {name} is {_described(hints[name])}; got {str(value)[:80]!r}")
        entry[name] = float(value) if hints[name] is float else value
    return kind(**entry)


def table(where: str, entry: Any) -> dict[str, Any]:
    """The entry, which has to be a table. Raises RecipeError where it is none."""
    if not isinstance(entry, Mapping):
        raise RecipeError(f"{where}: is a table of entries; got {str(entry)[:80]!r}")
    return dict(entry)


def listed(where: str, entry: Any) -> tuple[Any, ...]:
    """The entry, which has to be a list. Raises RecipeError where it is none."""
    if not isinstance(entry, (list, tuple)):
        raise RecipeError(f"{where}: is a list; got {str(entry)[:80]!r}")
    return tuple(entry)


def _fits(value: Any, hint: Any) -> bool:
    origin, inner = get_origin(hint), get_args(hint)
    if hint is Any:
        return True
    if isinstance(hint, UnionType):
        return any(_fits(value, one) for one in inner)
    if origin is not None and issubclass(origin, Mapping):
        return isinstance(value, Mapping) and all(_fits(v, inner[1]) for v in value.values())
    if origin is not None and issubclass(origin, Sequence):
        return isinstance(value, (list, tuple)) and all(_fits(v, inner[0]) for v in value)
    if hint is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**31
    return isinstance(value, hint)


def _described(hint: Any) -> str:
    if isinstance(hint, UnionType):
        return " or ".join(_described(one) for one in get_args(hint))
    origin = get_origin(hint)
    if origin is not None:
        kind = "a table" if issubclass(origin, Mapping) else "a list"
        return f"{kind} of {KINDS[inner].split(' ', 1)[-1]}s" if (inner := get_args(hint)[-1]) in (str, int) else kind
    return KINDS.get(hint, str(getattr(hint, "__name__", hint)))
