"""The table as a page of the docs, with what it was measured on."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

import torch

from benchmarks._models import PEERS, installed
from benchmarks._timing import Ratio

COLUMNS = ("what", "median (least to greatest)", "at best", "by processor time", "target", "")
HOW = (
    "Ratios are medians over rounds in which all candidates took turns, so that whatever else the machine does falls "
    "on all alike. At best: fastest round over fastest round. By processor time: the same of what processors spent."
)
OTHERS = ("torch", "transformers", "scikit-learn", "numpy")


def machine() -> str:
    """What it was measured on: processor, cores, threads, versions; not whose it is."""
    versions = ", ".join(f"{name} {version(name)}" for name in OTHERS)
    kernels = torch.backends.cpu.get_cpu_capability()
    return (
        f"{_processor()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads, {kernels}; "
        f"{platform.system()}, Python {platform.python_version()}, {versions}."
    )


def peers() -> str:
    """Which tools were compared, and which are not installed."""
    there = [f"{name} {version(package_of(name))}" for name in PEERS if installed(name)]
    lacking = [name for name in PEERS if not installed(name)]
    return f"Compared with {', '.join(there) or 'none'}" + (
        f"; not installed: {', '.join(lacking)}." if lacking else "."
    )


def package_of(peer: str) -> str:
    """The name a peer is installed under."""
    return PEERS[peer].replace("_", "-")


def page(ratios: Sequence[Ratio], names: Sequence[str]) -> str:
    """The whole page, in Markdown."""
    rows = [[*ratio.cells, ratio.wanted, ratio.verdict] for ratio in ratios]
    lines = ["| " + " | ".join(_escaped(cell) for cell in row) + " |" for row in (list(COLUMNS), *rows)]
    missed = [f"* {ratio.excuse}" for ratio in ratios if not ratio.ok]
    command = " ".join(["python -m benchmarks", *names, "--page docs/benchmarks.md"])
    return "\n".join([
        "# Benchmarks",
        "",
        f"Written by `{command}`. {HOW}",
        "",
        f"{machine()} {peers()}",
        "",
        lines[0],
        f"|{'---|' * len(COLUMNS)}",
        *lines[1:],
        "",
        *(["Missed:", "", *missed] if missed else ["Every target is met."]),
        "",
    ])  # fmt: skip


def _escaped(cell: str) -> str:
    return cell.replace("|", "\\|")


def _processor() -> str:
    """The processor's model where the system tells it, else its kind."""
    told = Path("/proc/cpuinfo")
    if told.exists():
        for line in told.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
