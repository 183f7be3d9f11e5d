"""Files: what stands at a path before anything opens it, and writing that is whole or not there."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from glob import escape
from pathlib import Path
from typing import Any

_KINDS = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a named pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


def why_no_file(path: str | Path) -> str | None:
    """Why nothing can be read from a path; None for a file, which may be empty or damaged for all this says.

    >>> why_no_file("/dev/zero"), why_no_file("/dev"), why_no_file("/nowhere"), why_no_file(__file__)
    ('it is a device, not a file', 'it is a folder, not a file', 'there is no such file', None)
    """
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError:
        lost = os.path.islink(path)
        return f"it is a link to {os.readlink(path)}, where there is no file" if lost else "there is no such file"
    except (OSError, ValueError) as error:  # ValueError: a null character in the name
        return f"it cannot be reached: {getattr(error, 'strerror', None) or error}"
    kind = next((name for holds, name in _KINDS if holds(mode)), None)
    return None if kind is None else f"it is {kind}, not a file"


PART = ".hooked-vit-part"
"""How the name of a file ends that is being written."""


def write_whole(path: Path, write: Callable[[Path], Any]) -> None:
    """Let `write` fill a file beside `path` and put it there when it is done, so that nobody sees half of it.

    What a killed process leaves behind is called `.NAME.PID.hooked-vit-part`.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}{PART}")
    try:
        write(temporary)
        to_disk(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def remove_parts(path: Path) -> None:
    """Remove what killed processes had begun to write of a file, which nobody may be writing now."""
    for part in path.parent.glob(f".{escape(path.name)}.*{PART}"):
        part.unlink(missing_ok=True)


def to_disk(path: Path) -> None:
    """Wait until the content of a file, or the names in a folder, would survive a power cut."""
    if os.name == "nt" and path.is_dir():
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
