"""The pictures and the table of `random_readouts`."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import pandas as pd
import plotly.graph_objects as go

from analyses.drawing.colours import BLUE, BROWN, CYAN, GREEN, MIDGREY, OLIVE, ORANGE, PINK, PURPLE, RED
from analyses.drawing.panels import Place, add, curve, level, panels, place
from analyses.drawing.rows import by_model, last_layer, model_names, over_seeds, picked, value_of
from analyses.questions.cls_use.random_readouts.arms import PLACEMENTS
from analyses.questions.cls_use.random_readouts.tokens import ARMS, BASE, TOKENS, Token
from analyses.running.results import Result

MODES = {
    "null": ("null: the block's own CLS", BLUE, "solid"),
    "null_de_novo": ("null, trained from scratch at every layer", BLUE, "dot"),
    "replace": ("replace: random token in the place of CLS", ORANGE, "solid"),
    "augment": ("augment: random token beside CLS", GREEN, "solid"),
    "deterministic": ("one learned token in the place of CLS", PURPLE, "dot"),
}
COLOURS: dict[Token, str] = {
    "own_cls": BLUE,
    "mean_cls": ORANGE,
    "gaussian": GREEN,
    "one_gaussian": OLIVE,
    "normal": RED,
    "one_normal": PINK,
    "other_cls": BROWN,
    "mean_patch": CYAN,
}


def main_figure(result: Result) -> go.Figure:
    """Per model: accuracy of every closed form over layers, a token in CLS's place and beside it."""
    fig = panels(
        [t for name in model_names(result) for t in (f"{name}: in the place of CLS", f"{name}: beside CLS")],
        "How much of the label can one block write into a token that knows nothing of the image? (test images)",
        "A ridge probe on what the block of a layer answers, run once more with another token, in closed form: no "
        "optimiser. Blue and light blue tokens know the image, the others do not. 95 % intervals over images",
        x="layer of the block that is run once more",
        y="accuracy",
        columns=2,
        last=last_layer(result.frame),
    )
    for row, (_, rows) in enumerate(by_model(result)):
        accuracy = picked(rows, measure="accuracy", split="test")
        for column, placement in enumerate(("replace", "augment")):
            at = place(fig, 2 * row + column)
            _chance(fig, at, rows, "test")
            curve(fig, at, accuracy[accuracy["mode"] == BASE], "the block as it is: its own CLS", BLUE)
            for arm in ARMS.values():
                if arm.placement == placement and arm.name != BASE:
                    label = TOKENS[arm.token] if arm.token != "own_cls" else "a copy of the image's own CLS"
                    dash = "dot" if arm.token in ("own_cls", "one_gaussian", "one_normal") else "solid"
                    curve(fig, at, accuracy[accuracy["mode"] == arm.name], label, COLOURS[arm.token], dash=dash)
    return fig


def further_figures(result: Result) -> Mapping[str, Callable[[Result], go.Figure]]:
    """What is drawn of trained readouts, where there are any."""
    if not result.meta["modes"]["trained"]:
        return {}
    return {"Trained readouts": trained_figure, "How the training went": curves_figure}


def trained_figure(result: Result) -> go.Figure:
    """Per model: accuracy of the trained readouts, crosses where they are unsettled, and the closed forms."""
    split = "validation" if result.meta["repro"] else "test"
    fig = panels(
        model_names(result),
        f"What do readouts that learn their token read? ({split} images)",
        "All are lower bounds, null too. A cross: unsettled, ended by its epochs or below a closed form it "
        "could have come to: it has measured its training, not the block. Grey: closed forms (test images). 95 % "
        "intervals over images",
        x="layer of the block that is run once more",
        y="accuracy",
        columns=2,
        last=last_layer(result.frame),
    )
    for number, (_, rows) in enumerate(by_model(result)):
        at = place(fig, number)
        _chance(fig, at, rows, split)
        closed = picked(rows, measure="accuracy", split="test")
        for arm, dash in ((BASE, "solid"), ("replace_mean_cls", "dash"), ("augment_mean_cls", "dot")):
            told = ARMS[arm]
            where = "" if arm == BASE else ", in CLS's place" if told.placement == "replace" else ", beside CLS"
            label = f"closed form: {TOKENS[told.token]}{where}"
            curve(fig, at, closed[closed["mode"] == arm], label, MIDGREY, dash=dash, bare=True)
        accuracy = picked(rows, measure="accuracy", split=split)
        for mode, (label, colour, dash) in MODES.items():
            curve(fig, at, accuracy[accuracy["mode"] == mode], label, colour, dash=dash)
        _crosses(fig, at, accuracy)
    return fig


def curves_figure(result: Result) -> go.Figure:
    """One panel per model and layer: validation accuracy after every epoch."""
    frame = result.frame[result.frame.measure == "validation_accuracy"]
    cells = [
        (name, layer) for name in model_names(result) for layer in sorted(frame[frame.model == name].layer.unique())
    ]
    falls = "; the learning rate falls to nearly 0 at the end" if result.meta["repro"] else ""
    fig = panels(
        [f"{name}, layer {layer}" for name, layer in cells],
        "Had the readouts learned all they could when training ended?",
        "Accuracy on validation images after every epoch at the learning rate that was best there, mean over seeds; a "
        f"training ends when some epochs brought nothing better{falls}",
        x="epoch",
        y="accuracy",
        columns=min(4, max(1, frame.layer.nunique())),
        height=280,
    )
    for number, (name, layer) in enumerate(cells):
        rows = frame[(frame.model == name) & (frame.layer == layer)].assign(low=float("nan"), high=float("nan"))
        for mode, (label, colour, dash) in MODES.items():
            curve(fig, place(fig, number), rows[rows["mode"] == mode], label, colour, x="epoch", dash=dash)
    return fig


def summary_table(result: Result) -> pd.DataFrame:
    """One row per model, layer and readout: test accuracy, its difference from the block's own CLS, its status.

    Means over seeds, and the widest of their intervals; of trained random tokens also how often two draws agree.
    """
    frame = result.frame[(result.frame.split == "test") & result.frame.layer.notna()]
    table = []
    for (name, layer, mode), rows in frame[frame.measure == "accuracy"].groupby(["model", "layer", "mode"], sort=False):
        here = frame[(frame.model == name) & (frame.layer == layer)]
        row = {"model": name, "layer": int(layer), "mode": mode, **_mean(rows, "accuracy")}
        row |= _mean(here[(here.measure == "difference") & (here["mode"] == f"{mode} - {BASE}")], "difference")
        for measure in ("accuracy_mean_of_draws", "agreement"):
            row[measure] = here[(here.measure == measure) & (here["mode"] == mode)]["value"].mean()
        # of several trainings, the one that is worth least
        row["status"] = max(rows.status)
        table.append(row)
    names, modes = model_names(result), [*ARMS, *PLACEMENTS]
    table.sort(key=lambda row: (names.index(row["model"]), row["layer"], modes.index(row["mode"])))
    return pd.DataFrame(table).dropna(axis=1, how="all")


def _mean(rows: pd.DataFrame, measure: str) -> dict[str, float]:
    return {
        measure: rows["value"].mean(),
        f"{measure}_low": rows["low"].min(),
        f"{measure}_high": rows["high"].max(),
    }


def _chance(fig: go.Figure, at: Place, rows: pd.DataFrame, split: str) -> None:
    layers = rows.layer.dropna()
    level(fig, at, [int(layers.min()) - 0.2, int(layers.max()) + 0.2], value_of(rows, "chance", split=split), "chance")


def _crosses(fig: go.Figure, at: Place, accuracy: pd.DataFrame) -> None:
    for mode, (_, colour, _) in MODES.items():
        rows = accuracy[(accuracy["mode"] == mode) & accuracy.status.str.startswith("unsettled", na=False)]
        layers = rows.layer.unique()
        mine = over_seeds(accuracy[(accuracy["mode"] == mode) & accuracy.layer.isin(layers)])
        if mine.empty:
            continue
        marker = {"symbol": "x", "color": colour, "size": 12}
        cross = go.Scatter(x=mine.layer.astype(int), y=mine.value, mode="markers", marker=marker, hoverinfo="skip")
        add(fig, at, cross, "unsettled: no finding")
