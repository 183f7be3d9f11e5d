"""Files that are whole or not there."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from analyses.running.places import ROOM, check_room, full_disk_named, usable_path


def check_writable(folder: str | Path) -> Path:
    """Make sure, before long work, that files can be written into `folder`; creates nothing. Returns the path.

    >>> check_writable("/dev/null/out")
    Traceback (most recent call last):
    NotADirectoryError: results need a folder; /dev/null is not one

    The folder need not exist: then the nearest folder above it is tried.
    Raises ValueError for a path that no folder can have, NotADirectoryError where a file is in the way, PermissionError
    where nothing can be written, OSError where the disk is full.
    """
    folder = usable_path(folder)
    # A link that leads nowhere is in the way too, and does not count as existing.
    nearest = next(p for p in (folder, *folder.absolute().parents) if os.path.lexists(p))
    if not nearest.is_dir():
        raise NotADirectoryError(f"results need a folder; {nearest} is not one")
    try:
        # Trying is the only sure test: permission bits say nothing of read-only disks, quotas or root.
        with tempfile.TemporaryFile(dir=nearest):
            pass
    except OSError as error:
        raise PermissionError(
            f"results need a folder that can be written to; {nearest} cannot ({error.strerror}); choose another"
        ) from error
    check_room(nearest, ROOM)
    return folder


def write_whole(path: Path, write: Callable[[Path], Any]) -> None:
    """Let `write` fill a file beside `path` and put it there when it is done, so that nobody sees half of it."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with full_disk_named(path):
            write(temporary)
            os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
