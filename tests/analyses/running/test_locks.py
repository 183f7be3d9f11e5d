"""One process at a time: the second says who is there; scratch folders go with their owner, however it ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pandas as pd
import pytest

from analyses import intervention_sweep, random_readouts
from analyses.command_line.cli import main
from analyses.running import files, locks
from analyses.running.locks import InUseError, hold_file, hold_folder, scratch_folder
from analyses.running.results import Result
from tests.analyses.questions.cls_use.test_cls_causality import coloured, model

ROOT = Path(__file__).parents[3]


class Other:
    """A process that runs some lines and then waits until it is told to end."""

    def __init__(self, lines: str) -> None:
        code = f"import sys\nfrom analyses.running.locks import *\n{lines}"
        env = {**os.environ, "PYTHONPATH": str(ROOT)}
        self.process = subprocess.Popen(
            [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env
        )
        assert self.process.stdout is not None
        self.said = self.process.stdout.readline().strip()

    def end(self, how: signal.Signals) -> int:
        self.process.send_signal(how)
        status = self.process.wait(20)
        for pipe in (self.process.stdin, self.process.stdout):
            pipe.close()
        return status


HOLD = "with {kind}({path!r}):\n    print('there', flush=True)\n    sys.stdin.read()\n"
SCRATCH = (
    "with scratch_folder({path!r}) as folder:\n    (folder / 'x').touch()\n"
    "    print(folder, flush=True)\n    sys.stdin.read()\n"
)


def test_the_second_process_says_who_has_it_and_since_when(tmp_path: Path) -> None:
    out, rows = tmp_path / "out", tmp_path / "rows.jsonl"
    folder = Other(HOLD.format(kind="hold_folder", path=str(out)))
    file = Other(HOLD.format(kind="hold_file", path=str(rows)))
    vit, data = model("vit"), coloured(10, 1)
    calls = {
        "--file": lambda: intervention_sweep({"vit": vit}, data, file=str(rows)),
        "--keep-in": lambda: random_readouts({"vit": vit}, data, fit_data=coloured(20, 2), keep_in=str(out)),
    }
    for option, call in calls.items():
        with pytest.raises(InUseError, match=f"{option} .* is in use by process [0-9]+, since 20") as error:
            call()
        assert str((file if option == "--file" else folder).process.pid) in str(error.value)
    assert main(["run", "intervention-sweep", "--model", "zoo:vit", "--n", "4", "--out", str(out)]) == 2
    assert main(["reproduce", "stand-in", "--n", "20", "--out", str(out)]) == 2
    # whoever was killed keeps nobody out
    assert folder.end(signal.SIGKILL) == -signal.SIGKILL
    assert file.end(signal.SIGKILL) == -signal.SIGKILL
    intervention_sweep({"vit": vit}, data, file=str(rows))
    Result(pd.DataFrame({"x": [1]}), {}).save(out)
    assert sorted(p.name for p in out.iterdir()) == ["result.json", "result.parquet"]


def test_the_command_line_says_it_in_one_line(tmp_path: Path, capsys) -> None:
    other = Other(HOLD.format(kind="hold_folder", path=str(tmp_path)))
    assert main(["run", "intervention-sweep", "--model", "zoo:vit", "--n", "4", "--out", str(tmp_path)]) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert f"error: --out {tmp_path} is in use by process {other.process.pid}, since " in said
    other.end(signal.SIGTERM)


def test_a_lock_is_gone_when_left_and_so_is_a_folder_nothing_came_of(tmp_path: Path) -> None:
    with hold_folder(tmp_path / "a" / "b") as folder:
        assert (folder / locks.LOCK).is_file()
    with hold_file(tmp_path / "rows.jsonl"):
        pass
    assert not list(tmp_path.iterdir())
    with hold_folder(tmp_path / "a" / "b") as folder:
        (folder / "kept").touch()
    assert [p.name for p in (tmp_path / "a" / "b").iterdir()] == ["kept"]


def test_a_thread_may_hold_again_and_another_may_not(tmp_path: Path) -> None:
    refused: list[str] = []

    def second() -> None:
        try:
            with hold_folder(tmp_path):
                pass
        except InUseError as error:
            refused.append(str(error))

    with hold_folder(tmp_path), hold_folder(tmp_path):
        thread = threading.Thread(target=second)
        thread.start()
        thread.join()
        assert f"process {os.getpid()}" in refused[0]
    second()
    assert len(refused) == 1


def test_whoever_saves_waits_for_another_save(tmp_path: Path, monkeypatch) -> None:
    other = Other(HOLD.format(kind="hold_folder", path=str(tmp_path)))
    threading.Timer(0.3, lambda: other.process.stdin.close()).start()
    Result(pd.DataFrame({"x": [1]}), {}).save(tmp_path)
    other.process.wait(20)
    other.process.stdout.close()
    other = Other(HOLD.format(kind="hold_folder", path=str(tmp_path)))
    monkeypatch.setattr(files, "WAIT", 0.1)
    with pytest.raises(InUseError):
        Result(pd.DataFrame({"x": [1]}), {}).save(tmp_path)
    other.end(signal.SIGTERM)


@pytest.mark.skipif(os.name == "nt", reason="Windows ends processes without asking")
def test_a_scratch_folder_does_not_outlive_sigterm(tmp_path: Path) -> None:
    other = Other(SCRATCH.format(path=str(tmp_path)))
    assert (Path(other.said) / "x").is_file()
    assert other.end(signal.SIGTERM) == 128 + signal.SIGTERM
    assert not list(tmp_path.iterdir())


def test_what_a_killed_process_left_goes_with_the_next(tmp_path: Path) -> None:
    dead, alive = (Other(SCRATCH.format(path=str(tmp_path))) for _ in range(2))
    dead.end(signal.SIGKILL)
    assert Path(dead.said).is_dir()
    (tmp_path / "hooked-vit-scratch-of-nobody").mkdir()
    with scratch_folder(tmp_path) as mine:
        assert not Path(dead.said).exists()
        assert Path(alive.said).is_dir()
        assert mine.is_dir()
    assert alive.end(signal.SIGTERM) == 128 + signal.SIGTERM
    assert [p.name for p in tmp_path.iterdir()] == ["hooked-vit-scratch-of-nobody"]


def test_signals_mean_afterwards_what_they_meant_before(tmp_path: Path) -> None:
    mine = signal.signal(signal.SIGTERM, lambda *_: None)
    try:
        handler = signal.getsignal(signal.SIGTERM)
        with scratch_folder(tmp_path):
            assert signal.getsignal(signal.SIGTERM) is handler, "somebody else says what it means"
    finally:
        signal.signal(signal.SIGTERM, mine)
    with scratch_folder(tmp_path):
        assert signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL
    assert signal.getsignal(signal.SIGTERM) is mine


def test_many_at_once_never_two_inside(tmp_path: Path) -> None:
    """Locks come and go, and their files with them, while others wait."""
    count = tmp_path / "count"
    count.write_text("0")
    turns = (
        f"import time, pathlib\ncount = pathlib.Path({str(count)!r})\nprint('go', flush=True)\n"
        "for _ in range(30):\n"
        f"    with hold_folder({str(tmp_path / 'held')!r}, wait=60):\n"
        "        n = int(count.read_text()); time.sleep(0.001); count.write_text(str(n + 1))\n"
    )
    others = [Other(turns) for _ in range(3)]
    for other in others:
        assert other.process.wait(60) == 0
        other.process.stdin.close()
        other.process.stdout.close()
    assert count.read_text() == "90"
