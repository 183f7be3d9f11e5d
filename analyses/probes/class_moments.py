"""What a ridge regression needs of its data, gathered batch by batch, and two ways to choose its penalty from that."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from jaxtyping import Float64, Int, Int64
from torch import Tensor

from hooked_vit.config.showing import some

PER_DECADE, FIRST, FURTHEST = 4, 6, 10
"""Penalties to a decade, and how many decades from the features' mean eigenvalue they go: at first, and at most."""
EDGE = "the best penalty is at the edge of the grid"


@dataclass(eq=False)
class ClassMoments:
    """Of one site: the features' mean, their scatter about it, and per class their summed deviation from it.

    Classes of several targets stand one target behind the other: k targets of c classes are k·c rows.
    """

    mean: Float64[Tensor, "d"]
    scatter: Float64[Tensor, "d d"]
    class_sums: Float64[Tensor, "kc d"]

    @classmethod
    def empty(cls, rows: int, like: Float64[Tensor, "b d"]) -> ClassMoments:
        """Of no image yet."""
        d = like.shape[1]
        return cls(like.new_zeros(d), like.new_zeros(d, d), like.new_zeros(rows, d))

    def copy(self) -> ClassMoments:
        """The same numbers, to change."""
        return ClassMoments(self.mean.clone(), self.scatter.clone(), self.class_sums.clone())

    def add_rows(
        self, x: Float64[Tensor, "b d"], rows: Int[Tensor, "b k"], mine: Int64[Tensor, "k c"], theirs: Tensor
    ) -> None:
        """Take in images whose classes are `rows` of `class_sums`; `mine` and `theirs` count images per class."""
        mean = x.mean(0)
        centred = x - mean
        self.scatter.addmm_(centred.T, centred)
        for of_target in rows.to(x.device).unbind(1):
            self.class_sums.index_add_(0, of_target, centred)
        self._move_mean(mean, mine, theirs)

    def add_moments(self, other: ClassMoments, mine: Int64[Tensor, "k c"], theirs: Int64[Tensor, "k c"]) -> None:
        """Take in what another has gathered."""
        self.scatter += other.scatter.to(self.scatter)
        self.class_sums += other.class_sums.to(self.class_sums)
        self._move_mean(other.mean.to(self.mean), mine, theirs)

    def _move_mean(self, mean: Float64[Tensor, "d"], mine: Tensor, theirs: Tensor) -> None:
        """Refer what was gathered about two means, of `mine` and `theirs` images per class, to their common mean."""
        a, b = int(mine[0].sum()), int(theirs[0].sum())
        step = mean - self.mean
        self.scatter.addr_(step, step, alpha=a * b / (a + b))
        common = self.mean + step * (b / (a + b))
        self.class_sums += torch.outer(mine.flatten().to(step), self.mean - common)
        self.class_sums += torch.outer(theirs.flatten().to(step), mean - common)
        self.mean = common

    @property
    def mean_eigenvalue(self) -> float:
        """Of the scatter: the unit in which a penalty is small or large, whatever the scale of the features."""
        return float(self.scatter.trace()) / len(self.mean)

    def is_constant(self, n: int) -> bool:
        """Whether the features vary by less than float32, in which models run, can tell."""
        resolution = torch.finfo(torch.float32).eps
        return bool(self.scatter.trace() / n <= (resolution**2) * self.mean.square().sum())


@dataclass(eq=False)
class Directions:
    """The eigenvectors of a site's scatter, and what the targets have in common with each: all penalties in one go."""

    values: Float64[Tensor, "r"]
    vectors: Float64[Tensor, "d r"]
    projected: Float64[Tensor, "r k c"]
    n: int

    @classmethod
    def of(cls, moments: ClassMoments, n: int, n_targets: int, components: int | None = None) -> Directions:
        """All directions the data have, or the `components` of greatest variance."""
        values, vectors = torch.linalg.eigh(moments.scatter)
        # Directions the data does not have come out as rounding noise, and a criterion would count them as fitted.
        real = values > values[-1] * max(n, len(values)) * torch.finfo(torch.float64).eps
        values, vectors = values[real], vectors[:, real]
        if components is not None:
            values, vectors = values[-components:], vectors[:, -components:]
        # XᵀY for centred X and targets ±1: what the class adds, minus what the others add, and all add up to 0.
        projected = vectors.T @ (2 * moments.class_sums.T)
        return cls(values, vectors, projected.unflatten(1, (n_targets, -1)), n)

    def weight(self, target: int, alpha: float) -> Float64[Tensor, "c d"]:
        """The ridge weights of a target at a penalty."""
        return (self.vectors @ (self.projected[:, target] / (self.values + alpha)[:, None])).T.contiguous()

    def gcv(self, target: int, grid: Float64[Tensor, "a"], target_scatter: float) -> Float64[Tensor, "a"]:
        """Generalised cross-validation error of each penalty, but for a factor n.

        Written so that nothing cancels: what least squares leaves over, plus what the penalty adds to it.
        """
        explained = self.projected[:, target].square().sum(1) / self.values
        spare = self.n - 1 - len(self.values)
        left_over = max(0.0, target_scatter - float(explained.sum())) if spare > 0 else 0.0
        grid = grid.to(self.values)
        shrunk = grid[:, None] / (self.values + grid[:, None])
        residual = left_over + (shrunk.square() * explained).sum(1)
        freedom = max(spare, 0) + shrunk.sum(1)
        return residual / freedom.square()

    def held_out_error(
        self,
        target: int,
        grid: Float64[Tensor, "a"],
        moved: Float64[Tensor, "d"],
        other: ClassMoments,
        other_sums: Float64[Tensor, "c d"],
        other_counts: Int64[Tensor, "c"],
        target_step: Float64[Tensor, "c"],
    ) -> Float64[Tensor, "a"]:
        """Squared error on other images of each penalty, but for a constant, from those images' moments alone.

        `moved` is how far their mean lies from ours, `target_step` how far the targets' mean does.
        """
        scatter = self.vectors.T @ other.scatter.to(self.vectors) @ self.vectors
        in_common = self.vectors.T @ (2 * other_sums.T.to(self.vectors))
        offset = self.vectors.T @ moved
        n = int(other_counts.sum())
        errors = []
        for alpha in grid.to(self.values):
            weight = self.projected[:, target] / (self.values + alpha)[:, None]
            within = (weight * (scatter @ weight)).sum() - 2 * (weight * in_common).sum()
            errors.append(within + n * (target_step - offset @ weight).square().sum())
        return torch.stack(errors)


class Penalty(NamedTuple):
    """The one that was chosen, and what a reader must know of the choice ("" if nothing)."""

    alpha: float
    note: str


def choose_penalty(
    errors: Callable[[Float64[Tensor, "a"]], Float64[Tensor, "a"]],
    unit: float,
    given: Float64[Tensor, "a"] | None = None,
) -> Penalty:
    """The penalty with the least error: of those `given`, or of a grid about `unit` that widens until it is inside.

    >>> choose_penalty(lambda alpha: (alpha.log10() - 6) ** 2, unit=0.01).alpha
    1000000.0
    >>> choose_penalty(lambda alpha: alpha, unit=1.0, given=torch.tensor([1.0, 2.0]).double()).note
    'the best penalty is at the edge of the grid: 1, the least of those given'

    `errors` are those of some penalties. `unit` is the mean eigenvalue of the features' scatter.
    """
    if given is not None:
        alpha = float(given[int(errors(given).argmin())])
        ends = {float(given.min()): "least", float(given.max()): "greatest"}
        at_end = len(given) > 1 and alpha in ends
        return Penalty(alpha, f"{EDGE}: {alpha:g}, the {ends[alpha]} of those given" if at_end else "")
    low, high, limit = -FIRST * PER_DECADE, FIRST * PER_DECADE, FURTHEST * PER_DECADE
    found = dict(_tried(errors, unit, range(low, high + 1)))
    while True:
        best = min(found, key=lambda k: found[k])
        if best == low > -limit:
            more, low = range(low - PER_DECADE, low), low - PER_DECADE
        elif best == high < limit:
            more, high = range(high + 1, high + PER_DECADE + 1), high + PER_DECADE
        else:
            break
        found |= _tried(errors, unit, more)
    end = {-limit: "least", limit: "greatest"}.get(best)
    note = f"{EDGE}: the {end} that is tried, {10.0 ** (best / PER_DECADE):g} times the features' mean eigenvalue"
    return Penalty(unit * 10 ** (best / PER_DECADE), note if end else "")


def _tried(errors: Callable[[Tensor], Tensor], unit: float, steps: range) -> dict[int, float]:
    grid = unit * 10 ** (torch.tensor(steps, dtype=torch.float64) / PER_DECADE)
    return dict(zip(steps, errors(grid).tolist(), strict=True))


def given_penalties(alphas: float | Sequence[float] | None) -> Float64[Tensor, "a"] | None:
    """One penalty or several as a grid; None stands for one that follows the features.

    Raises ValueError for none at all, and for one that is not above 0.
    """
    if alphas is None:
        return None
    grid = torch.tensor([alphas] if isinstance(alphas, (int, float)) else list(alphas), dtype=torch.float64)
    if grid.numel() == 0 or not bool((torch.isfinite(grid) & (grid > 0)).all()):
        raise ValueError(f"a ridge penalty is a number above 0; got {grid.tolist()}")
    return grid


def sites_by_note(probes: Mapping[str, Any]) -> dict[str, str]:
    """What is noted of probes -> the sites it is noted of, at most five of them by name."""
    found: dict[str, list[str]] = {}
    for site, probe in probes.items():
        if probe.note:
            found.setdefault(probe.note, []).append(site)
    return {note: some(sites) for note, sites in found.items()}
