"""Which class of a model's head a data set's label is."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Int, Int64
from torch import Tensor

from analyses.data.imagedata import ImageData
from analyses.data.imagenet_s import imagenet_classes


class UnknownLabelsError(ValueError):
    """Classes of the data that a head does not know; `n_known` of them it does."""

    def __init__(self, message: str, n_known: int) -> None:
        super().__init__(message)
        self.n_known = n_known


@dataclass(frozen=True, eq=False)
class LabelMap:
    """`ids[label]` is the head's class of a data set's label; calling it translates a batch of labels.

    >>> LabelMap(torch.tensor([7, 3]))(torch.tensor([1, 0, 1])).tolist()
    [3, 7, 3]
    """

    ids: Int64[Tensor, "c"]

    def __call__(self, labels: Int[Tensor, "*b"]) -> Int64[Tensor, "*b"]:
        """Head classes of these labels. Raises ValueError for a label beyond those mapped."""
        if labels.numel() and (int(labels.max()) >= len(self.ids) or int(labels.min()) < 0):
            wrong = labels[(labels < 0) | (labels >= len(self.ids))].unique().tolist()[:5]
            raise ValueError(f"the model's head knows labels 0 to {len(self.ids) - 1}; the data has {wrong}")
        return self.ids.to(labels.device)[labels.long()]


def map_labels(data: ImageData, head_names: Sequence[str] | int) -> LabelMap:
    """Find each class of the data in a head, given the head's class names in order, or only their number.

    >>> from analyses.data import load_data
    >>> map_labels(load_data("scenes:test", n=1), ["nine", *"9876543210"]).ids.tolist()
    [10, 9, 8, 7, 6, 5, 4, 3, 2, 1]

    Names are compared as they are, then without regard to case and underscores, then with the synonyms that ImageNet
    names list after commas. Labels are head classes already where either side has no names (`LABEL_0` is none) and the
    counts agree, where no name contradicts that and most confirm it, and for ImageNet's 1000 synset folders; folders of
    some of its synsets are the classes of a head of 1000.
    Raises UnknownLabelsError naming the classes the head does not know, ValueError for those it knows twice.
    """
    nameless = isinstance(head_names, int) or all(re.fullmatch(r"LABEL_\d+", str(h)) for h in head_names)
    head = [] if isinstance(head_names, int) else [str(h) for h in head_names]
    n_head = head_names if isinstance(head_names, int) else len(head_names)
    names = data.class_names
    if names is None:
        labels = data.labels
        if labels is not None and int(labels.max()) >= n_head:
            raise ValueError(
                f"{data.name} has label {int(labels.max())}; the model's head has {n_head} classes, from 0"
            )
        return LabelMap(torch.arange(n_head))
    found = _find(names, [] if nameless else head)
    places = imagenet_classes(names) if n_head == 1000 and not any(found) else None
    if places is not None:
        return LabelMap(torch.tensor(places))
    if nameless:
        if len(names) != n_head:
            raise UnknownLabelsError(
                f"{data.name} has {len(names)} classes and the model's head {n_head} without names: "
                "which is which is not known",
                n_known=0,
            )
        return LabelMap(torch.arange(n_head))
    if len(names) == n_head and (_in_order(found) or _are_synsets(names)):
        return LabelMap(torch.arange(n_head))
    if unknown := [name for name, ids in zip(names, found, strict=True) if not ids]:
        raise UnknownLabelsError(
            f"{data.name} has {len(unknown)} of {len(names)} classes that the model's head does not know: "
            f"{_some(unknown)}. The head knows {n_head}: {_some(head)}",
            n_known=len(names) - len(unknown),
        )
    if doubtful := [name for name, ids in zip(names, found, strict=True) if len(ids) > 1]:
        raise ValueError(
            f"{data.name} has classes that the model's head has more than once: {_some(doubtful)}; rename them"
        )
    return LabelMap(torch.tensor([ids.pop() for ids in found]))


def _plain(name: str) -> str:
    return name.replace("_", " ").strip().casefold()


_READINGS: tuple[Callable[[str], list[str]], ...] = (
    lambda name: [name],
    lambda name: [_plain(name)],
    lambda name: [_plain(part) for part in name.split(",")],
)


def _find(names: list[str], head: list[str]) -> list[set[int]]:
    """The head's classes that each name can mean, by the first reading that knows any."""
    tables = []
    for reading in _READINGS:
        table: dict[str, set[int]] = defaultdict(set)
        for i, name in enumerate(head):
            for form in reading(name):
                table[form].add(i)
        tables.append(table)

    def candidates(name: str) -> set[int]:
        for reading, table in zip(_READINGS, tables, strict=True):
            if ids := {i for form in reading(name) for i in table.get(form, ())}:
                return ids
        return set()

    return [candidates(name) for name in names]


def _in_order(found: list[set[int]]) -> bool:
    """Whether most names stand where the head has them and none elsewhere: ImageNet lists differ in a few names."""
    known = [(i, ids) for i, ids in enumerate(found) if ids]
    return len(known) > len(found) / 2 and all(i in ids for i, ids in known)


def _are_synsets(names: list[str]) -> bool:
    return len(names) == 1000 and all(re.fullmatch(r"n\d{8}", name) for name in names) and names == sorted(names)


def _some(names: list[str]) -> str:
    return ", ".join(map(repr, names[:8])) + (", …" if len(names) > 8 else "")
