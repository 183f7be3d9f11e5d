"""Curves can be told apart by who sees no red and green, and on a grey print."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import pytest

from analyses.drawing import colours
from analyses.drawing.panels import curve, panels, place

# Machado, Oliveira & Fernandes 2009, severity 1.0, on linear RGB
SIGHT = {
    "all colours": np.eye(3),
    "deuteranope": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "protanope": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
}
TO_XYZ = np.array(
    [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]]
)
SETS = {
    "curves": colours.MODELS[:5],
    "boxes": (colours.SOFT_GREEN, colours.SOFT_ORANGE, colours.SOFT_BLUE, colours.SOFT_YELLOW, colours.SOFT_GREY),
    "pairs": (colours.LIGHT_BLUE, colours.DARK_BLUE, colours.LIGHT_GREEN, colours.DARK_GREEN),
    "roles": tuple(colours.READ_FROM.values()),
}


def lab(colour: str, sight: str = "all colours") -> np.ndarray:
    """CIE L*a*b* (D65) of a colour as somebody sees it."""
    channels = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    linear = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
    xyz = np.array(TO_XYZ) @ np.clip(np.asarray(SIGHT[sight]) @ linear, 0, 1) / [0.95047, 1, 1.08883]
    f = np.where(xyz > 216 / 24389, np.cbrt(xyz), (24389 / 27 * xyz + 16) / 116)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


def test_white_and_black_are_where_they_should_be():
    assert lab("#ffffff") == pytest.approx([100, 0, 0], abs=0.01)
    assert lab("#000000") == pytest.approx([0, 0, 0], abs=0.01)


@pytest.mark.parametrize("sight", SIGHT)
@pytest.mark.parametrize("name", SETS)
def test_they_differ_to_the_eye(name, sight):
    """By 10 units and more, where about 2 are just seen."""
    for one, other in combinations(SETS[name], 2):
        assert np.linalg.norm(lab(one, sight) - lab(other, sight)) > 10, (one, other)


@pytest.mark.parametrize("name", SETS)
def test_they_differ_in_print(name):
    """In lightness alone, by 7 units and more."""
    for one, other in combinations(SETS[name], 2):
        assert abs(lab(one)[0] - lab(other)[0]) > 7, (one, other)


def test_of_ten_models_each_has_its_colour_and_its_shape():
    for one, other in combinations(colours.MODELS, 2):
        assert np.linalg.norm(lab(one, "deuteranope") - lab(other, "deuteranope")) > 10, (one, other)
    assert len(set(colours.SHAPES.values())) == len(colours.MODELS)
    fig = panels(["a"], "Which?", y="value")
    for k, colour in enumerate(colours.MODELS):
        rows = pd.DataFrame({"layer": [0, 1], "value": [0.1 * k] * 2, "low": 0.0, "high": 1.0, "seed": 0})
        curve(fig, place(fig, 0), rows, str(k), colour)
    drawn = [trace for trace in fig.data if isinstance(trace, go.Scatter)]
    assert len({trace.marker.symbol for trace in drawn}) == len(colours.MODELS)
