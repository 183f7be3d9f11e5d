"""Starting several processes of a command on this machine, and ending all of them with the first that fails."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from importlib.util import find_spec

from analyses.processes.group import FOLLOWED, INSTALL

GRACE = 10.0
"""Seconds in which a process that is told to end can clean up."""
NAP = 0.05


def launch(argv: Sequence[str], count: int) -> int:
    """Run the command line with these arguments in `count` processes that share its work; returns the exit status.

    They find each other as those of `torchrun` and `accelerate launch` do, and each has its part of the CPU's threads.
    Once one fails, the others are ended. Raises ValueError without accelerate, saying what to install.
    """
    if find_spec("accelerate") is None:
        raise ValueError(INSTALL)
    command = [sys.executable, "-m", "analyses.command_line.cli", *argv]
    started: list[subprocess.Popen[bytes]] = []
    try:
        port = free_port()
        started += (subprocess.Popen(command, env=_surroundings(rank, count, port)) for rank in range(count))
        return _first_failure(started)
    finally:
        _end(started)


def _surroundings(rank: int, count: int, port: int) -> dict[str, str]:
    threads = max(1, (os.cpu_count() or 1) // count)
    told = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count, "MASTER_PORT": port}
    quiet = {"TQDM_DISABLE": "1"} if rank else {}
    given = {"OMP_NUM_THREADS": str(threads), **os.environ, **quiet}
    return {**given, "MASTER_ADDR": "127.0.0.1", **{name: str(value) for name, value in told.items()}}


def free_port() -> int:
    """A port of this machine that nobody listens at."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _first_failure(started: Sequence[subprocess.Popen[bytes]]) -> int:
    """Wait until all have ended, or one has failed: its status, 128 + the signal's number where one ended it."""
    while True:
        ended = [status for process in started if (status := process.poll()) is not None]
        if failed := [status for status in ended if status not in (0, FOLLOWED)]:
            return failed[0] if failed[0] > 0 else 128 - failed[0]
        if len(ended) == len(started):
            return int(any(ended))
        time.sleep(NAP)


def _end(started: Sequence[subprocess.Popen[bytes]]) -> None:
    for process in started:
        process.terminate()
    until = time.monotonic() + GRACE
    for process in started:
        with suppress(subprocess.TimeoutExpired):
            process.wait(max(0.0, until - time.monotonic()))
        process.kill()
        process.wait()
