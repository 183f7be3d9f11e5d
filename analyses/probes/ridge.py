"""Ridge probes for many sites from one pass over the data; memory does not grow with the number of images.

What a ridge regression needs of its data is the mean and the scatter of the features and, for targets that are +1 for
an image's class and −1 for every other, the features' sum per class. All three are gathered batch by batch in float64
about a running mean (Chan, Golub & LeVeque 1983): a residual stream has directions whose mean is a thousand times
their spread, and raw second moments would lose the spread to rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from jaxtyping import Float, Float64, Int, Int64
from torch import Tensor

from analyses.probes.class_moments import ClassMoments, Directions, choose_penalty, given_penalties, sites_by_note
from analyses.running.notice import remark
from hooked_vit.config.showing import Displayed
from hooked_vit.loading.progress import tqdm


@dataclass(frozen=True, eq=False, repr=False)
class RidgeProbe(Displayed):
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

    def _rows(self) -> dict[str, object]:
        about = {"width": self.weight.shape[1], "classes": f"{len(self.classes)} met of {len(self.weight)}"}
        return {**about, "penalty": f"{self.alpha:g}", "images": self.n, "note": self.note}

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

    A site holds d² + k·C·d numbers of 8 bytes, on the device its features come from. Sites may differ in width d, but
    every update brings all of them. Several targets, such as the labels and permutations of them, share all but the
    last term: labels are then [b, k]. What a reader must know of the fits is noted in the result of the analysis that
    runs, under the `name` of what is read; None leaves that to the caller.
    Raises ValueError for fewer than two classes. Source: methods §1 (the lab notes' probes).
    """

    def __init__(self, n_classes: int, n_targets: int = 1, *, name: str | None = "") -> None:
        if n_classes < 2:
            raise ValueError(f"a probe tells at least 2 classes apart; got n_classes={n_classes}")
        if n_targets < 1:
            raise ValueError(f"a probe has a target to fit; got n_targets={n_targets}")
        self.n_classes, self.n_targets, self.name = n_classes, n_targets, name
        self._counts: Int64[Tensor, "k c"] = torch.zeros(n_targets, n_classes, dtype=torch.int64)
        self._sites: dict[str, ClassMoments] = {}

    @property
    def counts(self) -> Int64[Tensor, "c"]:
        """Images of each class gathered so far, by the first target."""
        return self._counts[0]

    @property
    def n(self) -> int:
        """Images gathered so far."""
        return int(self.counts.sum())

    @property
    def sites(self) -> list[str]:
        """Names of the sites, in the order of the first update."""
        return list(self._sites)

    def moments(self, site: str) -> ClassMoments:
        """What was gathered of a site: to look at, not to change."""
        return self._sites[site]

    def update(self, features: Mapping[str, Float[Tensor, "b _"]], labels: Int[Tensor, "b *k"]) -> None:
        """Take in a batch: `features[site]` is [b, d], `labels` is [b] or [b, k] with classes 0..n_classes − 1.

        Raises ValueError, leaving everything as it was, for sites or widths other than before, rows that do not match
        the labels, labels that are no class, and features that hold NaN or infinity.
        """
        self._check(features, labels)
        if len(labels) == 0:
            return
        # of target t, class c is row t·C + c
        rows = labels.long().cpu().reshape(len(labels), -1) + torch.arange(self.n_targets) * self.n_classes
        counts = torch.bincount(rows.flatten(), minlength=self._counts.numel()).reshape(self._counts.shape)
        for site, x in features.items():
            # No float64 on Apple's GPUs.
            x = x.detach().to("cpu" if x.device.type == "mps" else x.device).double()
            moments = self._sites.get(site)
            if moments is None:
                moments = self._sites[site] = ClassMoments.empty(self._counts.numel(), x)
            moments.add_rows(x, rows, self._counts, counts)
        self._counts = self._counts + counts

    def fresh(self) -> GramRidge:
        """An accumulator of the same that has seen no image."""
        return GramRidge(self.n_classes, self.n_targets, name=self.name)

    def merge(self, other: GramRidge) -> GramRidge:
        """What one accumulator would hold that had seen the images of both; neither is changed.

        Raises ValueError for different classes, targets, sites or widths.
        """
        self._check_alike(other)
        merged = GramRidge(self.n_classes, self.n_targets, name=self.name)
        merged._counts = self._counts + other._counts
        for site in self.sites or other.sites:
            merged._sites[site] = self._merged(site, other)
        return merged

    def fit(
        self,
        alphas: float | Sequence[float] | None = None,
        *,
        held_out: GramRidge | None = None,
        components: int | None = None,
    ) -> dict[str, RidgeProbe]:
        """One probe per site, of the first target; of several penalties, the one with the least error.

        Minimises ‖XW + 1bᵀ − Y‖² + α‖W‖², intercept not penalised; α is absolute, not divided by the image count. Where
        none is given, penalties follow the features of each site: four to a decade about the mean eigenvalue of XᵀX,
        over more decades until the best is not at an end. A list is taken as it is; an end that is best is noted. Per
        site one symmetric eigendecomposition XᵀX = VΛVᵀ (X centred) serves the whole grid. The error is that of
        generalised cross-validation, summed over classes: GCV(α) = n·‖(I − H)Y‖² / tr(I − H)² with
        tr H = 1 + Σ λᵢ/(λᵢ + α) (Golub, Heath & Wahba 1979, eq. 1.4; the 1 is the intercept).
        With `held_out`, it is the squared error on those images, and the probe is then fitted on all of both.
        `components` confines a probe to the directions of greatest variance, as a ridge on that many principal
        components would be.
        Raises ValueError before any images, for fewer than two classes among them, and for a penalty not above 0.
        """
        fitted = {site: probes[0] for site, probes in self._fit(alphas, held_out, components, 1).items()}
        for note, sites in sites_by_note(fitted).items():
            if self.name is not None:
                remark(f"{self.name}{': ' if self.name else ''}ridge probes of {sites}: {note}")
        return fitted

    def fit_targets(
        self,
        alphas: float | Sequence[float] | None = None,
        *,
        held_out: GramRidge | None = None,
        components: int | None = None,
        same_penalty: bool = False,
    ) -> dict[str, list[RidgeProbe]]:
        """A probe per site and target, as `fit` makes them, from one eigendecomposition.

        With `same_penalty` the other targets get the penalty that is best for the first: the same probe on all of them.
        """
        return self._fit(alphas, held_out, components, self.n_targets, same_penalty)

    def _fit(
        self,
        alphas: float | Sequence[float] | None,
        held_out: GramRidge | None,
        components: int | None,
        n_targets: int,
        same_penalty: bool = False,
    ) -> dict[str, list[RidgeProbe]]:
        grid = given_penalties(alphas)
        if components is not None and components < 1:
            raise ValueError(f"a probe reads at least one principal component; got components={components}")
        for part in [self] if held_out is None else [self, held_out]:
            if part.n == 0:
                raise ValueError("a probe needs images; none were given to update()")
        if held_out is not None:
            self._check_alike(held_out)
        for counts in self._counts[:n_targets]:
            if len(seen := counts.nonzero().flatten()) < 2:
                raise ValueError(f"a probe needs images of at least 2 classes; all {self.n} are of class {seen.item()}")
        bar = tqdm(self._sites, desc="ridge probes", delay=2, leave=False)
        return {site: self._fit_site(site, grid, held_out, components, n_targets, same_penalty) for site in bar}

    def _fit_site(
        self,
        site: str,
        grid: Float64[Tensor, "a"] | None,
        held_out: GramRidge | None,
        components: int | None,
        n_targets: int,
        same_penalty: bool,
    ) -> list[RidgeProbe]:
        moments, counts = self._sites[site], self._counts
        every = counts if held_out is None else counts + held_out._counts
        if moments.is_constant(self.n):
            alpha = 1.0 if grid is None else float(grid[0])
            return [_majority(moments, of_target, alpha) for of_target in every[:n_targets]]
        found = Directions.of(moments, self.n, self.n_targets, components)
        chosen = []
        for t in range(1 if same_penalty else n_targets):
            errors = self._errors(site, t, found, held_out)
            chosen.append(choose_penalty(errors, moments.mean_eigenvalue, grid))
        if held_out is not None:
            moments = self._merged(site, held_out)
            found = Directions.of(moments, int(every[0].sum()), self.n_targets, components)
        probes = []
        for t, of_target in enumerate(every[:n_targets]):
            alpha, note = chosen[0 if same_penalty else t]
            weight = found.weight(t, alpha)
            seen, bias = of_target.nonzero().flatten(), _target_mean(of_target).to(weight) - weight @ moments.mean
            probes.append(RidgeProbe(weight, bias, seen, alpha, found.n, note))
        return probes

    def _errors(
        self, site: str, target: int, found: Directions, other: GramRidge | None
    ) -> Callable[[Float64[Tensor, "a"]], Float64[Tensor, "a"]]:
        """What the error of a penalty is: on the images of `other`, or by cross-validation."""
        if other is None:
            return partial(found.gcv, target, target_scatter=_target_scatter(self._counts[target]))
        mine, theirs, c = self._sites[site], other._sites[site], self.n_classes
        moved = theirs.mean.to(mine.mean) - mine.mean
        step = _target_mean(other._counts[target]) - _target_mean(self._counts[target])
        sums = theirs.class_sums[target * c : (target + 1) * c]
        counts, step = other._counts[target], step.to(mine.mean)
        return lambda grid: found.held_out_error(target, grid, moved, theirs, sums, counts, step)

    def _merged(self, site: str, other: GramRidge) -> ClassMoments:
        parts = [(r._sites[site], r._counts) for r in (self, other) if r.n]
        first, counts = parts[0]
        merged = first.copy()
        for more, more_counts in parts[1:]:
            merged.add_moments(more, counts, more_counts)
        return merged

    def _check_alike(self, other: GramRidge) -> None:
        if self.n_classes != other.n_classes or self.n_targets != other.n_targets:
            raise ValueError(
                f"only probes of the same classes merge; got {self.n_classes} and {other.n_classes} classes, "
                f"{self.n_targets} and {other.n_targets} targets"
            )
        mine, theirs = ({site: m.mean.shape for site, m in r._sites.items()} for r in (self, other))
        if self.n and other.n and mine != theirs:
            raise ValueError(f"only probes of the same sites and widths merge; got {mine} and {theirs}")

    def _check(self, features: Mapping[str, Tensor], labels: Tensor) -> None:
        shape = "[b]" if self.n_targets == 1 else f"[b, {self.n_targets}]"
        fits = labels.ndim == 1 if self.n_targets == 1 else labels.shape[1:] == (self.n_targets,)
        if not fits or labels.is_floating_point() or labels.dtype == torch.bool:
            raise ValueError(f"labels are whole numbers, shape {shape}; got {labels.dtype} {tuple(labels.shape)}")
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


def _target_mean(counts: Int64[Tensor, "c"]) -> Float64[Tensor, "c"]:
    return 2 * counts.double() / counts.sum() - 1


def _target_scatter(counts: Int64[Tensor, "c"]) -> float:
    n = int(counts.sum())
    return float((4 * counts.double() * (n - counts) / n).sum())


def _majority(moments: ClassMoments, counts: Int64[Tensor, "c"], alpha: float) -> RidgeProbe:
    """The probe of features that are the same in every image."""
    note = "the features do not vary between images: the probe predicts the most frequent class"
    weight = moments.mean.new_zeros(len(counts), len(moments.mean))
    bias = _target_mean(counts).to(weight)
    return RidgeProbe(weight, bias, counts.nonzero().flatten(), alpha, int(counts.sum()), note)
