"""Every public name, and where it is defined: what `__all__` says, the catalogue, the questions."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from types import ModuleType
from typing import NamedTuple

from analyses.running.catalogue import in_source
from interventions import registered

PACKAGES = (
    "hooked_vit",
    "hooked_vit.architectures",
    "interventions",
    "interventions.dictionaries",
    "analyses",
    "analyses.activations.store",
    "analyses.data",
    "analyses.probes",
    "analyses.questions.patching.path_patching",
)
"""What has an `__all__` for users; `tests/site_pages` asks that no other has one."""

ROOMS = ("hooked_vit.zoo", "hooked_vit.loading.published")
"""Modules that are public as a whole: every function and class without an underscore."""


class Name(NamedTuple):
    """A public name: how it is imported, and the path that its documentation is found by."""

    public: str
    path: str


def names_of(package: str) -> list[Name]:
    """The public names of a package that are no modules, in its own order."""
    module = import_module(package)
    homes = {**_interventions(package), **_questions(package)}
    listed = getattr(module, "__all__", None) or _defined_in(module)
    names = [*dict.fromkeys([*listed, *(n for n in homes if package == "analyses")])]
    return [
        Name(f"{package}.{name}", homes.get(name, f"{package}.{name}"))
        for name in names
        if not isinstance(getattr(module, name), ModuleType)
    ]


def catalogue() -> dict[str, list[Name]]:
    """The interventions by the module they are defined in, in the order of their names."""
    found: dict[str, list[Name]] = {}
    for name, path in sorted(_interventions("interventions").items()):
        found.setdefault(path.rpartition(".")[0], []).append(Name(f"interventions.{name}", path))
    return dict(sorted(found.items()))


def questions() -> dict[str, list[Name]]:
    """The analyses by their subject."""
    found: dict[str, list[Name]] = {}
    for source in in_source().values():
        name = Name(f"analyses.{source.function}", f"{source.module}.{source.function}")
        found.setdefault(subject_of(source.module), []).append(name)
    return found


def subject_of(module: str) -> str:
    """The subject that a question's module belongs to.

    >>> subject_of("analyses.questions.signal.registers.registers")
    'signal'
    """
    return module.split(".")[2]


def _interventions(package: str) -> Mapping[str, str]:
    if package != "interventions":
        return {}
    homes = {name: factory.function.__module__ for name, factory in registered().items()}
    # a reader's own, registered meanwhile, are not of the package
    return {name: f"{home}.{name}" for name, home in homes.items() if home.startswith("interventions.")}


def _questions(package: str) -> Mapping[str, str]:
    if package != "analyses":
        return {}
    return {source.function: f"{source.module}.{source.function}" for source in in_source().values()}


def _defined_in(module: ModuleType) -> list[str]:
    return [
        name
        for name, value in vars(module).items()
        if not name.startswith("_") and getattr(value, "__module__", None) == module.__name__
    ]
