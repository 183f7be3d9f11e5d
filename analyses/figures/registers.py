"""The pictures of `registers`."""

from __future__ import annotations

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.colors import sample_colorscale

from analyses.figures.model_panels import CHANCE_LINE, add_bars, by_model, each_panel, model_panels, value_of
from analyses.figures.panels import MODELS, curve, level, over_seeds, panels
from analyses.figures.registers_words import busiest
from analyses.results import Result

TOKENS = {
    "cls": ("CLS", MODELS[0]),
    "dist": ("distillation token", MODELS[4]),
    "registers": ("mean register", MODELS[2]),
    "patches": ("mean patch", MODELS[1]),
}
CONTROL = "as many patches"


def main_figure(result: Result) -> go.Figure:
    """Per model, the distribution of image tokens' norms behind every block, on logarithmic axes."""
    fig = model_panels(
        result,
        "Do a few image tokens have outlier norms?",
        f"share of image tokens per bin of norm, dark to bright: first to last block; dashed: where outliers begin at "
        f"the last block ({result.meta['rule']})",
        x="norm of the token behind the block (log)",
        y="share of image tokens (log)",
        y_range=None,
        shared=False,
    )
    fig.update_xaxes(type="log")
    fig.update_yaxes(type="log", exponentformat="power", dtick=1)
    for at, _, rows in each_panel(fig, result):
        histogram = rows[(rows.measure == "norm_histogram") & (rows.token == "patches") & (rows.norm_low > 0)]
        histogram = histogram[np.isfinite(histogram.norm_high)]
        last = int(rows.layer.max())
        for layer in range(last + 1):
            some = histogram[histogram.layer == layer].sort_values("norm_low")
            name = {0: "first block", last: "last block"}.get(layer, f"block {layer}")
            line = go.Scatter(
                x=np.sqrt(some.norm_low * some.norm_high),
                y=some.value,
                mode="lines+markers",
                marker={"size": 3},
                line={"color": sample_colorscale("Viridis", [layer / max(1, last)])[0], "width": 1.5},
                name=name,
                legendgroup=name,
                showlegend=layer in (0, last) and not any(trace.name == name for trace in fig.data),
            )
            fig.add_trace(line, **at)
        threshold = value_of(rows, "norm_threshold", layer=last, variant="trained")
        if threshold is not None and np.isfinite(threshold) and len(histogram):
            line = {"color": "dimgray", "dash": "dash", "width": 2}
            label = "outliers of the last block begin here"
            mark = go.Scatter(x=[threshold] * 2, y=[histogram.value.min(), 1.0], mode="lines", line=line, name=label)
            mark.update(legendgroup=label, showlegend=not any(trace.name == label for trace in fig.data))
            fig.add_trace(mark, **at)
    return fig


def share_figure(result: Result) -> go.Figure:
    """Per model and block, the share of image tokens that are outliers, and of images that have any."""
    fig = model_panels(
        result,
        "How many image tokens are outliers, and in how many images?",
        f"outlier: {result.meta['rule']}; dotted: the same architecture with random weights, by its own median; "
        "95 % intervals over images",
        x="block",
        y="share",
        y_range=(-0.02, 1.03),
    )
    kinds = (("outlier_share", "of image tokens", MODELS[3]), ("images_with_outliers", "of images", MODELS[0]))
    for at, _, rows in each_panel(fig, result):
        for measure, label, colour in kinds:
            for variant, dash in (("trained", "solid"), ("random weights", "dot")):
                some = rows[(rows.measure == measure) & (rows.variant == variant)].sort_values("layer")
                name = label if variant == "trained" else f"{label}, random weights"
                curve(fig, at, some.layer.astype(int), some, name, colour, dash=dash)
    return fig


def map_figure(result: Result) -> go.Figure:
    """Per model, how often each patch is an outlier, at the block with the most outliers."""
    names, titles = list(result.frame.model.unique()), []
    for _, rows in by_model(result):
        layer = busiest(rows)
        titles.append("none" if layer is None else f"block {layer}")
    fig = panels(
        [f"{name} ({title})" for name, title in zip(names, titles, strict=True)],
        "Where in the picture do outliers lie?",
        "share of images in which a patch is an outlier, at the block with the most outliers",
        x="column of patches",
        y="row of patches",
        y_range=None,
        shared=False,
    )
    for at, _, rows in each_panel(fig, result):
        layer = busiest(rows)
        here = rows[(rows.measure == "outlier_position") & (rows.variant == "trained")]
        grid = here[here.layer == (0 if layer is None else layer)].pivot(index="row", columns="col", values="value")
        z = grid.to_numpy(float)
        cells = go.Heatmap(z=z, text=z, colorscale="Viridis", zmin=0, zmax=max(0.01, z.max()), showscale=False)
        fig.add_trace(cells.update(texttemplate="%{text:.1%}" if grid.size <= 64 else None), **at)
    fig.update_yaxes(autorange="reversed", dtick=1)
    fig.update_xaxes(dtick=1)
    return fig


def outlier_figure(result: Result) -> go.Figure:
    """Per model, outliers against other patches: what they lie on, and what probes read from them."""
    fig = model_panels(
        result,
        "What do outliers lie on, and what do they hold?",
        "at the block with the most outliers; share of patches that are of low contrast (the quarter with the least), "
        "at the border, on an object;<br>and, where enough images have an outlier, held-out accuracy (class) and R² "
        "(the patch's own colour and contrast) of probes on one token per image",
        x="",
        y="share, accuracy or R²",
        y_range=(-0.05, 1.03),
    )
    names = {"outlier": ("outliers", MODELS[3]), "other": ("other patches of the same images", MODELS[7])}
    for at, _, rows in each_panel(fig, result):
        layer = busiest(rows)
        here = rows[(rows.layer == (-1 if layer is None else layer)) & (rows.variant != "random weights")]
        overlap = here[here.measure == "overlap"].assign(what=lambda x: x.trait)
        probes = here[here.measure.isin(["class_probe", "content_r2"])]
        probes = probes.assign(what=probes.measure.map({"class_probe": "class", "content_r2": "own content"}))
        both = pd.concat([overlap, probes])
        for token, (label, colour) in names.items():
            some = both[both.token == token]
            add_bars(fig, at, list(some.what), some, label, colour)
        if both.empty:
            fig.add_annotation(
                text="no outliers", showarrow=False, xref="x domain", yref="y domain", x=0.5, y=0.5, **at
            )
    return fig


def readout_figure(result: Result) -> go.Figure:
    """Per model and block, the accuracy of probes on every prefix token and on the mean patch."""
    fig = model_panels(
        result,
        "How well does each token tell the class?",
        "accuracy of ridge probes behind each block; thin: single registers; dashed: the model itself; 95 % intervals",
        x="block",
        y="accuracy",
    )
    for at, _, rows in each_panel(fig, result):
        probes = rows[rows.measure == "probe"]
        for token in [t for t in probes.token.unique() if t.startswith("register ")]:
            some = probes[probes.token == token].sort_values("layer").assign(low=np.nan, high=np.nan)
            curve(fig, at, some.layer.astype(int), some, "single registers", "#98df8a")
        _tokens(fig, at, probes)
        _levels(fig, at, rows)
    return fig


def shuffle_figure(result: Result) -> go.Figure:
    """Per model and block, the accuracy when prefix tokens are exchanged between images after it."""
    fig = model_panels(
        result,
        "Which prefix tokens does the model use after which block?",
        "accuracy with tokens exchanged between images after a block; grey: as many patches at random places; dashed: "
        "unperturbed; 95 % Wilson intervals",
        x="block",
        y="accuracy",
    )
    for at, _, rows in each_panel(fig, result):
        shuffled = rows[rows.measure == "shuffled"]
        _tokens(fig, at, shuffled)
        for token in [t for t in shuffled.token.unique() if t not in TOKENS]:
            some = over_seeds(shuffled[shuffled.token == token])
            label, colour = (token, "dimgray") if token == CONTROL else ("all prefix tokens", "black")
            curve(fig, at, some.layer.astype(int), some, label, colour, dash="dot")
        _levels(fig, at, rows)
    return fig


def _tokens(fig: go.Figure, at: dict[str, int], rows: pd.DataFrame) -> None:
    for token, (label, colour) in TOKENS.items():
        some = over_seeds(rows[rows.token == token]) if (rows.token == token).any() else rows[:0]
        if len(some):
            curve(fig, at, some.layer.astype(int), some, label, colour)


def _levels(fig: go.Figure, at: dict[str, int], rows: pd.DataFrame) -> None:
    ends = [0, int(rows.layer.max())]
    level(fig, at, ends, value_of(rows, "accuracy"), "the model, unperturbed")
    level(fig, at, ends, value_of(rows, "chance"), "chance", CHANCE_LINE)
