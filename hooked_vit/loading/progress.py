"""Progress bars: in a terminal one line that is drawn anew, in a log file a line now and then.

`steps` is for items that take long, such as batches of images: whoever works on one says how much there is to do
(`ahead`) and when some of it is done (`tick`), and the bar moves on inside the item. What is told is the innermost bar
of this thread; where there is none nothing happens.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

from tqdm.auto import tqdm as _tqdm

T = TypeVar("T")
EVERY = 30.0
"""Seconds between two lines of a log file, and before the first."""


class tqdm(_tqdm):
    """tqdm's own bar; where nobody looks at a terminal it writes whole lines, each with the time that is left.

    >>> list(tqdm(range(3), desc="images"))
    [0, 1, 2]
    """

    disable: bool

    def __init__(self, *args: Any, **kw: Any) -> None:
        self._wrote = time.monotonic()
        if not kw.get("disable"):
            kw.pop("disable", None)  # said aloud, it would stand against TQDM_DISABLE
        self._lines = not (kw.get("file") or sys.stderr).isatty() and not hasattr(_tqdm, "container")
        if self._lines:  # mininterval, miniters: asked at every step, which `display` answers
            kw |= {
                "mininterval": EVERY,
                "miniters": 0,
                "delay": max(EVERY, kw.get("delay", 0.0)),
                "dynamic_ncols": False,
            }
        super().__init__(*args, **kw)

    @property
    def format_dict(self) -> dict[str, Any]:
        """What a bar says of itself, where it stands to a tenth."""
        told = super().format_dict
        n = round(told["n"], 1)
        return told | {"n": int(n) if n == int(n) else n}

    def display(self, *args: Any, **kw: Any) -> Any:
        """Draw the bar, or write a line if the last one is long ago."""
        if not self._lines:
            return super().display(*args, **kw)
        if not args and not kw.get("msg") and time.monotonic() - self._wrote >= EVERY:
            self._wrote = time.monotonic()
            self.fp.write(f"{self}\n")
            self.fp.flush()
        return True

    def clear(self, *args: Any, **kw: Any) -> None:
        """Make room for text; lines are left as they stand."""
        if not self._lines:
            super().clear(*args, **kw)

    def close(self) -> None:
        """End the bar; of lines nothing is left over that had to be wiped out."""
        if not self._lines:
            super().close()
        elif not self.disable:
            self.disable = True
            self._decr_instances(self)


def close_bars() -> None:
    """End every bar that is being drawn, so that what is printed next stands below it and not in it."""
    for bar in list(getattr(_tqdm, "_instances", ())):
        bar.close()


def steps(items: Iterable[T], **kw: Any) -> Iterator[T]:
    """The items, with a bar that moves on inside each of them where what is done with it calls `ahead` and `tick`.

    >>> for images in steps(["ab", "cd"], desc="images", total=2):
    ...     ahead(len(images))
    ...     for image in images:
    ...         tick()
    """
    with tqdm(**kw) as bar:
        walk = _Walk(bar)
        for item in items:
            _OPEN.walks.append(walk)
            try:
                yield item
            finally:
                _OPEN.walks.remove(walk)
            walk.next()


def ahead(work: int) -> None:
    """There is this much more to do in the step of the innermost bar."""
    if _OPEN.walks:
        _OPEN.walks[-1].ahead += work


def tick(work: int = 1) -> None:
    """This much of it is done."""
    if _OPEN.walks:
        _OPEN.walks[-1].tick(work)


class _Walk:
    """Where a bar of `steps` stands: steps behind it, and the share of this one, which is as long as the one before."""

    def __init__(self, bar: tqdm) -> None:
        self.bar, self.steps = bar, 0
        self.ahead = self.done = self.usual = 0

    def tick(self, work: int) -> None:
        self.done += work
        if whole := self.usual or self.ahead:
            self._move(min(1.0, self.done / whole))

    def next(self) -> None:
        self.steps += 1
        self._move(0.0)
        self.usual, self.ahead, self.done = self.done, 0, 0

    def _move(self, share: float) -> None:
        if (by := self.steps + share - self.bar.n) > 0:  # never back
            self.bar.update(by)


class _Open(threading.local):
    """The walks of a thread whose step is being worked on, the innermost last."""

    def __init__(self) -> None:
        self.walks: list[_Walk] = []


_OPEN = _Open()
