"""One value per image, gathered batch by batch under any key; their means and intervals over images."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from analyses.statistics.intervals import bootstrap


class ImageMeans:
    """Values per image by key; NaN where an image has none.

    >>> means = ImageMeans()
    >>> means.add("a", torch.tensor([0.0, 1.0]))
    >>> [(key, row["value"], row["n"]) for key, row in means.rows()]
    [('a', 0.5, 2)]
    """

    def __init__(self) -> None:
        self._values: dict[Hashable, list[Tensor]] = defaultdict(list)

    def add(self, key: Hashable, values: Float[Tensor, "b"]) -> None:
        """The values of a batch of images."""
        self._values[key].append(values.detach().double().cpu())

    def columns(self) -> dict[Any, np.ndarray]:
        """Key -> values [n], in the order they came."""
        return {key: torch.cat(parts).numpy() for key, parts in self._values.items()}

    def rows(self, seed: int = 0, labels: Int[Tensor, "n"] | None = None) -> Iterator[tuple[Any, dict[str, Any]]]:
        """(key, value, low, high, n): the mean over images and its 95 % bootstrap interval over images.

        With `labels` it is the mean over classes of class means, and images are drawn within their class; every image
        must have a value then.
        """
        columns = self.columns()
        yield from interval_rows(columns if labels is None else _by_class(columns, labels), seed)


def interval_rows(columns: Mapping[Any, np.ndarray], seed: int = 0) -> Iterator[tuple[Any, dict[str, Any]]]:
    """(key, value, low, high, n) of columns of values per image, NaN left out."""
    intervals = bootstrap(columns, seed=seed)
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


def _by_class(columns: Mapping[Any, np.ndarray], labels: Int[Tensor, "n"]) -> dict[Any, np.ndarray]:
    """Columns whose mean is that over classes of class means, and which vary as far as images of one class do."""
    _, inverse, counts = (x.numpy() for x in labels.unique(return_inverse=True, return_counts=True))
    weight = len(labels) / (len(counts) * counts[inverse])
    found = {}
    for key, values in columns.items():
        means = np.bincount(inverse, values) / counts
        found[key] = means.mean() + weight * (values - means[inverse])
    return found
