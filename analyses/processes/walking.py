"""A pass over batches that is begun once it is known what it fills."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Generic, NamedTuple, TypeVar

T = TypeVar("T")
S = TypeVar("S")


class Step(NamedTuple, Generic[T]):
    """What a pass yields: the number of the batch, that of its first image, and what there is of it."""

    number: int
    first: int
    item: T


class Walk(Generic[T]):
    """A pass that `start` begins with the accumulators it fills (see `progress_batches`); iterated, it fills none."""

    def __init__(self, start: Callable[[Sequence[Any]], Iterator[Step[T]]]) -> None:
        self.start = start

    def __iter__(self) -> Iterator[T]:
        return (step.item for step in self.start(()))

    def map(self, change: Callable[[T], S]) -> Walk[S]:
        """The same pass with every item changed, when it is reached."""
        return Walk(lambda into: (Step(i, first, change(item)) for i, first, item in self.start(into)))


def numbered(batches: Iterable[Any], *into: Any) -> Iterator[Step[Any]]:
    """The steps of a pass that fills these accumulators; batches that are no `Walk` are numbered as they come.

    >>> [(i, first) for i, first, _ in numbered([("ab",), ("cd",)])]
    [(0, 0), (1, 2)]

    An item of theirs has something as long as the batch in front.
    """
    if isinstance(batches, Walk):
        yield from batches.start(into)
        return
    first = 0
    for number, item in enumerate(batches):
        yield Step(number, first, item)
        first += len(item[0])


def filling(batches: Iterable[T], *into: Any) -> Iterator[T]:
    """The items of a pass that fills these accumulators.

    >>> list(filling([("ab", 1)]))
    [('ab', 1)]
    """
    return (step.item for step in numbered(batches, *into))
