"""Few-shot episodes, and what prototypes answer in them.

Episodes drawn from one pool share images, so that their number says nothing of how sure their mean is. The images are
therefore dealt into groups that share none, every episode is drawn within one group, and a group is one value.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int, Int64
from numpy.typing import NDArray
from torch import Tensor

from analyses.statistics.ranks import correct, rank

Group = dict[int, NDArray[np.int64]]
"""The places of a group's images by class."""


class Dealt(NamedTuple):
    """Images dealt into groups; classes with fewer images than an episode takes are left out."""

    groups: list[Group]
    left_out: list[int]


class Episodes(NamedTuple):
    """Episodes of one group: the places of their images, class by class."""

    support: Int64[np.ndarray, "e n k"]
    query: Int64[np.ndarray, "e n q"]


def deal(labels: Int[Tensor, "n"], ways: int, each: int, seed: int) -> Dealt:
    """As many groups as the smallest class fills with `each` images, the images of every class spread evenly over them.

    >>> dealt = deal(torch.tensor([0, 1] * 6 + [2]), ways=2, each=3, seed=0)
    >>> [{c: len(places) for c, places in group.items()} for group in dealt.groups], dealt.left_out
    ([{0: 3, 1: 3}, {0: 3, 1: 3}], [2])

    Raises ValueError where fewer than `ways` classes have `each` images.
    """
    classes, counts = np.unique(labels.numpy(), return_counts=True)
    taken = classes[counts >= each]
    if len(taken) < ways:
        raise ValueError(
            f"an episode takes {each} images of each of {ways} classes, to show and to ask about; {len(taken)} of the "
            f"{len(classes)} classes here have so many: give more images, or ask for fewer ways, shots or queries"
        )
    n_groups = int(counts[counts >= each].min()) // each
    rng = np.random.default_rng(seed)
    groups: list[Group] = [{} for _ in range(n_groups)]
    for label in taken.tolist():
        parts = np.array_split(rng.permutation(np.flatnonzero(labels.numpy() == label)), n_groups)
        for group, part in zip(groups, parts, strict=True):
            group[label] = part
    return Dealt(groups, [int(label) for label in classes if label not in taken])


def draw(group: Group, number: int, *, ways: int, shots: int, queries: int, episodes: int, seed: int) -> Episodes:
    """Episodes of the group of that number: classes and images drawn without one coming twice in an episode."""
    rng = np.random.default_rng([seed, number])
    classes, each = [*group], shots + queries
    drawn = np.array([
        [rng.permutation(group[classes[c]])[:each] for c in rng.permutation(len(classes))[:ways]]
        for _ in range(episodes)
    ])  # fmt: skip
    return Episodes(drawn[..., :shots], drawn[..., shots:])


def share_right(support: Float[Tensor, "e n k d"], query: Float[Tensor, "e n q d"]) -> float:
    """Share of queries nearest to the prototype of their own class, the mean of its support; a tie is wrong.

    >>> support = torch.tensor([[[[0.0], [2.0]], [[9.0], [9.0]]]])
    >>> share_right(support, torch.tensor([[[[2.0]], [[3.0]]]]))
    0.5

    Distances are squared and Euclidean. Source: methods §25, Zou et al. 2024.
    """
    prototypes, asked = support.double().mean(2), query.double().flatten(1, 2)
    distances = torch.cdist(asked, prototypes, compute_mode="donot_use_mm_for_euclid_dist").square()
    ways, queries = query.shape[1:3]
    labels = torch.arange(ways).repeat_interleave(queries).expand(len(query), -1)
    return float(correct(rank(-distances, labels)).double().mean())


def of_groups(features: Float[np.ndarray, "n d"], drawn: Sequence[Episodes]) -> Float[np.ndarray, "g"]:
    """The accuracy of every group: the mean over its episodes."""
    return np.array([
        share_right(torch.from_numpy(features[one.support]), torch.from_numpy(features[one.query])) for one in drawn
    ])  # fmt: skip
