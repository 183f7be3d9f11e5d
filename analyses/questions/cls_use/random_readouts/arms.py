"""Which readouts there are: in closed form and trained, what each trained one has to reach, and what is compared."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from analyses.questions.cls_use.random_readouts.frozen import Placement
from analyses.questions.cls_use.random_readouts.tokens import ARMS, BASE
from interventions.vocabulary import check_choice

PLACEMENTS: dict[str, Placement] = {
    "null": "null",
    "null_de_novo": "null",
    "replace": "replace",
    "augment": "augment",
    "deterministic": "replace",
}
"""The trained readouts, in their order."""
OF_SOURCE = "null_de_novo"
"""Where every readout begins anew it is `null` itself."""
CLOSED_FORM, TRAINED = "closed_form", "trained"
MODES = (CLOSED_FORM, TRAINED)
COUNTERPARTS: dict[str, tuple[str, ...]] = {
    "null": (BASE,),
    "null_de_novo": (BASE,),
    "replace": ("replace_mean_cls", "replace_gaussian"),
    "augment": ("augment_mean_cls", "augment_gaussian"),
    "deterministic": ("replace_mean_cls",),
}
"""The closed forms a trained readout could have come to: its generator begins as the Gaussian, and the mean CLS is that
without the noise."""
COMPARED = (("replace", "null"), ("replace", "null_de_novo"), ("augment", "replace"), ("replace", "deterministic"))
"""The trained readouts that are compared with each other."""

EXACT, SETTLED = "closed form", "settled"
ENDED, BELOW = "unsettled: ended by its epochs", "unsettled: below its closed form"


class Chosen(NamedTuple):
    """The arms that are measured, each in the order in which it is done."""

    closed: list[str]
    trained: list[str]


def choose(modes: Sequence[str], repro: bool) -> Chosen:
    """The arms that these names stand for, and those they are compared with.

    >>> choose(["replace_mean_cls"], repro=False).closed
    ['replace_own_cls', 'replace_mean_cls']

    "closed_form" and "trained" stand for all of their kind. Raises ValueError for no name, for one that is unknown,
    and for `null_de_novo` where every readout begins anew.
    """
    if not modes:
        raise ValueError(f"modes names what is read, such as {CLOSED_FORM}; got none")
    known = (*MODES, *ARMS, *PLACEMENTS)
    for mode in modes:
        check_choice(mode, known, "a mode")
    if OF_SOURCE in modes and not repro:
        raise ValueError(f"every readout begins anew, so {OF_SOURCE} is null; it is a mode of its own with repro=True")
    trained = [mode for mode in PLACEMENTS if mode in modes or (TRAINED in modes and (repro or mode != OF_SOURCE))]
    needed = {BASE, *modes, *(arm for mode in trained for arm in COUNTERPARTS[mode])}
    return Chosen([arm for arm in ARMS if arm in needed or CLOSED_FORM in modes], trained)


def told(a: str, b: str) -> str:
    """What may be said of a difference between two readouts that are called these: the first that is unsettled.

    >>> told("closed form", "settled")
    'settled'
    """
    for status in (a, b):
        if status.startswith("unsettled"):
            return status
    return a if a == b else SETTLED
