"""Giving images each other's tokens: the content stays on the manifold, only whose it is changes."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Int
from torch import Tensor

from hooked_vit import HookedViT
from hooked_vit.tokens import TokenLayout, Tokens
from interventions.apply import note
from interventions.core import Hooks, intervention
from interventions.editing import edit_site
from interventions.vocabulary import STREAM, Where, check_choice, generator_of, layer_of

AMONG = ("batch", "others", "same_class", "other_classes")
DONORS = ("others", "other_classes")
BY_CLASS = ("same_class", "other_classes")
Labels = Sequence[int] | Int[Tensor, "b"] | None


@intervention
def shuffle_cls(
    model: HookedViT, layer: int, seed: int = 0, among: str = "batch", labels: Labels = None, where: Where = True
) -> Hooks:
    """Give every image another image's CLS token after block `layer`.

    >>> shuffle_cls(layer=8, seed=0)
    shuffle_cls(layer=8)

    `among` draws from the whole "batch" (fixed points happen), from "others" (a derangement), or with `labels` from
    the "same_class" or from "other_classes". Every forward pass draws anew from a generator seeded by `seed`; the
    permutations are in `run.record`. methods: Vilas et al. 2023; lab note 1, orange curve.
    """
    return _shuffled(model, "shuffle_cls", layer, "cls", "resid_post", seed, among, labels, where)


@intervention
def shuffle_tokens(
    model: HookedViT,
    layer: int,
    tokens: Tokens,
    seed: int = 0,
    among: str = "batch",
    labels: Labels = None,
    site: str = "resid_post",
    where: Where = True,
) -> Hooks:
    """Give every image another image's tokens of a role after block `layer`, or at another site of it.

    >>> shuffle_tokens(layer=8, tokens="registers", among="others")
    shuffle_tokens(layer=8, tokens='registers', among='others')

    All tokens named come from the same other image, each to its own place. The rest is as in `shuffle_cls`.
    """
    return _shuffled(model, "shuffle_tokens", layer, tokens, site, seed, among, labels, where)


@intervention
def resample_tokens(
    model: HookedViT,
    layer: int,
    tokens: Tokens,
    seed: int = 0,
    among: str = "others",
    labels: Labels = None,
    site: str = "resid_post",
    where: Where = True,
) -> Hooks:
    """Set the tokens of every image to those of another image of the batch, drawn at random for each.

    >>> resample_tokens(layer=8, tokens="cls")
    resample_tokens(layer=8, tokens='cls')

    Unlike a shuffle an image may give its tokens twice, so any class balance will do. `among` is "others", or with
    `labels` "other_classes". The donors are in `run.record`. Chan et al. 2022 (resampling ablation).
    """
    known = _check_among(among, labels, DONORS)
    generator = generator_of(seed)

    def draw(n: int) -> Tensor:
        allowed = ~torch.eye(n, dtype=torch.bool, device="cpu")
        if known is not None:
            _check_labels(known, n)
            allowed = known[:, None] != known
        if not allowed.any(1).all():
            raise ValueError(f"of {n} images some have none to take tokens from, among={among!r}; mix the batch better")
        return torch.multinomial(allowed.float(), 1, generator=generator).flatten()

    return _exchanged(model, "resample_tokens", layer, tokens, site, draw, where)


def _shuffled(
    model: HookedViT,
    name: str,
    layer: int,
    tokens: Tokens,
    site: str,
    seed: int,
    among: str,
    labels: Labels,
    where: Where,
) -> Hooks:
    known = _check_among(among, labels, AMONG)
    generator = generator_of(seed)
    return _exchanged(model, name, layer, tokens, site, lambda n: draw_permutation(n, generator, among, known), where)


def _exchanged(
    model: HookedViT, name: str, layer: int, tokens: Tokens, site: str, draw: Callable[[int], Tensor], where: Where
) -> Hooks:
    """Image i gets the tokens of image draw(n)[i]."""

    def from_others(act: Tensor) -> Tensor:
        _check_same_places(model.tokens, tokens)
        order = draw(len(act))
        note(name, order)
        return act[order.to(act.device)]

    return edit_site(model, site, layer_of(model, layer), from_others, tokens=tokens, where=where, sites=STREAM)


def draw_permutation(
    n: int, generator: torch.Generator, among: str = "batch", labels: Int[Tensor, "n"] | None = None
) -> Int[Tensor, "n"]:
    """A random permutation under one of the rules of AMONG; image i receives image order[i].

    Raises ValueError where no such permutation exists: one image alone, or a class that fills more than half of them.
    """
    if n < 2:
        raise ValueError("one image alone has no other to take a token from; use a larger batch")
    if among == "batch":
        return torch.randperm(n, generator=generator, device="cpu")
    if among == "others":
        return _derangement(n, generator)
    assert labels is not None
    _check_labels(labels, n)
    mixed = torch.randperm(n, generator=generator, device="cpu")
    if among == "same_class":
        order = torch.arange(n, device="cpu")
        for label in labels.unique():
            order[labels == label] = mixed[labels[mixed] == label]
        return order
    return _across_classes(mixed, labels)


def _derangement(n: int, generator: torch.Generator) -> Tensor:
    while True:  # a random permutation is a derangement with probability 1/e
        order = torch.randperm(n, generator=generator, device="cpu")
        if not (order == torch.arange(n, device="cpu")).any():
            return order


def _across_classes(mixed: Tensor, labels: Tensor) -> Tensor:
    """Line images up by class and hand tokens on by the size of the largest class: nobody receives his own class."""
    by_class = mixed[labels[mixed].argsort(stable=True)]
    largest = int(labels.unique(return_counts=True)[1].max())
    if 2 * largest > len(labels):
        raise ValueError(
            f"one class holds {largest} of {len(labels)} images: they cannot all receive a token of another class; "
            "mix the batch better"
        )
    order = torch.empty_like(by_class)
    order[by_class] = by_class.roll(largest)
    return order


def _check_among(among: str, labels: Labels, choices: Sequence[str]) -> Tensor | None:
    check_choice(among, choices, "among")
    if (among in BY_CLASS) != (labels is not None):
        given = "given" if labels is not None else "missing"
        raise ValueError(f"labels are given exactly where classes matter; got among={among!r} and labels {given}")
    known = None if labels is None else torch.as_tensor(labels, device="cpu")
    if known is not None and (known.ndim != 1 or known.is_floating_point()):
        raise ValueError(f"labels are one class number per image [b], got {tuple(known.shape)} of {known.dtype}")
    return known


def _check_labels(labels: Tensor, n: int) -> None:
    if len(labels) != n:
        raise ValueError(f"there are {len(labels)} labels for {n} images")


def _check_same_places(layout: TokenLayout, tokens: Tokens) -> None:
    """Images can exchange tokens only where they hold the same ones at the same places."""
    if layout.ragged:
        here = layout.mask(tokens)
        ids = layout.ids.where(here, -2)
        if not (ids == ids[:1]).all():
            raise ValueError(f"images hold different {tokens!r} tokens since a removal, so they cannot exchange them")
