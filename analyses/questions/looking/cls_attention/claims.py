"""What textbooks say of CLS's attention, as differences that images can settle: supported, not supported, or neither.

A claim has parts, each a mean over images of a difference that is above `LEAST` where the claim is right: attention
with random weights differs between layers by a hundred-thousandth, and in all images the same way. The intervals of
all parts of all claims of all models hold together (Bonferroni). methods §26.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from analyses.questions.looking.cls_attention.study import OTHER_MASKS, RANDOM, TRAINED, Key
from analyses.statistics.intervals import CHANGE, Bounds, Interval, mean_interval

BROAD, OBJECTS, DISCRIMINATES = (
    "early attention is broad",
    "middle attention finds objects",
    "late attention tells classes",
)
CLAIMS = (BROAD, OBJECTS, DISCRIMINATES)
EARLY, MIDDLE, LATE = "early", "middle", "late"
COMPARED = {BROAD: (EARLY, MIDDLE, LATE), OBJECTS: (EARLY, MIDDLE), DISCRIMINATES: (EARLY, LATE)}
"""The thirds of the layers that the parts of a claim are about."""
SUPPORTED, NOT_SUPPORTED, CANNOT_TELL = "supported", "not supported", "cannot tell"
LEVEL = 0.05
LEAST = 0.001
"""A difference of shares that is no larger is called none: a tenth of a point, as far as sentences print."""

At = Callable[[str, str, str], np.ndarray]
"""(measure, variant, third of the layers) -> the mean over these layers, one value per image."""


class Part(NamedTuple):
    """One difference of a claim, in words and per image; `bounds` are those of a single value."""

    claim: str
    what: str
    of: Callable[[At], np.ndarray]
    bounds: Bounds | None = CHANGE


class Found(NamedTuple):
    """A part's mean over images with its interval, which holds together with those of all other parts."""

    part: Part
    interval: Interval
    n: int


class Verdict(NamedTuple):
    """What the parts of a claim say of it together, and why."""

    claim: str
    verdict: str
    why: str


def _change(at: At, variant: str) -> np.ndarray:
    """How much higher the entropy is in early layers than in the two other thirds."""
    later = (at("entropy", variant, MIDDLE) + at("entropy", variant, LATE)) / 2
    return np.asarray(at("entropy", variant, EARLY) - later)


PARTS = (
    Part(BROAD, "entropy, early − middle", lambda at: at("entropy", TRAINED, EARLY) - at("entropy", TRAINED, MIDDLE)),
    Part(BROAD, "entropy, early − late", lambda at: at("entropy", TRAINED, EARLY) - at("entropy", TRAINED, LATE)),
    Part(
        BROAD,
        "entropy, early − the rest, beyond random weights",
        lambda at: _change(at, TRAINED) - _change(at, RANDOM),
        bounds=None,
    ),
    Part(OBJECTS, "mass on the object, middle − uniform", lambda at: at("object_excess", TRAINED, MIDDLE)),
    Part(
        OBJECTS,
        "mass beyond uniform, middle − on masks of other images",
        lambda at: at("object_excess", TRAINED, MIDDLE) - at("object_excess", OTHER_MASKS, MIDDLE),
        bounds=None,
    ),
    Part(
        OBJECTS,
        "mass on the object, middle − early",
        lambda at: at("object_excess", TRAINED, MIDDLE) - at("object_excess", TRAINED, EARLY),
    ),
    Part(
        OBJECTS,
        "mass on the object, middle − random weights",
        lambda at: at("object_excess", TRAINED, MIDDLE) - at("object_excess", RANDOM, MIDDLE),
    ),
    Part(
        DISCRIMINATES,
        "class read from what CLS gathers, late − early",
        lambda at: at("class_probe", TRAINED, LATE) - at("class_probe", TRAINED, EARLY),
    ),
    Part(
        DISCRIMINATES,
        "class read from what CLS gathers, late − uniform",
        lambda at: at("class_gain", TRAINED, LATE),
    ),
    Part(
        DISCRIMINATES,
        "class read from what CLS gathers, late − random weights",
        lambda at: at("class_probe", TRAINED, LATE) - at("class_probe", RANDOM, LATE),
    ),
)


def thirds(n_layers: int, measured: Sequence[int] | None = None) -> dict[str, list[int]]:
    """Early, middle and late layers: of block b from 1, b ≤ L/3, b ≤ 2L/3, and the rest; of them those measured.

    >>> thirds(8)
    {'early': [0, 1], 'middle': [2, 3, 4], 'late': [5, 6, 7]}
    >>> thirds(8, [1, 5, 7])
    {'early': [1], 'late': [5, 7]}

    None of fewer than three blocks, which have no middle.
    """
    if n_layers < 3:
        return {}
    first, second = n_layers // 3, 2 * n_layers // 3
    all_of = {EARLY: range(first), MIDDLE: range(first, second), LATE: range(second, n_layers)}
    found = {third: [i for i in layers if measured is None or i in measured] for third, layers in all_of.items()}
    return {third: layers for third, layers in found.items() if layers}


def differences(
    columns: Mapping[Key, np.ndarray], n_layers: int, measured: Sequence[int] | None = None
) -> dict[Part, np.ndarray]:
    """Every part that can be asked, one value per image that has one; fewer than two are none.

    A third of the layers is those of it that were measured; without any, what is compared with it is not asked.
    """
    layers = thirds(n_layers, measured)

    def at(measure: str, variant: str, third: str) -> np.ndarray:
        return np.stack([columns[measure, variant, layer] for layer in layers[third]]).mean(0)

    found = {}
    for part in PARTS:
        try:
            values = part.of(at)
        except KeyError:
            continue  # no masks, or no layer of that third
        known = values[np.isfinite(values)]
        if len(known) > 1:
            found[part] = known
    return found


def settle(found: Mapping[Part, np.ndarray], n_tests: int) -> Iterator[Found]:
    """The parts with intervals that hold together with `n_tests` of them."""
    for part, values in found.items():
        interval = mean_interval(values, bounds=part.bounds, confidence=1 - LEVEL / n_tests)
        yield Found(part, interval, len(values))


def judge(claim: str, found: Sequence[Found], lacking: str) -> Verdict:
    """Supported where all parts lie above `LEAST`, not supported where one lies below; `lacking`: why one is not there.

    >>> judge(BROAD, [], "fewer than three blocks have no middle").verdict
    'cannot tell'
    """
    mine = [one for one in found if one.part.claim == claim]
    # some of its parts alone would be another claim
    if len(mine) < sum(part.claim == claim for part in PARTS):
        return Verdict(claim, CANNOT_TELL, lacking)
    below = [_told(one) for one in mine if one.interval.high < LEAST]
    open_ = [_told(one) for one in mine if not one.interval.low > LEAST]
    if below:
        return Verdict(claim, NOT_SUPPORTED, f"not above {LEAST}: {'; '.join(below)}")
    if open_:
        return Verdict(claim, CANNOT_TELL, f"not told from {LEAST}: {'; '.join(open_)}")
    least = min(mine, key=lambda one: one.interval.estimate)
    return Verdict(claim, SUPPORTED, f"every part lies above {LEAST}; least: {_told(least)}")


def _told(found: Found) -> str:
    return f"{found.part.what} ({found.interval.estimate:+.2g})".replace("(-", "(−")
