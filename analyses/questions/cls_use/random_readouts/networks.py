"""What is trained: where the token comes from, and how the block's answer is decoded."""

from __future__ import annotations

from itertools import pairwise
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from analyses.questions.cls_use.random_readouts.frozen import FrozenBlock, Looked
from analyses.questions.cls_use.random_readouts.tokens import ClsDistribution

Decoder = Literal["linear", "mlp"]
DECODERS = ("linear", "mlp")
NOISE, WIDTH = 768, 512
DRAWN = 8192  # noise that tells how the hidden layer varies


class RandomToken(nn.Module):
    """s = G(z), z normal [noise]: three hidden layers of 512 with leaky ReLU, then to the model's width.

    `batch_norm` puts a batch norm behind each hidden layer, as the note had it at first; `start_at` makes s at first
    what CLS is. methods §6.
    """

    def __init__(self, d_model: int, *, batch_norm: bool = False) -> None:
        super().__init__()
        hidden: list[nn.Module] = []
        for n_in in (NOISE, WIDTH, WIDTH):
            hidden += [nn.Linear(n_in, WIDTH), *[nn.BatchNorm1d(WIDTH)] * batch_norm, nn.LeakyReLU(0.01)]
        self.layers = nn.Sequential(*hidden, nn.Linear(WIDTH, d_model))

    @torch.no_grad()
    def start_at(self, cls: ClsDistribution, generator: torch.Generator) -> RandomToken:
        """Set the last layer so that s has CLS's mean and covariance, as far as this many draws of z tell.

        Of more directions than the hidden layer has, those of greatest variance.
        """
        last = self.layers[-1]
        assert isinstance(last, nn.Linear)
        hidden: Tensor = self.layers[:-1](torch.randn(DRAWN, NOISE, generator=generator)).double()
        mean = hidden.mean(0)
        values, vectors = torch.linalg.eigh((hidden - mean).T @ (hidden - mean) / len(hidden))
        k = min(cls.factor.shape[1], WIDTH)
        whiten = (vectors / values.sqrt()).flip(1)[:, :k]  # directions in which the hidden layer varies most
        weight = cls.factor[:, :k].cpu() @ whiten.T
        last.weight.copy_(weight)
        last.bias.copy_(cls.mean.cpu() - weight @ mean)
        return self

    def forward(self, n: int, generator: torch.Generator) -> Float[Tensor, "n d"]:
        # drawn on the CPU, so that every device sees the same noise
        noise = torch.randn(n, NOISE, generator=generator, device="cpu")
        return self.layers(noise.to(next(self.parameters()).device))


class FixedToken(nn.Module):
    """One learned token for all images, normal at first unless a `start` is given."""

    def __init__(self, d_model: int, start: Float[Tensor, "d"] | None = None) -> None:
        super().__init__()
        self.token = nn.Parameter(torch.randn(d_model) if start is None else start.float().clone())

    def forward(self, n: int, generator: torch.Generator) -> Float[Tensor, "n d"]:
        return self.token.expand(n, -1)


class Standardise(nn.Module):
    """(x − mean) / spread per unit, with numbers that are not learned; a unit that does not vary becomes 0."""

    mean: Tensor
    per_spread: Tensor

    def __init__(self, mean: Float[Tensor, "d"], spread: Float[Tensor, "d"]) -> None:
        super().__init__()
        varies = spread > torch.finfo(torch.float32).eps * mean.abs()
        self.register_buffer("mean", mean.float())
        self.register_buffer("per_spread", torch.where(varies, 1 / spread, 0).float())

    def forward(self, x: Float[Tensor, "b d"]) -> Float[Tensor, "b d"]:
        return (x - self.mean) * self.per_spread


def make_decoder(kind: Decoder, d_model: int, n_classes: int) -> nn.Module:
    """Class scores of the block's output, no final norm: one linear layer, or two hidden layers of 512.

    Raises ValueError for another kind.
    """
    if kind not in DECODERS:
        raise ValueError(f"a decoder is one of {', '.join(DECODERS)}; got {kind!r}")
    if kind == "linear":
        return nn.Linear(d_model, n_classes)
    sizes = (d_model, WIDTH, WIDTH)
    hidden = [layer for a, b in pairwise(sizes) for layer in (nn.Linear(a, b), nn.ReLU())]
    return nn.Sequential(*hidden, nn.Linear(WIDTH, n_classes))


class TokenReadout(nn.Module):
    """The trained parts around a frozen block: a token's source (None: the block's own CLS) and a decoder."""

    def __init__(self, token: RandomToken | FixedToken | None, decoder: nn.Module) -> None:
        super().__init__()
        self.token, self.decoder = token, decoder

    def forward(
        self, block: FrozenBlock, x: Float[Tensor, "b t d"] | Looked, generator: torch.Generator
    ) -> Float[Tensor, "b c"]:
        token = None if self.token is None else self.token(len(x), generator)
        return self.decoder(block(x, token).float())
