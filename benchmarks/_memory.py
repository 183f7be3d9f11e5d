"""Peak memory, each of a process of its own, which prints `peak_memory()` last."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def measured_by(module: str, settings: Mapping[str, Any]) -> int:
    """The whole number that `python -m MODULE SETTINGS` prints last."""
    command = [sys.executable, "-m", module, json.dumps(settings)]
    run = subprocess.run(command, cwd=Path(__file__).parents[1], capture_output=True, text=True, check=True)
    return int(run.stdout.split()[-1])
