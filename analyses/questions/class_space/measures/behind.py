"""Rows of a result whose tokens were read behind the last layer, or behind several: which are drawn and spoken of."""

from __future__ import annotations

import pandas as pd

from analyses.drawing.rows import by_model, layers_in
from analyses.running.results import Result

ONE_LAYER = "Tokens were read behind one layer alone; give several, such as layers=(0, 3, -1) (--layers 0 3 -1)."
"""In place of a figure over layers."""


def behind_the_last(frame: pd.DataFrame) -> pd.DataFrame:
    """The rows without a layer, and of the others those of each model's last."""
    return frame[frame.layer.isna() | (frame.layer == frame.groupby("model").layer.transform("max"))]


def over_layers(frame: pd.DataFrame) -> bool:
    """Whether a model was read behind more than one layer."""
    return bool((frame.groupby("model").layer.nunique() > 1).any())


def read_elsewhere(result: Result) -> str:
    """Below a figure of the last layer measured, that it is that one, where it is not the model's last alone."""
    last = {name: about["n_layers"] - 1 for name, about in result.meta["models"].items()}
    elsewhere = any(layers_in(rows) != [last[name]] for name, rows in by_model(result))
    return "; tokens behind the last layer measured" if elsewhere else ""
