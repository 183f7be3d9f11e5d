"""Every analysis by name. One that stands anywhere in this package is found by looking; no list names it."""

from __future__ import annotations

import ast
import importlib
import inspect
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

Figure = Callable[[Any], Any]
Figures = Mapping[str, Figure] | Callable[[Any], Mapping[str, Figure]]

REGISTERED: dict[str, Analysis] = {}


@dataclass(frozen=True)
class Analysis:
    """A registered analysis: call it as the function it is. `summary` is the first line of its docstring.

    `more_figures` are drawn behind `figure` in a report, under their headings; where they depend on what was run, a
    function of the result tells them. `zoo_target` says which built-in models it
    is run on where none are named: those trained for this target, or of them `zoo_models`, where all take too long.
    """

    name: str
    run: Callable[..., Any]
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

    def figures(self, result: Any) -> dict[str, Figure]:
        """The further figures of a result, by heading."""
        return dict(self.more_figures(result) if callable(self.more_figures) else self.more_figures)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.run(*args, **kwargs)


class Source(NamedTuple):
    """Where an analysis stands, and what can be said of it without importing it, which would import torch."""

    module: str
    function: str
    summary: str
    is_command: bool
    options: dict[str, tuple[str, ...] | None]
    """The parameters behind models and data, with the values of those whose annotation lists them."""


def get_analysis(name: str) -> Analysis:
    """The analysis of that name, written with dashes or underscores.

    >>> get_analysis("cls_causalty")  # doctest: +IGNORE_EXCEPTION_DETAIL
    Traceback (most recent call last):
    LookupError: there is no analysis 'cls-causalty'; did you mean 'cls-causality'?

    Raises LookupError for an unknown name, offering the nearest.
    """
    key = as_key(name)
    if key not in REGISTERED and key in (known := in_source()):
        importlib.import_module(known[key].module)  # alone, so that one analysis does not wait for all
    if key not in REGISTERED:
        there = {*in_source(), *REGISTERED}
        near = get_close_matches(key, there, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(sorted(there)) or 'none'}"
        raise LookupError(f"there is no analysis {key!r}; {hint}")
    return REGISTERED[key]


def registered_analyses() -> dict[str, Analysis]:
    """All analyses by name, in alphabetical order: those of this package and those registered since."""
    for source in in_source().values():
        importlib.import_module(source.module)
    return dict(sorted(REGISTERED.items()))


def in_source() -> dict[str, Source]:
    """Every function of this package under `@analysis`, by the analysis' name, read from the source.

    >>> in_source()["cls-causality"].summary
    'Where in each model is the label decodable from CLS, and where is CLS used?'
    """
    return _in_folders(tuple(sys.modules["analyses"].__path__))


@cache
def _in_folders(folders: tuple[str, ...]) -> dict[str, Source]:
    found: dict[str, Source] = {}
    for path in (path for folder in folders for path in sorted(Path(folder).rglob("*.py"))):
        text = path.read_text(encoding="utf-8")
        if "\n@analysis" not in text:  # most modules hold none, and parsing all of them takes longer than a user waits
            continue
        folder = next(folder for folder in folders if path.is_relative_to(folder))
        module = ".".join(("analyses", *path.relative_to(folder).with_suffix("").parts))
        for node in ast.parse(text).body:
            if isinstance(node, ast.FunctionDef) and (named := _registered_as(node)):
                summary = (ast.get_docstring(node) or "").split("\n", 1)[0]
                is_command = [a.arg for a in node.args.args[:1]] == ["models"]
                options = {a.arg: _listed(a.annotation) for a in (*node.args.args[2:], *node.args.kwonlyargs)}
                found[as_key(named)] = Source(module, node.name, summary, is_command, options)
    return found


def as_key(name: str) -> str:
    """How a name is written in tables and on the command line.

    >>> as_key("cls_causality")
    'cls-causality'
    """
    return name.replace("_", "-")


def _listed(annotation: ast.expr | None) -> tuple[str, ...] | None:
    """The values of a `Literal` of texts."""
    if isinstance(annotation, ast.Subscript) and ast.unparse(annotation.value) == "Literal":
        values = ast.literal_eval(annotation.slice)
        return values if isinstance(values, tuple) else (values,)
    return None


def _registered_as(function: ast.FunctionDef) -> str | None:
    for decorator in function.decorator_list:
        call = decorator if isinstance(decorator, ast.Call) else ast.Call(decorator, [], [])
        if ast.unparse(call.func).rpartition(".")[2] == "analysis":
            named = [*call.args[:1], *(k.value for k in call.keywords if k.arg == "name")]
            return str(ast.literal_eval(named[0])) if named else function.name
    return None
