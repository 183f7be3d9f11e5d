"""Every analysis by name. A module of this package that holds one is found by looking; no list names it."""

from __future__ import annotations

import functools
import importlib
import inspect
import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from importlib.util import find_spec
from typing import Any, ParamSpec, overload

import plotly.graph_objects as go

from analyses.results import Result, environment

P = ParamSpec("P")
Figure = Callable[[Result], go.Figure]
Figures = Mapping[str, Figure] | Callable[[Result], Mapping[str, Figure]]


@dataclass(frozen=True)
class Analysis:
    """A registered analysis: call it as the function it is. `summary` is the first line of its docstring.

    `more_figures` are drawn behind `figure` in a report, under their headings; where they depend on what was run, a
    function of the result tells them. `zoo_target` says which built-in models it
    is run on where none are named: those trained for this target, or of them `zoo_models`, where all take too long.
    """

    name: str
    run: Callable[..., Result]
    figure: Figure | None = None
    more_figures: Figures = field(default_factory=dict)
    zoo_target: str = "label"
    zoo_models: tuple[str, ...] = ()

    @property
    def summary(self) -> str:
        return (self.run.__doc__ or "").strip().split("\n", 1)[0]

    @property
    def is_command(self) -> bool:
        """Whether it compares models on a data set, which a command line can name; others take tensors."""
        return next(iter(inspect.signature(self.run).parameters), None) == "models"

    def figures(self, result: Result) -> dict[str, Figure]:
        """The further figures of a result, by heading."""
        return dict(self.more_figures(result) if callable(self.more_figures) else self.more_figures)

    def __call__(self, *args: Any, **kwargs: Any) -> Result:
        return self.run(*args, **kwargs)


_REGISTERED: dict[str, Analysis] = {}


@overload
def analysis(name: Callable[P, Result]) -> Callable[P, Result]: ...
@overload
def analysis(
    name: str | None = None,
    *,
    figure: Figure | None = None,
    more_figures: Figures | None = None,
    zoo_target: str = "label",
    zoo_models: tuple[str, ...] = (),
) -> Callable[[Callable[P, Result]], Callable[P, Result]]: ...
def analysis(
    name: Any = None,
    *,
    figure: Figure | None = None,
    more_figures: Figures | None = None,
    zoo_target: str = "label",
    zoo_models: tuple[str, ...] = (),
) -> Any:
    """Register a function that returns a `Result`; `figure` draws that result, for `Result.figure()`.

    >>> import pandas as pd
    >>> @analysis
    ... def image_count(data):
    ...     '''How many images are there?'''
    ...     return Result(pd.DataFrame({"n": [len(data)]}), {})
    >>> image_count("abc").meta["analysis"]
    'image-count'

    The name is the function's own, with dashes, unless `@analysis(name=…)` gives one. The result's `meta` gains
    `analysis` and `versions`.
    `figure`, `more_figures`, `zoo_target` and `zoo_models` are those of `Analysis`.
    Raises ValueError for a name another function holds, TypeError when the function returns anything but a Result.
    """
    if callable(name):
        return analysis()(name)

    def register(function: Callable[P, Result]) -> Callable[P, Result]:
        key = _key(function.__name__ if name is None else name)
        origin = (function.__module__, function.__qualname__)
        holder = _REGISTERED.get(key)
        # The same function again is a notebook cell run twice, or a module reloaded.
        if holder is not None and (holder.run.__module__, holder.run.__qualname__) != origin:
            raise ValueError(
                f"an analysis has a name of its own: {key!r} is taken by {holder.run.__module__}."
                f"{holder.run.__qualname__}; give another with @analysis(name=…)"
            )

        @functools.wraps(function)
        def run(*args: P.args, **kwargs: P.kwargs) -> Result:
            result = function(*args, **kwargs)
            if not isinstance(result, Result):
                raise TypeError(f"an analysis returns a Result; {key} returned {type(result).__name__}")
            result.meta.setdefault("versions", environment())
            result.meta["analysis"] = key
            return result

        run.analysis_name = key  # type: ignore[attr-defined]
        _REGISTERED[key] = Analysis(key, run, figure, more_figures or {}, zoo_target, zoo_models)
        return run

    return register


def get_analysis(name: str) -> Analysis:
    """The analysis of that name, written with dashes or underscores.

    >>> get_analysis("cls_causalty")  # doctest: +IGNORE_EXCEPTION_DETAIL
    Traceback (most recent call last):
    LookupError: there is no analysis 'cls-causalty'; did you mean 'cls-causality'?

    Raises LookupError for an unknown name, offering the nearest.
    """
    key = _key(name)
    module = key.replace("-", "_")
    if key not in _REGISTERED and module.isidentifier() and find_spec(f"analyses.{module}"):
        importlib.import_module(f"analyses.{module}")  # alone, so that one analysis does not wait for all
    if key not in _REGISTERED:
        _import_all()
    if key not in _REGISTERED:
        near = get_close_matches(key, _REGISTERED, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(sorted(_REGISTERED)) or 'none'}"
        raise LookupError(f"there is no analysis {key!r}; {hint}")
    return _REGISTERED[key]


def registered_analyses() -> dict[str, Analysis]:
    """All analyses by name, in alphabetical order: those of this package and those registered since."""
    _import_all()
    return dict(sorted(_REGISTERED.items()))


def _import_all() -> None:
    package = importlib.import_module("analyses")
    for module in pkgutil.iter_modules(package.__path__, "analyses."):
        if not module.ispkg and not module.name.rpartition(".")[2].startswith("_"):
            importlib.import_module(module.name)


def _key(name: str) -> str:
    return name.replace("_", "-")
