"""Progress in a log file: whole lines, now and then, and nothing that only a terminal understands."""

from __future__ import annotations

import io
import time

import pytest
from tqdm import tqdm as plain

from hooked_vit.loading import progress
from hooked_vit.loading.progress import close_bars, tqdm


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_log_file_gets_a_line_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    log = io.StringIO()
    list(tqdm(range(1000), desc="quick", file=log))
    assert log.getvalue() == ""
    monkeypatch.setattr(progress, "EVERY", 0.02)
    began = time.monotonic()
    for _ in tqdm(range(3), desc="outer", file=log, leave=False):
        for _ in tqdm(range(20), desc="inner", file=log, delay=0.01):
            time.sleep(0.002)
            plain.write("note", file=log)
    lines = log.getvalue().splitlines()
    assert lines.count("note") == 60
    told = [line for line in lines if line != "note"]
    assert 2 <= len(told) <= 2 * (time.monotonic() - began) / progress.EVERY
    assert all(line.startswith(("outer: ", "inner: ")) and "<" in line for line in told)  # with the time that is left
    assert not {"\r", "\x1b"} & set(log.getvalue())


def test_a_terminal_gets_one_line_that_is_drawn_anew() -> None:
    seen = Terminal()
    list(tqdm(range(5), desc="work", file=seen, mininterval=0))
    assert "\rwork: 100%" in seen.getvalue()


def test_what_is_printed_after_an_error_stands_below_the_bar() -> None:
    for stream in (Terminal(), io.StringIO()):
        bar = tqdm(range(10), desc="working", leave=False, mininterval=0, file=stream)
        next(iter(bar))
        close_bars()
        assert bar.disable
        assert (stream.getvalue() or "\r").rpartition("\n")[2].endswith("\r")
