"""A fitted probe, whatever kind it is: affine maps with rectifiers between, from features to a score per class."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from analyses.probes.ridge import RidgeProbe
from hooked_vit.config.showing import Displayed

Layer = tuple[Tensor, Tensor]


@dataclass(frozen=True, eq=False, repr=False)
class Probe(Displayed):
    """Scores of C classes from a vector: one affine map for ridge and logistic probes, two for an MLP.

    `layers` are (weight [out, in], bias [out]); `classes` those met in training, the only ones ever predicted;
    `penalty` the strength of regularisation in the probe's own unit; `n` the images it was fitted on; `note` what a
    reader must know of the fit.
    """

    layers: tuple[Layer, ...]
    classes: Int64[Tensor, "seen"]
    penalty: float
    n: int
    note: str = ""

    def _rows(self) -> dict[str, object]:
        classes = f"{len(self.classes)} met of {len(self.layers[-1][1])}"
        about = {"maps": len(self.layers), "width": self.d, "classes": classes, "penalty": f"{self.penalty:g}"}
        return {**about, "images": self.n, "note": self.note}

    @property
    def d(self) -> int:
        """Width of the features it reads."""
        return self.layers[0][0].shape[1]

    @property
    def varies(self) -> bool:
        """Whether its scores depend on the features: not where those are the same in every image."""
        return bool(self.layers[0][0].any())

    @classmethod
    def of_ridge(cls, ridge: RidgeProbe) -> Probe:
        """A ridge probe as one."""
        return cls(((ridge.weight, ridge.bias),), ridge.classes, ridge.alpha, ridge.n, ridge.note)

    def scores(self, x: Float[Tensor, "b d"]) -> Float[Tensor, "b c"]:
        """One score per class, in the precision and on the device of the probe."""
        first, *rest = self.layers
        x = x.to(first[0]) @ first[0].T + first[1]
        for weight, bias in rest:
            x = torch.relu(x) @ weight.T + bias
        return x

    def predict(self, x: Float[Tensor, "b d"]) -> Int64[Tensor, "b"]:
        """The class with the highest score; of several, the lowest number."""
        return self.scores(x).argmax(-1)


def for_all_classes(layers: list[Layer], seen: Int64[Tensor, "seen"], n_classes: int) -> tuple[Layer, ...]:
    """Layers that score the classes met in training, made to score all: the others come last, wherever they stand."""
    weight, bias = layers[-1]
    full = weight.new_zeros(n_classes, weight.shape[1])
    offsets = bias.new_full((n_classes,), -torch.inf)
    full[seen], offsets[seen] = weight, bias
    return (*layers[:-1], (full, offsets))
