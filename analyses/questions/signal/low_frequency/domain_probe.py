"""From which data set does an image come? Ridge probes of the origin, with as many images of each data set."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from analyses.data import ImageData
from analyses.data.batches import Batch
from analyses.data.sets import copies_of, keep_apart
from analyses.probes.ridge import GramRidge
from analyses.running.notes import progress_batches
from analyses.statistics.intervals import rate_row

Read = Callable[[Batch], Mapping[str, Tensor]]


def equal_halves(data: Sequence[ImageData], seed: int = 0) -> list[tuple[ImageData, ImageData]]:
    """Of each data set, equally many images to fit on and to measure on, and copies left out; no image is in both.

    Raises ValueError for fewer than two data sets, for a stream of unknown length, and for data sets with an image in
    common.
    """
    if len(data) < 2:
        raise ValueError(f"a probe of the origin needs at least two data sets; got {len(data)}")
    n = min(len(part) for part in data)
    taken = [part if len(part) == n else part.split(n / len(part), seed)[0] for part in data]
    fitted, measured = zip(*(_without_copies(*part.split(0.5, seed)) for part in taken), strict=True)
    apart = keep_apart(measured, fitted)
    return list(zip(apart[1], apart[0], strict=True))


def _without_copies(fitted: ImageData, measured: ImageData) -> tuple[ImageData, ImageData]:
    return fitted.without(copies_of(measured, fitted)), measured


def domain_rows(
    halves: Sequence[tuple[ImageData, ImageData]], read: Read, batch_size: int, what: str
) -> Iterator[tuple[str, dict[str, Any]]]:
    """(site, accuracy row) of a probe of the origin on every site that `read` gives of a batch, then ("chance", …).

    >>> rows = dict(domain_rows(equal_halves([photos, drawings]), read, 64, "vit"))  # doctest: +SKIP
    """
    ridge = GramRidge(len(halves), name=f"{what}, the origin")
    for origin, (fitted, _) in enumerate(halves):
        for batch in progress_batches(fitted, batch_size, f"{what}: fitting probes of the origin", into=[ridge]):
            ridge.update(read(batch), torch.full((len(batch),), origin))
    probes = ridge.fit()
    hits = dict.fromkeys(probes, 0)
    counts: dict[int, int] = dict.fromkeys(range(len(halves)), 0)
    for origin, (_, measured) in enumerate(halves):
        for batch in progress_batches(measured, batch_size, f"{what}: probing the origin", into=(hits, counts)):
            counts[origin] += len(batch)
            for site, x in read(batch).items():
                hits[site] += int((probes[site].predict(x) == origin).sum())
    for site, right in hits.items():
        yield site, rate_row(right, sum(counts.values()))
    yield "chance", rate_row(max(counts.values()), sum(counts.values()))
