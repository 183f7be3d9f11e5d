"""Whether a path can be one, and whether its disk has room: asked before long work, said where it fails after all."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from analyses.running.text import check_seen

LONGEST_NAME, LONGEST_PATH = 255, 4000
"""Bytes a file name and a path can have; a path leaves room for the names of what is written below it."""
ROOM = 20_000_000
"""Bytes a report, which holds plotly, and its numbers take at most, but for those of very long tables."""
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""What the system calls a disk, a share of it, or a file, that takes no more."""


def usable_path(path: str | Path) -> Path:
    """The path with `~` resolved.

    >>> usable_path("")
    Traceback (most recent call last):
    ValueError: a path is needed, got an empty one

    Raises ValueError for an empty path, control characters, names that are no UTF-8 (which no report could show), a
    home folder nobody has, names or paths longer than a file system holds, and pipes and devices.
    """
    text = os.fspath(path)
    if not text.strip():
        raise ValueError("a path is needed, got an empty one")
    full = os.path.expanduser(check_seen(text, "a path"))
    if full.startswith("~") and not os.path.lexists(full):
        raise ValueError(f"nobody here is called {text.partition('/')[0][1:]!r}, so there is no {text!r}")
    parts = [os.fsencode(part) for part in Path(full).parts]
    if len(os.fsencode(os.path.abspath(full))) > LONGEST_PATH or max(map(len, parts), default=0) > LONGEST_NAME:
        raise ValueError(f"a path has at most {LONGEST_PATH} bytes, a name in it {LONGEST_NAME}; got {text[:60]!r}…")
    if os.path.exists(full) and not (os.path.isfile(full) or os.path.isdir(full)):
        raise ValueError(f"a file or a folder is needed; {text} is a pipe or a device, which could be read for ever")
    return Path(full)


def page_path(path: str | Path, name: str) -> Path:
    """The file a page is written into, as it was asked for: by name, without its ending, or by the folder it is in.

    >>> page_path("out/both", "report.html").as_posix(), page_path("both.htm", "report.html").as_posix()
    ('out/both.html', 'both.htm')

    In a folder that is there, or one that ends in a slash, it is called `name`. Raises ValueError for another ending,
    and what `usable_path` raises.
    """
    page = usable_path(path)
    if os.fspath(path).endswith(("/", os.sep)) or page.is_dir():
        return page / name
    if page.suffix.lower() not in ("", ".html", ".htm"):
        raise ValueError(f"a page is HTML: its name ends in .html, or has no ending; got {os.fspath(path)!r}")
    return page if page.suffix else page.with_name(f"{page.name}.html")


def check_room(
    folder: Path, needed: int, what: str = "results", instead: str = "make room or choose another folder"
) -> None:
    """Raises OSError where a disk has less room than is needed, naming both and what to do `instead`."""
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise OSError(
            errno.ENOSPC,
            f"{what} need about {size(needed)}, and the disk of {folder} has {size(free)} left; {instead}",
        )


def size(n_bytes: int) -> str:
    """Bytes to read: "1.6 GB".

    >>> size(1_600_000_000), size(0)
    ('1.6 GB', '0 bytes')
    """
    for unit, per in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if n_bytes >= per:
            return f"{n_bytes / per:.1f} {unit}"
    return f"{n_bytes} bytes"


@contextmanager
def full_disk_named(path: Path, needed: int = ROOM) -> Iterator[None]:
    """Let an error of a full disk, or of a file larger than is allowed, say which file could not be written."""
    try:
        yield
    except OSError as error:
        if error.errno not in FULL:
            raise
        free = size(shutil.disk_usage(path.parent).free)
        raise OSError(
            error.errno,
            f"{path} could not be written: {error.strerror}; its disk has {free} left, and about "
            f"{size(needed)} are needed",
        ) from error
