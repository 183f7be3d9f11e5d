"""What stands at a path, before anything opens it: a pipe or a device would be waited for without end."""

from __future__ import annotations

import os
import stat
from pathlib import Path

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
