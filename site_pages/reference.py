"""The API reference: a page per package, an entry per public name, written by mkdocstrings from the docstrings."""

from __future__ import annotations

from collections.abc import Iterable
from importlib import import_module

from site_pages.names import Name, catalogue, names_of, questions


def pages() -> dict[str, str]:
    """Every page of the API by its place."""
    drawn = {name.public for group in [*catalogue().values(), *questions().values()] for name in group}
    own = [name for name in names_of("interventions") if name.public not in drawn]
    asked = [name for name in names_of("analyses") if name.public not in drawn]
    return {
        "reference/hooked_vit.md": _page("hooked_vit", names_of("hooked_vit")),
        "reference/architectures.md": _page("hooked_vit.architectures", names_of("hooked_vit.architectures")),
        "reference/zoo.md": _page("hooked_vit.zoo", names_of("hooked_vit.zoo"))
        + "\n"
        + _page("hooked_vit.loading.published", names_of("hooked_vit.loading.published"), level=2),
        "reference/interventions.md": _page("interventions", own) + _elsewhere("interventions.dictionaries"),
        "reference/catalogue.md": _catalogue(),
        "reference/analyses.md": _page("analyses", asked) + "\nEvery analysis: [the questions](questions.md).\n",
        "reference/questions.md": _questions(),
        "reference/data.md": _page("analyses.data", names_of("analyses.data")),
        "reference/activation_store.md": _page("analyses.activations.store", names_of("analyses.activations.store")),
        "reference/probes.md": _page("analyses.probes", names_of("analyses.probes")),
    }


def _page(package: str, names: Iterable[Name], level: int = 1) -> str:
    about = (import_module(package).__doc__ or "").strip().split("\n\n")[0]
    entries = [_entry(name) for name in names]
    return "\n".join([f"{'#' * level} `{package}`", "", " ".join(about.split()), "", *entries])


def _elsewhere(package: str) -> str:
    """A package whose names have their entries on this page, under the package they are imported from."""
    names = names_of(package)
    links = [f"[](){{#{name.public}}}[`{name.public}`](#{_above(name.public)})" for name in names]
    return (
        f"\n## `{package}`\n\nThe same {' and '.join(links)}. The named edits are in [the catalogue](catalogue.md).\n"
    )


def _above(public: str) -> str:
    return ".".join([public.split(".")[0], public.rpartition(".")[2]])


def _catalogue() -> str:
    """The interventions, one section a kind of edit."""
    lines = [
        "# The catalogue of interventions",
        "",
        "Every one is imported from `interventions`, takes keywords, and gives a value: it acts inside",
        "`with apply(model, …):`, composes by `+`, and is stored as JSON. What is shown is the function that an",
        "intervention is: you call it without `model`, which it is given when it meets one. `hooked-vit interventions`",
        "lists them.",
        "",
    ]
    for module, names in catalogue().items():
        title = module.rpartition(".")[2].replace("_", " ").capitalize()
        about = (import_module(module).__doc__ or "").strip().split("\n\n")[0]
        lines += [f"## {title}", "", " ".join(about.split()), "", *map(_entry, names)]
    return "\n".join(lines)


def _questions() -> str:
    """The analyses as functions, one section a subject."""
    lines = [
        "# The questions, as functions",
        "",
        "Every one is imported from `analyses` and returns a `Result`. What each measures, with a figure and its",
        "control, stands in [the gallery](../gallery/index.md).",
        "",
    ]
    for subject, names in questions().items():
        about = (import_module(f"analyses.questions.{subject}").__doc__ or "").strip().split("\n\n")[0]
        lines += [f"## {subject.replace('_', ' ').capitalize()}", "", " ".join(about.split()), "", *map(_entry, names)]
    lines += ["## Senders and receivers of a path", ""]
    shown = {name.path for names in questions().values() for name in names}
    lines += [_entry(name) for name in names_of("analyses.questions.patching.path_patching") if name.path not in shown]
    return "\n".join(lines)


def _entry(name: Name) -> str:
    short = name.public.rpartition(".")[2]
    options = f"    options:\n      heading: {short}\n      toc_label: {short}\n"
    return f"[](){{#{name.public}}}\n\n::: {name.path}\n{options}"
