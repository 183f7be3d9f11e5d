"""`@analysis`: what makes a function that returns a Result one that can be asked for by name."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any, ParamSpec, overload

from analyses.running.arguments import check_models, check_options
from analyses.running.catalogue import REGISTERED, Analysis, Figure, Figures, as_key
from analyses.running.notice import data_notes
from analyses.running.results import Result, computing, environment
from analyses.running.shown import drawn_plain

P = ParamSpec("P")


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
    `analysis`, `versions` and `computing`, and its `notes` what `data_notes` says of the images.
    `figure`, `more_figures`, `zoo_target` and `zoo_models` are those of `Analysis`; figures draw what `shown` makes of
    a result, so that a name is text whatever it says.
    Raises ValueError for a name another function holds, TypeError when the function returns anything but a Result, and
    when called what `check_models` and `check_options` raise.
    """
    if callable(name):
        return analysis()(name)

    def register(function: Callable[P, Result]) -> Callable[P, Result]:
        key = as_key(function.__name__ if name is None else name)
        origin = (function.__module__, function.__qualname__)
        holder = REGISTERED.get(key)
        # The same function again is a notebook cell run twice, or a module reloaded.
        if holder is not None and (holder.run.__module__, holder.run.__qualname__) != origin:
            raise ValueError(
                f"an analysis has a name of its own: {key!r} is taken by {holder.run.__module__}."
                f"{holder.run.__qualname__}; give another with @analysis(name=…)"
            )

        @functools.wraps(function)
        def run(*args: P.args, **kwargs: P.kwargs) -> Result:
            _check(function, args, kwargs)
            result = function(*args, **kwargs)
            if not isinstance(result, Result):
                raise TypeError(f"an analysis returns a Result; {key} returned {type(result).__name__}")
            result.meta.setdefault("versions", environment())
            result.meta.setdefault("computing", computing())
            result.meta["analysis"] = key
            if told := data_notes(result.meta):
                result.meta["notes"] = list(dict.fromkeys([*result.meta.get("notes", []), *told]))
            return result

        run.analysis_name = key  # type: ignore[attr-defined]
        more = _drawn(more_figures or {})
        REGISTERED[key] = Analysis(key, run, figure and drawn_plain(figure), more, zoo_target, zoo_models)
        return run

    return register


def _drawn(more: Figures) -> Figures:
    if callable(more):
        return lambda result: {heading: drawn_plain(draw) for heading, draw in more(result).items()}
    return {heading: drawn_plain(draw) for heading, draw in more.items()}


def _check(function: Callable[..., Result], args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Refuse what cannot be right of any analysis; a call that does not fit the signature is refused by Python."""
    parameters = inspect.signature(function).parameters
    names = list(parameters)
    told = dict(zip(names, args, strict=False)) | kwargs
    if names[:1] == ["models"]:  # others take tensors, whose kinds are their own
        check_options(function, told, called=True)
        chooses = parameters["models"].default is None
        if not (chooses and told.get("models") is None):
            check_models(told.get("models"))
