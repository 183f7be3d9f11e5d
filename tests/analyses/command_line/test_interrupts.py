"""Ctrl-C and SIGTERM, from the first import on: one line, no traceback, nothing left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from analyses.command_line import cli

ROOT = Path(__file__).parents[3]
STOPPING = """
import os, signal, sys

class Stopping:
    def find_spec(self, name, *_):
        if name == {name!r}:
            os.kill(os.getpid(), signal.SIGINT)

for name in ("argparse", "tomllib"):
    sys.modules.pop(name, None)
sys.meta_path.insert(0, Stopping())
from analyses.command_line.cli import main
sys.exit(main(["run", "intervention-sweep", "--out", {out!r}]))
"""
ENDING = """
import os, signal, sys, time
from analyses import Result, analysis
from analyses.command_line.cli import main
from analyses.running.locks import scratch_folder

@analysis
def ending(models: object, data: object) -> Result:
    'Does it end?'
    with scratch_folder() as folder:
        (folder / "x").touch()
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(60)

sys.exit(main(["run", "ending", "--model", "zoo:vit", "--n", "4", "--out", {out!r}]))
"""


def heeds_ctrl_c() -> None:
    """What a shell starts in the background ignores SIGINT, and so does whatever it starts."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def ran(code: str, tmp_path: Path, **more: str) -> subprocess.CompletedProcess[str]:
    code = code.format(out=str(tmp_path / "new" / "out"), **more)
    env = {**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(tmp_path)}
    command = [sys.executable, "-c", code]
    return subprocess.run(command, capture_output=True, text=True, env=env, timeout=120, preexec_fn=heeds_ctrl_c)


@pytest.mark.parametrize(
    "name", ["argparse", "tomllib", "analyses.command_line.values", "torch", "analyses.running.files"]
)
def test_an_interruption_is_one_line(tmp_path, name):
    done = ran(STOPPING, tmp_path, name=name)
    assert (done.returncode, done.stderr, done.stdout) == (130, "interrupted\n", "")
    assert not list(tmp_path.iterdir())


def test_ctrl_c_means_afterwards_what_it_meant_before():
    assert signal.getsignal(signal.SIGINT) == cli._before


@pytest.mark.skipif(os.name == "nt", reason="Windows ends processes without asking")
def test_a_run_that_is_terminated_leaves_nothing(tmp_path):
    done = ran(ENDING, tmp_path)
    assert (done.returncode, done.stdout) == (128 + signal.SIGTERM, "")
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.iterdir())
