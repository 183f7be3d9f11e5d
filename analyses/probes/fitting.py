"""Fitting probes for all layers and roles of a model from one pass over the images, with their controls if asked."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Int64
from torch import Tensor

from analyses.activations.sites import HEAD_INPUT, SiteReader
from analyses.controls.control_task import ControlTask
from analyses.data import ImageData
from analyses.probes.fitted import FittedProbes
from analyses.probes.passes import read_sites
from analyses.probes.probe import Probe
from analyses.probes.ridge import GramRidge
from analyses.probes.settings import Fits, Probing
from analyses.probes.store import feature_store
from analyses.probes.stored_fits import StoredFits
from analyses.probes.targets import LABEL, TargetData, target_data
from analyses.running.notes import about_model
from hooked_vit import HookedViT


def fit_probes(
    model: HookedViT, data: ImageData | TargetData | Any, *, target: str = LABEL, name: str = "", **settings: Any
) -> FittedProbes:
    """Probes of a target for every role and layer of a model, from one pass over the images.

    >>> probes = fit_probes(model, load_data("scenes:train", n=2000), roles=("cls", "patches"))  # doctest: +SKIP
    >>> probes["cls", 3].predict(cls_after_block_3)  # doctest: +SKIP

    `target` is what to tell: see `with_target`. `settings` are those of `Probing`. With ridge probes, memory does not
    grow with the images. Classes without an image keep their number and are never predicted; `notes` says which.
    Raises ValueError for roles, layers, targets or settings there are not, fewer than two classes among the images, and
    features that hold NaN. Source: methods §1.
    """
    return fit_with_controls(model, target_data(data, target), Probing(**settings), name=name).probes


def fit_with_controls(
    model: HookedViT,
    data: TargetData,
    how: Probing,
    *,
    permutations: int = 0,
    components: int | None = None,
    sizes: Sequence[int] = (),
    control: ControlTask | None = None,
    name: str = "",
) -> Fits:
    """`fit_probes`, and from the same pass probes of permuted labels, of principal components, and of fewer images.

    >>> fits = fit_with_controls(model, data, Probing(), permutations=5, sizes=(100, 500))  # doctest: +SKIP

    Probes of permuted labels and of a `control` task have the penalty of those of the labels. `sizes` are numbers of
    images; the smaller ones are contained in the larger, drawn at random.
    Raises, beyond `fit_probes`, ValueError for sizes above the number of images, and permutations of a stream.
    """
    if permutations < 0 or (components is not None and components < 1):
        raise ValueError(f"there are 0 or more permutations and 1 or more components; got {permutations}, {components}")
    reader = SiteReader(model, how.roles, layers=how.layers, seed=how.seed)
    data = data.with_permutations(permutations, how.seed).with_control(control)
    further = permutations + (control is not None)
    draw = _Draw(data, how, sizes)
    widths = {str(s): model.cfg.d_pooled if s.role == HEAD_INPUT else model.cfg.d_model for s in reader.sites}
    what = f"{name}: fitting probes" if name else "fitting probes"
    about = {**about_model(model), "name": name}

    def fitted(probes: dict[str, Probe], counts: Tensor) -> FittedProbes:
        counted = tuple(counts.tolist())
        return FittedProbes(probes, data.target, how.probe, counted, how.seed, about, data.marks_read())

    def features(into: Sequence[Any] = ()) -> Iterator[tuple[dict[str, Tensor], Int64[Tensor, "b k"], _Drawn]]:
        for reading in read_sites(reader, data, how.batch_size, what, into=into):
            labels = reading.batch.labels
            yield reading.features, labels, draw(reading.batch.first, len(labels))

    if how.probe == "ridge":
        gathered = _Gathered(how, data.target.n_classes, 1 + further)
        for x, labels, drawn in features(into=[gathered.parts]):
            gathered.add(x, labels, *drawn)
        return _told(gathered.fits(fitted, components, draw.sizes), control)
    if data.n is None:
        raise ValueError(f"{how.probe} probes go through features again, so that their number must be known; load n=…")
    with feature_store(widths, data.n, memory=how.memory, scratch=how.scratch) as store:
        kept, stages = [], []
        # every process fits on all of them: a training is not shared out
        for x, labels, (stage, _) in features():
            store.add(x)
            kept.append(labels)
            stages.append(stage)
        stored = StoredFits(how, store, torch.cat(kept), data.target.n_classes, what)
        return _told(stored.fits(fitted, components, draw.sizes, torch.cat(stages)), control)


def _told(fits: Fits, control: ControlTask | None) -> Fits:
    """The fits with the last target by its name, where it is a control task."""
    if control is None:
        return fits
    return replace(fits, permuted=fits.permuted[:-1], control=fits.permuted[-1])


_Drawn = tuple[Int64[Tensor, "b"], Bool[Tensor, "b"]]


class _Draw:
    """Of n images from the `first` on: the smallest training set each is in, and whether it is held out for a penalty.

    The same for an image whatever was asked before: another process may have had the images in front of it.
    """

    def __init__(self, data: TargetData, how: Probing, sizes: Sequence[int]) -> None:
        self.sizes = sorted(sizes)
        if sizes and data.n is None:
            raise ValueError(f"a learning curve needs to know how many images there are: load {data.name} with n=…")
        if sizes and not (self.sizes[0] >= 1 and self.sizes[-1] <= (data.n or 0) and len(set(sizes)) == len(sizes)):
            raise ValueError(f"a learning curve has sizes of 1 to {data.n} images, each once; got {list(sizes)}")
        order = torch.from_numpy(np.random.default_rng([how.seed, 1]).permutation(data.n or 0))
        self._stage = torch.bucketize(order, torch.tensor(self.sizes), right=True) if sizes else None
        self._apart = how.held_out if how.select == "held_out" else 0.0
        self._seed = [how.seed, 2]

    def __call__(self, first: int, n: int) -> _Drawn:
        stage = torch.zeros(n, dtype=torch.int64) if self._stage is None else self._stage[first : first + n]
        bits = np.random.PCG64(self._seed)
        bits.advance(first)  # a number takes one step
        return stage, torch.from_numpy(np.random.Generator(bits).random(n) < self._apart)


class _Gathered:
    """Ridge: moments of every stage, and of the images held out in it, which add up to larger training sets."""

    def __init__(self, how: Probing, n_classes: int, n_targets: int) -> None:
        self.how, self.shape = how, (n_classes, n_targets)
        self.parts: dict[tuple[int, bool], GramRidge] = {}

    def add(
        self, x: dict[str, Tensor], labels: Int64[Tensor, "b k"], stage: Int64[Tensor, "b"], apart: Bool[Tensor, "b"]
    ) -> None:
        labels = labels if self.shape[1] > 1 else labels[:, 0]
        for s in stage.unique().tolist():
            for held in (False, True):
                mine = (stage == s) & (apart == held)
                if mine.any():
                    part = self.parts.setdefault((s, held), GramRidge(*self.shape, name=None))
                    part.update({k: v[mine.to(v.device)] for k, v in x.items()} if not mine.all() else x, labels[mine])

    def fits(self, fitted: Any, components: int | None, sizes: list[int]) -> Fits:
        used = {held: GramRidge(*self.shape, name=None) for held in (False, True)}
        curve: dict[int, FittedProbes] = {}
        for stage in range(len(sizes) + 1):
            for held in used:
                if (part := self.parts.get((stage, held))) is not None:
                    used[held] = used[held].merge(part) if used[held].n else part
            if stage < len(sizes) and int((used[False].counts > 0).sum()) > 1:
                curve[sizes[stage]] = fitted(self._probes(used), self._counts(used))
        counts = self._counts(used)
        if not int(counts.sum()):
            raise ValueError("a probe needs images; there are none")
        other = used[True] if used[True].n else None
        every = used[False].fit_targets(self.how.alphas, held_out=other, same_penalty=True)
        by_target = [
            fitted({site: Probe.of_ridge(probes[t]) for site, probes in every.items()}, counts)
            for t in range(self.shape[1])
        ]
        pca = None if components is None else fitted(self._probes(used, components), counts)
        return Fits(by_target[0], by_target[1:], pca, curve)

    def _probes(self, used: dict[bool, GramRidge], components: int | None = None) -> dict[str, Probe]:
        other = used[True] if used[True].n else None
        fits = used[False].fit(self.how.alphas, held_out=other, components=components)
        return {site: Probe.of_ridge(probe) for site, probe in fits.items()}

    @staticmethod
    def _counts(used: dict[bool, GramRidge]) -> Int64[Tensor, "c"]:
        return used[False].counts + used[True].counts
