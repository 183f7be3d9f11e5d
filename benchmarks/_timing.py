"""Timing that holds on a busy machine: things that are compared take turns, and only their ratio is believed."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import median

from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn


@dataclass(frozen=True)
class Ratio:
    """One line of the table: what was measured, against what, and what it should be."""

    what: str
    wall: list[float]
    """Ratio of wall-clock times, one per round."""
    processor: list[float]
    """The same for processor time, which other people's jobs disturb less."""
    best: float
    """Fastest over fastest: what is left when nobody disturbs."""
    target: float | None = None

    @property
    def value(self) -> float:
        return median(self.wall)

    @property
    def ok(self) -> bool:
        return self.target is None or self.value <= self.target


@dataclass(frozen=True)
class Times:
    """Seconds each candidate took in each round: wall clock, and processor time of the whole process."""

    wall: dict[str, list[float]]
    processor: dict[str, list[float]]

    def ratio(self, what: str, name: str, to: str, target: float | None = None) -> Ratio:
        """`name` over `to`, round by round."""

        def of(times: Mapping[str, list[float]]) -> list[float]:
            return [ours / theirs for ours, theirs in zip(times[name], times[to], strict=True)]

        best = min(self.wall[name]) / min(self.wall[to])
        return Ratio(what, of(self.wall), of(self.processor), best, target)


def take_turns(candidates: Mapping[str, Callable[[], object]], rounds: int, *, warm_up: bool = True) -> Times:
    """Run all candidates once per round, forwards and backwards in turn so that drift falls on all alike."""
    times = Times({name: [] for name in candidates}, {name: [] for name in candidates})
    order = list(candidates)
    columns = SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn()
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("")
        for turn in range(-1 if warm_up else 0, rounds):
            for name in order if turn % 2 == 0 else reversed(order):
                progress.update(task, description=f"round {turn + 1} of {rounds}: {name}")
                gc.collect()
                wall, processor = time.perf_counter(), time.process_time()
                candidates[name]()
                if turn >= 0:
                    times.processor[name].append(time.process_time() - processor)
                    times.wall[name].append(time.perf_counter() - wall)
    return times
