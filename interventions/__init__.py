"""Named edits of a run, and running many of them well.

>>> from interventions import apply, shuffle_cls, readout  # doctest: +SKIP
>>> with apply(model, shuffle_cls(layer=8, seed=0) + readout("cls")):  # doctest: +SKIP
...     logits = model(pixels)

A module of `interventions/catalogue/` that decorates a function with `@intervention` is found by itself.
"""

from __future__ import annotations

from importlib import import_module
from pkgutil import iter_modules
from typing import TYPE_CHECKING

from interventions import catalogue
from interventions.activation_stats import Stats, collect_stats
from interventions.apply import AppliedRun, InterventionNotFired, apply, resolve
from interventions.circuits import Circuit
from interventions.contract import check_intervention
from interventions.core import Factory, Intervention, from_dict, get, intervention, registered
from interventions.dictionaries import Sae, load_sae
from interventions.grid import grid
from interventions.sweep import sweep

for _module in iter_modules(catalogue.__path__):
    import_module(f"{catalogue.__name__}.{_module.name}")
globals().update(registered())

if TYPE_CHECKING:  # the catalogue is found at run time

    def __getattr__(name: str) -> Factory: ...


__all__ = [
    "AppliedRun",
    "Circuit",
    "Intervention",
    "InterventionNotFired",
    "Sae",
    "Stats",
    "apply",
    "check_intervention",
    "collect_stats",
    "from_dict",
    "get",
    "grid",
    "intervention",
    "load_sae",
    "registered",
    "resolve",
    "sweep",
    *registered(),
]


def __dir__() -> list[str]:
    """What there is to use."""
    return sorted(__all__)
