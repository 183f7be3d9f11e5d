"""The gallery: every registered analysis with its question, a figure, what is measured, its source and its control."""

from __future__ import annotations

import re
from importlib import import_module

from analyses.running.catalogue import Analysis, in_source, registered_analyses
from site_pages import runs
from site_pages.methods import Section, about, sections
from site_pages.names import subject_of

TITLES = {
    "cls_use": "Is CLS used?",
    "decoding": "What can be read?",
    "class_space": "Class embedding space",
    "looking": "What is attended to?",
    "patching": "Patching, heads, circuits",
    "signal": "Frequencies, norms, registers",
    "features": "Words and features",
    "intervention_sweep": "Any interventions",
}
WIDE = ("---", "hide: [toc]", "---", "")
"""Figures need the room of the table of contents, which is on the page that lists all."""

SHORT = 900
"""A section of methods with more characters than that is folded."""


def gallery_pages(*, drawn: bool = True) -> dict[str, str]:
    """A page for each subject, and one that lists all; without figures where they are not `drawn`."""
    subjects = by_subject()
    pages = {f"gallery/{subject}.md": _subject(subject, found, drawn) for subject, found in subjects.items()}
    return {"gallery/index.md": _index(subjects)} | pages


def by_subject() -> dict[str, list[Analysis]]:
    """The registered analyses of this package by subject, subjects in the order of TITLES."""
    entries, found = registered_analyses(), {}
    for name, source in in_source().items():
        found.setdefault(subject_of(source.module), []).append(entries[name])
    order = [*TITLES, *sorted(found.keys() - TITLES.keys())]
    return {subject: sorted(found[subject], key=lambda e: e.name) for subject in order if subject in found}


def title_of(subject: str) -> str:
    """How a subject is headed."""
    return TITLES.get(subject, subject.replace("_", " ").capitalize())


def _index(subjects: dict[str, list[Analysis]]) -> str:
    lines = [
        "# Every analysis",
        "",
        "Written from the registry when the site is built. Each is `hooked-vit run NAME` and a function of the same",
        "name in `analyses`, unless it says that it takes tensors; each works at once on the built-in models and",
        "scenes. Figures are of small runs on those models: they show what comes out of an analysis, and are no",
        "evidence about large pretrained models; what came out on one of them is in",
        "[What real models do](../real_models.md). How everything is measured: [Methods](../methods.md).",
        "",
        "Pages to look at, rather than to measure, are written by `hooked-vit explore` (what each token attends to,",
        "and what the answer becomes when one thing is changed) and `hooked-vit features` (what a sparse dictionary",
        "found); in Python: [`explore`, `feature_pages`, `attention_map`, `show`](../reference/analyses.md).",
        "",
    ]
    for subject, entries in subjects.items():
        lines += [f"## {title_of(subject)}", "", "| analysis | question | |", "|---|---|---|"]
        for entry in entries:
            kind = "" if entry.is_command else "takes tensors"
            lines.append(f"| [`{entry.name}`]({subject}.md#{entry.name}) | {_cell(entry.summary)} | {kind} |")
        lines.append("")
    return "\n".join(lines)


def _subject(subject: str, entries: list[Analysis], drawn: bool) -> str:
    room = (import_module(f"analyses.questions.{subject}").__doc__ or "").strip().split("\n\n")[0]
    lines = [*WIDE, f"# {title_of(subject)}", "", " ".join(room.split()), ""]
    for entry in entries:
        lines += [*_entry(entry, drawn), ""]
    return "\n".join(lines)


def _entry(entry: Analysis, drawn: bool) -> list[str]:
    found = about(entry.name)
    lines = [f"## {entry.name}", "", f"**{entry.summary}**", "", *_figure(entry, drawn), ""]
    for word in ("Source", "Control"):
        said = [f"{_link(section)} {_below(section.said[word])}" for section in found if word in section.said]
        lines += [f"*{word}* {' · '.join(said)}", ""]
    for section in found:
        fold = "+" if len(section.body) < SHORT else ""
        lines += [f'???{fold} note "What is measured: {section.title}"', ""]
        lines += [f"    {line}".rstrip() for line in _below(section.body).splitlines()]
        lines.append("")
    kind = "sh" if entry.is_command else "python"
    function = entry.run.__name__
    lines += [
        *(
            [f"In full `hooked-vit run {entry.name}`; its options: `hooked-vit run {entry.name} --help`."]
            * entry.is_command
        ),
        f"In Python: [`analyses.{function}`](../reference/questions.md#analyses.{function}).",
        "Which families it runs on: [the table](../families.md#which-analysis-runs-on-which-family).",
        "The figure above:",
        "",
        f"```{kind}",
        runs.command(entry),
        "```",
    ]
    return lines


def _figure(entry: Analysis, drawn: bool) -> list[str]:
    """The figure as data that is drawn in the reader's browser, and what it is of."""
    n = runs.n_images(entry)
    measured = f"{n} built-in scenes of digits" if entry.is_command else f"{n} built-in scenes, in pairs or one by one"
    asked = ", ".join(f"`{name}`" for name in runs.models(entry))
    if not drawn:
        return ["*Built without figures.*"]
    if (figure := runs.figure(entry)) is None:
        return [
            f"*This analysis draws no figure; its numbers are in the result's `frame`. Run on {measured}, {asked}.*"
        ]
    data = figure.replace("</", "<\\/")
    return [
        '<div class="figure" data-plotly="../assets/plotly.min.js"><p class="waits">Your browser draws the figure.</p>'
        f'<script type="application/json">{data}</script></div>',
        "",
        f"*A small run, made when this site was built: {measured}, {asked}. It shows what the analysis answers with,"
        " not what is true of large models.*{ .shows }",
    ]


def _link(section: Section) -> str:
    return f"[{section.title.split()[0]}](../methods.md#{section.anchor})"


def _below(text: str) -> str:
    """Text of the page of methods, its links as they are from a folder beside it, and sections it names as links."""
    anchors = {section.title.split()[0]: section.anchor for section in sections()}

    def link(found: re.Match[str]) -> str:
        return f"[{found[0]}](../methods.md#{anchors[found[0]]})" if found[0] in anchors else found[0]

    return re.sub(r"§\d+", link, re.sub(r"\]\((?!https?:|#)([^)]+)\)", r"](../\1)", text))


def _cell(text: str) -> str:
    return text.replace("|", "\\|")
