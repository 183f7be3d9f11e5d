"""Progress bars: in a terminal one line that is drawn anew, in a log file a line now and then."""

from __future__ import annotations

import sys
import time
from typing import Any

from tqdm.auto import tqdm as _tqdm

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
        self._lines = not (kw.get("file") or sys.stderr).isatty() and not hasattr(_tqdm, "container")
        if self._lines:  # mininterval, miniters: asked at every step, which `display` answers
            kw |= {
                "mininterval": EVERY,
                "miniters": 0,
                "delay": max(EVERY, kw.get("delay", 0.0)),
                "dynamic_ncols": False,
            }
        super().__init__(*args, **kw)

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
