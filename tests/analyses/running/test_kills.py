"""A process killed at any moment: what it leaves is what was there before or what it wanted, and the next run heals it.

A child is forked and dies by SIGKILL at its k-th call of anything that changes a folder, for every k there is.
"""

from __future__ import annotations

import builtins
import io
import os
import signal
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from analyses import intervention_sweep
from analyses.data import ImageData
from analyses.probes.fitted import FittedProbes
from analyses.probes.fitting import fit_probes
from analyses.running.files import clean
from analyses.running.locks import hold_folder
from analyses.running.report import write_report
from analyses.running.results import Result
from hooked_vit import HookedViT
from interventions import grid, shuffle_cls
from tests.analyses.questions.cls_use.test_cls_causality import coloured

SEAMS = (
    "rename",
    "replace",
    "unlink",
    "mkdir",
    "rmdir",
    "fsync",
    "truncate",
    "open",
    "write",
    "close",
    "posix_fallocate",
)
MOMENTS = 400
"""More than any of these writes has."""


@contextmanager
def dying_at(moment: int) -> Iterator[None]:
    """Meanwhile the process kills itself in front of its moment-th change of a folder or a file."""
    left = [moment]

    def deadly(call: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*args: Any, **kw: Any) -> Any:
            left[0] -= 1
            if left[0] <= 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return call(*args, **kw)

        return wrapped

    for name in SEAMS:
        if hasattr(os, name):
            setattr(os, name, deadly(getattr(os, name)))
    before = builtins.open

    def opened(file: Any, mode: str = "r", *args: Any, **kw: Any) -> Any:
        return (deadly(before) if set(mode) & set("wax+") else before)(file, mode, *args, **kw)

    builtins.open = io.open = opened
    yield


def killed_at(moment: int, work: Callable[[], object]) -> bool:
    """Do some work in a child that dies at a moment; whether it died, False once the work has fewer moments."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # newer Pythons warn of forks beside threads; the child only writes and dies
        child = os.fork()
    if not child:
        status = 1
        try:
            with dying_at(moment):
                work()
            status = 0
        finally:
            os._exit(status)
    _, status = os.waitpid(child, 0)
    assert status in (0, signal.SIGKILL), f"the work failed by itself: {status}"
    return status != 0


def result(n: int) -> Result:
    return Result(pd.DataFrame({"value": range(n)}), {"n": n})


def read(folder: Path) -> int | None:
    """The n of a saved result, whose numbers, description and page must be of one save."""
    try:
        found = Result.load(folder)
    except FileNotFoundError:
        return None
    assert len(found.frame) == found.meta["n"]
    return found.meta["n"]


def test_a_result_changes_at_once_or_not_at_all(tmp_path: Path) -> None:
    deaths, seen = 0, set()
    for moment in range(1, MOMENTS):
        folder, before = tmp_path / str(moment), 3 if moment % 5 else None
        if before:
            result(before).save(folder, report=f"page of {before}")
        died = killed_at(moment, lambda folder=folder: result(5).save(folder, report="page of 5"))
        deaths += died
        n = read(folder)
        assert n in ((before, 5) if died else (5,))
        seen.add(n == 5)
        result(4).save(folder, report="page of 4")  # what the lock's last owner left keeps nobody out
        assert read(folder) == 4
        assert {p.name for p in folder.iterdir()} == {"result.parquet", "result.json", "report.html"}
        assert (folder / "report.html").read_text() == "page of 4"
        if not died:
            break
    assert not died
    assert seen == {True, False}
    assert deaths >= 40


def test_the_page_is_of_the_numbers_beside_it_once_somebody_has_looked_after_the_folder(tmp_path: Path) -> None:
    """A new result without a page takes the former page with it, whenever the process dies."""
    for moment in range(1, MOMENTS):
        folder = tmp_path / str(moment)
        result(3).save(folder, report="page of 3")
        died = killed_at(moment, lambda folder=folder: result(5).save(folder))
        n = read(folder)
        with hold_folder(folder):
            clean(folder)
        assert read(folder) == n
        assert (folder / "report.html").exists() == (n == 3)
        if not died:
            break
    assert not died


CHOSEN = grid(shuffle_cls, layer=range(2))


@pytest.fixture(scope="module")
def data() -> ImageData:
    return coloured(12, 1)


def test_a_journal_goes_on_to_the_same_numbers(vit: HookedViT, data: ImageData, tmp_path: Path) -> None:
    def sweep(file: Path) -> pd.DataFrame:
        return intervention_sweep({"vit": vit}, data, interventions=CHOSEN, batch_size=6, file=str(file)).frame

    whole, deaths = sweep(tmp_path / "whole.jsonl"), 0
    for moment in range(1, MOMENTS):
        file = tmp_path / str(moment) / "rows.jsonl"
        died = killed_at(moment, lambda file=file: sweep(file))
        deaths += died
        pd.testing.assert_frame_equal(sweep(file), whole)
        assert [p.name for p in file.parent.iterdir()] == ["rows.jsonl"]
        if not died:
            break
    assert not died
    assert deaths >= 10


def test_saved_probes_are_the_former_or_the_new_ones(vit: HookedViT, data: ImageData, tmp_path: Path) -> None:
    old, new = (fit_probes(vit, data, roles=("cls",), layers=layers) for layers in ((0,), (1,)))
    for moment in range(1, MOMENTS):
        folder = tmp_path / str(moment)
        old.save(folder)
        died = killed_at(moment, lambda folder=folder: new.save(folder))
        assert FittedProbes.load(folder).probes.keys() in (old.probes.keys(), new.probes.keys())
        new.save(folder)
        assert {p.name for p in folder.iterdir()} == {"probes.json", "probes.safetensors"}
        if not died:
            break
    assert not died


def test_a_report_is_part_of_a_result(tmp_path: Path) -> None:
    write_report(result(3), tmp_path / "out")
    assert read(tmp_path / "out") == 3
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["report.html", "result.json", "result.parquet"]
