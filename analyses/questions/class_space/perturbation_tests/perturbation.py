"""How accurate is a model when image tokens are deleted in a given order? Curves and the areas under them (§22)."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from numpy.typing import NDArray
from torch import Tensor

from analyses.statistics.intervals import mean_intervals
from analyses.statistics.ranks import correct, rank
from hooked_vit import HookedViT

FOLD_TOKENS = 16384  # tokens that pass the network as one batch


def removal_grid(model: HookedViT, n: int, points: int = 20) -> list[int]:
    """How many of `n` image tokens are deleted at each step, from 0 on: all numbers where n is small.

    With more than 49 tokens there are `points` steps of equal size (rounded). The last step deletes them all, unless
    the readout averages image tokens: then one must stay.
    Raises ValueError for fewer than 2 points.
    """
    if points < 2:
        raise ValueError(f"a curve has at least 2 points; got points={points}")
    steps = n if n <= 49 else points
    most = n - ("patches" in model.cfg.sources)
    return sorted({min(round(k * n / steps), most) for k in range(steps + 1)})


def ranked(importance: Float[Tensor, "b n"], index: Int[Tensor, "b"], seed: int = 0) -> Int[Tensor, "b n"]:
    """Image tokens of each image from the least to the most important; equals in random order.

    >>> ranked(torch.tensor([[0.3, 0.1, 0.2]]), torch.tensor([0])).tolist()
    [[1, 2, 0]]

    `index` numbers the images, so that the same image has the same order in any batch.
    Raises ValueError for importances that are not finite.
    """
    if not importance.isfinite().all():
        raise ValueError("tokens are ordered by importances that are finite numbers; some are NaN or infinite")
    shuffled = permutations(importance.shape[1], index, seed)
    return shuffled.gather(1, importance.cpu().gather(1, shuffled).argsort(dim=1, stable=True))


def permutations(n: int, index: Int[Tensor, "b"], seed: int, *, shared: bool = False) -> Int[Tensor, "b n"]:
    """A random order of `n` tokens for every image, by its number; `shared`: one order for all images."""
    if shared:
        one = np.random.default_rng(seed).permutation(n)
        return torch.from_numpy(one).expand(len(index), -1)
    return torch.from_numpy(np.stack([np.random.default_rng([seed, i]).permutation(n) for i in index.tolist()]))


@torch.no_grad()
def right_after_removal(
    model: HookedViT,
    pixels: Float[Tensor, "b c h w"],
    labels: Int[Tensor, "b"],
    orders: Mapping[str, Int[Tensor, "b n"]],
    grid: list[int],
    *,
    fold_tokens: int = FOLD_TOKENS,
) -> dict[str, Bool[Tensor, "b steps"]]:
    """Whether each image is classified right with the first k tokens of each order deleted, for every k of the grid.

    >>> orders = {"random": permutations(36, batch.index, seed=0)}  # doctest: +SKIP
    >>> right_after_removal(model, pixels, labels, orders, grid=[0, 18, 36])["random"]  # doctest: +SKIP

    Tokens are deleted behind the position embedding and keep their positions; prefix tokens always stay. Orders of
    equal k pass the network together. `labels` are classes of the head.
    Raises ValueError for orders that are not permutations of the image tokens. Source: methods §14, §22.
    """
    layout = model.check_pixels(pixels)
    patches = layout.mask("patches").nonzero().flatten()
    prefix = (~layout.mask("patches")).nonzero().flatten()
    for name, order in orders.items():
        if order.shape != (len(pixels), len(patches)) or not (order.sort(1).values == torch.arange(len(patches))).all():
            raise ValueError(f"the order {name!r} is no permutation of the {len(patches)} image tokens of every image")
    stream = model(pixels, stop_at_layer=0)
    names = list(orders)
    found = {name: torch.zeros(len(pixels), len(grid), dtype=torch.bool) for name in names}

    def right(places: Int[Tensor, "m t"]) -> Bool[Tensor, "m"]:
        rows = torch.arange(len(places)) % len(pixels)
        x = stream[rows[:, None].to(stream.device), places.to(stream.device)]
        logits = model(x, start_at_layer=0, tokens=layout.keep(places)).float().cpu()
        return correct(rank(logits, labels.cpu()[rows]))

    for step, k in enumerate(grid):
        # in their native sequence, so that nothing but what is missing differs from an undisturbed run
        rest = [patches[order[:, k:].sort(1).values] for order in orders.values()]
        kept = [torch.cat([prefix.expand(len(pixels), -1), places], dim=1) for places in rest]
        if k in (0, len(patches)):
            same = right(kept[0])
            for name in names:
                found[name][:, step] = same
            continue
        at_once = max(1, fold_tokens // kept[0].numel())
        for first in range(0, len(names), at_once):
            part = names[first : first + at_once]
            together = right(torch.cat(kept[first : first + at_once]))
            for name, hits in zip(part, together.chunk(len(part)), strict=True):
                found[name][:, step] = hits
    return found


def area(values: NDArray[np.floating], fractions: NDArray[np.floating]) -> NDArray[np.floating]:
    """Area under curves [..., steps] by the trapezoid rule, over the fractions reached: a mean height.

    >>> float(area(np.array([1.0, 0.5, 0.0]), np.array([0.0, 0.5, 1.0])))
    0.5
    """
    return np.asarray(np.trapezoid(values, fractions, axis=-1) / (fractions[-1] - fractions[0]))


def published_area(accuracy: NDArray[np.floating], grid: list[int], n: int) -> NDArray[np.floating]:
    """The area as the code of Vilas et al. 2023 has it: Σ accuracy / (number of tokens · greatest accuracy).

    >>> float(published_area(np.array([0.9, 0.8, 0.4, 0.1]), [0, 1, 2, 3], 3).round(3))
    0.5

    `accuracy` is [..., steps]. The sum runs over 1 to n − 1 tokens deleted, so that n − 1 terms are divided by n, and
    neither end counts. On a coarser grid the number of terms + 1 stands for n; 0 where all are 0. Source: methods §22.
    """
    inner = accuracy[..., [0 < k < n for k in grid]]
    greatest = inner.max(-1)
    terms = inner.sum(-1) / np.where(greatest > 0, greatest, 1)
    return np.asarray(terms / (inner.shape[-1] + 1))


def around_published_area(hits: NDArray[np.floating], grid: list[int], n: int) -> tuple[float, float]:
    """The interval of the published area, which is no mean, from what it would be without each image [images, steps].

    Source: Efron & Tibshirani 1993, chapter 11 (jackknife); methods §28.
    """
    images = len(hits)
    if images < 2:
        return float("nan"), float("nan")
    whole = published_area(hits.mean(0), grid, n)
    without = published_area((hits.sum(0) - hits) / (images - 1), grid, n)
    return mean_intervals({0: whole + (images - 1) * (without.mean() - without)})[0]
