"""Pictures of patching results: layers by tokens, heads, or image patches."""

from __future__ import annotations

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from analyses.drawing.colours import BLUE
from analyses.running.results import Result
from analyses.running.shown import drawn_plain, small

COLOURS = "RdBu_r"


def patching_map(
    result: Result, *, site: str | None = None, metric: str | None = None, direction: str | None = None
) -> go.Figure:
    """Layers down, token groups (or heads, where each has its own row) across: what patching there does.

    >>> patching_map(activation_patching(model, clean, corrupt, tokens="each"))  # doctest: +SKIP

    For results of `activation_patching` and `attribution_patching`. Without a site, metric or direction the first one
    of the result is shown. Raises ValueError for one the result does not have.
    """
    rows, shown = result.frame, {}
    for column, wanted in (("site", site), ("metric", metric), ("direction", direction)):
        known = list(rows[column].unique())
        shown[column] = known[0] if wanted is None else wanted
        if shown[column] not in known:
            raise ValueError(f"this result has the {column}s {', '.join(known)}; got {wanted!r}")
        rows = rows[rows[column] == shown[column]]
    by_head = rows["head"].notna().any()
    across = "head" if by_head and rows.group.nunique() == 1 else "group"
    name = rows.group + (" H" + rows["head"].astype(str) if by_head and across == "group" else "")
    rows = rows.assign(across=rows["head"].astype(str) if across == "head" else name)
    table = rows.pivot(index="layer", columns="across", values="value")[list(rows["across"].unique())]
    heat = go.Heatmap(
        z=table.to_numpy(), x=[str(c) for c in table.columns], y=[int(l) for l in table.index], colorscale=COLOURS,
        zmid=_middle(rows), colorbar={"title": shown["metric"]},
        hovertemplate="layer %{y}, " + ("head" if across == "head" else "tokens") + " %{x}: %{z:.3f}<extra></extra>",
    )  # fmt: skip
    fig = go.Figure(heat)
    fig.update_xaxes(title_text="head" if across == "head" else "tokens", type="category", showgrid=False)
    fig.update_yaxes(title_text="depth" if shown["site"] == "resid" else "layer", autorange="reversed", showgrid=False)
    what = "heads" if across == "head" else "tokens"
    title = f"At which layers and {what} does patching {shown['site']} move the answer?"
    said = f"{shown['direction']}; colour: {shown['metric']}, white: as in the run that is patched"
    return fig.update_layout(template="plotly_white", title=f"{title}<br>{small(said)}", height=440, width=860)


@drawn_plain
def patch_maps(result: Result, grid: tuple[int, int], *, n_prefix: int, site: str | None = None) -> go.Figure:
    """One small picture per layer: what patching each image patch does, where it lies in the image.

    >>> patch_maps(result, model.tokens.grid, n_prefix=model.tokens.n_prefix)  # doctest: +SKIP

    For results with `tokens="each"`. Raises ValueError where the result does not have every patch by itself.
    """
    rows = result.frame[result.frame.site == (site or result.frame.site.iloc[0])]
    rows = rows[(rows.metric == rows.metric.iloc[0]) & (rows.direction == rows.direction.iloc[0])]
    places = [str(n_prefix + i) for i in range(grid[0] * grid[1])]
    if missing := set(places) - set(rows.group):
        raise ValueError(
            f'maps of patches need tokens="each"; this result lacks {len(missing)} of {len(places)} patches'
        )
    layers = sorted(rows.layer.unique())
    table = rows.groupby(["layer", "group"]).value.mean()
    columns = min(6, len(layers))
    n_rows = -(-len(layers) // columns)
    fig = make_subplots(rows=n_rows, cols=columns, subplot_titles=[f"layer {l}" for l in layers])
    for i, layer in enumerate(layers):
        z = table[layer].loc[places].to_numpy().reshape(grid)
        fig.add_trace(go.Heatmap(z=z, coloraxis="coloraxis"), row=i // columns + 1, col=i % columns + 1)
    fig.update_xaxes(visible=False, constrain="domain")
    fig.update_yaxes(visible=False, autorange="reversed", constrain="domain")
    for picture in fig.data:  # patches are square
        fig.layout[f"yaxis{picture.yaxis[1:]}"].scaleanchor = picture.xaxis
    axis = {"colorscale": COLOURS, "cmid": _middle(rows), "colorbar": {"title": rows.metric.iloc[0]}}
    title = "Where in the picture does patching a single patch move the answer, layer by layer?"
    return fig.update_layout(
        template="plotly_white", title=title, coloraxis=axis, height=190 * n_rows + 100, width=1000, margin_t=90
    )


def _middle(rows: pd.DataFrame) -> float:
    """What no effect would be: the metric in the run that is patched."""
    return float(rows.base.mean())


def senders_figure(result: Result) -> go.Figure:
    """A bar per sender of `path_patching`: what sending it along its path does to the first metric."""
    rows = result.frame[result.frame.metric == result.frame.metric.iloc[0]]
    receiver, metric = rows.receiver.iloc[0], rows.metric.iloc[0]
    return _bars(rows, rows.sender, f"Which senders move {receiver}, by the direct path alone?", metric)


def terms_figure(result: Result) -> go.Figure:
    """A bar per part of the network in `logit_attribution`, its tokens, heads and neurons added up."""
    parts = [column for column in ("component", "layer", "head") if result.frame[column].notna().any()]
    rows = result.frame.groupby(parts, sort=False, dropna=False, as_index=False)[["value"]].sum()
    names = rows[parts].apply(lambda row: " ".join(str(x) for x in row if not pd.isna(x)), axis=1)
    return _bars(rows, names, "What does each part of the network add to the logit?", "logits")


def _bars(rows: pd.DataFrame, names: pd.Series, title: str, unit: str) -> go.Figure:
    errors = None
    if {"low", "high"} <= set(rows.columns):
        errors = {"type": "data", "array": rows.high - rows.value, "arrayminus": rows.value - rows.low}
    fig = go.Figure(go.Bar(x=names, y=rows.value, error_y=errors, marker_color=BLUE))
    fig.update_xaxes(type="category")
    fig.update_yaxes(title_text=unit)
    fig.update_layout(template="plotly_white", title=title, height=420, width=860)
    return fig
