"""Ranks and rates: pure functions, each with the tie rule or formula it uses."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Bool, Float, Float64, Int
from numpy.typing import ArrayLike
from scipy.stats import rankdata
from torch import Tensor

from analyses.statistics.draws import finite


def rank(scores: Float[Tensor, "*b c"], labels: Int[Tensor, "*b"]) -> Float64[Tensor, "*b"]:
    """0-based position of the true class in descending order of score; classes that tie share their middle position.

    >>> rank(torch.tensor([[3.0, 1.0, 2.0], [1.0, 1.0, 0.0]]), torch.tensor([2, 0])).tolist()
    [1.0, 0.5]

    pos = #{k : p_k > p_c} + ½·#{k ≠ c : p_k = p_c}, so a model whose scores all tie is neither right nor wrong.
    Raises ValueError for scores that hold NaN, labels that are no class, and shapes that do not belong together.
    Source: methods §0.2 (Vilas et al. 2023 use an argsort, arbitrary on ties).
    """
    if scores.shape[:-1] != labels.shape:
        raise ValueError(
            f"every row of scores needs one label: got scores {tuple(scores.shape)} and labels {tuple(labels.shape)}"
        )
    # Every comparison with NaN is false, which would count as the best rank.
    if bad := int(torch.isnan(scores).any(-1).sum()):
        raise ValueError(f"a rank needs scores that are numbers: {bad} rows hold NaN; look for it in weights or pixels")
    outside = (labels < 0) | (labels >= scores.shape[-1])
    if outside.any():
        raise ValueError(
            f"labels are class numbers from 0 to {scores.shape[-1] - 1}; got {labels[outside].unique().tolist()[:5]}"
        )
    true = scores.gather(-1, labels.long().to(scores.device).unsqueeze(-1))
    above = (scores > true).sum(-1).double()
    ties = (scores == true).sum(-1).double() - 1
    return above + ties / 2


def correct(pos: Float[Tensor, "*b"]) -> Bool[Tensor, "*b"]:
    """Whether the true class came first and alone: a position below one half.

    >>> correct(torch.tensor([0.0, 0.5, 1.0])).tolist()
    [True, False, False]

    Source: methods §0.2.
    """
    return pos < 0.5


def accuracy(scores: Float[Tensor, "b c"], labels: Int[Tensor, "b"]) -> float:
    """Share of rows, 0 to 1, whose true class has the one highest score.

    >>> accuracy(torch.tensor([[3.0, 1.0], [1.0, 1.0]]), torch.tensor([0, 0]))
    0.5

    Raises ValueError for no rows at all and for what `rank` refuses. Source: methods §0.2.
    """
    pos = rank(scores, labels)
    if pos.numel() == 0:
        raise ValueError("an accuracy needs at least one image; got none")
    return correct(pos).double().mean().item()


def identifiability(pos: Float[Tensor, "*b"], n_classes: int) -> Float64[Tensor, "*b"]:
    """r = 1 − pos / C for each position: 1 where the true class comes first, ½ + 1/(2C) on average by chance.

    >>> identifiability(torch.tensor([0.0, 5.0]), n_classes=10).tolist()
    [1.0, 0.5]

    Its least value is 1/C, not 0. Source: Vilas et al. 2023, section 3; methods §7.
    """
    return 1 - pos.double() / n_classes


def chance(n_classes: int) -> float:
    """Accuracy, 0 to 1, of guessing among `n_classes` classes at random.

    >>> chance(10)
    0.1

    Raises ValueError for fewer than one class.
    """
    if n_classes < 1:
        raise ValueError(f"chance needs at least one class; got {n_classes}")
    return 1 / n_classes


def shuffle_floor(accuracy: float, batch_size: int, chance: float) -> float:
    """Accuracy to expect when all class information is dealt out at random within a batch, fixed points included.

    >>> round(shuffle_floor(0.8, 128, 0.001), 4)
    0.0072

    acc/B + (1 − 1/B)·chance: one image in B keeps what is its own. After a derangement the floor is `chance` itself.
    Raises ValueError for a batch size below 1. Source: methods §2.
    """
    if batch_size < 1:
        raise ValueError(f"a batch holds at least one image; got batch_size={batch_size}")
    return accuracy / batch_size + (1 - 1 / batch_size) * chance


def rank_correlation(a: ArrayLike, b: ArrayLike) -> float:
    """Spearman's correlation of two lists of values, ties sharing their middle rank; NaN where one is constant.

    >>> rank_correlation([0.1, 0.2, 0.9], [10, 20, 30])
    1.0

    Raises ValueError for lists of different length, fewer than two values and values that are not finite.
    """
    first, second = finite(a, "a rank correlation"), finite(b, "a rank correlation")
    if len(first) != len(second) or len(first) < 2:
        raise ValueError(f"a rank correlation needs two lists of n ≥ 2 values; got {len(first)} and {len(second)}")
    ranks = [rankdata(values) for values in (first, second)]
    if any(np.ptp(r) == 0 for r in ranks):
        return float("nan")
    return float(np.corrcoef(*ranks)[0, 1].round(12))
