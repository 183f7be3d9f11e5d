"""Progress in a log file: whole lines, now and then, and nothing that only a terminal understands."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import time

import pytest
from tqdm import tqdm as plain

from hooked_vit.loading import progress
from hooked_vit.loading.progress import ahead, close_bars, steps, tick, tqdm
from interventions import readout, shuffle_cls, sweep, zero_attention
from tests.tiny import pixels, tiny


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


def told_within(items: int, work: list[int], announced: int, stream: io.StringIO) -> list[float]:
    """Where a bar stands at every tick of every item."""
    stands = []
    bars: list[tqdm] = []
    for _ in steps(range(items), total=items, desc="batches", file=stream, mininterval=0):
        bars = [bar for bar in tqdm._instances if bar.desc == "batches"] or bars
        ahead(announced)
        for done in work:
            tick(done)
            stands.append(bars[0].n)
    return stands


def test_a_bar_moves_on_inside_an_item_by_what_is_done_of_it() -> None:
    assert told_within(2, [1, 3], 4, Terminal()) == pytest.approx([0.25, 1.0, 1.25, 2.0])


def test_an_item_is_as_long_as_the_one_before_and_a_bar_never_moves_back() -> None:
    short = told_within(2, [1, 1, 1, 1], 2, Terminal())
    assert short == pytest.approx([0.5, 1.0, 1.0, 1.0, 1.25, 1.5, 1.75, 2.0])
    long = told_within(2, [1, 1], 20, Terminal())
    assert long == pytest.approx([0.05, 0.1, 1.5, 2.0])


def test_what_is_drawn_inside_an_item_says_a_tenth_and_the_time_that_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    seen, log = Terminal(), io.StringIO()
    told_within(2, [1, 2], 3, seen)
    assert " 0.3/2 [" in seen.getvalue()
    assert " 2/2 [" in seen.getvalue()
    monkeypatch.setattr(progress, "EVERY", 0.0)
    told_within(2, [1, 2], 3, log)
    assert not {"\r", "\x1b"} & set(log.getvalue())
    assert any(" 0.3/2 [" in line and "<" in line for line in log.getvalue().splitlines())


def test_the_innermost_bar_is_meant_and_without_one_nothing_happens() -> None:
    ahead(3)
    tick()
    outer = steps(range(2), total=2, desc="outer", file=Terminal())
    next(outer)
    inner = steps(range(2), total=2, desc="inner", file=Terminal())
    next(inner)
    stands = {bar.desc: bar for bar in tqdm._instances}
    ahead(2)
    tick()
    assert (stands["inner"].n, stands["outer"].n) == (0.5, 0)
    inner.close()  # a loop that is left early
    ahead(2)
    tick()
    assert (stands["inner"].n, stands["outer"].n) == (0.5, 0.5)
    outer.close()


def test_the_environment_turns_off_a_bar_that_is_not_turned_off_by_its_call() -> None:
    code = "from hooked_vit.loading import progress; progress.EVERY = 0.0; list(progress.tqdm(range(3), disable=False))"
    for said, written in (({}, True), ({"TQDM_DISABLE": "1"}, False)):
        environment = {name: value for name, value in os.environ.items() if name != "TQDM_DISABLE"} | said
        run = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
        assert bool(run.stderr) == written


def test_where_bars_are_off_nothing_is_written() -> None:
    log = io.StringIO()
    for _ in steps(range(2), total=2, desc="batches", file=log, disable=True):
        ahead(1)
        tick()
    assert log.getvalue() == ""


@pytest.mark.parametrize("budget", [1, 2**31])
def test_a_sweep_says_how_much_there_is_to_do_and_does_it(budget: int, monkeypatch: pytest.MonkeyPatch) -> None:
    _, model = tiny("vit")
    told = {"ahead": 0, "tick": 0}
    module = sys.modules["interventions.sweep"]
    for name in told:
        monkeypatch.setattr(module, name, lambda n=1, name=name: told.update({name: told[name] + n}))
    variants = [
        readout("cls"),
        *(shuffle_cls(layer=layer) for layer in (0, 1)),
        zero_attention("cls", "patches", layers=1),
    ]
    list(sweep(model, pixels(model, n=2), [*variants, variants[1]], memory_budget=budget))
    assert told["tick"] == told["ahead"] > 0
