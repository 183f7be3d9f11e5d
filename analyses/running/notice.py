"""What a user should hear at once, beside what is noted in the result."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from tqdm import tqdm

_HEARD: ContextVar[list[str] | None] = ContextVar("notes of the result that is being made", default=None)


@contextmanager
def heard_remarks() -> Iterator[list[str]]:
    """Every `remark` made meanwhile, each once; of an analysis inside another one, the inner one hears them."""
    heard: list[str] = []
    token = _HEARD.set(heard)
    try:
        yield heard
    finally:
        _HEARD.reset(token)


def remark(sentence: str) -> None:
    """Have a sentence noted in the result of the analysis that runs; where none does, nobody hears it."""
    heard = _HEARD.get()
    if heard is not None and sentence not in heard:
        heard.append(sentence)


def notice(sentence: str) -> str:
    """Print a sentence to stderr, above any progress bar, and return it, for the notes of a result.

    >>> notice("row 3 of rows.jsonl is damaged; it is measured anew")
    'row 3 of rows.jsonl is damaged; it is measured anew'
    """
    printable = "".join(c if c.isprintable() else "�" for c in sentence)
    tqdm.write(f"note: {printable}", file=sys.stderr)
    return sentence
