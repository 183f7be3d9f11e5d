"""What an analysis can be told: its keyword parameters, the numbers that make sense for each, and its models.

Read from its signature, so that the command line, recipes and calls from Python are held to the same.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from numbers import Integral, Real
from typing import Any, Literal, NamedTuple, get_args, get_origin, get_type_hints

from analyses.running.notice import notice
from analyses.running.text import check_seen

SIMPLE = (bool, int, float, str)
PLACES = ("keep_in", "file")
"""Options that say where an analysis writes."""
READ_FROM = ("activations",)
"""Options that say where an analysis reads what was kept."""
FORMER = {"probe_data": "fit_data"}
"""What parameters were called before -> what they are called."""


class Range(NamedTuple):
    """Numbers from `least` to `most`; `least` itself is none of them where it is `above`."""

    least: int | float
    most: int | float
    above: bool = False

    def fault(self, value: int | float, kind: type) -> str | None:
        """What the number has to be, where it is not.

        >>> Range(1, 10).fault(0, int)
        'a whole number from 1 to 10'
        """
        below = value <= self.least if self.above else value < self.least
        if math.isfinite(value) and not below and value <= self.most:
            return None
        return f"a {'whole ' if kind is int else ''}number {'above' if self.above else 'from'} {self}"

    def told(self, kind: type) -> str:
        """What can be typed, in words.

        >>> Range(1, LARGEST).told(int), Range(0, 1, above=True).told(float)
        ('a whole number from 1', 'a number above 0 and up to 1')
        """
        number = f"a {'whole ' if kind is int else ''}number"
        if -self.least == self.most:
            return number
        bound = f"{'above' if self.above else 'from'} {self.least:.12g}"
        return f"{number} {bound}" if self.most == LARGEST else f"{number} {'above' if self.above else 'from'} {self}"

    def __str__(self) -> str:
        joined = "and up to" if self.above else "to"
        return f"{self.least:.12g} {joined} {self.most:.12g}"


AUTO = "auto"
"""A batch size that is found by measuring."""
LARGEST = 2**31 - 1
ANY = Range(-LARGEST, LARGEST)
COUNT, MANY, SEED = Range(1, LARGEST), Range(0, LARGEST), Range(0, LARGEST)
RANGES = {
    "bands": Range(1, 10_000),
    "batch_size": COUNT,
    "calibration": COUNT,
    "class_of_interest": MANY,
    "components": COUNT,
    "cutoff": Range(0, 1e12),
    "draws": COUNT,
    "episodes": COUNT,
    "epochs": COUNT,
    "eps": Range(0, 1, above=True),
    "examples": Range(0, 1000),
    "images": Range(1, 1000),
    "k": COUNT,
    "last_layers": COUNT,
    "layers": Range(-10_000, 10_000),
    "lens_images": Range(20, LARGEST),
    "lr": Range(0, 1000, above=True),
    "max_pairs": COUNT,
    "memories": Range(0, 1000),
    "memory_budget": Range(1, 2**60),
    "min_images": COUNT,
    "n": COUNT,
    "n_permutations": Range(1, 10_000_000),
    "n_registers": Range(1, 1000),
    "n_shuffles": Range(1, 10_000_000),
    "neurons": COUNT,
    "patience": COUNT,
    "permutations": Range(1, 1_000_000),
    "permuted_heads": Range(0, 10_000),
    "points": Range(2, 100_000),
    "queries": COUNT,
    "radii": Range(0, 1_000_000),
    "random_models": Range(0, 10_000),
    "seed": SEED,
    "seeds": Range(1, 100_000),
    "shots": COUNT,
    "start": Range(-10_000, 10_000),
    "steps": COUNT,
    "tau": Range(0, 1, above=True),
    "threshold": MANY,
    "top": COUNT,
    "trainings": COUNT,
    "ways": Range(2, LARGEST),
    "window": Range(0, 10_000),
    "z": Range(0, 1_000_000),
}
"""By name, as one thing has one name everywhere; an analysis may ask for more."""
_ROLES = ("cls", "dist", "registers", "patches")
_TOKENS = ("own_cls", "mean_cls", "gaussian", "one_gaussian", "normal", "one_normal", "other_cls", "mean_patch")
CHOICES: dict[str, tuple[str, ...]] = {
    "among": ("batch", "others", "same_class", "other_classes"),
    "controls": ("permuted", "random_weights", "pca", "selectivity", "memorised", "none"),
    "head": ("auto", "own", "ridge"),
    "layout": ("saelens", "prisma", "saev", "overcomplete"),
    "modes": (
        *("closed_form", "trained"),
        *(f"{placement}_{token}" for placement in ("replace", "augment") for token in _TOKENS),
        *("null", "null_de_novo", "replace", "augment", "deterministic"),
    ),
    "orders": ("gradient", "chefer", "rollout", "attention_last", "attention_mean", "projection", "probe", "lrp"),
    "parts": (
        *("class-projection", "residual-updates", "class-values", "key-values", "attention-knockouts"),
        *("context-tokens", "token-removal", "gradient-explanations", "perturbation-tests"),
    ),
    "probe_tokens": _ROLES,
    "tokens": _ROLES,
}
"""The texts an option takes, by its name, known before an analysis and torch are imported; a test compares."""


@dataclass(frozen=True)
class Option:
    """A keyword parameter as an option.

    `kind` is the type of one value, `many` says that it takes several, `is_data` that it is a data specification.
    """

    name: str
    kind: type
    default: Any
    choices: tuple | None = None
    many: bool = False
    is_data: bool = False
    range: Range = ANY

    @property
    def flag(self) -> str:
        """How it is written."""
        return flag_of(self.name)

    def check(self, value: Any) -> None:
        """Raises TypeError for a value of another kind, ValueError for one out of range and for one given twice."""
        several = self.many and hasattr(value, "__len__") and not isinstance(value, str)
        values = list(value) if several else [value]
        for one in values:
            self._check_one(one)
        if twice := next((one for i, one in enumerate(values) if one in values[:i]), None):
            raise ValueError(f"{self.name} takes each value once; {twice!r} is given twice")

    def _check_one(self, value: Any) -> None:
        if self.kind is bool and type(value).__name__ not in ("bool", "bool_"):
            raise TypeError(f"{self.name} is True or False; got {str(value)[:80]!r}, a {type(value).__name__}")
        if self.kind in (int, float):
            kind = Integral if self.kind is int else Real
            if isinstance(value, bool) or not isinstance(value, kind):
                told = f"{self.range.fault(math.nan, self.kind)}"
                raise TypeError(f"{self.name} is {told}; got {str(value)[:80]!r}, a {type(value).__name__}")
            if fault := self.range.fault(value, self.kind):  # type: ignore[arg-type]
                raise ValueError(f"{self.name} is {fault}; got {value}")


def flag_of(name: str) -> str:
    """How an option is written."""
    return f"--{name.replace('_', '-')}"


def options_of(function: Callable) -> list[Option]:
    """The options of an analysis: every parameter behind models and data whose value can be typed in.

    >>> def shuffled(models, data, *, seeds: int = 3, layers: tuple[int, ...] = (0, 1), fit_data=None): ...
    >>> [option.flag for option in options_of(shuffled)]
    ['--seeds', '--layers', '--fit-data']

    That is a number, a text, a switch, several of them, or data; the default or, where it is None, the annotation
    tells. A parameter called `..._data` takes a data specification. Other parameters are for Python only.
    """
    try:
        hints = get_type_hints(function)
    except (NameError, TypeError):  # an annotation that is imported for type checkers only
        hints = {}
    # what somebody else's analysis means by a name is not known here
    ours = function.__module__.startswith("analyses.")
    ranges, choices = (RANGES, CHOICES) if ours else ({}, {})
    behind = list(inspect.signature(function).parameters.values())[2:]
    found = (_option(parameter, hints.get(parameter.name), ranges.get(parameter.name, ANY)) for parameter in behind)
    return [replace(o, choices=o.choices or choices.get(o.name)) for o in found if o is not None]


def _option(parameter: inspect.Parameter, hint: Any, numbers: Range) -> Option | None:
    name, default = parameter.name, parameter.default
    if default is None and name.endswith("_data"):
        return Option(name, str, None, is_data=True)
    kinds = [hint, *get_args(hint)] if hint is not None else []
    for kind in kinds:
        if get_origin(kind) is Literal:
            return Option(name, type(get_args(kind)[0]), default, choices=get_args(kind))
    if default is not None and default is not parameter.empty:
        if isinstance(default, tuple):
            values = {type(value) for value in default} or {str}
            return (
                Option(name, kind, default, many=True, range=numbers)
                if (kind := values.pop()) in SIMPLE[1:] and not values
                else None
            )
        return Option(name, type(default), default, range=numbers) if type(default) in SIMPLE else None
    for kind in kinds:
        if kind in SIMPLE:
            return Option(name, kind, None, range=numbers)
        if get_origin(kind) is tuple and (inner := get_args(kind)[0]) in SIMPLE[1:]:
            return Option(name, inner, None, many=True, range=numbers)
    return None


def former_names(function: Callable) -> dict[str, str]:
    """What parameters of an analysis were called before -> what they are called.

    >>> def fitted(models, data, *, fit_data=None): ...
    >>> former_names(fitted)
    {'probe_data': 'fit_data'}
    """
    takes = inspect.signature(function).parameters
    return {former: name for former, name in FORMER.items() if name in takes and former not in takes}


def renamed(function: Callable, given: Mapping[str, Any]) -> dict[str, Any]:
    """What was given by parameter, under the names of today; a former one is taken with a notice.

    Raises ValueError where a parameter is given under both names.
    """
    now = dict(given)
    for former, name in former_names(function).items():
        if former in now:
            if name in now:
                raise ValueError(f"{name} is given twice, once as {former}, which it was called before")
            notice(f"{former} is called {name} now, on the command line {flag_of(name)}")
            now[name] = now.pop(former)
    return now


def check_options(function: Callable, given: Mapping[str, Any], *, called: bool = False) -> None:
    """Make sure that numbers are numbers, in range and given once, before anything takes long.

    Raises TypeError and ValueError, naming the option, what it has to be and what was given. None, where it is the
    default, is left to the analysis. So is, where it is being `called`, a number that is too small: it can say why.
    """
    for option in options_of(function):
        if called:
            option = replace(option, range=option.range._replace(least=-option.range.most, above=False))
        if option.name in given and not (given[option.name] is None and option.default is None):
            option.check(given[option.name])


def check_batch_size(given: Any) -> None:
    """Make sure that batches hold images, of any analysis; None is left to the analysis.

    Raises TypeError for what is no whole number, ValueError for one that is not above 0.
    """
    if given is not None:
        Option("batch_size", int, None, range=COUNT).check(given)


def check_models(models: Any) -> None:
    """Make sure that the models of an analysis have names that can be shown.

    Raises TypeError for anything but a dictionary of HookedViTs, ValueError for an empty one and for a name with
    control characters.
    """
    if not isinstance(models, Mapping):
        kind = type(models).__name__
        raise TypeError(f'an analysis compares models by name: give {{"a": model, "b": other}}; got a {kind}')
    if not models:
        raise ValueError('an analysis needs at least one model: give {"a": model}')
    for name, model in models.items():
        if not isinstance(name, str) or not name:
            raise TypeError(f"a model's name is a text; got {name!r}")
        check_seen(name, "a model's name")
        if not hasattr(model, "run_with_cache"):  # torch's wrappers pass it on
            raise TypeError(
                f"{name} is no HookedViT but a {type(model).__name__}: HookedViT.from_pretrained loads one by name, "
                "HookedViT.from_hf takes a model of transformers"
            )
