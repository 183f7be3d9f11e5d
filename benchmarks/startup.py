"""How long a user waits: for help, for the answer to a misspelt name, and for a first result."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from benchmarks._timing import Ratio, take_turns


def measure(quick: bool) -> Iterator[Ratio]:
    """Fresh processes, whose processor time is counted; a second run of each finds its files in memory."""
    with tempfile.TemporaryDirectory() as folder:
        n = "16" if quick else "200"
        command = ["run", "cls-causality", "--model", "zoo:vit", "--n", n, "--out", f"{folder}/out"]
        waits = {"help": called(["--help"]), "misspelt": called(["run", "cls-causalty"], status=2)}
        short = take_turns(waits, rounds=1 if quick else 5)
        first = take_turns({"first": called(command)}, rounds=1, warm_up=False)
    yield short.seconds("hooked-vit --help", "help", 0.3)
    yield short.seconds("hooked-vit run MISSPELT", "misspelt", 1.0)
    where = f"first result: {n} images, one built-in model, a report"
    yield first.seconds(where, "first", 15.0, by_processor=False)


def called(arguments: list[str], status: int = 0) -> Callable[[], None]:
    """The command line in a process of its own, which must end with this status."""
    command = [sys.executable, "-m", "analyses.command_line.cli", *arguments]

    def run() -> None:
        done = subprocess.run(command, cwd=Path(__file__).parents[1], capture_output=True, text=True)
        assert done.returncode == status, done.stderr

    return run
