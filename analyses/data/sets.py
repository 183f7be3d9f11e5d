"""Which images to fit on and which to measure on, and how many classes they are of."""

from __future__ import annotations

from typing import Any, NamedTuple

from analyses.data import ImageData, as_data, load_data

FIT_IMAGES = 2000  # built-in scenes for fitting probes, where none are given


class TwoSets(NamedTuple):
    """Images to measure on, images to fit probes on, and where the latter came from."""

    measured: ImageData
    fitted: ImageData
    note: str


def two_sets(data: Any = None, fit_data: Any = None, *, n: int = 1000, n_fit: int = FIT_IMAGES) -> TwoSets:
    """What to measure on, and what to fit on: never the same images.

    >>> two_sets(n=20, n_fit=30).note
    'the train split of the scenes: other handwriting'

    Without `data`, `n` scenes:test. Without `fit_data`, `n_fit` scenes:train where the data are scenes, otherwise half
    of `data`, by class.
    Raises ValueError where both are the same images, and what `as_data` and `ImageData.split` raise.
    """
    data = load_data("scenes:test", n=n) if data is None else as_data(data)
    if fit_data is not None:
        fit_data = as_data(fit_data)
        if _are_the_same(data, fit_data):
            raise ValueError(
                f"probes are measured on images they were not fitted on, and both sets are {data!r}; leave out the set "
                "to fit on, and half of the images, by class, is set aside for it"
            )
        return TwoSets(data, fit_data, "given")
    if data.spec.startswith("scenes:") and data.spec != "scenes:train":
        return TwoSets(data, load_data("scenes:train", n=n_fit), "the train split of the scenes: other handwriting")
    fitted, measured = data.split(0.5)
    return TwoSets(measured, fitted, "half of the data, set aside by class")


def _are_the_same(a: ImageData, b: ImageData) -> bool:
    if a is b:
        return True
    if a.n != b.n or a.fingerprint() != b.fingerprint():
        return False
    # of streams a fingerprint knows the name only
    first, other = (next(iter(part.batches(1))).images[0] for part in (a, b))
    return first.size == other.size and first.tobytes() == other.tobytes()


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
    return f"{len(names)} classes, {', '.join(names[:5])}{' …' if len(names) > 5 else ''}"


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
