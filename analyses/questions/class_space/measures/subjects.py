"""Models with a head for the data's classes, before anything is measured in the space of those classes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from analyses.data import ImageData
from analyses.data.batches import Batch
from analyses.data.sets import count_classes, one_set
from analyses.pages.album import Album
from analyses.probes.classifier_heads import Answers, own_head
from analyses.probes.opening import Answering, answering
from analyses.probes.passes import unopened
from analyses.processes.walking import Step, Walk
from analyses.questions.class_space.measures.projection import AS_TRAINED, Rules, check_rules
from analyses.running.notes import progress_batches
from hooked_vit import HookedViT

Seen = tuple[Tensor, Tensor, Batch]


@dataclass(frozen=True)
class Subject:
    """A model, the classes of its head that the data's labels are, and how vectors become scores of those classes."""

    name: str
    answers: Answers
    rules: Rules
    n_classes: int

    @property
    def model(self) -> HookedViT:
        """The model with the head that is used."""
        return self.answers.model

    def batches(self, data: ImageData, batch_size: int, what: str, *, extra: Sequence[str] = ()) -> Walk[Seen]:
        """(pixels [b c h w], classes of the head, the batch itself), with a progress bar."""

        def start(into: Sequence[Any]) -> Iterator[Step[Seen]]:
            for batch in progress_batches(data, batch_size, f"{self.name}: {what}", extra=extra, into=into):
                seen = self.model.preprocess(batch.images), self.answers.labels(batch.labels), batch
                yield Step(batch.number, batch.first, seen)

        return Walk(start)

    def labelled(self, data: ImageData, batch_size: int, what: str) -> Walk[tuple[Tensor, Tensor]]:
        """(pixels, classes of the head), with a progress bar."""
        return self.batches(data, batch_size, what).map(lambda seen: seen[:2])

    def unread(self, data: ImageData, batch_size: int, what: str) -> Walk[tuple[None, Tensor]]:
        """(None, classes of the head), with a progress bar: no picture is opened, and every process has all of them."""

        def start(into: Sequence[Any]) -> Iterator[Step[tuple[None, Tensor]]]:
            for batch in unopened(data, batch_size, f"{self.name}: {what}"):
                yield Step(batch.number, batch.first, (None, self.answers.labels(batch.labels)))

        return Walk(start)

    def album(self, data: ImageData, n_models: int) -> Album:
        """An empty album of these images, under the names of the classes it answers with."""
        own = self.rules.prototypes is None
        return Album(self.name, self.model.cfg.class_names if own else data.class_names, data.name_of, n_models)

    def about(self) -> dict[str, Any]:
        """What a result's `meta` says of it."""
        return self.answers.about()


@dataclass(frozen=True)
class Subjects:
    """Everything a study needs to begin: models with heads, images to measure on, and what to note of both."""

    by_name: dict[str, Subject]
    found: Answering

    @property
    def data(self) -> ImageData:
        """The images to measure on."""
        return self.found.data

    @property
    def about(self) -> dict[str, Any]:
        """What a result's `meta` says of images and models, once they have been read."""
        return {**self.found.about, "models": {name: subject.about() for name, subject in self.by_name.items()}}

    def __iter__(self) -> Iterator[Subject]:
        return iter(self.by_name.values())

    def rows(self, measure: Callable[[Subject], Iterable[Mapping[str, Any]]]) -> list[dict[str, Any]]:
        """What is measured of one subject after the other, each row with the model's name and architecture in front."""
        return [
            {"model": subject.name, "architecture": subject.model.cfg.architecture, **row}
            for subject in self
            for row in measure(subject)
        ]


def prepare(
    models: Mapping[str, HookedViT],
    data: Any = None,
    fit_data: Any = None,
    *,
    head: str = "auto",
    batch_size: int = 64,
    n: int = 1000,
    rules: Rules = AS_TRAINED,
    prototypes: Mapping[str, Float[Tensor, "c p"]] | None = None,
) -> Subjects:
    """Models with a head for the data's classes: their own, their prototypes, or a ridge head fitted in one pass.

    >>> for subject in prepare({"vit": zoo.load("vit")}): print(subject.about())  # doctest: +SKIP

    `head` as in `own_head`. `prototypes` [classes of the data, width] by model's name, for models that answer with an
    embedding. Images are set aside for fitting, as `two_sets` does, only where a head has to be fitted.
    Raises ValueError for labels a head does not know and for prototypes of no model, before anything is run.
    """
    prototypes = dict(prototypes or {})
    if unknown := [name for name in prototypes if name not in models]:
        raise ValueError(f"prototypes are given by the models' names {list(models)}; got {unknown}")
    data = one_set(data, n=n)

    def known(name: str) -> Answers | None:
        return _known(models[name], data, head, prototypes.get(name), rules)

    found = answering(models, data, fit_data, batch_size=batch_size, known=known)
    subjects = {}
    for name, answers in found.by_name.items():
        mine = Rules(rules.norm, rules.bias, rules.image_head, prototypes.get(name))
        subjects[name] = Subject(name, answers, mine, check_rules(answers.model, mine))
    return Subjects(subjects, found)


def _known(model: HookedViT, data: ImageData, head: str, prototypes: Tensor | None, rules: Rules) -> Answers | None:
    """The model as it is, where it answers for the data's classes."""
    if prototypes is None:
        return own_head(model, data, head)
    n = check_rules(model, Rules(rules.norm, rules.bias, rules.image_head, prototypes))
    if n != count_classes(data):
        raise ValueError(f"prototypes are one per class of the data, {count_classes(data)}; got {n}")
    return Answers(model, torch.arange(n), "prototypes of the classes", fitted=False)
