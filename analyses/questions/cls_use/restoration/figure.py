"""The pictures, the table and the sentences of `restoration`."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from analyses.drawing.colours import CHANCE, DARK, MODELS
from analyses.drawing.panels import curve, each_panel, model_panels, note, panels, place
from analyses.drawing.rows import by_model, in_a_row, last_layer
from analyses.running.results import Result
from analyses.running.shown import drawn_plain
from hooked_vit.config.showing import counted

NONE = "none"
OF_DEPTHS = (
    ". The models differ in depth: both layers are told by the share of the blocks passed, and of a deeper model the "
    "probe is the first that has passed as many"
)
DEPTH_TICKS = {0.25: "25 %", 0.5: "50 %", 0.75: "75 %", 1.0: "100 %"}
WRITTEN = 10  # up to so many layers a cell has room for its number


def main_figure(result: Result) -> go.Figure:
    """One heatmap per model: accuracy of the probe behind each layer (column) under each shuffle (row)."""
    title = f"What does a probe on {_probed(result)} still read after {_shuffled(result)} was exchanged between images?"
    return _heatmaps(result, "accuracy", title, "probe's<br>accuracy", [NONE], "Blues")


@drawn_plain
def restored_figure(result: Result) -> go.Figure:
    """One heatmap per model: the share of what the shuffle took that the probe has back."""
    title = f"How much of the label is back in {_probed(result)}, how many blocks after the shuffle?"
    return _heatmaps(result, "restoration", title, "restored<br>share", [], "Greens")


def panels_figure(result: Result) -> go.Figure:
    """One panel per probed layer: accuracy against the layer shuffled; `none` is the probe without a shuffle.

    Of models that differ in depth a panel is of one share of the blocks passed, as those of the shallowest are; where
    no probe of any model read as early there is none.
    """
    # the last layer is probed of every model, whichever are shuffled
    depths = {name: last_layer(rows.assign(layer=rows.probe_layer)) + 1 for name, rows in by_model(result)}
    least, same = min(depths.values()), len({*depths.values()}) == 1

    def behind(n: int, p: int) -> int:
        """The layer of a model of n blocks; in whole numbers, as a share of a third is none that floats hold."""
        return -(-(p + 1) * n // least) - 1

    first = {name: int(rows.probe_layer.min()) for name, rows in by_model(result)}
    shown = [p for p in range(least) if any(behind(depths[name], p) >= first[name] for name in depths)]
    shares = [(p + 1) / least for p in shown]
    fig = panels(
        [
            f"probe behind layer {p}" if same else f"probe behind {share:.0%} of the blocks"
            for p, share in zip(shown, shares, strict=True)
        ],
        f"Which shuffles of {_shuffled(result)} hurt what is read from {_probed(result)} later?",
        f"{_reading(result)}. Right of the dotted line the shuffle comes after the probe and cannot matter; "
        f"horizontal, dashed: chance; none: no shuffle{'' if same else OF_DEPTHS}",
        x="layer shuffled" if same else "blocks passed before the shuffle",
        y="accuracy",
        columns=4,
        height=260,
    )
    for k, (name, rows) in enumerate(by_model(result)):
        n, label = depths[name], name if same else f"{name} ({counted(depths[name], 'block')})"
        cells = rows[rows.measure == "accuracy"].sort_values("shuffled_layer", na_position="first")
        cells = cells.assign(shuffle=(cells.shuffled_layer.fillna(-1).astype(float) + 1) / n)  # 0 is none
        for number, (p, share) in enumerate(zip(shown, shares, strict=True)):
            read = cells[cells.probe_layer == behind(n, p)]
            curve(fig, place(fig, number), read, label, MODELS[k % len(MODELS)], x="shuffle")
            fig.add_vline(x=share, line={"color": DARK, "dash": "dot", "width": 1}, **place(fig, number))
    chance = float(result.frame[result.frame.measure == "chance"].value.iloc[0])
    for number in range(len(shown)):
        fig.add_hline(y=chance, line={**CHANCE, "width": 1}, **place(fig, number))
    every = 1 if least < 9 else 2 if least < 25 else 4
    ticks = {p / least: str(p - 1) for p in range(1, least + 1, every)} if same else DEPTH_TICKS
    fig.update_xaxes(tickvals=[0, *ticks], ticktext=[NONE, *ticks.values()], tickangle=0)
    if not all(_every_layer(rows) for _, rows in by_model(result)):
        fig.update_traces(mode="markers")  # a line would say something of the layers between
    return fig.update_xaxes(range=[-0.5 / least, 1 + 0.5 / least])


def summary_table(result: Result) -> pd.DataFrame:
    """One row per model: what comes back, on average over the layers shuffled, and where least does.

    `after_one_block`: mean restoration over p = ℓ + 1; `least` and where; `at_the_last_layer`: mean over the layers
    shuffled. `diagonal` and `floor`: accuracy right behind the shuffle, and its expectation, over all layers.
    """
    table = []
    for name, rows in result.frame.groupby("model", sort=False):
        back = rows[rows.measure == "restoration"]
        accuracy = rows[rows.measure == "accuracy"]
        one = back[back.probe_layer - back.shuffled_layer == 1]
        last = back[back.probe_layer == accuracy.probe_layer.max()]
        least = one.loc[one.value.idxmin()] if len(one) else None
        diagonal = accuracy[accuracy.shuffled_layer == accuracy.probe_layer].groupby("probe_layer").value.mean()
        clean = accuracy[accuracy.shuffled_layer.isna()]
        table.append(
            {
                "model": name,
                "best_probe": clean.value.max(),
                "after_one_block": one.value.mean(),
                "least": None if least is None else least.value,
                "least_at": None if least is None else f"{least.shuffled_layer} → {least.probe_layer}",
                "at_the_last_layer": last.value.mean(),
                "diagonal": diagonal.mean(),
                "floor": rows[rows.measure == "floor"].value.mean(),
                "chance": rows[rows.measure == "chance"].value.iloc[0],
            }
        )
    return pd.DataFrame(table)


def in_words(result: Result) -> tuple[list[str], list[str]]:
    """Findings, and what to keep in mind."""
    found = []
    for row in summary_table(result).to_dict("records"):
        rows = result.frame[result.frame.model == row["model"]]
        back, last, who = rows[rows.measure == "restoration"], int(rows.probe_layer.max()), "it"
        if rows.shuffled_layer.min() == last:
            restored, who = f"behind layer {last}, the last, no block is left that could restore anything", "the probe"
        elif back.empty:
            found.append(f"{row['model']}: no probe reads enough for anything to be restored.")
            continue
        else:
            restored = _restored(row, back, last, "the last layer" if _every_layer(rows) else f"layer {last}")
        found.append(
            f"{row['model']}: {restored}. Right behind the shuffle {who} reads {row['diagonal']:.1%}; "
            f"{row['floor']:.1%} is to be expected of another image's tokens."
        )
    kind = {
        "clean": "Probes were fitted on runs without a shuffle: what they do not read may be there in another code "
        '(probe_fit="refit" asks for that).',
        "refit": "Probes were fitted under the same shuffle as they read: they tell whether the label is linearly "
        'there, not whether it is in its original code (probe_fit="clean" asks for that).',
    }
    cells = result.frame[(result.frame.measure == "accuracy") & result.frame.shuffled_layer.notna()]
    cells = cells[cells.probe_layer > cells.shuffled_layer].drop_duplicates(["model", "shuffled_layer", "probe_layer"])
    left_out = len(cells) - int((result.frame.measure == "restoration").sum())
    notes = [kind[result.meta["probe_fit"]]]
    notes += [
        f"{name}: tokens were exchanged behind {in_a_row(_layers(rows.shuffled_layer))} alone, and probes read "
        f"{in_a_row(_layers(rows.probe_layer))}."
        for name, rows in by_model(result)
        if not _every_layer(rows)
    ]
    if left_out:
        notes.append(
            f"{counted(left_out, 'cell has', 'cells have')} no restoration: the shuffle costs their probe less than "
            "five points."
        )
    return found, notes


def _restored(row: dict[str, Any], back: pd.DataFrame, last: int, called: str) -> str:
    """How much of what it lost a probe has back one block after the shuffle, and how much the last one has."""
    one, at_end = back[back.probe_layer - back.shuffled_layer == 1], not pd.isna(row["at_the_last_layer"])
    end = f"{row['at_the_last_layer']:.0%}"
    if one.empty:
        told = f"; at {called} it has regained {end} of what it lost" if at_end else ""
        return f"one block after the shuffle the probe has nothing to regain{told}"
    regained = f"the probe has regained {row['after_one_block']:.0%} of what it lost"
    if len(one) > 1:
        said = f"one block after the shuffle {regained}, on average over layers (least at {row['least_at']}: "
        said += f"{row['least']:.0%})"
    else:
        said = f"one block after the shuffle behind layer {one.shuffled_layer.iloc[0]} {regained}"
        at_end &= int(one.probe_layer.iloc[0]) != last or back.shuffled_layer.nunique() > 1
    return said + (f"; at {called} {end}" if at_end else "")


def _heatmaps(result: Result, measure: str, title: str, unit: str, extra: list[str], colours: str) -> go.Figure:
    same = result.frame.groupby("model").probe_layer.max().nunique() == 1
    fig = model_panels(
        result,
        title,
        f"{_reading(result)}. Numbers are percent. Below the diagonal the shuffle comes after the probe",
        x="layer probed",
        y="layer shuffled",
        y_range=None,
        height=350,
        right=110,
        shared=same,
    )
    for at, _, rows in each_panel(fig, result):
        layers = _layers(rows.probe_layer)
        shuffles = [*extra, *map(str, _layers(rows.shuffled_layer))]
        cells = rows[rows.measure == measure]
        row = cells.shuffled_layer.map(str, na_action="ignore").fillna(NONE)
        mean = cells.assign(row=row).groupby(["row", "probe_layer"]).value.mean().unstack()
        table = mean.reindex(index=shuffles, columns=layers).to_numpy(float)
        written = [["" if np.isnan(v) else f"{100 * v:.0f}" for v in line] for line in table]
        fig.add_trace(
            go.Heatmap(
                z=table,
                x=list(map(str, layers)),
                y=shuffles,
                text=written if len(layers) <= WRITTEN else None,
                texttemplate="%{text}" if len(layers) <= WRITTEN else None,
                textfont={"size": 10},
                hovertemplate="shuffled: %{y}<br>probed: %{x}<br>%{z:.3f}<extra></extra>",
                coloraxis="coloraxis",
                xgap=1,
                ygap=1,
            ),
            **at,
        )
        if np.isnan(table).all():
            note(fig, at, "nothing to be restored")
    fig.update_xaxes(type="category")
    fig.update_yaxes(type="category", autorange="reversed", showgrid=False)
    bar = {
        "title": {"text": unit.replace("<br>", " "), "side": "right"},
        "thickness": 14,
        "tickformat": ".0%",
        "len": 250,
        "lenmode": "pixels",
    }
    bar |= {"y": 1, "yanchor": "top", "x": 1.02}
    return fig.update_layout(coloraxis={"colorscale": colours, "cmin": 0, "cmax": 1, "colorbar": bar})


def _every_layer(rows: pd.DataFrame) -> bool:
    """Whether tokens were exchanged behind every layer of a model; the last is probed in any case."""
    return len(_layers(rows.shuffled_layer)) > int(rows.probe_layer.max())


def _layers(column: pd.Series) -> list[int]:
    return sorted(int(layer) for layer in column.dropna().unique())


def _shuffled(result: Result) -> str:
    return "CLS" if result.meta["tokens"] == "cls" else f"the {result.meta['tokens']} tokens"


def _probed(result: Result) -> str:
    tokens = result.meta["probe_tokens"]
    return "CLS" if tokens == "cls" else f"the mean of the {tokens} tokens"


def _reading(result: Result) -> str:
    fitted = {"clean": "fitted without any shuffle", "refit": "fitted under the same shuffle"}
    chance = result.frame[result.frame.measure == "chance"].value.iloc[0]
    within = f"exchanged within batches of {result.meta['batch_size']}; chance is {chance:.0%}"
    return f"Ridge probes {fitted[result.meta['probe_fit']]}; {within}"
