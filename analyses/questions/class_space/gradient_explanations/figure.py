"""Pictures with maps laid over them, and how the maps change over the blocks."""

from __future__ import annotations

import base64
import io
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import torch
from PIL import Image
from plotly.subplots import make_subplots
from torch import Tensor

from analyses.drawing.colours import BLUE, GREEN, ORANGE
from analyses.drawing.panels import curve, layer_ticks, level, panels, place, sentence
from analyses.drawing.rows import by_model, layers_in, span, value_of
from analyses.questions.class_space.measures.explanations import overlay
from analyses.running.results import Result
from analyses.running.shown import small

CELL = 170  # pixels of a picture in a figure
BAR = 90  # of the scale beside the pictures


def overlay_figure(result: Result) -> go.Figure:
    """Pictures, the global map of the class of interest, and that of the strongest other class."""
    shown = _examples(result, most=6)
    if not shown:
        return sentence("No example images were asked for (examples=0).")
    n, several = len(shown), result.frame.model.nunique() > 1
    fig = make_subplots(rows=3, cols=n, horizontal_spacing=0.012, vertical_spacing=0.07, subplot_titles=[" "] * 3 * n)
    for column, (name, image, picture) in enumerate(shown, start=1):
        rows = _maps(result, name, image)
        titles = [f"{name}, image {image}" if several else f"image {image}"]
        fig.add_trace(_picture(picture), row=1, col=column)
        for row, of in enumerate(("label", "other"), start=2):
            part = rows[(rows.of == of) & rows.layer.isna()]
            titles.append(f"for class {part.class_name.iloc[0]}" + (" (strongest other)" if of == "other" else ""))
            _lay_over(fig, picture, _grid(part, picture), row, column, repro=_as_published(result))
        for row, title in enumerate(titles):
            fig.layout.annotations[row * n + column - 1].text = title
    _bare(fig)
    fig.update_annotations(font_size=12)
    fig.update_layout(
        title=f"Which patches would raise a class in CLS?<br>{small(_read_as(result))}",
        template="plotly_white", width=max(n * CELL + 40 + BAR, 640), height=3 * (CELL + 26) + 110,
        margin={"l": 20, "r": BAR, "t": 110, "b": 10},
    )  # fmt: skip
    return _one_scale(fig)


def heads_figure(result: Result) -> go.Figure:
    """The first picture's map for the class of interest, in every block and head."""
    shown = _examples(result, most=1)
    if not shown:
        return sentence("No example images were asked for (examples=0).")
    name, image, picture = shown[0]
    rows = _maps(result, name, image).query("of == 'label' and layer.notna()")
    heads, layers = rows.dropna(subset="head"), layers_in(rows)
    columns = [*range(int(heads["head"].max()) + 1), None]
    titles = ["sum over heads" if h is None else f"head {h}" for h in columns]
    fig = make_subplots(
        rows=len(layers), cols=len(columns), horizontal_spacing=0.008, vertical_spacing=0.1 / len(layers),
        column_titles=titles, row_titles=[f"layer {layer}" for layer in layers],
    )  # fmt: skip
    for row, layer in enumerate(layers, start=1):
        for column, head in enumerate(columns, start=1):
            here = rows[(rows.layer == layer) & (rows["head"].isna() if head is None else rows["head"] == head)]
            _lay_over(fig, picture, _grid(here, picture), row, column, repro=_as_published(result))
    _bare(fig)
    fig.update_annotations(font_size=12)
    of, height = rows.class_name.iloc[0], len(layers) * 120 + 154
    fig.update_layout(
        title={
            "text": f"Importance for class {of} by layer and head<br>{small(f'{name}, image {image}')}"
            f"<br>{small(_read_as(result))}",
            **{"yref": "container", "yanchor": "top", "y": 1 - 22 / height},
        },
        template="plotly_white", width=max(len(columns) * 120 + 80 + BAR, 640), height=height,
        margin={"l": 20, "r": 50 + BAR, "t": 134, "b": 10},
    )  # fmt: skip
    return _one_scale(fig)


def curves_figure(result: Result) -> go.Figure:
    """Per block: how much of the importance, how particular to the class, how like attention, how often on objects."""
    frame = result.frame[result.frame["head"].isna() & result.frame.layer.notna()]
    kinds = ["share of all absolute importance", "correlation with another map"]
    kinds += ["images: first patch on an object"] if (frame.measure == "on_object").any() else []
    drawn = [
        (0, "strength", "label", "map of the class", BLUE),
        (1, "other_class", None, "correlation with the map of the strongest other class", ORANGE),
        (1, "attention", "label", "correlation with what CLS attends to", GREEN),
        (2, "on_object", "label", "map of the class", BLUE),
        (2, "on_object", "other", "map of the strongest other class", ORANGE),
        (2, "on_object", "attention", "attention of CLS", GREEN),
    ]
    models = by_model(result)
    fig = panels(
        [f"{name}: {kind}" if len(models) > 1 else kind for name, _ in models for kind in kinds],
        "In which layers is the importance of patches, and is it particular to the class?",
        "Gradient maps of single layers: means over images with 95 % intervals. Right: share of images whose most "
        "important patch shows an object",
        y="",
        columns=len(kinds),
        y_range=None,
        shared=False,
    )
    ranges = ([0, None], [-1.02, 1.02], [0, 1.02])
    for row, (name, whole) in enumerate(models):
        rows = frame[frame.model == name]
        for k in range(len(kinds)):
            at = place(fig, row * len(kinds) + k)
            layer_ticks(fig, rows, **at)
            fig.update_yaxes(range=ranges[k], title_text=("share", "correlation", "share")[k], title_standoff=4, **at)
            if k == 2:
                chance = value_of(whole, "chance")
                level(fig, at, span(rows), chance, "chance: share of patches with an object")
            for column, measure, of, label, colour in drawn:
                if column == k:
                    here = rows[(rows.measure == measure) & (rows.of.isna() if of is None else rows.of == of)]
                    curve(fig, at, here, label, colour)
    return fig.update_annotations(font_size=13)


def summary_table(result: Result) -> list[dict[str, Any]]:
    """One row per model: where the importance is, how particular to the class, how often on an object."""
    table = []
    for name in result.frame.model.unique():
        rows = result.frame[(result.frame.model == name) & result.frame["head"].isna()]
        strength = rows[rows.measure == "strength"].set_index("layer")["value"]
        row: dict[str, Any] = {
            "model": name,
            "strongest_layer": int(strength.idxmax()),
            "its_share": float(strength.max()),
            "other_class": _value(result, name, "other_class"),
            "attention": _value(result, name, "attention"),
        }
        if (rows.measure == "on_object").any():
            row |= {
                "on_object": _value(result, name, "on_object", "label"),
                "attended_object": _value(result, name, "on_object", "attention"),
                "chance": _value(result, name, "chance"),
            }
        table.append(row)
    return table


def _value(result: Result, model: str, measure: str, of: str | None = None) -> float:
    """Of the global map."""
    rows = result.frame
    here = (rows.model == model) & (rows.measure == measure) & rows.layer.isna()
    found = rows.loc[here if of is None else here & (rows.of == of), "value"]
    return float(found.iloc[0]) if len(found) else float("nan")


def _examples(result: Result, most: int) -> list[tuple[str, int, np.ndarray]]:
    """(model, image, its pixels): as many images of each model as there is room for."""
    pictures = result.frame[result.frame.measure == "picture"]
    each = max(1, most // max(1, pictures.model.nunique()))
    chosen = pictures.groupby("model", sort=False).head(each)
    return [(row.model, int(row.image), _opened(row.picture)) for row in chosen.itertuples()][:most]


def _opened(url: str) -> np.ndarray:
    with Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))) as picture:
        return np.asarray(picture)


def _maps(result: Result, name: str, image: int) -> pd.DataFrame:
    rows = result.frame
    return rows[(rows.measure == "map") & (rows.model == name) & (rows.image == image)]


def _tensor(picture: np.ndarray) -> Tensor:
    return torch.tensor(picture).permute(2, 0, 1) / 255


def _grid(rows: pd.DataFrame, picture: np.ndarray) -> Tensor:
    """A map as rows and columns of patches, which are square."""
    values = torch.tensor(rows.sort_values("token")["value"].to_numpy(float))
    height, width = picture.shape[:2]
    n_rows = round((len(values) * height / width) ** 0.5)
    return values.reshape(n_rows, -1)


def _as_published(result: Result) -> bool:
    return bool(result.meta.get("repro"))


def _read_as(result: Result) -> str:
    """What the colours of the maps mean."""
    if _as_published(result):
        return "As published: each map stretched, blue where it is least, red where it is greatest; no zero"
    return "Red raises the class, blue lowers it, white is zero; one scale for all maps"


def _lay_over(fig: go.Figure, picture: np.ndarray, grid: Tensor, row: int, column: int, *, repro: bool) -> None:
    """The picture with its map on it: around zero, or as the published pictures have it."""
    if repro:
        fig.add_trace(_picture(overlay(_tensor(picture), grid)), row=row, col=column)
        return
    fig.add_trace(_picture(picture), row=row, col=column)
    height, width = picture.shape[0] / grid.shape[0], picture.shape[1] / grid.shape[1]
    laid = go.Heatmap(
        z=grid.numpy(), coloraxis="coloraxis", opacity=0.7, hovertemplate="%{z:.3g}<extra></extra>",
        x=[(c + 0.5) * width - 0.5 for c in range(grid.shape[1])],
        y=[(r + 0.5) * height - 0.5 for r in range(grid.shape[0])],
    )  # fmt: skip
    fig.add_trace(laid, row=row, col=column)


def _one_scale(fig: go.Figure) -> go.Figure:
    """One scale around a marked zero for all maps of a figure."""
    maps = [np.abs(trace.z).max() for trace in fig.data if trace.type == "heatmap"]
    if not maps:
        return fig
    reach = float(max(maps)) or 1.0
    ticks = {"tickvals": [-reach, 0, reach], "ticktext": [f"−{reach:.2g}", "0", f"{reach:.2g}"]}
    bar = {**ticks, "ticks": "outside", "thickness": 12, "len": 0.8, "title": {"text": "gradient", "side": "right"}}
    return fig.update_layout(coloraxis={"colorscale": "RdBu_r", "cmin": -reach, "cmax": reach, "colorbar": bar})


def _picture(picture: np.ndarray) -> go.Image:
    return go.Image(z=picture, hoverinfo="skip")


def _bare(fig: go.Figure) -> None:
    fig.update_xaxes(visible=False)
    fig.update_yaxes(visible=False)
