"""What is trained: where the token comes from, and how the block's answer is decoded."""

from __future__ import annotations

from itertools import pairwise
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from analyses.questions.cls_use.random_readouts.frozen import FrozenBlock

Decoder = Literal["linear", "mlp"]
DECODERS = ("linear", "mlp")
NOISE, WIDTH = 768, 512


class RandomToken(nn.Module):
    """s = G(z), z normal [noise]: three hidden layers of 512 with leaky ReLU, then to the model's width.

    `batch_norm` puts a batch norm behind each hidden layer, as the note had it at first. methods §6.
    """

    def __init__(self, d_model: int, *, batch_norm: bool = False) -> None:
        super().__init__()
        hidden: list[nn.Module] = []
        for n_in in (NOISE, WIDTH, WIDTH):
            hidden += [nn.Linear(n_in, WIDTH), *[nn.BatchNorm1d(WIDTH)] * batch_norm, nn.LeakyReLU(0.01)]
        self.layers = nn.Sequential(*hidden, nn.Linear(WIDTH, d_model))

    def forward(self, n: int, generator: torch.Generator) -> Float[Tensor, "n d"]:
        # drawn on the CPU, so that every device sees the same noise
        noise = torch.randn(n, NOISE, generator=generator, device="cpu")
        return self.layers(noise.to(next(self.parameters()).device))


class FixedToken(nn.Module):
    """One learned token for all images, normal at first."""

    def __init__(self, d_model: int) -> None:
        super().__init__()
        self.token = nn.Parameter(torch.randn(d_model))

    def forward(self, n: int, generator: torch.Generator) -> Float[Tensor, "n d"]:
        return self.token.expand(n, -1)


def make_decoder(kind: Decoder, d_model: int, n_classes: int) -> nn.Module:
    """Class scores of the block's raw output, no final norm: one linear layer, or two hidden layers of 512.

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
        self, block: FrozenBlock, x: Float[Tensor, "b t d"], generator: torch.Generator
    ) -> Float[Tensor, "b c"]:
        token = None if self.token is None else self.token(len(x), generator)
        return self.decoder(block(x, token).float())
