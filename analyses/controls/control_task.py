"""The control task of a probe: answers that depend on nothing but the kind of picture, and had to be drawn for each.

Hewitt & Liang 2019, *Designing and Interpreting Probes with Control Tasks*: every type of input has one answer, drawn
at random once and for all, so that it is the same where a probe is fitted and where it is tested. What a probe gets
right of it, it has learned by heart type by type; selectivity is its accuracy on the task less that on the control.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Int64
from PIL import Image
from torch import Tensor

SIDE = 8
"""Pixels on either side of the thumbnail that decides on the type."""
TYPES_PER_CLASS = 2
MOST_BITS = 12


@dataclass(frozen=True, eq=False)
class ControlTask:
    """A type for every picture, and an answer for every type.

    >>> task = ControlTask.drawn(np.array([0, 0, 1, 1]), seed=0)
    >>> picture = Image.new("RGB", (20, 20), (250, 0, 0))
    >>> bool((task.answers([picture]) == task.answers([picture])).all())
    True

    Words come in types; of photographs no two are alike. So the type of a picture is what a thumbnail of 8 × 8 grey
    pixels says of it: on which side of as many random planes (`planes` [bits, 64]) it lies, its mean brightness
    taken out. It is a function of the pixels alone, not of the model, the same for every picture of every set.
    `answer_of` [2 ** bits] is drawn from how frequent the labels are, so that guessing is as good as in the task.
    """

    planes: np.ndarray
    answer_of: np.ndarray

    @classmethod
    def drawn(cls, labels: np.ndarray, seed: int = 0) -> ControlTask:
        """Planes and answers for a task whose labels are as frequent as these: about two types for every class.

        Raises ValueError for no labels.
        """
        if not len(labels):
            raise ValueError("a control task has answers as frequent as labels are; there are no labels")
        bits = min(MOST_BITS, int(np.ceil(np.log2(TYPES_PER_CLASS * (int(labels.max()) + 1)))))
        rng = np.random.default_rng([seed, 3])
        planes = rng.normal(size=(bits, SIDE * SIDE))
        # evenly over the sorted labels, or a few types would miss a class by chance
        places = (np.arange(2**bits) + rng.uniform(size=2**bits)) / 2**bits
        return cls(planes, rng.permutation(np.sort(labels)[(places * len(labels)).astype(int)]))

    def types(self, images: Sequence[Image.Image]) -> np.ndarray:
        """The type of each picture, 0 to 2 ** bits − 1."""
        grey = [np.asarray(image.convert("L").resize((SIDE, SIDE), Image.Resampling.BOX), float) for image in images]
        flat = np.stack([g.ravel() - g.mean() for g in grey]) if grey else np.zeros((0, SIDE * SIDE))
        return np.asarray((flat @ self.planes.T > 0) @ (1 << np.arange(len(self.planes))))

    def answers(self, images: Sequence[Image.Image]) -> Int64[Tensor, "b"]:
        """The answer that each picture's type has."""
        return torch.from_numpy(self.answer_of[self.types(images)].astype(np.int64))
