"""Many interventions at once: the product of lists of parameters."""

from __future__ import annotations

from itertools import product
from typing import Any

from interventions.core import Factory, Intervention


def grid(factory: Factory, **parameters: Any) -> list[Intervention]:
    """One intervention for every combination: a list, tuple or range is walked through, anything else is kept.

    >>> from interventions import grid, shuffle_cls
    >>> grid(shuffle_cls, layer=range(2), seed=[0, 1], among="others")[1]
    shuffle_cls(layer=0, seed=1, among='others')

    The last parameter varies fastest. A parameter whose one value is itself a list goes in a list: `heads=[[0, 1]]`.
    Raises TypeError for a parameter the intervention does not take.
    """
    axes = [list(v) if isinstance(v, (list, tuple, range)) else [v] for v in parameters.values()]
    return [factory(**dict(zip(parameters, point, strict=True))) for point in product(*axes)]
