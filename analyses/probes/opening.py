"""What is settled before the first run: the images of both kinds, how many classes they are of, and who answers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from analyses.data import ImageData
from analyses.data.sets import classes_to_learn, two_sets
from analyses.probes.classifier_heads import Answers, own_head
from analyses.running.notes import about_data
from hooked_vit import HookedViT


@dataclass(frozen=True)
class Opening:
    """Images to measure on and to fit on, their classes, and per model its own head (None: a ridge head is fitted)."""

    measured: ImageData
    fitted: ImageData
    note: str
    n_classes: int
    heads: Mapping[str, Answers | None]
    head: str = "auto"

    def with_control(self, name: str, control: HookedViT, like: str) -> Opening:
        """The same with one more model, a control that answers with a head of its own where the model `like` does."""
        own = None if self.heads[like] is None else own_head(control, self.measured, self.head)
        return replace(self, heads={**self.heads, name: own})

    def about(self, fit_data: str = "fit_data", n: int | None = None) -> dict[str, Any]:
        """What a result's `meta` says of the images: `fit_data` is what the analysis calls those to fit on, and `n` how
        many were measured, which nobody knows of a stream beforehand."""
        measured, fitted = about_data(self.measured), about_data(self.fitted, self.note)
        return {"data": measured if n is None else {**measured, "n": n}, fit_data: fitted, "n_classes": self.n_classes}


def open_study(models: Mapping[str, HookedViT], data: Any, fit_data: Any, head: str = "auto", **n: int) -> Opening:
    """Settle it, before any model runs.

    >>> open_study({}, None, None, n=20, n_fit=30).n_classes
    10

    `head` as in `own_head`, `n` and `n_fit` as in `two_sets`. Raises what those and `classes_to_learn` raise.
    """
    measured, fitted, note = two_sets(data, fit_data, **n)
    n_classes = classes_to_learn(measured, fitted)
    heads = {name: own_head(model, measured, head) for name, model in models.items()}
    return Opening(measured, fitted, note, n_classes, heads, head)
