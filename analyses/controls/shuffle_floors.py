"""Shuffles over many batches: a seed for each, what they need of the batches, and what is left of a readout."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from jaxtyping import Float64, Int
from torch import Tensor

from analyses.controls.class_order import ClassMix
from analyses.data import ImageData
from analyses.data.batches import Batch, batch_sizes
from analyses.running.notes import progress_batches
from interventions.catalogue.shuffling import AMONG, BY_CLASS, DONORS, draw_permutation
from interventions.vocabulary import check_choice, generator_of

LEAST = 2
"""Images of a batch that exchange tokens."""
ALONE = "one image alone has no other to take a token from, and that is all there is of {name}; give more images"
REMEDY = (
    "shuffle the data, for instance with as_data(…, seed=0); of parquet files too large to be mixed in memory draw "
    "fewer images with n=…"
)
STREAM_REMEDY = (
    "save it as parquet, which is drawn and mixed over all of it (parquet:PATH), or shuffle the stream with a larger "
    "buffer before you pass it on"
)


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

    Raises ValueError for no permutation at all, a rule that is none of AMONG, a batch one class fills more than half of
    where others' are needed, and what `check_exchange` raises.
    """
    check_choice(among, AMONG, "among")
    if seeds < 1:
        raise ValueError(f"at least one permutation is needed, got seeds={seeds}")
    check_exchange(data, batch_size, among)
    if among in DONORS and among in BY_CLASS and data.labels is not None:
        for i, labels in enumerate(_in_batches(data.labels, batch_size)):
            if 2 * (largest := int(labels.bincount().max())) > len(labels):
                raise ValueError(
                    f"one class holds {largest} of the {len(labels)} images of batch {i}: they cannot all receive a "
                    f"token of another class, as among={among!r} asks; mix the data or use another batch size"
                )


def check_exchange(data: ImageData, batch_size: int, among: str = "batch") -> None:
    """Refuse, before any run, images that cannot exchange tokens within batches so that their loss would show.

    Raises ValueError for batches of one image and one image in all, and unless the rule `among` asks for classes, for
    images of one class and for data in the order of their classes. Of a stream, whose labels are not known beforehand,
    `exchange_batches` refuses the rest.
    """
    if batch_size < LEAST:
        raise ValueError(f"images exchange tokens within a batch, which needs two of them; got batch_size={batch_size}")
    if data.n is not None and data.n < LEAST:
        raise ValueError(ALONE.format(name=data.name))
    if among not in BY_CLASS and data.labels is not None:
        mix = ClassMix(data.name)
        for labels in _in_batches(data.labels, batch_size):
            mix.add(labels)
        _settle(mix)


def exchange_batches(
    data: ImageData,
    batch_size: int,
    what: str,
    among: str = "batch",
    *,
    extra: Sequence[str] = (),
    into: Sequence[Any] = (),
) -> Iterator[Batch]:
    """The batches of images that exchange tokens, with a progress bar: none of one image, and classes mixed.

    A last image joins the batch before it. The order of a stream is looked at as it flows. `into` as in
    `progress_batches`; a shuffle's seed belongs to the batch (`batch_seed(seed, batch.number)`).
    Raises ValueError for one image in all, and at the first batches that show it for a stream in the order of its
    classes; at its end for a stream of one class.
    """
    mix = ClassMix(data.name) if among not in BY_CLASS and data.labels is None else None
    for batch in progress_batches(data, batch_size, what, extra=extra, least=LEAST, into=into):
        if len(batch) < LEAST:
            raise ValueError(ALONE.format(name=data.name))
        if mix is not None:
            mix.add(batch.labels)
            if mix.shows_order():
                raise ValueError(f"{mix.refusal()}; {STREAM_REMEDY}")
        yield batch
    if mix is not None:
        _settle(mix)


def _settle(mix: ClassMix) -> None:
    """Refuse what all batches together show."""
    if mix.n_classes == 1:
        raise ValueError(
            f"a token of the same class in exchange costs nothing, used or not, and all {mix.n} images of {mix.name} "
            "are of one class; give images of two or more"
        )
    if mix.is_ordered():
        raise ValueError(f"{mix.refusal()}; {REMEDY}")


def _in_batches(labels: Int[Tensor, "n"], batch_size: int) -> Sequence[Int[Tensor, "_"]]:
    return labels.split(batch_sizes(len(labels), batch_size, LEAST))


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
