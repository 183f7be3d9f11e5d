"""What is settled before the first run: the images of both kinds, how many classes they are of, and who answers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from analyses.data import ImageData
from analyses.data.sets import classes_to_learn, two_sets
from analyses.probes.classifier_heads import AUTO, Answers, fit_head, own_head, ready_for_head
from analyses.running.notes import about_data
from hooked_vit import HookedViT


@dataclass(frozen=True)
class Opening:
    """Images to measure on and to fit on, their classes, and per model its own head (None: a ridge head is fitted).

    `reads` says what a ridge head reads where that is not "auto".
    """

    measured: ImageData
    fitted: ImageData
    note: str
    n_classes: int
    heads: Mapping[str, Answers | None]
    head: str = "auto"
    reads: Mapping[str, str] = field(default_factory=dict)

    def pooling(self, name: str, model: HookedViT) -> HookedViT:
        """The model as it is where its head answers, else one that answers with the input of a ridge head."""
        return model if self.heads[name] is not None else ready_for_head(model, self.reads.get(name, AUTO))

    def with_control(self, name: str, control: HookedViT, like: str) -> Opening:
        """The same with one more model, a control that answers with a head of its own where the model `like` does."""
        own = None if self.heads[like] is None else own_head(control, self.measured, self.head)
        reads = {**self.reads, name: self.reads.get(like, AUTO)}
        return replace(self, heads={**self.heads, name: own}, reads=reads)

    def about(self, n: int | None = None) -> dict[str, Any]:
        """What a result's `meta` says of the images; `n` were measured, which nobody knows of a stream beforehand."""
        measured, fitted = about_data(self.measured), about_data(self.fitted, self.note)
        return {
            "data": measured if n is None else {**measured, "n": n},
            "fit_data": fitted,
            "n_classes": self.n_classes,
        }


def open_study(
    models: Mapping[str, HookedViT],
    data: Any,
    fit_data: Any,
    head: str = "auto",
    reads: Mapping[str, str] | None = None,
    **n: int,
) -> Opening:
    """Settle it, before any model runs.

    >>> open_study({}, None, None, n=20, n_fit=30).n_classes
    10

    `head` as in `own_head`; a model whose `reads` is not "auto" gets a ridge head on what it says, which is
    refused beside "own". `n` and `n_fit` as
    in `two_sets`. Raises what those and `classes_to_learn` raise.
    """
    measured, fitted, note = two_sets(data, fit_data, **n)
    n_classes = classes_to_learn(measured, fitted)
    reads = reads or {}
    if asked := [f"{what!r} of {name}" for name, what in reads.items() if what != AUTO and head == "own"]:
        raise ValueError(f"a model's own head reads what it reads; head='own' and {asked[0]} exclude each other")
    heads = {
        name: own_head(model, measured, head) if reads.get(name, AUTO) == AUTO else None
        for name, model in models.items()
    }
    return Opening(measured, fitted, note, n_classes, heads, head, reads)


@dataclass(frozen=True)
class Answering:
    """Models with a head for the classes of `data`, and the images and the note of heads that had to be fitted."""

    by_name: dict[str, Answers]
    data: ImageData
    fitted: tuple[ImageData, str] | None = None

    @property
    def about(self) -> dict[str, Any]:
        """What a result's `meta` says of the images, once they have been read."""
        fitted = {} if self.fitted is None else {"fit_data": about_data(*self.fitted)}
        return {"data": about_data(self.data), **fitted}


def answering(
    models: Mapping[str, HookedViT],
    data: ImageData,
    fit_data: Any = None,
    *,
    head: str = "auto",
    batch_size: int = 64,
    known: Callable[[str], Answers | None] | None = None,
) -> Answering:
    """Models that answer for the data's classes: with their own head, or with a ridge head fitted in one pass.

    `head` as in `own_head`; `known` says in its place who answers as it is. Images are set aside for fitting, as
    `two_sets` does, only where a head has to be fitted. Raises what those raise, before anything is run.
    """
    own = {name: known(name) if known else own_head(model, data, head) for name, model in models.items()}
    if all(found is not None for found in own.values()):
        return Answering({name: found for name, found in own.items() if found is not None}, data)
    data, fitted, note = two_sets(data, fit_data)
    n_classes = classes_to_learn(data, fitted)
    by_name = {
        name: found or fit_head(name, models[name], fitted, n_classes, batch_size) for name, found in own.items()
    }
    return Answering(by_name, data, (fitted, note))
