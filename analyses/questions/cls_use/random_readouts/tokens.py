"""What is put in the place of CLS, or beside it, where nothing is learned; and the distribution CLS itself has."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor

from analyses.probes.ridge import GramRidge
from analyses.questions.cls_use.random_readouts.streams import Stream
from interventions.vocabulary import generator_of

Token = Literal["own_cls", "mean_cls", "gaussian", "one_gaussian", "normal", "one_normal", "other_cls", "mean_patch"]
TOKENS: dict[Token, str] = {
    "own_cls": "the image's own CLS",
    "mean_cls": "the mean CLS",
    "gaussian": "noise with CLS's mean and covariance",
    "one_gaussian": "one draw, for all images, of noise with CLS's mean and covariance",
    "normal": "standard normal noise",
    "one_normal": "one draw, for all images, of standard normal noise",
    "other_cls": "another image's CLS",
    "mean_patch": "the mean of the image's own patches",
}
RANDOM: tuple[Token, ...] = ("gaussian", "one_gaussian", "normal", "one_normal", "other_cls")
"""Those that are drawn, anew for every seed; the others are what they are."""
CLOSED_FORM_SEED = 3_000_003  # the draws must not be those of a training or its evaluation
BATCH = 256  # images at a time where nothing is learned


class Arm(NamedTuple):
    """One token, in the place of CLS (`replace`: the token at CLS's place is read) or beside it (`augment`: the one
    that was added is read)."""

    placement: Literal["replace", "augment"]
    token: Token

    @property
    def name(self) -> str:
        """As in the frame and in `modes`: replace_mean_cls."""
        return f"{self.placement}_{self.token}"


ARMS: dict[str, Arm] = {
    arm.name: arm for arm in (Arm(placement, token) for placement in ("replace", "augment") for token in TOKENS)
}
BASE = "replace_own_cls"
"""The arm that changes nothing: the block's answer for the CLS it was given."""


@dataclass(frozen=True)
class ClsDistribution:
    """Mean and covariance, `factor` · `factor`ᵀ, of the CLS tokens that enter a block; k directions, greatest first."""

    mean: Float64[Tensor, "d"]
    factor: Float64[Tensor, "d k"]

    @classmethod
    def of(cls, streams: Sequence[Stream]) -> ClsDistribution:
        """That of all images of these streams, gathered batch by batch."""
        gathered = GramRidge(2)  # for its moments; there is one class
        for _, rows, x in images(streams):
            gathered.update({"cls": cls_of(streams[0], x)}, torch.zeros(len(rows), dtype=torch.int64))
        moments = gathered.moments("cls")
        values, vectors = torch.linalg.eigh(moments.scatter / gathered.n)
        # what rounding leaves of directions in which CLS does not vary is no variance
        real = values > max(float(values[-1]), 0.0) * len(values) * torch.finfo(torch.float64).eps
        if moments.is_constant(gathered.n):
            real = torch.zeros_like(real)
        return cls(moments.mean, (vectors[:, real] * values[real].sqrt()).flip(1))

    def draw(self, n: int, generator: torch.Generator) -> Float64[Tensor, "n d"]:
        """As many Gaussian tokens."""
        noise = torch.randn(n, self.factor.shape[1], generator=generator, dtype=torch.float64)
        return self.mean + noise @ self.factor.T


def images(streams: Sequence[Stream]) -> Iterator[tuple[int, Int[Tensor, "b"], Float[Tensor, "b t d"]]]:
    """(number of the stream, rows, what enters the block) of all images, a batch at a time, in their order."""
    for number, stream in enumerate(streams):
        for rows in torch.arange(len(stream.labels)).split(BATCH):
            yield number, rows, stream.batch(rows)[0]


def cls_of(stream: Stream, x: Float[Tensor, "b t d"]) -> Float[Tensor, "b d"]:
    """The CLS token of each image."""
    return x[:, stream.layout.mask("cls")].squeeze(1)


class Placed:
    """The tokens of one kind for every image, in the order in which images come; each seed draws its own.

    `donors` are the streams the CLS of other images come from. Where the images that are answered for are these very
    ones (`fitting`), each is given another one than its own.
    """

    def __init__(
        self, token: Token, distribution: ClsDistribution, donors: Sequence[Stream], *, seed: int, fitting: bool
    ) -> None:
        self.token, self.distribution, self.donors, self.fitting = token, distribution, donors, fitting
        # what is one for all images is the same while fitting and while measuring; other draws are not
        shared = fitting or token.startswith("one_")
        self.generator = generator_of(2 * seed + CLOSED_FORM_SEED + (not shared))
        self.given = 0
        self.total = sum(len(stream.labels) for stream in donors)
        if token == "other_cls" and fitting:
            # along a random ring of all images, nobody is given its own
            ring = torch.randperm(self.total, generator=self.generator)
            self.ring = torch.empty_like(ring).scatter_(0, ring, ring.roll(1))
        if token == "one_gaussian":
            self.one: Tensor = distribution.draw(1, self.generator)
        elif token == "one_normal":
            self.one = torch.randn(1, len(distribution.mean), generator=self.generator)

    def __call__(self, stream: Stream, rows: Int[Tensor, "b"]) -> Float[Tensor, "b d"]:
        """The tokens of the next images, which are these rows of `stream`."""
        n, d = len(rows), len(self.distribution.mean)
        self.given += n
        if self.token == "own_cls":
            return cls_of(stream, stream.batch(rows)[0])
        if self.token == "mean_patch":
            return stream.batch(rows)[0][:, stream.layout.mask("patches")].mean(1)
        if self.token == "mean_cls":
            return self.distribution.mean.expand(n, d)
        if self.token == "gaussian":
            return self.distribution.draw(n, self.generator)
        if self.token == "normal":
            return torch.randn(n, d, generator=self.generator)
        if self.token == "other_cls":
            return self._others(n, d)
        return self.one.expand(n, d)

    def _others(self, n: int, d: int) -> Float[Tensor, "n d"]:
        if self.fitting:
            wanted = self.ring[self.given - n : self.given]
        else:
            wanted = torch.randint(self.total, (n,), generator=self.generator)
        found, first = torch.empty(n, d), 0
        for stream in self.donors:
            mine = (first <= wanted) & (wanted < first + len(stream.labels))
            found[mine] = cls_of(stream, stream.batch(wanted[mine] - first)[0]).float()
            first += len(stream.labels)
        return found
