"""TextSpan: which few texts span what a head says (Gandelsman, Efros & Steinhardt 2024, algorithm 1)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float64
from torch import Tensor

NOTHING = 1e-10
"""Of a text's squared length: what is left of one that was spanned already, but for rounding."""


class Span(NamedTuple):
    """Texts in the order they were chosen, and the share of the outputs' variance that the first k explain."""

    texts: list[int]
    explained: list[float]


def text_span(
    outputs: Float64[Tensor, "n e"], texts: Float64[Tensor, "m e"], k: int, *, rank: int | None = None
) -> Span:
    """The k texts that greedily explain most of the variance of a head's outputs over images.

    >>> outputs = torch.tensor([[3.0, 0.0], [-3.0, 0.0], [0.0, 1.0], [0.0, -1.0]], dtype=torch.float64)
    >>> text_span(outputs, torch.eye(2, dtype=torch.float64), 2)
    Span(texts=[0, 1], explained=[0.9, 1.0])

    Texts are projected onto the span of the outputs (of their first `rank` singular directions). Then, step by step,
    the text along which the centred outputs vary most is taken, and its direction is removed from outputs and from
    texts. Lengths count, as in the source: of two texts of one direction the longer is taken. Fewer than k are found
    where no text, or no variance, is left. Raises ValueError for k or rank below 1.
    """
    if k < 1 or (rank is not None and rank < 1):
        raise ValueError(f"k and rank are numbers of directions, at least 1; got k={k} and rank={rank}")
    _, values, basis = torch.linalg.svd(outputs, full_matrices=False)
    kept = basis[values > NOTHING**0.5 * values[0]][:rank]
    texts = texts @ kept.T @ kept
    least = NOTHING * texts.square().sum(1).max()
    rest = outputs - outputs.mean(0)
    whole = float(rest.square().sum())
    found = Span([], [])
    for _ in range(min(k, len(texts))):
        best = int((rest @ texts.T).square().sum(0).argmax())
        along, length = texts[best], texts[best].square().sum()
        if whole == 0 or length <= least or (rest @ along).abs().max() == 0:
            break
        rest = rest - (rest @ along / length)[:, None] * along
        texts = texts - (texts @ along / length)[:, None] * along
        found.texts.append(best)
        found.explained.append(1 - float(rest.square().sum()) / whole)
    return found
