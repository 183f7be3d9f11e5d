"""What several processes have gathered, each from its own batches, as one process would have gathered it from all.

An accumulator is whatever a walk over batches fills: a list that is appended to, a number, array or tensor that is
added to, a dictionary of these, an object of ours made of these (but for the attributes it names in `PASSING`, which
are those of its last batch), or one that knows itself how to `merge` with another. Lists and new keys of dictionaries
come in the order of the batches; numbers are what all have added. What can `merge` does so in the order of the
processes, all but the first of which begin with a `fresh` one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from numbers import Number
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

Path = tuple[Any, ...]


class _Parts(NamedTuple):
    """An object as what its attributes hold."""

    kind: type
    held: dict[str, Any]


@dataclass
class Gathered:
    """What one process has at the end of a walk: its accumulators, and how long each was after each of its batches."""

    state: list[Any]
    numbers: list[int] = field(default_factory=list)
    lengths: list[dict[Path, int]] = field(default_factory=list)


class Gathering:
    """Accumulators of one process during a walk; one of the processes `begins`.

    >>> mine, theirs = [], []
    >>> here, there = Gathering([mine]), Gathering([theirs], begins=False)
    >>> mine.append("batch 0"), here.note(0), theirs.append("batch 1"), there.note(1)
    (None, None, None, None)
    >>> here.become([here.told(), there.told()])
    >>> mine
    ['batch 0', 'batch 1']
    """

    def __init__(self, accumulators: Sequence[Any], *, begins: bool = True) -> None:
        self.live = list(accumulators)
        if not begins:  # what is there already counts once
            for each in _merging(self.live):
                vars(each).update(vars(each.fresh()))
        self.before = deepcopy([_plain(each) for each in self.live])
        self.numbers: list[int] = []
        self.lengths: list[dict[Path, int]] = []

    def note(self, number: int) -> None:
        """Batch `number` has been taken in."""
        self.numbers.append(number)
        held = [_lengths(_plain(each), (i,)) for i, each in enumerate(self.live)]
        self.lengths.append(dict(found for each in held for found in each))

    def told(self) -> Gathered:
        """What the others have to know of this process."""
        return Gathered([_plain(each) for each in self.live], self.numbers, self.lengths)

    def become(self, all_of_them: Sequence[Gathered]) -> None:
        """Hold what all processes have gathered."""
        states = [(told, told.state) for told in all_of_them]
        for i, live in enumerate(self.live):
            _put(live, _merged(self.before[i], [(told, state[i]) for told, state in states], (i,)))


def _plain(value: Any) -> Any:
    """The same with objects as their attributes, and every kind of dictionary as a plain one: what can be sent."""
    if isinstance(value, (str, bytes, Number, np.ndarray, Tensor, type(None))) or hasattr(value, "merge"):
        return value
    if isinstance(value, Mapping):
        return {key: _plain(one) for key, one in value.items()}
    if isinstance(value, list):
        return list(value)
    if _is_ours(value):
        passing = getattr(value, "PASSING", ())
        held = {key: one for key, one in vars(value).items() if key not in passing and _gathers(one)}
        return _Parts(type(value), {key: _plain(one) for key, one in held.items()})
    return value


def _is_ours(value: Any) -> bool:
    return type(value).__module__.partition(".")[0] == "analyses" and not isinstance(value, tuple)


def _gathers(value: Any) -> bool:
    """Whether an attribute can be something that is filled."""
    kinds = (Mapping, list, Number, np.ndarray, Tensor)
    return not isinstance(value, bool) and (isinstance(value, kinds) or hasattr(value, "merge") or _is_ours(value))


def _merging(values: Any) -> Iterator[Any]:
    """All that can merge, in lists and dictionaries as well."""
    for value in values.values() if isinstance(values, Mapping) else values:
        if hasattr(value, "merge"):
            yield value
        elif isinstance(value, (Mapping, list)):
            yield from _merging(value)


def _lengths(value: Any, path: Path) -> Iterator[tuple[Path, int]]:
    """How long each list and dictionary is."""
    if isinstance(value, _Parts):
        value = value.held
    if isinstance(value, (dict, list)):
        yield path, len(value)
    if isinstance(value, dict):
        for key, one in value.items():
            yield from _lengths(one, (*path, key))


def _merged(before: Any, after: list[tuple[Gathered, Any]], path: Path) -> Any:
    """What was `before`, and what the processes have made of it, as one."""
    values = [value for _, value in after]
    first = values[0]
    if hasattr(first, "merge"):
        for other in values[1:]:
            first = first.merge(other)
        return first
    if isinstance(first, _Parts):
        held = _merged(before.held if before else None, [(told, value.held) for told, value in after], path)
        return _Parts(first.kind, held)
    if isinstance(first, dict):
        before = before or {}
        return {
            key: _merged(before.get(key), [(told, value[key]) for told, value in after if key in value], (*path, key))
            for key in [*before, *_in_order(after, path, len(before))]
        }
    if isinstance(first, list):
        before = before or []
        return [*before, *_in_order(after, path, len(before))]
    if isinstance(first, (Number, np.ndarray, Tensor)) and not isinstance(first, (bool, np.bool_)):
        return _sum(before, values)
    return next((value for value in values if value is not None), None)


def _in_order(after: list[tuple[Gathered, Any]], path: Path, had: int) -> list[Any]:
    """What came into a list, or as keys into a dictionary, in the order of the batches it came with; keys once."""
    found: list[tuple[int, list[Any]]] = []
    for told, value in after:
        entries, done = list(value), had
        for number, lengths in zip(told.numbers, told.lengths, strict=True):
            until = lengths.get(path, done)
            found.append((number, entries[done:until]))
            done = until
    entries = [entry for _, some in sorted(found, key=lambda each: each[0]) for entry in some]
    return list(dict.fromkeys(entries)) if isinstance(after[0][1], dict) else entries


def _sum(before: Any, values: list[Any]) -> Any:
    """What all have added to what there was."""
    total = values[0]
    for value in values[1:]:
        total = total + (value if before is None else value - before)
    return total


def _put(live: Any, merged: Any) -> Any:
    """Let an accumulator hold something else, and be the same object where it can; returns what to bind."""
    if isinstance(merged, _Parts):
        live = object.__new__(merged.kind) if live is None else live
        for key, value in merged.held.items():
            setattr(live, key, _put(getattr(live, key, None), value))
    elif isinstance(merged, dict):
        live = {} if live is None else live
        was = dict(live)
        live.clear()
        live.update({key: _put(was.get(key), value) for key, value in merged.items()})
    elif isinstance(live, list):
        live[:] = merged
    elif isinstance(live, np.ndarray) and live.shape == np.shape(merged) and live.ndim:
        live[...] = merged
    elif isinstance(live, Tensor) and live.shape == merged.shape:
        live.copy_(merged)
    elif live is not None and hasattr(merged, "merge"):
        vars(live).update(vars(merged))
    else:
        return merged
    return live
