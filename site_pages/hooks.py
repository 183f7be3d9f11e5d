"""The page of hook points: every kind that some family has, its axes, what it is, and who has it."""

from __future__ import annotations

import re

from hooked_vit import HookedViT
from hooked_vit.hook_table import describe_hooks, without_layer
from site_pages import ROOT


def hook_page() -> str:
    """The README's table, and below it every kind of hook point with its axes, written from the models themselves."""
    rows: dict[tuple[str, str, str], set[str]] = {}
    models = _models()
    for model in models:
        for name, shape, meaning in describe_hooks(model.cfg, model.hook_dict):
            row = without_layer(name).replace("blocks.", "blocks.l."), re.sub(r"=\d+", "", shape), meaning
            rows.setdefault(row, set()).add(model.cfg.architecture)
    known = {model.cfg.architecture for model in models}
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
        "in some of them it stands there twice. A family is named where some of its models have it. Behind the name of",
        "the one that a dictionary is spliced into comes `….hook_sae_acts`, `[batch, pos, sae_feature]`.",
        "",
        "| hook | axes | what it is | families |",
        "|---|---|---|---|",
    ]
    for (name, shape, meaning), families in _in_order(rows):
        lines.append(f"| `{name}` | `{shape}` | {meaning} | {_who(families, known)} |")
    return "\n".join(lines) + "\n"


def _models() -> list[HookedViT]:
    """Tiny models that together have every hook point of every family, and every meaning of it."""
    from tests.tiny import LOADED, tiny

    return [tiny(name)[1] for name in LOADED]


def _who(families: set[str], known: set[str]) -> str:
    if not (others := sorted(known - families)):
        return "all"
    return f"all but {', '.join(others)}" if len(others) < len(families) else ", ".join(sorted(families))


def _in_order(rows: dict[tuple[str, str, str], set[str]]) -> list[tuple[tuple[str, str, str], set[str]]]:
    """Rows of one hook together, at the place of the first."""
    order = {name: i for i, name in reversed([*enumerate(row[0] for row in rows)])}
    return sorted(rows.items(), key=lambda item: order[item[0][0]])


def _readme_table() -> list[str]:
    text = (ROOT / "README.md").read_text(encoding="utf-8").partition("## Hook names")[2].partition("\n## ")[0]
    return [line for line in text.splitlines() if line.startswith("|")]
