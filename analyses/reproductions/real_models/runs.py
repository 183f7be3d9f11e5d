"""What is run on a real checkpoint: what is claimed of large models at size, the rest in minutes on one core."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from analyses.running.results import ABOUT, Result


@dataclass(frozen=True)
class Run:
    """An analysis with `n` images to measure on (of one that takes tensors: pairs), `n_fit` to fit on, and options."""

    name: str
    n: int
    n_fit: int
    options: Mapping[str, Any] = field(default_factory=dict)
    analysis: str = ""
    needs_dictionary: bool = False

    @property
    def asks(self) -> str:
        """The name of the analysis, which is that of the run unless one analysis is run in several ways."""
        return self.analysis or self.name


RUNS = (
    Run("circuit-discovery", 12, 400, {"steps": 3, "exact": 32, "draws": 2, "batch_size": 4}),
    Run("head-ablation", 64, 512, {"seeds": 1, "draws": 3, "batch_size": 16}),
    Run("aligned-subspace", 60, 400, {"layer": 10, "dims": (1, 4, 16), "steps": 60, "draws": 3, "batch_size": 30}),
    Run("sparse-features", 96, 96, {"top": 3}, needs_dictionary=True),
    Run("head-words", 64, 400, {"draws": 2}),
    Run("register-neurons", 128, 400, {"seeds": 1, "batch_size": 64}),
    Run("register-controls", 256, 512, {"seeds": 1, "reads": "cls", "batch_size": 64}),
    Run("cls-causality", 2000, 5000, {"seeds": 1, "batch_size": 100}),
    Run("restoration", 512, 1024, {"seeds": 1, "batch_size": 64}),
    Run("restoration-refit", 512, 1024, {"seeds": 1, "batch_size": 64, "probe_fit": "refit"}, "restoration"),
    Run(
        "random-readouts",
        2000,
        3000,
        {"layers": (8, 9, 10, 11), "seeds": 2, "modes": ("closed_form", "trained"), "epochs": 200},
    ),
    Run("decodability", 1000, 2000, {"roles": ("cls", "patches"), "random_models": 1, "permutations": 5}),
    Run("lenses", 400, 400, {"random_models": 1, "steps": 300}),
    Run("registers", 128, 256, {"batch_size": 64}),
)
"""In the order they are run and shown in."""


def find(name: str) -> Run:
    """The run of that name. Raises LookupError."""
    for run in RUNS:
        if run.name == name:
            return run
    raise LookupError(f"there is no run {name!r}; there are {', '.join(run.name for run in RUNS)}")


def saved_in(folder: Path) -> dict[str, Result]:
    """The results that `run` saved in a folder, by the name of their run and in their order.

    Raises FileNotFoundError where there is none.
    """
    found = {run.name: Result.load(folder / run.name) for run in RUNS if (folder / run.name / ABOUT).is_file()}
    if not found:
        raise FileNotFoundError(f"there is no saved result in {folder}; `run` leaves a folder for each")
    return found
