"""Logistic and MLP probes, from features that are kept."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from analyses.probes.estimators import LogisticProbeClassifier, layers_of
from analyses.probes.probe import Layer, Probe, for_all_classes
from analyses.probes.ridge import GramRidge
from analyses.probes.settings import Fits, Probing
from analyses.probes.store import FeatureStore
from analyses.probes.training import Training, train_together

Moments = tuple[Tensor, Tensor, Tensor]
HIDDEN = 64
"""Units of an MLP probe where none are given."""


class StoredFits:
    """Logistic and MLP probes, from features that are kept."""

    def __init__(
        self, how: Probing, store: FeatureStore, labels: Int64[Tensor, "n k"], n_classes: int, what: str
    ) -> None:
        self.how, self.store, self.labels, self.n_classes, self.what = how, store, labels, n_classes, what
        by_width: dict[int, list[str]] = {}
        for site, array in store.arrays.items():
            by_width.setdefault(array.shape[1], []).append(site)
        self.groups = list(by_width.values())

    def fits(self, fitted: Any, components: int | None, sizes: list[int], stages: Int64[Tensor, "n"]) -> Fits:
        """Probes of all targets on all images, and of the first on components and on fewer images."""
        everything = np.arange(self.store.n)
        curve = {}
        for stage, size in enumerate(sizes):
            rows = np.flatnonzero(stages.numpy() <= stage)
            if len(self.labels[rows, 0].unique()) > 1:
                curve[size] = fitted(self._probes(rows, 1)[0], self._counts(rows))
        found = self._probes(everything, self.labels.shape[1])
        every = [fitted(probes, self._counts(everything)) for probes in found]
        pca = None
        if components is not None:
            pca = fitted(self._probes(everything, 1, components)[0], self._counts(everything))
        return Fits(every[0], every[1:], pca, curve)

    def _counts(self, rows: np.ndarray) -> Int64[Tensor, "c"]:
        return self.labels[rows, 0].bincount(minlength=self.n_classes)

    def _probes(self, rows: np.ndarray, n_targets: int, components: int | None = None) -> list[dict[str, Probe]]:
        labels = self.labels[rows][:, :n_targets]
        if len(labels) == 0 or len(labels[:, 0].unique()) < 2:
            raise ValueError(f"a probe needs images of at least 2 classes; these {len(labels)} are of fewer")
        probes: list[dict[str, Probe]] = [{} for _ in range(n_targets)]
        for group in self.groups:
            moments = {site: _moments(self.store, site, rows) for site in group}
            bases = {site: _basis(m, components) for site, m in moments.items()}
            if self.how.probe == "logistic" and self.store.in_memory:
                layers = {site: self._solved(site, rows, labels, bases[site]) for site in group}
            else:
                layers = self._trained(group, rows, labels, moments, bases)
            for site, of_targets in layers.items():
                for t, (of_target, note) in enumerate(of_targets):
                    (weight, bias), *more = of_target
                    seen = labels[:, t].unique()
                    complete = for_all_classes([(weight @ bases[site].T, bias), *more], seen, self.n_classes)
                    constant = not bool(moments[site][1].any())
                    note = "the features do not vary between images" if constant else note
                    probes[t][site] = Probe(complete, seen, self.how.training.penalty, len(rows), note)
        return [{site: of_target[site] for site in self.store.arrays} for of_target in probes]

    def _solved(
        self, site: str, rows: np.ndarray, labels: Int64[Tensor, "n k"], basis: Float[Tensor, "d r"]
    ) -> list[tuple[list[Layer], str]]:
        x = self.store.rows(site, rows).astype(np.float64) @ basis.numpy()
        found = []
        for of_target in labels.unbind(1):
            model = LogisticProbeClassifier(penalty=self.how.training.penalty).fit(x, of_target.numpy())
            found.append((layers_of(model), model.note_))
        return found

    def _trained(
        self, group: list[str], rows: np.ndarray, labels: Tensor, moments: dict[str, Moments], bases: dict[str, Tensor]
    ) -> dict[str, list[tuple[list[Layer], str]]]:
        how = self.how.training
        hidden = (how.hidden or HIDDEN) if self.how.probe == "mlp" else 0
        how = Training(**{**vars(how), "hidden": hidden})
        width = max(basis.shape[1] for basis in bases.values())
        # Sites of fewer directions are filled up with zeros, which no gradient ever reaches.
        padded = {site: torch.nn.functional.pad(basis, (0, width - basis.shape[1])) for site, basis in bases.items()}
        mean = torch.stack([moments[site][0] @ padded[site] for site in group])
        variance = [(padded[site] * (moments[site][2] @ padded[site])).sum(0) for site in group]
        spread = torch.stack(variance).clamp(min=0).sqrt()

        def read(images: Int64[Tensor, "b"]) -> Float[Tensor, "b s d"]:
            index = rows[images.numpy()]
            x = [torch.from_numpy(self.store.rows(site, index)).double() @ padded[site] for site in group]
            return torch.stack(x, dim=1)

        trained = train_together(read, mean, spread, labels, self.n_classes, how, self.what)
        late = trained.best_epoch == how.max_epochs
        note = f"still improving after {how.max_epochs} epochs"
        found: dict[str, list[tuple[list[Layer], str]]] = {}
        for s, site in enumerate(group):
            found[site] = []
            for t, ((weight, bias), *more) in enumerate(trained.layers[s]):
                seen = labels[:, t].unique()
                layers = [(weight[:, : bases[site].shape[1]], bias), *more]
                layers[-1] = (layers[-1][0][seen], layers[-1][1][seen])
                found[site].append((layers, note if late[s, t] else ""))
        return found


def _moments(store: FeatureStore, site: str, rows: np.ndarray) -> Moments:
    """Mean, spread (0 where float32 cannot tell it from none) and covariance of some images' features."""
    ridge = GramRidge(2)
    for part in np.array_split(rows, max(1, len(rows) // 4096)):
        x = torch.from_numpy(store.rows(site, part))
        ridge.update({site: x}, torch.zeros(len(x), dtype=torch.int64))
    moments = ridge.moments(site)
    covariance = moments.scatter / len(rows)
    spread = covariance.diagonal().clamp(min=0).sqrt()
    tiny = spread <= 4 * torch.finfo(torch.float32).eps * moments.mean.abs()
    return moments.mean, spread.masked_fill(tiny, 0), covariance


def _basis(moments: Moments, components: int | None) -> Float[Tensor, "d r"]:
    """Directions of greatest variance as columns; where none are asked for, every axis along which features vary."""
    _, spread, covariance = moments
    if components is None or not bool(spread.any()):
        return torch.diag((spread > 0).double())
    return torch.linalg.eigh(covariance)[1][:, -components:]
