"""Shuffles over many batches: a seed for each, what they need of the batches, and what is left of a readout."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float64, Int
from torch import Tensor

from analyses.data import ImageData
from interventions.catalogue.shuffling import AMONG, BY_CLASS, DONORS, draw_permutation
from interventions.vocabulary import check_choice, generator_of

SMALL = 8


def batch_seed(seed: int, batch: int) -> int:
    """The seed of a shuffle of one batch: a generator begins anew on every call, and batches must not be dealt alike.

    >>> batch_seed(0, 1), batch_seed(1, 0)
    (1, 1000003)
    """
    return seed * 1_000_003 + batch


def batch_order(seed: int, batch: int, among: str, labels: Int[Tensor, "b"]) -> Int[Tensor, "b"]:
    """The permutation that `shuffle_tokens(seed=batch_seed(seed, batch))` draws: image i receives image order[i]."""
    known = labels if among in BY_CLASS else None
    return draw_permutation(len(labels), generator_of(batch_seed(seed, batch)), among, known)


def check_shuffles(data: ImageData, batch_size: int, seeds: int, among: str) -> None:
    """Refuse, before any run, shuffles that some batch would not admit.

    Raises ValueError for no permutation at all, a rule that is none of AMONG, batches of one image, a last batch of one
    image among them, a batch one class fills more than half of where others' are needed, and what
    `check_mixed` raises.
    """
    check_choice(among, AMONG, "among")
    if seeds < 1:
        raise ValueError(f"at least one permutation is needed, got seeds={seeds}")
    if batch_size < 2:
        raise ValueError(f"images exchange tokens within a batch, which needs two of them; got batch_size={batch_size}")
    if among not in BY_CLASS:
        check_mixed(data, batch_size)
    check_nobody_alone(data, batch_size)
    if among not in DONORS or data.n is None:
        return
    if among in BY_CLASS and data.labels is not None:
        for i, labels in enumerate(data.labels.split(batch_size)):
            if 2 * (largest := int(labels.bincount().max())) > len(labels):
                raise ValueError(
                    f"one class holds {largest} of the {len(labels)} images of batch {i}: they cannot all receive a "
                    f"token of another class, as among={among!r} asks; mix the data or use another batch size"
                )


def check_nobody_alone(data: ImageData, batch_size: int) -> None:
    """Refuse, before any run, a batch of one image: it has no other to exchange tokens with.

    Raises ValueError.
    """
    if data.n is not None and (batch_size == 1 or data.n % batch_size == 1):
        raise ValueError(
            f"{data.n} images in batches of {batch_size} leave one image alone, with no other to take a token from; "
            "use another batch size"
        )


def check_mixed(data: ImageData, batch_size: int) -> None:
    """Refuse data in the order of their classes: a token of the same class in exchange costs nothing, used or not.

    Raises ValueError where two images of a batch are of one class far more often than two images of the data are: more
    than half the way to always. Batches below 8 images can be so by luck and are not judged (methods §0.2).
    """
    if data.labels is None or batch_size < SMALL:
        return
    batches = [part for part in data.labels.split(batch_size) if len(part) >= SMALL]
    overall, within = _alike([data.labels]), _alike(batches)
    if within > (1 + overall) / 2:
        raise ValueError(
            f"images of a batch exchange tokens, so batches have to mix classes: in batches of {batch_size} of "
            f"{data.name} two images are of one class with probability {within:.0%}, in all of it with {overall:.0%}; "
            "shuffle the data, for instance with as_data(…, seed=0)"
        )


def _alike(parts: Sequence[Int[Tensor, "_"]]) -> float:
    """Probability that two different images of a part are of one class, over all parts."""
    pairs = sum(len(part) * (len(part) - 1) for part in parts)
    alike = sum(int((counts * (counts - 1)).sum()) for counts in (part.bincount() for part in parts))
    return alike / pairs if pairs else 0.0


def expected_hits(predicted: Int[Tensor, "b"], labels: Int[Tensor, "b"], among: str = "batch") -> Float64[Tensor, "b"]:
    """For each image, the probability that a readout is right which sees tokens dealt at random instead of its own.

    >>> expected_hits(torch.tensor([0, 0, 1, 1]), torch.tensor([0, 0, 1, 1])).tolist()
    [0.5, 0.5, 0.5, 0.5]
    >>> expected_hits(torch.tensor([0, 1]), torch.tensor([0, 1]), among="others").tolist()
    [0.0, 0.0]

    `predicted` is what the readout says of each image's own tokens; both are of one batch. The expectation is exact,
    over all permutations that `draw_permutation` may draw under the rule `among`: the floor of methods §2 and §5
    without its assumption that classes are balanced. Raises ValueError for a rule that is none of AMONG.
    """
    check_choice(among, AMONG, "among")
    predicted, labels = predicted.cpu(), labels.cpu()  # a model's answers may lie on another device than the labels
    n, classes = len(labels), int(max(predicted.max(), labels.max())) + 1
    table = torch.zeros(classes, classes, dtype=torch.float64)  # [true class of the donor, what is read from it]
    table.index_put_((labels, predicted), torch.ones(n, dtype=torch.float64), accumulate=True)
    own = (predicted == labels).double()
    if among == "batch":
        return table.sum(0)[labels] / n
    if among == "others":
        return (table.sum(0)[labels] - own) / max(1, n - 1)
    of_class = table / table.sum(1, keepdim=True).clamp(min=1)
    if among == "same_class":
        return of_class.diagonal()[labels]
    # Images stand in line by class, in random order within it, and tokens move on by the size of the largest class.
    line = labels.sort().values
    donors = line.roll(int(labels.bincount().max()))
    hits = torch.zeros(classes, dtype=torch.float64).index_add_(0, line, of_class[donors, line])
    return (hits / labels.bincount(minlength=classes).clamp(min=1))[labels]
