"""Rows of a result for a figure, a table or a sentence: those of a model, of a measure, averaged over seeds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd

from analyses.running.results import Result

NO_INTERVAL = "too few images for an interval"
LAST = "the last layer"
LEVEL = 0.05
"""p-values below it get a star."""


def model_names(result: Result) -> list[str]:
    """The models in the order of the frame."""
    return [str(name) for name in result.frame["model"].unique()]


def by_model(result: Result) -> list[tuple[str, pd.DataFrame]]:
    """(model, its rows) in the order of the frame."""
    return [(str(name), rows) for name, rows in result.frame.groupby("model", sort=False)]


def picked(rows: pd.DataFrame, **where: Any) -> pd.DataFrame:
    """The rows whose columns have these values; a missing value is none of them."""
    for column, value in where.items():
        rows = rows[(rows[column] == value).fillna(False).astype(bool)]
    return rows


def value_of(rows: pd.DataFrame, measure: str, **where: Any) -> float | None:
    """The value of the first row of a measure; None where there is none."""
    some = picked(rows, measure=measure, **where)
    return None if some.empty else float(some["value"].iloc[0])


def layers_in(rows: pd.DataFrame) -> list[int]:
    """The layers there are rows of, in their order."""
    return sorted(int(layer) for layer in rows["layer"].dropna().unique())


def span(rows: pd.DataFrame) -> Sequence[int | float]:
    """Where a level line begins and ends: at the first layer and the last, and around it where there is but one."""
    layers = layers_in(rows) or [0]
    return (layers[0], layers[-1]) if len(layers) > 1 else (layers[0] - 0.5, layers[0] + 0.5)


def from_layer(layer: int, measured: Sequence[int], n_layers: int) -> str:
    """That something is so from a layer on, where it is known of those measured.

    >>> from_layer(2, [0, 1, 2, 3], 4), from_layer(2, [0, 2, 3], 6), from_layer(3, [0, 3], 6)
    ('from layer 2 on', 'at layer 2 and every later one measured', 'at layer 3')
    """
    later = [other for other in measured if other >= layer]
    if later == list(range(layer, n_layers)):
        return f"from layer {layer} on"
    return f"at layer {layer}" + (" and every later one measured" if len(later) > 1 else "")


def last_layer(rows: pd.DataFrame) -> int:
    """The last layer there is in the rows; 0 where nothing has a layer."""
    last = rows["layer"].max()
    return 0 if pd.isna(last) else int(last)


def reached(layer: int | None, measured: Sequence[int], n_layers: int) -> str:
    """The first layer measured at which something is reached; where all were, it is spoken of as reached for good.

    >>> reached(2, range(4), 4), reached(2, [2, 3], 4), reached(None, [2, 3], 4)
    ('from layer 2 on', 'at layer 2', 'at no layer')
    """
    where = "no layer" if layer is None else f"layer {layer}"
    return f"from {where} on" if list(measured) == list(range(n_layers)) else f"at {where}"


def at_the_end(rows: pd.DataFrame, n_layers: int) -> str:
    """The last layer that was measured, in words, of a model with so many.

    >>> at_the_end(pd.DataFrame({"layer": [1, 3]}), 4), at_the_end(pd.DataFrame({"layer": [1, 3]}), 12)
    ('the last layer', 'layer 3')
    """
    return LAST if (last := last_layer(rows)) == n_layers - 1 else f"layer {last}"


def over_seeds(rows: pd.DataFrame, by: str = "layer") -> pd.DataFrame:
    """One row per layer, or value of another column: the mean over seeds, and the widest of their intervals, if any."""
    if "high" not in rows:
        rows = rows.assign(low=float("nan"), high=float("nan"))
    groups = rows.groupby(by, sort=pd.api.types.is_numeric_dtype(rows[by]))
    return groups.agg(value=("value", "mean"), low=("low", "min"), high=("high", "max")).reset_index()


def head_notes(meta: dict[str, Any]) -> list[str]:
    """A sentence for every model whose classes are not those of its training."""
    fitted = [name for name, about in meta["models"].items() if about["head_fitted"]]
    return [f"{name}: the classes are those of a ridge head fitted here, not of its training." for name in fitted]


def between(low: float, high: float, spec: str) -> str:
    """The ends of an interval in words, such as by ".1%"; where too few images differ, that there is none.

    >>> between(0.1, 0.25, ".0%"), between(float("nan"), float("nan"), ".0%")
    ('10% to 25%', 'too few images for an interval')
    """
    return NO_INTERVAL if pd.isna(low) or pd.isna(high) else f"{low:{spec}} to {high:{spec}}"


def or_undefined(value: float, spec: str) -> str:
    """A number in words; of NaN, such as R² of one image, that it is not defined.

    >>> or_undefined(0.5, ".2f"), or_undefined(float("nan"), ".2f")
    ('0.50', 'not defined')
    """
    return "not defined" if pd.isna(value) else f"{value:{spec}}"


def ranges(numbers: list[int]) -> list[str]:
    """Layers in their order as ranges: "3–5" and "7"."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return [str(run[0]) if len(run) == 1 else f"{run[0]}–{run[-1]}" for run in runs]


def in_a_row(layers: list[int]) -> str:
    """Layers in their order, in words.

    >>> in_a_row([3]), in_a_row([3, 4, 5, 7])
    ('layer 3', 'layers 3–5 and 7')
    """
    return ("layer " if len(layers) == 1 else "layers ") + " and ".join(ranges(layers))
