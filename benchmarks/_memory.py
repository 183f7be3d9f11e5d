"""Peak memory, each of a process of its own."""

from __future__ import annotations

import json
import re
import resource
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def peak() -> int:
    """The most memory this process has held so far, in KiB."""
    told = Path("/proc/self/status")
    if told.exists():  # a process begins with the ru_maxrss of the one that started it, which may be larger
        return int(re.findall(r"VmHWM:\s*(\d+)", told.read_text())[0])
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most // 1024 if sys.platform == "darwin" else most


def measured_by(module: str, settings: Mapping[str, Any]) -> int:
    """What `python -m MODULE SETTINGS` prints last."""
    command = [sys.executable, "-m", module, json.dumps(settings)]
    run = subprocess.run(command, cwd=Path(__file__).parents[1], capture_output=True, text=True, check=True)
    return int(run.stdout.split()[-1])
