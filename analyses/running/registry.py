"""`@analysis`: what makes a function that returns a Result one that can be asked for by name."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any, ParamSpec, overload

from analyses.processes.group import done_once
from analyses.running.arguments import AUTO, check_batch_size, check_models, check_options, renamed
from analyses.running.catalogue import REGISTERED, Analysis, Figure, Figures, as_key
from analyses.running.notice import data_notes, heard_remarks, notice, remark
from analyses.running.results import Result, computing, environment
from analyses.running.shown import drawn_plain, finding_first
from analyses.statistics.small import said_small
from hooked_vit.config.showing import counted

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
    by_one: bool = False,
) -> Callable[[Callable[P, Result]], Callable[P, Result]]: ...
def analysis(
    name: Any = None,
    *,
    figure: Figure | None = None,
    more_figures: Figures | None = None,
    zoo_target: str = "label",
    zoo_models: tuple[str, ...] = (),
    by_one: bool = False,
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
    `analysis`, `versions`, `computing`, `read`, by model which tokens were read and through whose head, and `small`,
    what is too small to be quoted without saying so (`said_small`); its `notes` gain what was remarked on meanwhile,
    and what `data_notes` says of the images.
    `figure`, `more_figures`, `zoo_target` and `zoo_models` are those of `Analysis`; figures draw what `shown` makes of
    a result, so that a name is text whatever it says; `figure` has for a title what `the_finding` is, if there is one.
    Where several processes run, one that is `by_one` is done by the first of them, and all have its result: what it
    fits learns step by step, or it keeps a folder.
    Raises ValueError for a name another function holds, TypeError when the function returns anything but a Result, and
    when called what `renamed`, `check_models` and `check_options` raise.
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
            with heard_remarks() as remarks:
                named = _with_batch(renamed(function, kwargs), args)
                told = _told(function, args, named)
                _check(function, told)
                ours = function.__module__.startswith("analyses.")
                with _surroundings(told if ours else {}) as about:
                    result = done_once(lambda: function(*args, **named)) if by_one else function(*args, **named)
            if not isinstance(result, Result):
                raise TypeError(f"an analysis returns a Result; {key} returned {type(result).__name__}")
            result.meta.setdefault("versions", environment())
            result.meta.setdefault("computing", computing())
            result.meta["analysis"] = key
            result.meta |= about
            if read := _what_was_read(result.meta.get("models"), told):
                result.meta["read"] = read
            if more := [*remarks, *data_notes(result.meta)]:
                result.meta["notes"] = list(dict.fromkeys([*result.meta.get("notes", []), *more]))
            result.meta["small"] = [notice(sentence) for sentence in said_small(result.frame, result.meta)]
            return result

        run.analysis_name = key  # type: ignore[attr-defined]
        more = _drawn(more_figures or {})
        REGISTERED[key] = Analysis(
            key, run, figure and finding_first(drawn_plain(figure)), more, zoo_target, zoo_models
        )
        return run

    return register


Surrounding = Callable[[Any, Any], AbstractContextManager[Any]]
_MEANWHILE: dict[str, Surrounding] = {}


def meanwhile(parameter: str, surrounding: Surrounding) -> None:
    """Have every analysis of this package that is given this parameter run inside `surrounding(value, models)`.

    What somebody else's analysis means by the name is not known here. What that gives is what `meta` says under the
    parameter's name.
    """
    _MEANWHILE[parameter] = surrounding


@contextmanager
def _surroundings(told: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    with ExitStack() as stack:
        given = {name: each for name, each in _MEANWHILE.items() if told.get(name) is not None}
        yield {name: stack.enter_context(each(told[name], told.get("models"))) for name, each in given.items()}


def _drawn(more: Figures) -> Figures:
    if callable(more):
        return lambda result: {heading: drawn_plain(draw) for heading, draw in more(result).items()}
    return {heading: drawn_plain(draw) for heading, draw in more.items()}


def _with_batch(named: dict[str, Any], args: tuple[Any, ...]) -> dict[str, Any]:
    """With the batch size that suits every model where it was left to be found, which a notice says."""
    if named.get("batch_size") != AUTO:
        return named
    from hooked_vit.loading.placing import fitting_batch

    models: Any = args[0] if args else named.get("models")
    check_models(models)
    found = done_once(lambda: min(map(fitting_batch, models.values())))  # processes share batches of one size
    remark(
        f"Batches of {counted(found, 'image')}, the fastest here: shuffles draw within them, so name it to draw them "
        "again."
    )
    notice(f"batches of {counted(found, 'image')}")
    return {**named, "batch_size": found}


def _told(function: Callable[..., Result], args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """What the function was called with, by parameter."""
    return dict(zip(inspect.signature(function).parameters, args, strict=False)) | kwargs


def _what_was_read(about: Any, told: dict[str, Any]) -> dict[str, str]:
    """Of every model what the result says was read; where it says nothing, what the models that were given read."""
    said = about.items() if isinstance(about, Mapping) else ()
    if found := {name: one["reads"] for name, one in said if isinstance(one, Mapping) and "reads" in one}:
        return found
    models = told.get("models")
    given = models if isinstance(models, Mapping) else {"model": told.get("model")}
    if not any(hasattr(model, "cfg") for model in given.values()):
        return {}
    from hooked_vit import HookedViT
    from hooked_vit.config.spoken import what_is_read

    return {str(name): what_is_read(model.cfg) for name, model in given.items() if isinstance(model, HookedViT)}


def _check(function: Callable[..., Result], told: dict[str, Any]) -> None:
    """Refuse what cannot be right of any analysis; a call that does not fit the signature is refused by Python."""
    parameters = inspect.signature(function).parameters
    names = list(parameters)
    check_batch_size(told.get("batch_size"))
    if names[:1] == ["models"]:  # others take tensors, whose kinds are their own
        check_options(function, told, called=True)
        chooses = parameters["models"].default is None
        if not (chooses and told.get("models") is None):
            check_models(told.get("models"))
