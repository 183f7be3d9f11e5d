"""A number per patch, drawn over the picture it was measured on."""

from __future__ import annotations

import plotly.graph_objects as go
from jaxtyping import Float
from PIL import Image
from torch import Tensor

SIDE = 480  # pixels of the longer side of the picture in a figure


def overlay(
    picture: Image.Image, values: Float[Tensor, "rows columns"], *, patch: int, name: str, title: str = ""
) -> go.Figure:
    """The picture with a half transparent map on it, one square of `patch` pixels per value.

    What has both signs is drawn around zero, which is white; everything else from its least to its largest value.
    """
    signed = bool(values.min() < 0 < values.max())
    reach = float(values.abs().max())
    scale = {"colorscale": "RdBu_r", "zmin": -reach, "zmax": reach} if signed else {"colorscale": "Viridis"}
    rows, columns = values.shape
    width, height = picture.size
    fig = go.Figure()
    fig.add_layout_image(
        source=picture, x=0, y=0, sizex=width, sizey=height, xref="x", yref="y", sizing="stretch", layer="below"
    )
    fig.add_heatmap(
        z=values.float().cpu().numpy(),
        x=[patch * (column + 0.5) for column in range(columns)],
        y=[patch * (row + 0.5) for row in range(rows)],
        opacity=0.6,
        colorbar={"title": {"text": name, "side": "right"}},
        hovertemplate="row %{customdata[0]}, column %{customdata[1]}: %{z:.4g}<extra></extra>",
        customdata=[[(row, column) for column in range(columns)] for row in range(rows)],
        **scale,
    )
    fig.update_xaxes(range=(0, width), visible=False)
    fig.update_yaxes(range=(height, 0), visible=False, scaleanchor="x", constrain="domain")
    enlarged = SIDE / max(width, height)
    fig.update_layout(
        template="plotly_white",
        title={"text": title, "x": 0.02},
        width=round(width * enlarged) + 160,
        height=round(height * enlarged) + 80,
        margin={"l": 20, "r": 120, "t": 50, "b": 20},
    )
    return fig
