"""The pictures of `registers`."""

from __future__ import annotations

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.colors import sample_colorscale

from analyses.activations.sites import LABELS
from analyses.drawing.colours import BLUE, CHANCE, DARK, MIDGREY, READ_FROM, RED, UNTOUCHED
from analyses.drawing.panels import Place, add, bars, curve, each_panel, level, model_panels, note, panels
from analyses.drawing.rows import by_model, layers_in, span, value_of
from analyses.questions.signal.registers.words import busiest, of_measured
from analyses.running.results import Result

CONTROL = "as many patches"


def main_figure(result: Result) -> go.Figure:
    """Per model, the distribution of image tokens' norms behind every block, on logarithmic axes."""
    fig = model_panels(
        result,
        "Do a few image tokens have outlier norms?",
        f"A line per layer, dark to bright: first to last; tokens of a kind of their own would be a second hump on "
        f"the right. Outlier: {result.meta['rule']}",
        x="norm of the token behind the layer (log)",
        y="share of image tokens per bin (log)",
        y_range=None,
        shared=False,
    )
    fig.update_xaxes(type="log", tickvals=[k * 10.0**n for n in range(-3, 6) for k in (1, 2, 5)], tickformat="~r")
    fig.update_yaxes(type="log", exponentformat="power", dtick=1)
    for at, _, rows in each_panel(fig, result):
        histogram = rows[(rows.measure == "norm_histogram") & (rows.token == "patches") & (rows.norm_low > 0)]
        histogram = histogram[np.isfinite(histogram.norm_high)]
        layers = layers_in(rows)
        first, last = layers[0], layers[-1]
        for number, layer in enumerate(layers):
            some = histogram[histogram.layer == layer].sort_values("norm_low")
            line = go.Scatter(
                x=np.sqrt(some.norm_low * some.norm_high),
                y=some.value,
                mode="lines+markers",
                marker={"size": 3},
                line={"color": sample_colorscale("Viridis", [number / max(1, len(layers) - 1)])[0], "width": 1.5},
                hovertext=f"layer {layer}",
            )
            add(fig, at, line, {first: "first layer", last: "last layer"}.get(layer))
        threshold = value_of(rows, "norm_threshold", layer=last, variant="trained")
        if threshold is not None and np.isfinite(threshold) and len(histogram):
            mark = go.Scatter(x=[threshold] * 2, y=[histogram.value.min(), 1.0], mode="lines", line=CHANCE)
            add(fig, at, mark, "outliers of the last layer begin here")
    return fig


def share_figure(result: Result) -> go.Figure:
    """Per model and block, the share of image tokens that are outliers, and of images that have any."""
    fig = model_panels(
        result,
        "How many image tokens are outliers, and in how many images?",
        f"Outlier: {result.meta['rule']}; dotted: the same architecture with random weights, by its own median; "
        "95 % intervals over images",
        y="share",
        y_range=(-0.02, 1.03),
    )
    kinds = (("outlier_share", "of image tokens", RED), ("images_with_outliers", "of images", BLUE))
    for at, _, rows in each_panel(fig, result):
        for measure, label, colour in kinds:
            for variant, dash in (("trained", "solid"), ("random weights", "dot")):
                some = rows[(rows.measure == measure) & (rows.variant == variant)]
                curve(fig, at, some, label if variant == "trained" else f"{label}, random weights", colour, dash=dash)
    return fig


def map_figure(result: Result) -> go.Figure:
    """Per model, how often each patch is an outlier, at the block with the most outliers."""
    titles = []
    for name, rows in by_model(result):
        layer = busiest(rows)
        titles.append(f"{name} ({'none' if layer is None else f'layer {layer}'})")
    fig = panels(
        titles,
        "Where in the picture do outliers lie?",
        f"Share of images in which a patch is an outlier, behind the layer{of_measured(result)} with the most outliers",
        x="column of patches",
        y="row of patches",
        y_range=None,
        shared=False,
        height=350,
        right=110,
    )
    most = 0.01
    for at, _, rows in each_panel(fig, result):
        layer = busiest(rows)
        here = rows[(rows.measure == "outlier_position") & (rows.variant == "trained")]
        shown = here[here.layer == (here.layer.min() if layer is None else layer)]
        grid = shown.pivot(index="row", columns="col", values="value")
        z = grid.to_numpy(float)
        most = max(most, float(z.max()))
        cells = go.Heatmap(z=z, text=z, coloraxis="coloraxis", texttemplate="%{text:.1%}" if grid.size <= 64 else None)
        fig.add_trace(cells, **at)
    fig.update_yaxes(autorange="reversed", dtick=1, showgrid=False)
    fig.update_xaxes(dtick=1)
    bar = {"title": "share of<br>images", "thickness": 14, "tickformat": ".1%", "x": 1.02}
    return fig.update_layout(coloraxis={"colorscale": "Viridis", "cmin": 0, "cmax": most, "colorbar": bar})


def outlier_figure(result: Result) -> go.Figure:
    """Per model, outliers against other patches: what they lie on, and what probes read from them."""
    fig = model_panels(
        result,
        "What do outliers lie on, and what do they hold?",
        f"Behind the layer{of_measured(result)} with the most outliers. Left: share of patches of low contrast (the "
        "quarter with the least), at the border, on an object. Right, where enough images have an outlier: held-out "
        "accuracy of probes of the class and R² of probes of the patch's own colour and contrast, on one token per "
        "image",
        x="",
        y="share, accuracy or R²",
        y_range=(-0.05, 1.03),
    )
    names = {"outlier": ("outliers", RED), "other": ("other patches of the same images", MIDGREY)}
    for at, _, rows in each_panel(fig, result):
        layer = busiest(rows)
        here = rows[(rows.layer == (-1 if layer is None else layer)) & (rows.variant != "random weights")]
        overlap = here[here.measure == "overlap"].assign(what=lambda x: x.trait)
        probes = here[here.measure.isin(["class_probe", "content_r2"])]
        probes = probes.assign(what=probes.measure.map({"class_probe": "class probe", "content_r2": "content R²"}))
        both = pd.concat([overlap, probes])
        for token, (label, colour) in names.items():
            some = both[both.token == token]
            bars(fig, at, list(some.what), some, label, colour)
        if both.empty:
            note(fig, at, "no outliers")
    return fig


def readout_figure(result: Result) -> go.Figure:
    """Per model and block, the accuracy of probes on every prefix token and on the mean patch."""
    fig = model_panels(
        result,
        "How well does each token tell the class?",
        "Accuracy of ridge probes behind each layer; 95 % intervals over images",
        y="accuracy",
    )
    for at, _, rows in each_panel(fig, result):
        probes = rows[rows.measure == "probe"]
        _levels(fig, at, rows)
        for token in [t for t in probes.token.unique() if t.startswith("register ")]:
            curve(fig, at, probes[probes.token == token], "single registers", "#98df8a", bare=True)
        _tokens(fig, at, probes)
    return fig


def shuffle_figure(result: Result) -> go.Figure:
    """Per model and block, the accuracy when prefix tokens are exchanged between images after it."""
    fig = model_panels(
        result,
        "Which prefix tokens does the model use after which layer?",
        "Accuracy with tokens exchanged between images after a layer: low where they are used. Dotted grey: as many "
        "patches at random places; 95 % intervals over images",
        y="accuracy",
    )
    for at, _, rows in each_panel(fig, result):
        shuffled = rows[rows.measure == "shuffled"]
        _levels(fig, at, rows)
        for token in [t for t in shuffled.token.unique() if t not in READ_FROM]:
            label, colour = (token, DARK) if token == CONTROL else ("all prefix tokens", "black")
            curve(fig, at, shuffled[shuffled.token == token], label, colour, dash="dot")
        _tokens(fig, at, shuffled)
    return fig


def _tokens(fig: go.Figure, at: Place, rows: pd.DataFrame) -> None:
    for token, colour in READ_FROM.items():
        curve(fig, at, rows[rows.token == token], LABELS[token], colour)


def _levels(fig: go.Figure, at: Place, rows: pd.DataFrame) -> None:
    ends = span(rows)
    level(fig, at, ends, value_of(rows, "accuracy"), "the model, unperturbed", UNTOUCHED)
    level(fig, at, ends, value_of(rows, "chance"), "chance")
