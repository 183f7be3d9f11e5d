"""The pictures, the table and the sentences of `counting`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import plotly.graph_objects as go

from analyses.drawing.colours import BLUE, ORANGE
from analyses.drawing.panels import curve, layer_ticks, level, panels, place
from analyses.drawing.rows import ranges, span
from analyses.running.results import Result
from hooked_vit.config.showing import counted

LIGHT = "#fdbf6f"
GROUPS = {
    "cls": "CLS",
    "removed": "the removed object's patches",
    "others": "other objects' patches",
    "background": "background patches",
    "random": "as many random patches",
    "patches": "all patches",
    "all": "all tokens",
}
HALF = 0.5


def main_figure(result: Result) -> go.Figure:
    """One panel per token group: decodable (blue) against what patching that depth alone brings back (orange)."""
    return _figure(result, cumulative=False)


def cumulative_figure(result: Result) -> go.Figure:
    """The same with patches at that depth and at every depth before it."""
    return _figure(result, cumulative=True)


def summary_table(result: Result) -> pd.DataFrame:
    """One row per model and token group.

    `best_probe` and `decodable_from`: the probe's best accuracy, and the first depth at which it has come half the way
    to it from chance. `recovered` and `at_depth`: the most of the logit difference that patching one depth brings back
    (denoise), and where. `enough_at` and `needed_at`: depths at which denoising brings back, and noising destroys, at
    least half of it.
    """
    table = []
    for name, group, rows in _by_group(result):
        chance = _value(result, name, "chance")
        probe = _curve_of(rows, "probe_accuracy")
        denoise, noise = (_curve_of(rows, "recovery", way) for way in ("denoise", "noise"))
        half = chance + (probe.max() - chance) / 2
        table.append(
            {
                "model": name,
                "group": group,
                "tokens": result.meta["models"][name]["tokens_per_group"].get(group),
                "best_probe": probe.max(),
                "decodable_from": int(probe.index[probe >= half][0]) if probe.max() > chance else None,
                "recovered": denoise.max(),
                "at_depth": int(denoise.idxmax()) if denoise.notna().any() else None,
                "enough_at": _depths(denoise),
                "needed_at": _depths(noise),
            }
        )
    return pd.DataFrame(table)


def in_words(result: Result) -> tuple[list[str], list[str]]:
    """What was found, and what to keep in mind."""
    found, notes = [], []
    for name, about in result.meta["models"].items():
        depths = sorted({int(depth) for depth in result.frame[result.frame.model == name].depth.dropna()})
        never = "never" if len(depths) > about["n_layers"] else "at none of these depths"
        best = "with" if len(depths) == 1 else "with at best"
        rows = {row["group"]: row for row in summary_table(result).query("model == @name").to_dict("records")}
        found.append(
            f"{name} counts {about['accuracy']:.1%} of {counted(about['scenes'], 'scene')} right, and "
            f"{about['pairs_right']:.1%} of the pairs on both sides; "
            f"{counted(about['pairs_patched'], 'such pair was', 'such pairs were')} patched, at depth "
            f"{' and '.join(ranges(depths)).replace('–', ' to ')}."
        )
        told = [group for group in ("removed", "cls", "random") if group in rows]
        found += [f"{name}: {_sentence(GROUPS[group], rows[group], best, never)}" for group in told]
        found.append(f"{name}: {_at_the_end(result, name)}")
        notes += _cautions(result, name, about)
    notes.append(
        "Probes read the mean over a group's tokens with a linear map, on clean scenes; what they miss may still be "
        "there. A recovery is the share of the way from the run that is patched to the run the patch came from, "
        "averaged over pairs."
    )
    return found, notes


def _sentence(what: str, row: dict[str, Any], best: str, never: str) -> str:
    probe = f"the count is read from {what} {best} {row['best_probe']:.0%}"
    if best != "with" and row["decodable_from"] is not None and row["decodable_from"] == row["decodable_from"]:
        probe += f" (half the way there from chance at depth {int(row['decodable_from'])})"
    enough = f"is enough for half of the difference at depth {row['enough_at']}"
    if row["enough_at"] == "–":
        enough = f"{never} brings back half of the difference (at most {row['recovered']:.0%})"
    needed = "and is needed for half of it at no depth"
    if row["needed_at"] != "–":
        needed = f"and is needed for half of it at depth {row['needed_at']}"
    return f"{probe}; patching it alone {enough}, {needed}."


def _at_the_end(result: Result, name: str) -> str:
    """What is decodable from the patches behind the last block that was measured, and what they still do there."""
    rows = result.frame[(result.frame.model == name) & (result.frame.group == "patches")]
    last = int(rows.depth.max())
    block = "the last block" if last == result.meta["models"][name]["n_layers"] else f"block {last - 1}"
    probe, recovered = _curve_of(rows, "probe_accuracy")[last], _curve_of(rows, "recovery", "denoise")[last]
    return (
        f"behind {block} (depth {last}) the count is read from all patches with {probe:.0%} (the most frequent "
        f"count makes up {_value(result, name, 'chance'):.0%}), and patching all of them there brings back "
        f"{recovered:.0%}."
    )


def _cautions(result: Result, name: str, about: dict[str, Any]) -> list[str]:
    notes = [
        f"{name} is a model of {counted(about['n_layers'], 'block')} with its own training; other models may differ."
    ]
    if "vit-count" in (name, Path(str(about["checkpoint"])).name):
        notes = [
            f"{name} is a small model trained for nothing but counting digit scenes; Huang & Chang (2025) studied "
            "large pretrained models fine-tuned to count, and nothing here says that those behave alike."
        ]
    if about["accuracy"] < 0.9:
        notes.append(f"{name} counts only {about['accuracy']:.1%} right: the patched pairs are a choice of easy ones.")
    if about["change_inside_removed"] < 0.999:
        notes.append(
            f"{about['change_inside_removed']:.1%} of what differs between the members of a pair lies in the patches "
            "called the removed object's; the rest is its faint edge in neighbouring patches."
        )
    rows = result.frame[(result.frame.model == name) & (result.frame.measure == "recovery")]
    if dropped := int(rows.n_dropped.max()):
        notes.append(
            f"{name}: up to {counted(dropped, 'pair')} per patch had no difference to recover and are left out."
        )
    sane = rows[(rows.group == "all") & ~rows.cumulative.astype(bool)]
    if not (sane.value == 1).all():
        notes.append(
            f"{name}: patching everything should recover exactly 1; it is {sane.value.min()} to {sane.value.max()}."
        )
    return notes


def _figure(result: Result, *, cumulative: bool) -> go.Figure:
    cells = _by_group(result)
    several = result.frame.model.nunique() > 1
    depths = "at this depth and before" if cumulative else "at this depth alone"
    fig = panels(
        [f"{name}: {GROUPS.get(group, group)}" if several else GROUPS.get(group, group) for name, group, _ in cells],
        "Where can the number of objects be read, and where does the model take it from?",
        f"Recovery: share of the way to the other picture's answer when tokens are patched {depths}, mean over pairs; "
        "1: all of it. Depth 0 is in front of the first block. 95 % intervals",
        x="depth (blocks passed)",
        y="accuracy, or share recovered",
        columns=4,
        y_range=(-0.12, 1.12),
        height=310,
    )
    for number, (name, _, rows) in enumerate(cells):
        at = place(fig, number)
        chance = _value(result, name, "chance")
        layer_ticks(fig, rows.assign(layer=rows.depth), **at)
        level(fig, at, span(rows.assign(layer=rows.depth)), chance, "accuracy by chance: the most frequent count")
        probe = rows[rows.measure == "probe_accuracy"]
        curve(fig, at, probe, "ridge probe on the group's mean: accuracy", BLUE, x="depth")
        for way, says, colour, dash in (
            ("denoise", "recovery, denoise: is it enough?", ORANGE, "solid"),
            ("noise", "the other way round, noise: is it needed?", LIGHT, "dash"),
        ):
            some = rows[(rows.measure == "recovery") & (rows.direction == way) & (rows.cumulative == cumulative)]
            curve(fig, at, some, says, colour, x="depth", dash=dash)
    return fig.update_annotations(font_size=13)


def _by_group(result: Result) -> list[tuple[str, str, pd.DataFrame]]:
    """(model, group, its rows), groups in the order of GROUPS, roles a family adds at the end."""
    found = []
    for name, rows in result.frame.groupby("model", sort=False):
        present = list(rows.group.dropna().unique())
        ordered = [g for g in GROUPS if g in present] + [g for g in present if g not in GROUPS]
        found += [(str(name), group, rows[rows.group == group]) for group in ordered]
    return found


def _curve_of(rows: pd.DataFrame, measure: str, way: str | None = None) -> pd.Series:
    """Values by depth, each depth patched alone."""
    rows = rows[rows.measure == measure]
    if way is not None:
        rows = rows[(rows.direction == way) & ~rows.cumulative.astype(bool)]
    return rows.set_index("depth")["value"].sort_index()


def _value(result: Result, model: str, measure: str) -> float:
    rows = result.frame
    return float(rows.loc[(rows.model == model) & (rows.measure == measure), "value"].iloc[0])


def _depths(curve: pd.Series) -> str:
    """Depths at which a curve is at least one half, as ranges."""
    return ", ".join(ranges([int(depth) for depth in curve.index[curve >= HALF]])) or "–"
