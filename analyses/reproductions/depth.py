"""Where the layers of a published model lie in one of another depth."""

from __future__ import annotations

from collections.abc import Iterable


def placed(
    positions: Iterable[int], theirs: int | None, ours: int | None, *, points: int | None = None
) -> dict[int, list[int]]:
    """Layer of the published model -> our layers it is compared with; one that has none is not in it.

    A layer below 0 counts from the end. Others are placed by the share of the depth that ends with them, so that the
    last is always the last: where ours has fewer layers, each of them stands for one of theirs.

    >>> placed(range(12), 12, 4)
    {2: [0], 5: [1], 8: [2], 11: [3]}
    >>> placed([-2, -1], 12, 4)
    {-2: [2], -1: [3]}

    Of a curve that has `points` whatever the depth, each is the mean of our layers in that part of it.

    >>> placed([0, 11], 24, 24, points=12)
    {0: [0, 1], 11: [22, 23]}

    Without both depths, layers are as they are counted.
    """
    found: dict[int, list[int]] = {}
    for at in positions:
        if at < 0 and points is not None and ours is not None and ours >= points:
            layers = _placed(points + at, points, ours, averaged=True)
        elif at < 0:
            at_end = [at if ours is None else ours + at]
            layers = [layer for layer in at_end if ours is None or layer >= 0]
        else:
            layers = _placed(at, points or theirs, ours, averaged=points is not None)
        if layers:
            found[at] = layers
    return found


def _placed(at: int, theirs: int | None, ours: int | None, *, averaged: bool) -> list[int]:
    if theirs is None or ours is None:
        return [at]
    if at >= theirs:
        return []
    if ours < theirs:
        return [layer for layer in range(ours) if -(-(layer + 1) * theirs // ours) - 1 == at]
    if averaged:
        return [layer for layer in range(ours) if layer * theirs // ours == at]
    return [-(-(at + 1) * ours // theirs) - 1]
