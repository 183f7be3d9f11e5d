"""The pictures, the table and the sentences of `head_words`."""

from __future__ import annotations

from typing import Any

import pandas as pd
import plotly.graph_objects as go

from analyses.drawing.colours import BLUE, MIDGREY, ORANGE
from analyses.drawing.panels import add, curve, each_panel, model_panels, panels, place, sentence, whole_numbers
from analyses.drawing.rows import by_model, picked, value_of
from analyses.questions.features.head_words.study import OTHER, RANDOM, TEXTS, UNTRAINED
from analyses.running.results import Result
from hooked_vit.config.showing import counted

COLOURS = {TEXTS: BLUE, RANDOM: ORANGE, UNTRAINED: MIDGREY}


def main_figure(result: Result) -> go.Figure:
    """Layers down, heads and the MLP across: what each adds to the margin of an image's own answer."""
    fig = model_panels(
        result,
        "Which parts write the answer?",
        "What a part adds to the margin: the logit of the image's own answer minus the mean of the others; mean over "
        "images. Norms and lengths are held at what they were, so that all parts sum to the margin",
        x="head", y="layer", y_range=None, shared=False, right=110,
    )  # fmt: skip
    widest = 0.0
    for at, _, rows in each_panel(fig, result):
        some = picked(rows, measure="contribution")
        some = some[some.component.isin(["attn", "mlp"])]
        across = some["head"].map(lambda head: "MLP" if pd.isna(head) else str(head))
        table = some.assign(across=across).pivot(index="layer", columns="across", values="value")
        table = table[list(dict.fromkeys(across))]
        widest = max(widest, float(some.value.abs().max()))
        z, y = table.to_numpy(float), [str(layer) for layer in table.index]
        heat = go.Heatmap(
            z=z, x=list(table.columns), y=y, coloraxis="coloraxis",
            hovertemplate="layer %{y}, head %{x}: %{z:.3f}<extra></extra>",
        )  # fmt: skip
        add(fig, at, heat, None)
    fig.update_xaxes(type="category", tickvals=None)
    fig.update_yaxes(type="category", autorange="reversed", dtick=1)
    return _scaled(fig, widest, "logits")


def explained_figure(result: Result) -> go.Figure:
    """Per model, the share of the heads' variance that the first k texts explain, beside both controls."""
    fig = model_panels(
        result,
        "How much of what a head says do a few words explain?",
        f"Share of the variance of a head's outputs over images, mean over the heads of the {_described(result)}; "
        "bars: the middle half of the heads",
        x="words", y="share of variance",
    )  # fmt: skip
    for at, _, rows in each_panel(fig, result):
        for variant, colour in COLOURS.items():
            some = picked(rows, measure="explained", variant=variant)
            groups = some.groupby("k").value
            line = pd.DataFrame({"value": groups.mean(), "low": groups.quantile(0.25), "high": groups.quantile(0.75)})
            curve(fig, at, line.reset_index(), variant, colour, x="k")
    return whole_numbers(fig, int(picked(result.frame, measure="explained").k.max()))


def map_figure(result: Result) -> go.Figure:
    """Per model and example, what the heads took from each patch for the image's answer."""
    shown = [
        (name, int(str(image)), some)
        for name, rows in by_model(result)
        for image, some in picked(rows, measure="map").groupby("image")
    ]
    if not shown:
        return sentence("No map was asked for.")
    fig = panels(
        [f"{name}: image {image}, towards “{some.text.iloc[0]}”" for name, image, some in shown],
        "From which patches do the heads take the answer?",
        f"What all heads{' of the layers measured' if result.meta.get('layers') else ''} together add to the logit of "
        "the image's answer, by the patch they take it from; each map on its own scale, red adds and blue takes away",
        x="column of patches", y="row of patches", y_range=None, shared=False,
    )  # fmt: skip
    for number, (_, _, some) in enumerate(shown):
        grid = some.pivot(index="row", columns="col", values="value").to_numpy(float)
        widest = float(abs(grid).max()) or 1.0
        cells = go.Heatmap(z=grid, colorscale="RdBu_r", zmin=-widest, zmax=widest, showscale=False)
        add(fig, place(fig, number), cells, None)
    return fig.update_yaxes(autorange="reversed", showgrid=False).update_xaxes(showgrid=False)


def _described(result: Result) -> str:
    return "layers measured" if result.meta.get("layers") else f"last {counted(result.meta['last_layers'], 'layer')}"


def _scaled(fig: go.Figure, widest: float, title: str) -> go.Figure:
    bar = {"title": title, "thickness": 14, "x": 1.02}
    return fig.update_layout(
        coloraxis={"colorscale": "RdBu_r", "cmin": -widest or -1, "cmax": widest or 1, "colorbar": bar}
    )


def word_table(result: Result, n: int = 3) -> pd.DataFrame:
    """Per model the heads that add most to the margin among those described: their words, and what those explain."""
    table: list[dict[str, Any]] = []
    for name, rows in by_model(result):
        added = picked(rows, measure="contribution", component="attn").set_index(["layer", "head"]).value
        words = picked(rows, measure="word")
        explained = picked(rows, measure="explained")
        last = explained[explained.k == explained.k.max()].groupby(["variant", "layer", "head"]).value.mean()
        heads = words[["layer", "head"]].drop_duplicates().itertuples(index=False)
        for layer, head in sorted(heads, key=lambda at: -added[at])[:n]:
            mine = picked(words, layer=layer, head=head).sort_values("k")
            row: dict[str, Any] = {"model": name, "head": f"L{layer}H{head}", "adds": float(added[layer, head])}
            row["words"] = ", ".join(mine.text)
            row |= {variant: _of(last, variant, layer, head) for variant in COLOURS}
            table.append(row)
    return pd.DataFrame(table, columns=["model", "head", "adds", "words", *COLOURS])


def _of(last: pd.Series, *key: Any) -> float | None:
    return float(last[key]) if key in last.index else None


def in_words(result: Result) -> tuple[list[str], list[str]]:
    """What was found, and what to keep in mind."""
    found, notes = [], []
    for name, rows in by_model(result):
        about, parts = result.meta["models"][name], picked(rows, measure="contribution")
        sums = parts.groupby("component").value.sum()
        total, some = parts.value.sum(), "other_layers" in sums
        found.append(
            f"{name}: of the margin of an image's own answer, {total:.2f} on average, heads"
            f"{' of the layers measured' * some} add {sums['attn']:.2f} and {'their ' * some}MLPs {sums['mlp']:.2f}"
            f"{', all other layers ' + format(sums['other_layers'], '.2f') if some else ''}; the sum over parts is the "
            f"logit to {about['error']:.1e}."
        )
        explained = picked(rows, measure="explained")
        by_k = explained[explained.k == explained.k.max()].groupby("variant").value.mean()
        if TEXTS in by_k:
            told = ", ".join(f"{by_k[v]:.0%} by {spoken}" for v, spoken in _SPOKEN.items() if v in by_k)
            found.append(
                f"{name}: the first {counted(int(explained.k.max()), 'direction explains', 'directions explain')} of a "
                f"head's variance {told}."
            )
        if (on := value_of(rows, "on_object", variant=TEXTS)) is not None:
            other, untrained = (value_of(rows, "on_object", variant=v) for v in (OTHER, UNTRAINED))
            found.append(
                f"{name}: a patch on an object has more of the answer's map{' of these layers' * some} than one beside "
                "it with probability "
                f"{on:.2f} ({other:.2f} for another text, {untrained:.2f} with random weights)."
            )
        if about["words"] != "its texts":
            notes.append(f"{name} has no texts: the words are {about['words']}, read where the classifier reads.")
        if not (rows.measure == "map").any() and result.meta["examples"]:
            notes.append(
                f"{name} has a norm inside attention: what a head adds is no sum over tokens, so there is no map."
            )
        if "pool_mlp" in set(parts.component):
            notes.append(
                f"{name} pools by attention and an MLP: the pool's attention is held at what it was, and what its MLP "
                f"adds ({sums['pool_mlp']:.2f}) is a part by itself, which no head or token shares in."
            )
    notes.append(
        "Texts far fewer than the dimensions explain little of any output; compare with the random directions, which "
        "are as many. That a text explains variance does not say that the head is for it."
    )
    return found, notes


_SPOKEN = {TEXTS: "words", RANDOM: "as many random directions", UNTRAINED: "words in heads with random weights"}
