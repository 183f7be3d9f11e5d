"""A number without an interval has none beside a published one either."""

from __future__ import annotations

import pandas as pd
import pytest

from analyses.reproductions.beside import rows_beside
from analyses.reproductions.recipe import PublishedValue

NONE = float("nan")


@pytest.mark.parametrize(
    ("value", "low", "high", "agrees"),
    [(0.5, 0.4, 0.6, True), (0.7, 0.65, 0.8, False), (0.5, NONE, NONE, True), (0.6, NONE, NONE, False)],
)
def test_what_has_no_interval_is_not_given_one_of_no_width(value: float, low: float, high: float, agrees: bool) -> None:
    told = PublishedValue("accuracy", "measure == 'accuracy'", {"vit": 0.5}, "a table", "table")
    frame = pd.DataFrame([{"model": "vit", "measure": "accuracy", "value": value, "low": low, "high": high, "n": 3}])
    (row,) = rows_beside("here", told, ["vit"], frame)
    assert row["agrees"] == agrees
    assert [row["low"], row["high"]] == pytest.approx([low, high], nan_ok=True)
