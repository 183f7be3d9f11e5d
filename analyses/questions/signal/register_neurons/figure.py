"""The pictures, the table and the sentences of `register_neurons`."""

from __future__ import annotations

from typing import Any

import pandas as pd
import plotly.graph_objects as go

from analyses.drawing.colours import BLUE, GREEN, MIDGREY, NAMES, ORANGE, PURPLE, RED
from analyses.drawing.panels import add, bars, curve, each_panel, model_panels, note
from analyses.drawing.rows import by_model, head_notes, layers_in, picked, value_of
from analyses.questions.signal.register_neurons.study import EMPTY, MOVED, OFF, RANDOM, UNTOUCHED
from analyses.running.results import Result
from hooked_vit.config.showing import counted

COLOURS = {UNTOUCHED: MIDGREY, MOVED: RED, RANDOM: BLUE, EMPTY: GREEN, OFF: PURPLE}
ADDED = "inserted"


def main_figure(result: Result) -> go.Figure:
    """Per model and block, the largest norm among the patches, untouched, with neurons moved and in the controls."""
    fig = model_panels(
        result,
        "Do the patches lose their outliers when a few neurons write elsewhere?",
        f"The largest norm among an image's patches behind each layer, in medians of the untouched patches; "
        f"{counted(result.meta['neurons'], 'neuron')}; 95 % intervals over images, of random neurons the widest of "
        "several draws",
        y="largest norm (medians)", y_range=None, shared=False,
    )  # fmt: skip
    for at, _, rows in each_panel(fig, result):
        for variant, colour in COLOURS.items():
            curve(fig, at, picked(rows, measure="largest_norm", variant=variant), variant, colour)
        added = picked(rows, measure="token_norm", variant=MOVED, token=ADDED)
        curve(fig, at, added, "the added token itself", ORANGE, dash="dot")
        trained = picked(rows, measure="token_norm", variant=UNTOUCHED, token="registers")
        curve(fig, at, trained, "trained registers, untouched", GREEN, dash="dot")
    return fig


def accuracy_figure(result: Result) -> go.Figure:
    """Per model, the model's accuracy, and that of probes on each kind of token, in every variant."""
    probed = picked(result.frame, measure="probe")["model"].nunique() == len(result.meta["models"])
    fig = model_panels(
        result,
        "What does it cost, and what does the added token hold?",
        "Left: accuracy of the model. Then: of a ridge probe on the mean token of each kind behind the last layer"
        f"{'' if probed else ', where that was measured'}; 95 % intervals over images",
        x="", y="accuracy",
    )  # fmt: skip
    spoken = {**NAMES, ADDED: "added token"}
    for at, _, rows in each_panel(fig, result):
        for variant, colour in COLOURS.items():
            here = picked(rows[rows.measure.isin(["accuracy", "probe"])], variant=variant)
            here = here.assign(what=here.token.map(lambda t: "the model" if pd.isna(t) else spoken[t]))
            means = here.groupby("what", sort=False)[["value", "low", "high"]].mean().reset_index()
            bars(fig, at, list(means.what), means, variant, colour)
    return fig


def neuron_figure(result: Result) -> go.Figure:
    """Per model, the neurons' magnitude at outlier tokens and at the other patches of the same images."""
    fig = model_panels(
        result,
        "How much do these neurons tell outlier tokens from others?",
        "Mean magnitude behind the nonlinearity; neurons in the order in which they were chosen, by layer and number"
        f"{'; of other layers than those measured they are left out' if result.meta.get('layers') else ''}",
        x="", y="magnitude", y_range=None, shared=False,
    )  # fmt: skip
    kinds = {"activation": ("at tokens of outlier norm", RED), "activation_elsewhere": ("at other patches", MIDGREY)}
    for at, _, rows in each_panel(fig, result):
        for measure, (label, colour) in kinds.items():
            some = picked(rows, measure=measure)[["layer", "neuron", "value"]]
            bars(fig, at, [f"L{l}N{i}" for l, i in zip(some.layer, some.neuron, strict=True)], some, label, colour)
        if picked(rows, measure="activation").empty:
            add(
                fig, at, go.Bar(x=[""], y=[None]), None
            )  # without anything a panel has no axes, and no place for a note
            note(fig, at, "none in the layers measured")
    return fig.update_xaxes(type="category")


def summary_table(result: Result) -> pd.DataFrame:
    """One row per model and variant, behind the layer where outliers are most frequent; draws averaged.

    Of some layers it is the one of them where they are.
    """
    table = []
    for name, rows in by_model(result):
        about = result.meta["models"][name]
        for variant in COLOURS:
            here = picked(rows, variant=variant)
            at = picked(here, layer=about["described"])
            probe = picked(here, measure="probe")
            row: dict[str, Any] = {
                "model": name,
                "variant": variant,
                "layer": about["described"],
                "outlier_share": _mean(picked(at, measure="outlier_share")),
                "largest_norm": _mean(picked(at, measure="largest_norm")),
                "added_norm": _mean(picked(at, measure="token_norm", token=ADDED)),
                "accuracy": _mean(picked(here, measure="accuracy")),
            }
            row |= {f"probe_{token}": _mean(picked(probe, token=token)) for token in ("cls", "patches", ADDED)}
            table.append(row)
    return pd.DataFrame(table)


def _mean(rows: pd.DataFrame) -> float | None:
    return None if rows.empty else float(rows.value.mean())


def in_words(result: Result) -> tuple[list[str], list[str]]:
    """What was found, and what to keep in mind."""
    found, notes = [], []
    for name, rows in by_model(result):
        about = result.meta["models"][name]
        table = summary_table(result).query("model == @name").set_index("variant")
        value = table.to_dict("index")
        found.append(
            f"{name}: behind layer {about['described']} the largest norm among an image's patches is "
            f"{value[UNTOUCHED]['largest_norm']:.1f} medians; {value[MOVED]['largest_norm']:.1f} with the neurons "
            f"moved to an added token, {value[RANDOM]['largest_norm']:.1f} with random neurons, "
            f"{value[EMPTY]['largest_norm']:.1f} with a token alone, {value[OFF]['largest_norm']:.1f} with the neurons "
            f"switched off. Outliers: {_shares(value)}."
        )
        found.append(
            f"{name}: accuracy {value[UNTOUCHED]['accuracy']:.1%} untouched, {value[MOVED]['accuracy']:.1%} with the "
            f"neurons moved, {value[RANDOM]['accuracy']:.1%} with random ones, {value[OFF]['accuracy']:.1%} switched "
            f"off{_read(value)}."
        )
        if "registers" in about["prefix"]:
            norm = value_of(rows, "token_norm", variant=UNTOUCHED, token="registers", layer=about["described"])
            found.append(f"{name} has trained registers; there their norm is {norm:.1f} medians of the patches.")
        if len(layers_in(picked(rows, measure="largest_norm"))) < about["n_layers"]:
            notes.append(
                f"{name}: its neurons were sought in all layers up to {about['layer']}, measured or not, behind which "
                f"{'outliers are most frequent' if about['has_outliers'] else 'the largest norms stand out most'}."
            )
        if not about["has_outliers"]:
            notes.append(
                f"{name}: no patch is an outlier by this rule behind any layer, so the neurons are those active at the "
                "patch with the largest norm of each image; there is nothing a register would have to take."
            )
    notes += [
        f"Outlier: {result.meta['rule']} of patches, by the untouched model's median and spread. A long tail has "
        "outliers too: norms of less than about three medians are no kind of token that a register could take over.",
        *head_notes(result.meta),
    ]
    return found, notes


def _read(value: dict[Any, dict[str, Any]]) -> str:
    """What a probe behind the last layer reads from the added token, where that layer was measured."""
    moved, empty = (value[variant][f"probe_{ADDED}"] for variant in (MOVED, EMPTY))
    if moved is None or pd.isna(moved):
        return ""
    return (
        f"; a probe reads the class with {moved:.1%} from the added token and {empty:.1%} from an added token without "
        "neurons"
    )


def _shares(value: dict[Any, dict[str, Any]]) -> str:
    return ", ".join(f"{value[v]['outlier_share']:.2%} ({v})" for v in COLOURS)
