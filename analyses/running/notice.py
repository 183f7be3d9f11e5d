"""What a user should hear: at once, beside what is noted in the result, and of the images in every result."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from analyses.processes.group import leads
from hooked_vit.config.showing import counted

NAMED = 3
"""Images left out that a note names; the result has all."""
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
    from tqdm import tqdm  # help, which imports this, must not wait for it

    printable = "".join(c if c.isprintable() else "�" for c in sentence)
    if leads():  # of several processes, one says what all have seen
        tqdm.write(f"note: {printable}", file=sys.stderr)
    return sentence


def data_notes(meta: Mapping[str, Any]) -> list[str]:
    """Sentences on every set of images that a result's `meta` describes as `about_data` does.

    >>> data_notes({"data": {"name": "photos", "skipped": ["cannot read image a.jpg"], "duplicates": 2}})
    ['photos: 1 image was left out: cannot read image a.jpg.', 'photos: 2 images are copies of others, to the pixel.']
    """
    told = [value for key, value in meta.items() if key == "data" or key.endswith("_data")]
    return list(dict.fromkeys(sentence for about in told for sentence in _of(about)))


def _of(about: Any) -> Iterator[str]:
    if isinstance(about, (list, tuple)):
        for part in about:
            yield from _of(part)
    if not isinstance(about, Mapping):
        return
    yield from _of(about.get("parts"))
    name = about.get("name")
    if skipped := about.get("skipped"):
        more = "; …" if len(skipped) > NAMED else ""
        out = counted(len(skipped), "image was", "images were")
        yield f"{name}: {out} left out: {'; '.join(skipped[:NAMED])}{more}."
    if copies := about.get("duplicates"):
        yield f"{name}: {counted(copies, 'image is a copy of another', 'images are copies of others')}, to the pixel."
    if drawn := about.get("drawn"):
        yield f"{name}: {drawn}."
