"""How much memory a process has held."""

from __future__ import annotations

import re
import resource
import sys
from pathlib import Path


def peak_memory() -> int:
    """The most bytes this process has held in memory so far.

    >>> peak_memory() > 0
    True
    """
    told = Path("/proc/self/status")
    if told.exists():  # a process begins with the ru_maxrss of the one that started it, which may be larger
        return int(re.findall(r"VmHWM:\s*(\d+)", told.read_text(encoding="utf-8"))[0]) * 1024
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024
