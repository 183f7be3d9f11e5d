"""Whether batches mix classes: two images of one class in a batch, counted against batches dealt at random."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from math import comb

import numpy as np
from jaxtyping import Int
from torch import Tensor

from hooked_vit.config.showing import counted

DRAWS = 4999
LEVEL = Fraction(1, 1000)
"""How often labels in a random order may be refused."""
LOOK = Fraction(1, 5000)
"""The same for each look at a stream, of which there are some: behind batches 2, 4, 8, …"""


class ClassMix:
    """Pairs of images of one batch, and how many of them are of one class, of all batches added so far.

    >>> mix = ClassMix("photos")
    >>> for labels in ([0] * 20, [1] * 20): mix.add(np.array(labels))
    >>> mix.within, round(mix.expected, 3), mix.is_ordered()
    (1.0, 0.487, True)

    `within` is their share, `expected` the share in batches of these sizes dealt at random from these images. Memory
    grows with classes and batches, not with images.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.sizes: list[int] = []
        self._counts = np.zeros(0, np.int64)
        self._alike = 0

    def add(self, labels: Int[Tensor, "b"] | np.ndarray) -> None:
        """Take in the labels of one more batch."""
        counts = np.bincount(np.asarray(labels))
        self.sizes.append(int(counts.sum()))
        self._alike += _pairs(counts)
        longer = max(len(counts), len(self._counts))
        self._counts = np.pad(self._counts, (0, longer - len(self._counts))) + np.pad(counts, (0, longer - len(counts)))

    @property
    def n(self) -> int:
        """Images so far."""
        return sum(self.sizes)

    @property
    def n_classes(self) -> int:
        """Classes that occurred so far."""
        return int((self._counts > 0).sum())

    @property
    def within(self) -> float:
        """The share of pairs within batches that are of one class; 0 where there is no pair."""
        return self._alike / max(1, _pairs(np.array(self.sizes)))

    @property
    def expected(self) -> float:
        """The same share of all pairs there are, which is what batches dealt at random have on average."""
        return _pairs(self._counts) / max(1, comb(self.n, 2))

    def is_ordered(self, level: Fraction = LEVEL) -> bool:
        """Whether so many pairs within batches are of one class happens in at most `level` of all ways to deal batches.

        A permutation test, exact whatever the sizes. Where the exact mean and variance tell as much by Cantelli's
        inequality, nothing is drawn.
        """
        if self.is_beyond(level):
            return True
        allowed, reached = round(level * (DRAWS + 1)) - 1, 0
        rng, present = np.random.default_rng(0), self._counts[self._counts > 0]
        labels, batch = (np.repeat(np.arange(len(sizes)), sizes) for sizes in (present, self.sizes))
        for _ in range(DRAWS):
            table = np.bincount(batch * len(present) + rng.permutation(labels))
            reached += _pairs(table) >= self._alike
            if reached > allowed:
                return False
        return True

    def is_beyond(self, level: Fraction) -> bool:
        """Whether mean and variance alone say what `is_ordered` says at this level."""
        mean, variance = self._moments()
        over = self._alike - mean
        return over > 0 and variance > 0 and over**2 >= variance / level  # P(over) ≤ 1 / (1 + over² / variance)

    def shows_order(self) -> bool:
        """`is_ordered` for a stream, asked behind every batch: all these looks together refuse few in a thousand."""
        k = len(self.sizes)
        return k > 1 and (self.is_beyond(LEVEL / (k * (k + 1))) or (k & (k - 1) == 0 and self.is_ordered(LOOK)))

    def _moments(self) -> tuple[Fraction, Fraction]:
        """Mean and variance of the number of pairs alike over all ways to deal these images to these batches.

        Two pairs are the same, share one image, or share none; Cliff & Ord 1981, join counts without replacement.
        """
        n = self.n
        if n < 2:
            return Fraction(0), Fraction(0)
        together, alike = (_shapes(sizes) for sizes in (self.sizes, self._counts.tolist()))
        ways = comb(n, 2), n * (n - 1) * (n - 2), comb(n, 2) * comb(n - 2, 2)
        parts = [Fraction(a * b, w) for a, b, w in zip(together, alike, ways, strict=True) if w]
        return parts[0], sum(parts) - parts[0] ** 2

    def refusal(self) -> str:
        """What an error says of data in such an order."""
        return (
            "images of a batch exchange tokens, so batches have to mix classes: in "
            f"{counted(len(self.sizes), 'batch', 'batches')} of up to {counted(max(self.sizes), 'image')} of "
            f"{self.name} two images are of one class with probability {self.within:.1%}, in batches dealt at random "
            f"with {self.expected:.1%}, and so much less than once in a thousand times"
        )


def _pairs(counts: np.ndarray) -> int:
    return int((counts * (counts - 1)).sum()) // 2


def _shapes(sizes: Sequence[int]) -> tuple[int, int, int]:
    """Within groups of these sizes: pairs, ordered pairs of pairs that share one image, and that share none."""
    pairs = sum(s * (s - 1) // 2 for s in sizes)
    sharing = sum(s * (s - 1) * (s - 2) for s in sizes)
    return pairs, sharing, pairs**2 - pairs - sharing
