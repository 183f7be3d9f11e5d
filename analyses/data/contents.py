"""What images hold, told by their pixels: which are there twice, and which of one set are in another."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, UInt64
from numpy.typing import NDArray
from PIL import Image

STRIP = 64
"""Rows of pixels that are read at a time."""


def pixel_digest(picture: Image.Image) -> bytes:
    """SHA-256 of a picture's size and pixels, as they are decoded: the same whatever file they come from.

    >>> black = Image.new("RGB", (2, 1))
    >>> pixel_digest(black) == pixel_digest(black.copy()), pixel_digest(black) == pixel_digest(black.resize((1, 2)))
    (True, False)
    """
    total = hashlib.sha256(f"{picture.mode} {picture.size}".encode())
    for top in range(0, picture.height, STRIP):  # whole, they would be there a second and a third time
        total.update(picture.crop((0, top, picture.width, min(top + STRIP, picture.height))).tobytes())
    return total.digest()


def mark_of(pixels: bytes) -> int:
    """The first 64 bits of a digest, never 0: two of a million images share them with a probability of 3e-8."""
    return int.from_bytes(pixels[:8], "little") or 1


class Contents:
    """The mark of every image that was read so far, by its position in the source: eight bytes an image.

    >>> seen = Contents()
    >>> seen.put([0, 2, 5], [7, 9, 7])
    >>> len(seen.read()), seen.duplicates(), seen.duplicates(np.array([0, 2])), seen.first(9)
    (3, 1, 0, 2)
    """

    def __init__(self) -> None:
        self._marks: UInt64[np.ndarray, "n"] = np.zeros(0, np.uint64)
        self._sorted: UInt64[np.ndarray, "k"] | None = None

    def __contains__(self, position: int) -> bool:
        return position < len(self._marks) and bool(self._marks[position])

    def put(self, positions: Sequence[int], marks: Sequence[int]) -> None:
        """Note what images at these positions hold."""
        if not positions:
            return
        if max(positions) >= len(self._marks):
            longer = max(max(positions) + 1, 2 * len(self._marks))
            self._marks = np.pad(self._marks, (0, longer - len(self._marks)))
        self._marks[list(positions)] = np.array(marks, np.uint64)
        self._sorted = None

    def read(self, keep: NDArray[np.int64] | None = None) -> UInt64[np.ndarray, "k"]:
        """The marks of the images that were read, of those at `keep` where it is given."""
        found = self._marks if keep is None else self._marks[keep[keep < len(self._marks)]]
        return found[found > 0]

    def duplicates(self, keep: NDArray[np.int64] | None = None) -> int:
        """How many images hold what another one before them holds."""
        marks = self.read(keep)
        return len(marks) - len(np.unique(marks))

    def holds(self, marks: Sequence[int]) -> Bool[np.ndarray, "m"]:
        """Whether each of these marks is that of an image here."""
        if self._sorted is None:
            self._sorted = np.sort(self.read())
        if not len(self._sorted):
            return np.zeros(len(marks), bool)
        asked = np.array(marks, np.uint64)
        place = np.searchsorted(self._sorted, asked).clip(max=len(self._sorted) - 1)
        return self._sorted[place] == asked

    def first(self, mark: int) -> int:
        """The first position an image of this mark is at."""
        return int(np.flatnonzero(self._marks == np.uint64(mark))[0])
