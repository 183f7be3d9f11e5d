"""A grid of models × analyses × seeds as jobs of their own, each of which leaves a result complete in itself.

A grid is a file:

    models = ["zoo:vit", "zoo:deit"]
    seeds = [0, 1]
    data = "scenes:test"
    n = 300

    [analyses.cls-causality]
    seeds = 1

    [analyses.lenses]

    [slurm]
    slurm_partition = "gpu"
    timeout_min = 60

Options of an analysis are those of `hooked-vit run ANALYSIS`; `[slurm]` and `[local]` are parameters of submitit's
executors. A job is one such command, and its result stands in OUT/ANALYSIS/MODEL/seed-S.
"""

from __future__ import annotations

import argparse
import os
import re
import shlex
import sys
import tomllib
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

INSTALL = 'jobs need submitit: pip install "hooked-vit[scale]"'
EXECUTORS = ("local", "slurm", "debug")
KNOWN = {"models", "seeds", "data", "n", "analyses", *EXECUTORS}
OF_EVERY_RUN = {"batch_size", "device", "skip_bad", "num_processes"}
LOGS = ".jobs"
"""Where the logs of jobs go; results are not looked for there."""


class Job(NamedTuple):
    """A run of one analysis on one model with one seed: what is typed for it, and where its result goes."""

    argv: tuple[str, ...]
    out: Path

    @property
    def command(self) -> str:
        """As its result says it."""
        return shlex.join(["hooked-vit", *self.argv])


def read_grid(file: str | Path, out: str | Path) -> tuple[list[Job], dict[str, dict[str, Any]]]:
    """The jobs of a grid, whose results go below `out`, and by executor its parameters.

    Raises ValueError for a file that is no grid, for entries it does not know, for two models of one name, and for
    arguments that the command line would refuse.
    """
    try:
        told = tomllib.loads(Path(file).read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{file} is no grid: {error}") from error
    if strange := sorted(told.keys() - KNOWN):
        raise ValueError(f"a grid has {', '.join(sorted(KNOWN))}; {file} has {', '.join(strange)}")
    if not (isinstance(told.get("models"), list) and isinstance(told.get("analyses"), dict) and told["analyses"]):
        raise ValueError(f"a grid names models, a list, and analyses, each a table [analyses.NAME]; {file} does not")
    from analyses.running.models import short_names

    for analysis, options in told["analyses"].items():
        _check(analysis, options)
    jobs = list(_jobs(told, short_names(told["models"]), Path(out)))
    return jobs, {name: dict(told.get(name, {})) for name in EXECUTORS}


def _jobs(told: Mapping[str, Any], models: Mapping[str, str], out: Path) -> Iterator[Job]:
    common = [part for key in ("data", "n") if key in told for part in (f"--{key}", str(told[key]))]
    for analysis, options in told["analyses"].items():
        chosen = [part for option, value in options.items() for part in _typed(option, value)]
        for name, model in models.items():
            for seed in told.get("seeds", [0]):
                place = out / analysis / re.sub(r"[^\w.-]+", "-", name) / f"seed-{seed}"
                asked = ["run", analysis, "--model", model, *common, "--seed", str(seed), *chosen]
                yield Job((*asked, "--out", str(place)), place)


def _typed(option: str, value: Any) -> list[str]:
    """What is typed for an option: a switch for a truth value, every entry of a list."""
    flag = option.replace("_", "-")
    if isinstance(value, bool):
        return [f"--{flag}" if value else f"--no-{flag}"]
    return [f"--{flag}", *(str(one) for one in (value if isinstance(value, list) else [value]))]


def _check(analysis: str, options: Any) -> None:
    from analyses.running.arguments import FORMER, options_of
    from analyses.running.catalogue import get_analysis

    entry = get_analysis(analysis)
    if not entry.is_command:
        raise ValueError(f"{entry.name} takes tensors, not data: call it from Python")
    known = {option.name for option in options_of(entry.run)} | OF_EVERY_RUN
    known |= {former for former, now in FORMER.items() if now in known}
    if strange := [name for name in options if name.replace("-", "_") not in known]:
        raise ValueError(f"{entry.name} has the options {', '.join(sorted(known))}; the grid has {', '.join(strange)}")


def is_done(job: Job) -> bool:
    """Whether its result is there, whole, and of this command and this version."""
    from analyses.running.results import Result, environment

    try:
        meta = Result.load(job.out).meta
    except (OSError, ValueError):
        return False
    version = environment().get("hooked-vit")
    return meta.get("command") == job.command and meta.get("versions", {}).get("hooked-vit") == version


def grid(args: argparse.Namespace) -> int:
    """`grid`: run the jobs whose results are not there yet, and list those that fail; 1 where one does."""
    from analyses.command_line import terminal

    terminal.quiet()
    console = terminal.console()
    if find_spec("submitit") is None:
        raise ValueError(INSTALL)
    out = Path(args.out)
    jobs, parameters = read_grid(args.grid, out)
    left = [job for job in jobs if not is_done(job)]
    terminal.say(console, f"{len(jobs)} jobs, {len(jobs) - len(left)} of them done.")
    if not left:
        return 0
    executor = _executor(args.executor, out, parameters[args.executor])
    if args.executor == "slurm":
        with executor.batch():
            waiting = [_submitted(executor, job) for job in left]
        for job, submitted in zip(left, waiting, strict=True):
            terminal.say(console, f"submitted as {submitted.job_id}: {job.out}")
        terminal.say(console, "Once they have ended, the same command again submits those that have failed.")
        return 0
    failed: list[tuple[Job, str]] = []
    while left:
        some, left = left[: args.at_once], left[args.at_once :]
        started = [_submitted(executor, job) for job in some]
        for job, submitted in zip(some, started, strict=True):
            why = _failure(submitted)
            failed += [] if why is None else [(job, why)]
            terminal.say(console, f"{'done' if why is None else 'failed'}: {job.out}")
    for job, why in failed:
        terminal.say(console, job.command)
        terminal.say(console, f"  {why}")
    terminal.say(console, f"One page of all that is there: hooked-vit report {shlex.quote(str(out))}")
    return int(bool(failed))


def _executor(kind: str, out: Path, parameters: Mapping[str, Any]) -> Any:
    import submitit

    folder = out / LOGS
    folder.mkdir(parents=True, exist_ok=True)
    executor = submitit.AutoExecutor(folder=folder, cluster=kind)
    executor.update_parameters(name="hooked-vit", **{"timeout_min": 24 * 60, **parameters})
    # a job imports what this process imports, wherever it was started
    os.environ["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
    return executor


def _submitted(executor: Any, job: Job) -> Any:
    from submitit.helpers import CommandFunction

    return executor.submit(CommandFunction([sys.executable, "-m", "analyses.command_line.cli", *job.argv]))


def _failure(submitted: Any) -> str | None:
    """Wait for a job: what its log says last where it has failed, None where it has not."""
    error = submitted.exception()
    if error is None:
        return None
    lines = [*(submitted.stderr() or "").splitlines(), *str(error).splitlines()]
    said = [line[line.index("error: ") :] for line in lines if "error: " in line]
    return said[-1] if said else str(error).strip().rpartition("\n")[2]
