"""Which images to fit on and which to measure on, and how many classes they are of."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Int64
from torch import Tensor

from analyses.data import ImageData, as_data, load_data
from analyses.data.batches import Batch
from analyses.data.contents import APART
from hooked_vit.config.showing import counted

FIT_IMAGES = 2000  # built-in scenes for fitting probes, where none are given


class TwoSets(NamedTuple):
    """Images to measure on, images to fit probes on, and where the latter came from."""

    measured: ImageData
    fitted: ImageData
    note: str


def one_set(data: Any = None, *, n: int = 1000) -> ImageData:
    """What to measure on, where nothing is fitted: `data`, or `n` scenes:test; what it reads is remembered from here.

    >>> one_set(n=20)
    <scenes:test: 20 images, 10 classes>
    """
    return (load_data("scenes:test", n=n) if data is None else as_data(data)).kept_apart()


def two_sets(data: Any = None, fit_data: Any = None, *, n: int = 1000, n_fit: int = FIT_IMAGES) -> TwoSets:
    """What to measure on, and what to fit on: never the same images.

    >>> two_sets(n=20, n_fit=30).note
    'the train split of the scenes: other handwriting'

    Without `data`, `n` scenes:test. Without `fit_data`, `n_fit` scenes:train where the data are scenes, otherwise half
    of `data`, by class; what that half has in common with the other is left out of it, which the note says.
    Files, or pixels in memory, are compared at once; pixels as decoded while both sets are read, where an image of one
    in the other is an error.
    Raises ValueError where both have an image in common, and what `as_data` and `ImageData.split` raise.
    """
    data = load_data("scenes:test", n=n) if data is None else as_data(data)
    if fit_data is not None:
        (measured,), (fitted,) = keep_apart([data], [as_data(fit_data)])
        return TwoSets(measured, fitted, "given")
    if data.spec.startswith("scenes:") and data.spec != "scenes:train":
        (measured,), (fitted,) = keep_apart([data], [load_data("scenes:train", n=n_fit)])
        return TwoSets(measured, fitted, "the train split of the scenes: other handwriting")
    half, rest = data.split(0.5)
    note = "half of the data, set aside by class"
    if copies := copies_of(rest, half):
        if len(copies) == len(half):
            raise ValueError(f"{APART}, and every image of {data.name} is there more than once; give other images")
        half = half.without(copies)
        note += f"; {len(copies)} of them are copies of images that are measured, and were left out"
    (measured,), (fitted,) = keep_apart([rest], [half])
    return TwoSets(measured, fitted, note)


def keep_apart(measured: Sequence[ImageData], fitted: Sequence[ImageData]) -> tuple[list[ImageData], list[ImageData]]:
    """The same sets, of which none that is measured may have an image in common with one that is fitted on.

    Raises ValueError where a file, or pixels in memory, are in both; as they are read it is raised for pixels too.
    """
    for one in measured:
        for other in fitted:
            if other is one or (copies := copies_of(one, other)):
                share = "all" if other is one else f"{len(copies)} of the {len(other)}"
                raise ValueError(
                    f"{APART}, and {share} images of {other.name} to fit on are among those measured, of {one.name}; "
                    "give others, or leave out the set to fit on, and half of the images, by class, is set aside"
                )
    fits = [other.kept_apart() for other in fitted]
    return [one.kept_apart(*fits) for one in measured], fits


def copies_of(one: ImageData, other: ImageData) -> list[int]:
    """The places in `other` of images that are in `one` too, as the same file or the same pixels in memory."""
    there = set(one.marks()) - {""}
    return [place for place, mark in enumerate(other.marks()) if mark in there]


def classes_to_learn(measured: ImageData, fitted: ImageData) -> int:
    """How many classes a probe of the label has, which it can have learned and be asked about.

    Raises ValueError for what `count_classes` and `check_learnable` refuse.
    """
    n = count_classes(measured, fitted)
    check_learnable(measured.labels, fitted.labels, fitted.name)
    return n


def check_learnable(
    measured: Int64[Tensor, "m"] | None, fitted: Int64[Tensor, "n"] | None, name: str = "the data"
) -> None:
    """Refuse, before any run, answers that no probe could have learned; those of streams (None) are not known.

    >>> check_learnable(torch.tensor([0, 2]), torch.tensor([1, 3]))  # doctest: +IGNORE_EXCEPTION_DETAIL
    Traceback (most recent call last):
    ValueError: a probe is asked about classes it was fitted on, and none of the 2 that are measured is among the 2 ...

    Raises ValueError where the images to fit on are of one class, and where none measured is of a class among them.
    """
    if fitted is None:
        return
    learned = fitted.unique()
    if len(learned) < 2:
        raise ValueError(
            f"a probe needs images of at least 2 classes; all {len(fitted)} of {name} are of class {learned[0]}"
        )
    if measured is not None and not torch.isin(measured, learned).any():
        raise ValueError(
            f"a probe is asked about classes it was fitted on, and none of the {len(measured.unique())} that are "
            f"measured is among the {len(learned)} of {name} to fit on: give several images of each class"
        )


def common_names(*data: ImageData) -> list[str] | None:
    """The class names of data sets whose labels mean the same; None where none of them has names.

    Raises ValueError where two name their classes differently: label 1 would be one class here and another there.
    """
    named = [part for part in data if part.class_names is not None]
    for part in named[1:]:
        if part.class_names != named[0].class_names:
            raise ValueError(
                "data sets that are used together name their classes alike, in the same order; "
                f"{named[0].name} has {_few(named[0])} and {part.name} has {_few(part)} (of image folders, an "
                "empty one is a class without images)"
            )
    return named[0].class_names if named else None


def _few(data: ImageData) -> str:
    names = data.class_names or []
    return f"{counted(len(names), 'class', 'classes')}, {', '.join(names[:5])}{' …' if len(names) > 5 else ''}"


def count_classes(*data: ImageData) -> int:
    """How many classes these images are of: as many as have names, else one more than the highest label.

    Raises ValueError for fewer than two, for a stream without class names, whose labels are not known beforehand, and
    what `common_names` raises.
    """
    if (names := common_names(*data)) is not None:
        n = len(names)
    else:
        labels = [part.labels for part in data]
        known = [x for x in labels if x is not None]
        if len(known) < len(labels):
            stream = next(part.name for part in data if part.labels is None)
            raise ValueError(
                f"{stream} is a stream without class names, so the number of classes is not known beforehand"
            )
        n = int(max(x.max() for x in known)) + 1
    if n < 2:
        raise ValueError(f"decodability needs at least two classes, {data[0].name} has {n}")
    return n


def unread_batches(data: ImageData, batch_size: int, extra: Sequence[str] = ()) -> Iterator[Batch]:
    """`data.batches` without the pictures, for whom only their number counts: of images nothing is read.

    >>> from analyses.data import load_data
    >>> [(len(batch), len(batch.images)) for batch in unread_batches(load_data("scenes:test", n=5), 2)]
    [(2, 0), (2, 0), (1, 0)]

    Raises ValueError for a stream, whose labels only reading tells.
    """
    labels, columns = data.labels, {name: data.column(name) or [] for name in extra}
    if labels is None:
        raise ValueError(f"{data.name} is a stream: its labels are known only once it was read")
    positions = torch.from_numpy(data.positions)
    for number, start in enumerate(range(0, len(labels), batch_size)):
        here = slice(start, start + batch_size)
        more = {name: column[here] for name, column in columns.items()}
        yield Batch([], labels[here], positions[here], more, number, start)
