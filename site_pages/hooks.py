"""The page of hook points: every kind that some family has, its axes, what it is, and who has it."""

from __future__ import annotations

import re
from collections.abc import Mapping

from hooked_vit.hook_table import describe_hooks, without_layer
from site_pages import ROOT

NAMES = re.compile(r"`[^`]+`")


def hook_page() -> str:
    """The README's table, and below it every kind of hook point with its axes, written from the models themselves."""
    rows: dict[tuple[str, str, str], list[str]] = {}
    for family, model in _models().items():
        seen = set()
        for name, shape, meaning in describe_hooks(model.cfg, model.hook_dict):
            row = without_layer(name).replace("blocks.", "blocks.l."), re.sub(r"=\d+", "", shape), meaning
            if row not in seen:
                seen.add(row)
                rows.setdefault(row, []).append(family)
    n = len(_models())
    lines = [
        "# Hook points",
        "",
        "TransformerLens' names, alive on every family, none behind a flag: a hook may look at what passes, or return",
        "what passes in its place. `hooked-vit hooks MODEL` and `model.describe_hooks()` print them with a model's own",
        "numbers. `l` is the layer, from 0.",
        "",
        "## In short",
        "",
        *_readme_table(),
        "",
        "## Every one",
        "",
        "In the order of the forward pass, written from the graphs of all families; where a hook means something else",
        "in some of them it stands there twice. Behind the name of the one that a dictionary is spliced into comes",
        "`….hook_sae_acts`, `[batch, pos, sae_feature]`.",
        "",
        "| hook | axes | what it is | families |",
        "|---|---|---|---|",
    ]
    for (name, shape, meaning), families in _in_order(rows):
        who = "all" if len(families) == n else ", ".join(families)
        lines.append(f"| `{name}` | `{shape}` | {meaning} | {who} |")
    return "\n".join(lines) + "\n"


def _models() -> Mapping[str, object]:
    """A tiny model of every family, by the family's name; the variants that differ in their graph with their own."""
    from tests.tiny import LOADED, tiny

    found: dict[str, object] = {}
    graphs: dict[tuple[str, frozenset[str]], str] = {}
    for name in LOADED:
        model = tiny(name)[1]
        graph = (model.cfg.architecture, frozenset(map(without_layer, model.hook_dict)))
        if graph not in graphs:
            graphs[graph] = name
            found[model.cfg.architecture if model.cfg.architecture not in found else name] = model
    return found


def _in_order(rows: dict[tuple[str, str, str], list[str]]) -> list[tuple[tuple[str, str, str], list[str]]]:
    """Rows of one hook together, at the place of the first."""
    order = {name: i for i, name in reversed([*enumerate(row[0] for row in rows)])}
    return sorted(rows.items(), key=lambda item: order[item[0][0]])


def _readme_table() -> list[str]:
    text = (ROOT / "README.md").read_text(encoding="utf-8").partition("## Hook names")[2].partition("\n## ")[0]
    return [line for line in text.splitlines() if line.startswith("|")]
