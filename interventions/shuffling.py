"""Shuffling tokens between images: the content stays on the manifold, only whose it is changes."""

from __future__ import annotations

import torch
from jaxtyping import Int
from torch import Tensor

from hooked_vit import HookedViT
from interventions.apply import note
from interventions.core import Hooks, intervention
from interventions.vocabulary import at_tokens, check_tokens, layer_of, resid_post

AMONG = ("batch", "others", "same_class", "other_classes")


@intervention
def shuffle_cls(
    model: HookedViT, layer: int, seed: int = 0, among: str = "batch", labels: Int[Tensor, "b"] | None = None
) -> Hooks:
    """Give every image another image's CLS token after block `layer`.

    >>> shuffle_cls(layer=8, seed=0)
    shuffle_cls(layer=8)

    `among` draws from the whole "batch" (fixed points happen), from "others" (a derangement), or with `labels` from
    the "same_class" or from "other_classes". Every forward pass draws anew from a generator seeded by `seed`; the
    permutations are in `run.record`. methods: Vilas et al. 2023; lab note 1, orange curve.
    """
    layer = layer_of(model, layer)
    check_tokens(model, "cls")
    _check_among(among, labels)
    generator = torch.Generator().manual_seed(seed)

    def edit(resid: Tensor, hook: object) -> Tensor:
        order = draw_permutation(len(resid), generator, among, labels)
        note("shuffle_cls", order)
        return torch.where(at_tokens(model, "cls", resid), resid[order.to(resid.device)], resid)

    return [(resid_post(layer), edit)]


def draw_permutation(
    n: int, generator: torch.Generator, among: str = "batch", labels: Int[Tensor, "n"] | None = None
) -> Int[Tensor, "n"]:
    """A random permutation under one of the rules of AMONG; image i receives image order[i].

    Raises ValueError where no such permutation exists: one image alone, or a class that fills more than half of them.
    """
    if among in ("same_class", "other_classes"):
        assert labels is not None
        if len(labels) != n:
            raise ValueError(f"there are {len(labels)} labels for {n} images")
    if among == "batch":
        return torch.randperm(n, generator=generator)
    if among == "others":
        return _derangement(n, generator)
    mixed = torch.randperm(n, generator=generator)
    if among == "same_class":
        order = torch.arange(n)
        for label in labels.unique():
            order[labels == label] = mixed[labels[mixed] == label]
        return order
    return _across_classes(mixed, labels.cpu())


def _derangement(n: int, generator: torch.Generator) -> Tensor:
    if n < 2:
        raise ValueError("one image alone has no other to take a token from; use a larger batch")
    while True:  # a random permutation is a derangement with probability 1/e
        order = torch.randperm(n, generator=generator)
        if not (order == torch.arange(n)).any():
            return order


def _across_classes(mixed: Tensor, labels: Tensor) -> Tensor:
    """Line images up by class and hand tokens on by the size of the largest class: nobody receives his own class."""
    by_class = mixed[labels[mixed].argsort(stable=True)]
    largest = int(labels.bincount().max())
    if 2 * largest > len(labels):
        raise ValueError(
            f"one class holds {largest} of {len(labels)} images: they cannot all receive a token of another class; "
            "mix the batch better"
        )
    order = torch.empty_like(by_class)
    order[by_class] = by_class.roll(largest)
    return order


def _check_among(among: str, labels: Tensor | None) -> None:
    if among not in AMONG:
        raise ValueError(f"tokens are shuffled among one of {', '.join(AMONG)}; got {among!r}")
    if (among in ("same_class", "other_classes")) != (labels is not None):
        raise ValueError(f"labels are given exactly where classes matter; got among={among!r} and labels {'given' if labels is not None else 'missing'}")
