"""Ridge probes for many sites from one pass over the data; memory does not grow with the number of images.

What a ridge regression needs of its data is the mean and the scatter of the features and, for targets that are +1 for
an image's class and −1 for every other, the features' sum per class. All three are gathered batch by batch in float64
about a running mean (Chan, Golub & LeVeque 1983): a residual stream has directions whose mean is a thousand times
their spread, and raw second moments would lose the spread to rounding.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Float64, Int, Int64
from torch import Tensor
from tqdm.auto import tqdm

ALPHAS = tuple(10 ** (k / 4) for k in range(-4, 13))
"""Penalties tried by default: 0.1 to 1000, four to a decade (methods §1); absolute, not divided by the image count."""


@dataclass(frozen=True, eq=False)
class RidgeProbe:
    """A fitted one-vs-rest ridge classifier: column c of its scores is class c.

    `classes` are those met in training. Any other has weight 0 and bias −1 (its target was −1 throughout), and is never
    predicted: scores sum to 2 − C over the C classes met, so the best of them is above −1.
    `note` says what a reader must know of the fit ("" if nothing).
    """

    weight: Float64[Tensor, "c d"]
    bias: Float64[Tensor, "c"]
    classes: Int64[Tensor, "seen"]
    alpha: float
    n: int
    note: str = ""

    def scores(self, x: Float[Tensor, "*b d"]) -> Float64[Tensor, "*b c"]:
        """One score per class, about −1 to 1; float64, on the probe's device."""
        return x.to(self.weight) @ self.weight.T + self.bias

    def predict(self, x: Float[Tensor, "*b d"]) -> Int64[Tensor, "*b"]:
        """The class with the highest score; of several, the lowest number."""
        return self.scores(x).argmax(-1)

    def to_linear(self, dtype: torch.dtype = torch.float32) -> tuple[Float[Tensor, "c d"], Float[Tensor, "c"]]:
        """(weight, bias) as `torch.nn.functional.linear` takes them, for use as a model's head."""
        return self.weight.to(dtype), self.bias.to(dtype)


class GramRidge:
    """Gathers what ridge probes need, for any number of sites at once.

    >>> ridge = GramRidge(n_classes=2)
    >>> ridge.update({"blocks.0": torch.tensor([[0.0], [1.0], [2.0], [3.0]])}, torch.tensor([0, 0, 1, 1]))
    >>> ridge.fit(alphas=0.1)["blocks.0"].predict(torch.tensor([[0.4], [2.9]])).tolist()
    [0, 1]

    A site holds d² + C·d numbers of 8 bytes, on the device its features come from. Sites may differ in width d, but
    every update brings all of them.
    Raises ValueError for fewer than two classes. Source: methods §1 (the lab notes' probes).
    """

    def __init__(self, n_classes: int) -> None:
        if n_classes < 2:
            raise ValueError(f"a probe tells at least 2 classes apart; got n_classes={n_classes}")
        self.n_classes = n_classes
        self.counts: Int64[Tensor, "c"] = torch.zeros(n_classes, dtype=torch.int64)
        self._sites: dict[str, _Moments] = {}

    @property
    def n(self) -> int:
        """Images gathered so far."""
        return int(self.counts.sum())

    @property
    def sites(self) -> list[str]:
        """Names of the sites, in the order of the first update."""
        return list(self._sites)

    def update(self, features: Mapping[str, Float[Tensor, "b _"]], labels: Int[Tensor, "b"]) -> None:
        """Take in a batch: `features[site]` is [b, d], `labels` is [b] with classes 0..n_classes − 1.

        Raises ValueError, leaving everything as it was, for sites or widths other than before, rows that do not match
        the labels, labels that are no class, and features that hold NaN or infinity.
        """
        self._check(features, labels)
        if len(labels) == 0:
            return
        counts = torch.bincount(labels.long().cpu(), minlength=self.n_classes)
        for site, x in features.items():
            # No float64 on Apple's GPUs.
            x = x.detach().to("cpu" if x.device.type == "mps" else x.device).double()
            moments = self._sites.get(site)
            if moments is None:
                moments = self._sites[site] = _Moments.empty(self.n_classes, x)
            moments.add_rows(x, labels, self.counts, counts)
        self.counts += counts

    def merge(self, other: GramRidge) -> GramRidge:
        """What one accumulator would hold that had seen the images of both; neither is changed.

        Raises ValueError for different classes, sites or widths.
        """
        if self.n_classes != other.n_classes:
            raise ValueError(
                f"only probes of the same classes merge; got {self.n_classes} and {other.n_classes} classes"
            )
        merged = GramRidge(self.n_classes)
        merged.counts = self.counts + other.counts
        if self.n and other.n:
            mine = {site: m.mean.shape for site, m in self._sites.items()}
            theirs = {site: m.mean.shape for site, m in other._sites.items()}
            if mine != theirs:
                raise ValueError(f"only probes of the same sites and widths merge; got {mine} and {theirs}")
        for site in self.sites or other.sites:
            parts = [(r._sites[site], r.counts) for r in (self, other) if r.n]
            first, counts = parts[0]
            merged._sites[site] = first.copy()
            for more, more_counts in parts[1:]:
                merged._sites[site].add_moments(more, counts, more_counts)
        return merged

    def fit(self, alphas: float | Sequence[float] = ALPHAS) -> dict[str, RidgeProbe]:
        """One probe per site; of several penalties, the one with the least generalised cross-validation error.

        Minimises ‖XW + 1bᵀ − Y‖² + α‖W‖², intercept not penalised. Per site one symmetric eigendecomposition
        XᵀX = VΛVᵀ (X centred) serves the whole grid. The criterion, summed over classes, is
        GCV(α) = n·‖(I − H)Y‖² / tr(I − H)² with tr H = 1 + Σ λᵢ/(λᵢ + α)
        (Golub, Heath & Wahba 1979, eq. 1.4; the 1 is the intercept).
        Raises ValueError before any images, for fewer than two classes among them, and for a penalty not above 0.
        """
        grid = torch.tensor([alphas] if isinstance(alphas, (int, float)) else list(alphas), dtype=torch.float64)
        if grid.numel() == 0 or not bool((torch.isfinite(grid) & (grid > 0)).all()):
            raise ValueError(f"a ridge penalty is a number above 0; got {grid.tolist()}")
        if self.n == 0:
            raise ValueError("a probe needs images; none were given to update()")
        seen = self.counts.nonzero().flatten()
        if len(seen) < 2:
            raise ValueError(f"a probe needs images of at least 2 classes; all {self.n} are of class {seen.item()}")
        bar = tqdm(self._sites.items(), desc="ridge probes", delay=2, leave=False)
        return {site: self._fit_one(moments, grid, seen) for site, moments in bar}

    def _fit_one(self, moments: _Moments, grid: Float64[Tensor, "a"], seen: Int64[Tensor, "seen"]) -> RidgeProbe:
        n, counts = self.n, self.counts.to(moments.mean)
        target_mean = 2 * counts / n - 1
        if moments.is_constant(n):
            note = "the features do not vary between images: the probe predicts the most frequent class"
            return RidgeProbe(torch.zeros_like(moments.class_sums), target_mean, seen, float(grid[0]), n, note)
        values, vectors = torch.linalg.eigh(moments.scatter)
        # Directions the data does not have come out as rounding noise, and the criterion would count them as fitted.
        real = values > values[-1] * max(n, len(values)) * torch.finfo(torch.float64).eps
        values, vectors = values[real], vectors[:, real]
        # XᵀY for centred X and targets ±1: what the class adds, minus what the others add, and all add up to 0.
        projected = vectors.T @ (2 * moments.class_sums.T)
        target_scatter = float((4 * counts * (n - counts) / n).sum())
        chosen = _best_by_gcv(grid, values, projected, target_scatter, n)
        alpha = float(grid[chosen])
        weight = (vectors @ (projected / (values + alpha)[:, None])).T.contiguous()
        at_edge = len(grid) > 1 and alpha in (float(grid.min()), float(grid.max()))
        note = f"the best penalty, {alpha:g}, is at the edge of the grid" if at_edge else ""
        return RidgeProbe(weight, target_mean - weight @ moments.mean, seen, alpha, n, note)

    def _check(self, features: Mapping[str, Tensor], labels: Tensor) -> None:
        if labels.ndim != 1 or labels.is_floating_point() or labels.dtype == torch.bool:
            raise ValueError(f"labels are whole numbers, shape [b]; got {labels.dtype} {tuple(labels.shape)}")
        if not features:
            raise ValueError("an update brings the features of at least one site; got none")
        if self._sites and self._sites.keys() != features.keys():
            raise ValueError(f"every update brings the sites of the first, {self.sites}; got {list(features)}")
        if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < self.n_classes:
            wrong = labels[(labels < 0) | (labels >= self.n_classes)].unique().tolist()[:5]
            raise ValueError(f"labels are classes 0 to {self.n_classes - 1}; got {wrong}")
        for site, x in features.items():
            known = self._sites.get(site)
            width = x.shape[-1] if known is None else len(known.mean)
            if x.ndim != 2 or x.shape != (len(labels), width):
                raise ValueError(
                    f"features of {site!r} must be [{len(labels)} images, {width} units]; got {tuple(x.shape)}"
                )
            if bad := int((~torch.isfinite(x)).any(-1).sum()):
                raise ValueError(
                    f"features of {site!r} hold NaN or infinity in {bad} of {len(x)} rows; a probe needs numbers"
                )


@dataclass(eq=False)
class _Moments:
    """Of one site: the features' mean, their scatter about it, and per class their summed deviation from it."""

    mean: Float64[Tensor, "d"]
    scatter: Float64[Tensor, "d d"]
    class_sums: Float64[Tensor, "c d"]

    @classmethod
    def empty(cls, n_classes: int, like: Float64[Tensor, "b d"]) -> _Moments:
        d = like.shape[1]
        return cls(like.new_zeros(d), like.new_zeros(d, d), like.new_zeros(n_classes, d))

    def copy(self) -> _Moments:
        return _Moments(self.mean.clone(), self.scatter.clone(), self.class_sums.clone())

    def add_rows(self, x: Float64[Tensor, "b d"], labels: Int[Tensor, "b"], mine: Tensor, theirs: Tensor) -> None:
        mean = x.mean(0)
        centred = x - mean
        self.scatter.addmm_(centred.T, centred)
        self.class_sums.index_add_(0, labels.long().to(x.device), centred)
        self._move_mean(mean, mine, theirs)

    def add_moments(self, other: _Moments, mine: Tensor, theirs: Tensor) -> None:
        self.scatter += other.scatter.to(self.scatter)
        self.class_sums += other.class_sums.to(self.class_sums)
        self._move_mean(other.mean.to(self.mean), mine, theirs)

    def _move_mean(self, mean: Float64[Tensor, "d"], mine: Tensor, theirs: Tensor) -> None:
        """Refer what was gathered about two means, of `mine` and `theirs` images per class, to their common mean."""
        a, b = int(mine.sum()), int(theirs.sum())
        step = mean - self.mean
        self.scatter.addr_(step, step, alpha=a * b / (a + b))
        common = self.mean + step * (b / (a + b))
        self.class_sums += torch.outer(mine.to(step), self.mean - common) + torch.outer(theirs.to(step), mean - common)
        self.mean = common

    def is_constant(self, n: int) -> bool:
        """Whether the features vary by less than float32, in which models run, can tell."""
        resolution = torch.finfo(torch.float32).eps
        return bool(self.scatter.trace() / n <= (resolution**2) * self.mean.square().sum())


def _best_by_gcv(
    grid: Float64[Tensor, "a"],
    values: Float64[Tensor, "r"],
    projected: Float64[Tensor, "r c"],
    target_scatter: float,
    n: int,
) -> int:
    """Index of the penalty with the least generalised cross-validation error.

    Written so that nothing cancels: what least squares leaves over, plus what the penalty adds to it.
    """
    explained = projected.square().sum(1) / values
    spare = n - 1 - len(values)
    left_over = max(0.0, target_scatter - float(explained.sum())) if spare > 0 else 0.0
    shrunk = grid[:, None].to(values) / (values + grid[:, None].to(values))
    residual = left_over + (shrunk.square() * explained).sum(1)
    freedom = max(spare, 0) + shrunk.sum(1)
    return int((residual / freedom.square()).argmin())
