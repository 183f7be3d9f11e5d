"""Timing that holds on a busy machine: things that are compared take turns, and only their ratio is believed."""

from __future__ import annotations

import gc
import resource
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import median

from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn


@dataclass(frozen=True)
class Ratio:
    """One line of the table: what was measured, against what, and what it should be.

    With a `unit` it is no ratio but a number by itself, such as seconds until help is printed.
    """

    what: str
    wall: list[float]
    """Ratio of wall-clock times, one per round."""
    processor: list[float]
    """The same for processor time, which other people's jobs disturb less; none where no time is measured."""
    best: float
    """Fastest over fastest: what is left when nobody disturbs."""
    target: float | None = None
    unit: str = ""
    why: str = ""
    """What stands in the way of the target, said where it is missed."""
    by_processor: bool = False
    """Whether processor time is held against the target, and not the wall clock."""

    @property
    def value(self) -> float:
        return median(self.processor if self.by_processor else self.wall)

    @property
    def ok(self) -> bool:
        return self.target is None or self.value <= self.target

    @property
    def verdict(self) -> str:
        """ "ok", or by how much the target is missed; nothing where there is none."""
        if self.target is None:
            return ""
        return "ok" if self.ok else f"missed by {self.value / self.target - 1:.1%}"

    @property
    def excuse(self) -> str:
        """A line on a target that is missed: by how much, and why."""
        return f"{self.what}: {self.verdict}. {self.why}".rstrip()

    @property
    def spread(self) -> str:
        """The median over rounds, the least and the greatest."""
        return f"{self._said(median(self.wall))} ({self._said(min(self.wall))} to {self._said(max(self.wall))})"

    @property
    def cells(self) -> list[str]:
        """What the table says in its columns, without the target."""
        processor = self._said(median(self.processor)) if self.processor else ""
        return [self.what, self.spread, self._said(self.best), processor]

    @property
    def wanted(self) -> str:
        """The target in words."""
        by = " processor time" if self.by_processor else ""
        return "" if self.target is None else f"≤ {self._said(self.target)}{by}"

    def _said(self, number: float) -> str:
        return f"{number:.3f}{self.unit}" if number < 2 else f"{number:.2f}{self.unit}"


@dataclass(frozen=True)
class Times:
    """Seconds each candidate took in each round: wall clock, and processor time of this process and its children."""

    wall: dict[str, list[float]]
    processor: dict[str, list[float]]

    def ratio(self, what: str, name: str, to: str, target: float | None = None, why: str = "") -> Ratio:
        """`name` over `to`, round by round."""

        def of(times: Mapping[str, list[float]]) -> list[float]:
            return [ours / max(theirs, 1e-9) for ours, theirs in zip(times[name], times[to], strict=True)]

        best = min(self.wall[name]) / min(self.wall[to])
        return Ratio(what, of(self.wall), of(self.processor), best, target, why=why)

    def seconds(self, what: str, name: str, target: float | None = None, *, by_processor: bool = True) -> Ratio:
        """What `name` took, by itself."""
        wall, processor = self.wall[name], self.processor[name]
        return Ratio(what, wall, processor, min(wall), target, " s", by_processor=by_processor)


def take_turns(candidates: Mapping[str, Callable[[], object]], rounds: int, *, warm_up: bool = True) -> Times:
    """Run all candidates once per round, forwards and backwards in turn so that drift falls on all alike."""
    times = Times({name: [] for name in candidates}, {name: [] for name in candidates})
    order = list(candidates)
    columns = SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn()
    console = Console(stderr=True)
    # nothing that moves into a log
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("")
        for turn in range(-1 if warm_up else 0, rounds):
            for name in order if turn % 2 == 0 else reversed(order):
                progress.update(task, description=f"round {turn + 1} of {rounds}: {name}")
                gc.collect()
                wall, processor = time.perf_counter(), _processor()
                candidates[name]()
                if turn >= 0:
                    times.processor[name].append(_processor() - processor)
                    times.wall[name].append(time.perf_counter() - wall)
    return times


def _processor() -> float:
    used = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(one.ru_utime + one.ru_stime for one in used)
