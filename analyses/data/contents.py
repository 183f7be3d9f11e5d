"""What images hold, told by their pixels: which are there twice, and which of one set are in another."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, UInt64
from numpy.typing import NDArray
from PIL import Image

APART = "probes are measured on images they were not fitted on"
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

    def known(self, keep: NDArray[np.int64] | None = None) -> tuple[list[int], list[int]]:
        """The positions that were read, of those at `keep` where it is given, and their marks."""
        places = np.flatnonzero(self._marks) if keep is None else keep[keep < len(self._marks)]
        places = places[self._marks[places] > 0]
        return places.tolist(), self._marks[places].tolist()

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


class Apart(NamedTuple):
    """Images that others may not have in common with: what they hold, and what one of them is called."""

    contents: Contents
    told: Callable[[int], str]

    @classmethod
    def fitted_on(cls, marks: UInt64[np.ndarray, "n"], told: str) -> Apart:
        """Images of which only the marks are left, all of them called the same."""
        contents = Contents()
        contents.put(range(len(marks)), marks.tolist())
        return cls(contents, lambda place: told)


class Remembering:
    """What a set of images knows of the pixels it has read, as a mixin: copies, and images that are in another set."""

    name: str
    name_of: Callable[[int], str]
    _keep: NDArray[np.int64] | None
    _contents: Contents
    _apart: tuple[Apart, ...]
    _refused: tuple[Apart, ...] = ()

    def note(self, index: Sequence[int], pixels: Sequence[bytes | None]) -> None:
        """Remember digests of pixels, None for known ones. Raises ValueError for one in a set that is kept apart."""
        new = [(place, mark_of(digest)) for place, digest in zip(index, pixels, strict=True) if digest is not None]
        self.note_marks([place for place, _ in new], [mark for _, mark in new])

    def note_marks(self, positions: Sequence[int], marks: Sequence[int]) -> None:
        """`note`, of the digests' marks."""
        self._contents.put(positions, marks)
        self._check(positions, marks, (*self._apart, *self._refused))

    def _check(self, positions: Sequence[int], marks: Sequence[int], apart: Sequence[Apart]) -> None:
        for other in apart:
            for i in np.flatnonzero(other.contents.holds(marks)).tolist():
                there = other.told(other.contents.first(marks[i]))
                raise ValueError(f"{APART}: {self.name_of(positions[i])} of {self.name} has the pixels of {there}")

    def _as_apart(self) -> Apart:
        return Apart(self._contents, lambda place: f"{self.name_of(place)} of {self.name}; take it out of one of them")

    def refuse(self, *apart: Apart) -> None:
        """From here on an image that is among these is an error: at once where it was read before, or as it is read."""
        self._check(*self._contents.known(self._keep), apart)
        self._refused += apart

    @contextmanager
    def refusing(self, *apart: Apart) -> Iterator[None]:
        """`refuse`, as long as this lasts."""
        before = self._refused
        try:
            self.refuse(*apart)
            yield
        finally:
            self._refused = before

    def marks_read(self) -> UInt64[np.ndarray, "k"]:
        """The marks of those images that were read."""
        return self._contents.read(self._keep)

    @property
    def duplicates(self) -> int:
        """How many of the images read so far have the pixels of another one of them."""
        return self._contents.duplicates(self._keep)
