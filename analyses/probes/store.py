"""Features of many sites, for probes that go through them more than once: in memory, or on disk if they do not fit."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from analyses.running.locks import scratch_folder
from analyses.running.places import check_room, full_disk_named
from hooked_vit.config.showing import counted

MEMORY = 2**30
"""Bytes of features kept in memory; more of them go to disk."""


class FeatureStore:
    """Arrays [n, d] in float32 by site, filled batch by batch. Made by `feature_store`."""

    def __init__(self, arrays: dict[str, np.ndarray], in_memory: bool) -> None:
        self.arrays, self.in_memory, self.n = arrays, in_memory, 0

    def add(self, features: Mapping[str, Float[Tensor, "b _"]]) -> None:
        """Take in a batch.

        Raises ValueError for features that hold NaN or infinity.
        """
        size = len(next(iter(features.values())))
        for site, x in features.items():
            if bad := int((~torch.isfinite(x)).any(-1).sum()):
                raise ValueError(
                    f"features of {site!r} hold NaN or infinity in {bad} of {len(x)} rows; a probe needs numbers"
                )
            self.arrays[site][self.n : self.n + size] = x.float().cpu().numpy()
        self.n += size

    def rows(self, site: str, index: np.ndarray) -> Float[np.ndarray, "b d"]:
        """Some images' features."""
        return self.arrays[site][index]


@contextmanager
def feature_store(
    widths: Mapping[str, int], n: int, *, memory: int = MEMORY, scratch: str | Path | None = None
) -> Iterator[FeatureStore]:
    """A store for `n` images and sites of these widths, gone when left; on disk, in `scratch`, above `memory` bytes.

    >>> with feature_store({"cls@0": 2}, n=3) as store:
    ...     store.add({"cls@0": torch.ones(3, 2)})
    >>> store.in_memory
    True

    Raises OSError, before anything is written, where the disk has less room than it takes.
    """
    needed = 4 * n * sum(widths.values())
    if needed <= memory:
        yield FeatureStore({site: np.empty((n, d), np.float32) for site, d in widths.items()}, True)
        return
    with scratch_folder(scratch) as folder:
        what = f"the features of {counted(n, 'image')} at {counted(len(widths), 'site')}"
        check_room(
            folder,
            needed,
            what,
            "read fewer roles or layers, choose another folder with scratch=…, or use probe='ridge', which keeps none",
        )
        with full_disk_named(folder / "features", needed):
            arrays = {site: _on_disk(folder / f"{i}.f32", n, d) for i, (site, d) in enumerate(widths.items())}
        yield FeatureStore(arrays, False)


def _on_disk(path: Path, n: int, d: int) -> np.ndarray:
    """An array in a file whose room is taken at once: writing to a map of a full disk would kill the process."""
    with path.open("wb") as file:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file.fileno(), 0, 4 * n * d)
    return np.memmap(path, np.float32, "r+", shape=(n, d))
