"""Code run as in a new notebook: each time in a process of its own, which has the libraries imported already.

A kernel takes seven seconds to start, nearly all of them imports. Here they are made once, in a process that does
nothing else, and each run is a fork of it: no name, hook, seed or switch of one run is there in the next.
"""

from __future__ import annotations

import contextlib
import io
import multiprocessing
import os
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import cache
from multiprocessing.context import BaseContext
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[2]
TIMEOUT = 300
IMPORTED = (
    *("IPython.core.interactiveshell", "pandas", "plotly.express", "torch", "transformers", "transformer_lens"),
    *("hooked_vit.zoo", "interventions", "analyses.data", "analyses.probes.opening"),
)


class Ran(NamedTuple):
    """What a run printed and showed, and the traceback it ended in, empty where it came to the end."""

    output: str
    error: str


def run(cells: Sequence[str], folder: Path, environment: Mapping[str, str] = {}) -> Ran:
    """Run the cells one after another in a folder, as a notebook does, up to the first that fails."""
    with ProcessPoolExecutor(1, mp_context=_prepared(), max_tasks_per_child=1) as pool:
        return pool.submit(_run, list(cells), str(folder), dict(environment)).result(timeout=TIMEOUT)


def check(cells: Sequence[str], folder: Path, environment: Mapping[str, str] = {}) -> Ran:
    """The same, and the test fails where a cell does."""
    ran = run(cells, folder, environment)
    if ran.error:
        pytest.fail(ran.error, pytrace=False)
    return ran


@cache
def _prepared() -> BaseContext:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(IMPORTED))
    return context


def _run(cells: list[str], folder: str, environment: dict[str, str]) -> Ran:
    from IPython.core.interactiveshell import InteractiveShell
    from traitlets.config import Config

    os.chdir(folder)
    os.environ.update({"PLOTLY_RENDERER": "plotly_mimetype", "IPYTHONDIR": folder, **environment})
    sys.path[:0] = [folder, str(ROOT / "notebooks"), str(ROOT)]
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
        shell = InteractiveShell.instance(config=Config(HistoryManager={"enabled": False}))
        shell.run_line_magic("colors", "NoColor")
        for number, source in enumerate(cells, 1):
            before = printed.tell()
            outcome = shell.run_cell(source, store_history=True)
            if not outcome.success:
                shown = printed.getvalue()
                return Ran(shown, f"cell {number}:\n{source}\n\n{shown[before:] or outcome.error_in_exec!r}")
    return Ran(printed.getvalue(), "")
