"""Files that are whole or not there."""

from __future__ import annotations

import os
from collections.abc import Callable
from glob import escape
from pathlib import Path
from typing import Any

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
