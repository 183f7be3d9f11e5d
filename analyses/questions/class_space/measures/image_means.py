"""One value per image, gathered batch by batch under any key; their means and intervals over images."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from analyses.statistics.comparisons import class_mean_intervals
from analyses.statistics.intervals import RATE, Bounds, mean_intervals


class ImageMeans:
    """Values per image by key; NaN where an image has none. `bounds` are those of a value, for its interval.

    >>> means = ImageMeans()
    >>> means.add("a", torch.tensor([0.0, 1.0]))
    >>> [(key, row["value"], row["n"]) for key, row in means.rows()]
    [('a', 0.5, 2)]
    """

    def __init__(self, bounds: Bounds | None = RATE) -> None:
        self.bounds = bounds
        self._values: dict[Hashable, list[Tensor]] = defaultdict(list)

    def add(self, key: Hashable, values: Float[Tensor, "b"]) -> None:
        """The values of a batch of images."""
        self._values[key].append(values.detach().double().cpu())

    def columns(self) -> dict[Any, np.ndarray]:
        """Key -> values [n], in the order they came."""
        return {key: torch.cat(parts).numpy() for key, parts in self._values.items()}

    def rows(self, labels: Int[Tensor, "n"] | None = None) -> Iterator[tuple[Any, dict[str, Any]]]:
        """(key, value, low, high, n): the mean over images and its 95 % interval over images.

        With `labels` it is the mean over classes of class means, for other classes and other images of them; every
        image must have a value then.
        """
        columns = self.columns()
        if labels is None:
            yield from interval_rows(columns, bounds=self.bounds)
            return
        for key, (value, low, high) in class_mean_intervals(columns, labels.numpy(), bounds=self.bounds).items():
            yield key, {"value": value, "low": low, "high": high, "n": len(labels)}


def interval_rows(
    columns: Mapping[Any, np.ndarray], *, bounds: Bounds | None = None
) -> Iterator[tuple[Any, dict[str, Any]]]:
    """(key, value, low, high, n) of columns of values per image, NaN left out."""
    intervals = mean_intervals(columns, bounds=bounds)
    for key, values in columns.items():
        known = values[np.isfinite(values)]
        low, high = intervals[key]
        value = float(known.mean()) if len(known) else float("nan")
        yield key, {"value": value, "low": low, "high": high, "n": len(known)}


def group_mean(values: Float[Tensor, "b n"], here: Tensor) -> Float[Tensor, "b"]:
    """Mean of each image's values at `here`; NaN where there are none.

    >>> group_mean(torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.tensor([[True, True], [False, False]])).tolist()
    [1.5, nan]
    """
    return torch.where(here, values, 0.0).sum(1) / here.sum(1)
