"""One model under filtered pictures and swapped CLS embeddings: everything gathered in one pass to fit, one to measure.

What grows with the number of images are numbers, a few hundred per image: a cosine, a hit or a squared error each.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from PIL import Image
from torch import Tensor

from analyses.activations.sites import Site as Place
from analyses.activations.sites import SiteReader
from analyses.data import ImageData
from analyses.probes.classifier_heads import Answers, head_of_probe, ready_for_head
from analyses.probes.passes import clean_sites
from analyses.probes.ridge import GramRidge, RidgeProbe
from analyses.questions.signal.cls_parameter import cls_swaps
from analyses.questions.signal.regression import GramRegression, LinearMap, r_squared, r_squared_gain
from analyses.questions.signal.similarity import CrossMoments, cosine, linear_cka
from analyses.questions.signal.spectrum import (
    Filter,
    band_edges,
    log_band_energies,
    luminance,
    normalised_pixels,
    published_filter,
    shown_pixels,
)
from analyses.running.notes import progress_batches
from analyses.statistics.intervals import mean_intervals, paired_difference, rate_row
from analyses.statistics.ranks import correct, rank
from hooked_vit import HookedViT
from interventions import apply

PIXELS = "random projection of pixels"
TRAINED, UNTRAINED = "trained", "random weights"


class Site(NamedTuple):
    """A role of token behind a block."""

    token: str
    layer: int

    @property
    def key(self) -> str:
        return f"{self.token} {self.layer}"


Read = tuple[Any, dict[Site, Tensor]]
"""What a model answers, where that was asked for, and every role of token [b d] behind the layers measured."""


def _by_site(answer: Tensor | None, features: Mapping[str, Tensor]) -> Read:
    places = [(Place.parse(name), x) for name, x in features.items()]
    return answer, {Site(place.role, place.layer or 0): x for place, x in places}


def picture_size(model: HookedViT) -> tuple[int, int]:
    """Height and width of the pictures the model's processor makes.

    Raises ValueError where the model came without one.
    """
    height, width = model.preprocess(Image.new("RGB", (64, 64))).shape[2:]
    return height, width


class FrequencyStudy:
    """The measurements of `low_frequency` on one model."""

    def __init__(
        self, name: str, model: HookedViT, own: Answers | None, untrained: HookedViT, *, n_classes: int,
        layers: Sequence[int], radii: Sequence[float], bands: int, seeds: int, seed: int, repro: bool,
        memory_budget: int,
    ) -> None:  # fmt: skip
        self.name, self.model, self.own, self.untrained = name, model, own, untrained
        self.n_classes, self.layers, self.seeds, self.seed, self.repro = n_classes, layers, seeds, seed, repro
        self.memory_budget = memory_budget
        height, width = picture_size(model)
        self.edges = band_edges(height, width, bands)
        self.filters = [Filter(kind, float(radius)) for kind in ("low", "high") for radius in radii]
        generator = torch.Generator("cpu").manual_seed(seed)
        projection = torch.randn(height * width, model.cfg.d_model, generator=generator, device="cpu")
        self.projection = projection / (height * width) ** 0.5
        self.columns: dict[tuple, list[np.ndarray]] = defaultdict(list)
        self.targets: list[np.ndarray] = []
        self.counts = np.zeros(n_classes, int)
        self.cka: dict[tuple, float] = {}

    def clean(self, model: HookedViT, data: ImageData, *, answers: bool = True) -> Callable[[Any, Tensor], Read]:
        """`roles` of batches of the data, without an edit: from a store, where one is in use."""
        read = clean_sites(self.reader(model), data, answers=answers)
        return lambda batch, pixels: _by_site(*read(batch, pixels))

    def roles(self, model: HookedViT, pixels: Float[Tensor, "b c h w"], index: Int[Tensor, "b"]) -> Read:
        """What the model answers, and every role of token behind the layers that are measured."""
        return _by_site(*self.reader(model).read(pixels, index))

    def sites(self, pixels: Float[Tensor, "b c h w"], index: Int[Tensor, "b"]) -> dict[Site, Tensor]:
        """The same tokens of the model itself, without an answer."""
        return _by_site(None, self.reader(self.model).features(pixels, index))[1]

    def reader(self, model: HookedViT) -> SiteReader:
        """Of every role of token behind the layers that are measured."""
        return SiteReader(model, layers=self.layers, seed=self.seed)

    def spectral_sites(self, pixels: Tensor, sites: Mapping[Site, Tensor], control: Read) -> dict[str, Tensor]:
        """What band energies are read from: tokens, the same of a model that has learned nothing, projected pixels."""
        found = {f"{TRAINED}|{site.key}": x for site, x in sites.items()}
        found |= {f"{UNTRAINED}|{s.key}": x for s, x in control[1].items() if s.token in ("cls", "patches")}
        brightness = luminance(shown_pixels(self.model, pixels)).flatten(1)
        return {**found, PIXELS: brightness @ self.projection.to(brightness)}

    def energies(self, pixels: Tensor) -> Float[Tensor, "b k"]:
        return log_band_energies(luminance(shown_pixels(self.model, pixels)), self.edges)

    def fit(self, data: ImageData, batch_size: int) -> None:
        """Probes of the class and of band energies on clean pictures, the mean of every site and of the patches."""
        pooling = self.model if self.own is not None else ready_for_head(self.model)
        classes, spectra = GramRidge(self.n_classes, name=self.name), GramRegression()
        totals: dict[Site, Tensor] = {}
        patches, ns = torch.zeros(self.model.cfg.d_model, dtype=torch.float64), list[int]()
        into = (classes, spectra, totals, patches, ns)
        read = self.clean(pooling, data, answers=self.own is None)
        control = self.clean(self.untrained, data, answers=False)
        for batch in progress_batches(data, batch_size, f"{self.name}: fitting probes", into=into):
            pixels = self.model.preprocess(batch.images)
            pooled, sites = read(batch, pixels)
            keyed = {site.key: x for site, x in sites.items()}
            classes.update(keyed if self.own is not None else {**keyed, "head": pooled}, batch.labels)
            spectra.update(self.spectral_sites(pixels, sites, control(batch, pixels)), self.energies(pixels))
            for site, x in sites.items():
                totals[site] = totals.get(site, 0.0) + x.cpu().double().sum(0)
            with torch.no_grad():
                patches += self.model.embed.patch(pixels).mean((2, 3)).cpu().double().sum(0)
            ns.append(len(batch))
        probes, n = classes.fit(), sum(ns)
        self.probes: dict[Site, RidgeProbe] = {site: probes[site.key] for site in totals}
        self.spectra: dict[str, LinearMap] = spectra.fit()
        self.answers = self.own or head_of_probe(pooling, probes["head"], data)
        self.means = {site: total / n for site, total in totals.items()}
        self.varies = {site: not classes.moments(site.key).is_constant(classes.n) for site in totals}
        has_cls = self.answers.model.cfg.has_cls
        self.swaps = cls_swaps(self.answers.model, patches / n, seeds=self.seeds) if has_cls else []

    def measure(self, data: ImageData, batch_size: int) -> None:
        """Everything on clean, filtered and swapped runs; filters are taken in parts that fit the memory."""
        d = self.model.cfg.d_model
        read, control = self.clean(self.answers.model, data), self.clean(self.untrained, data, answers=False)
        at_once = max(1, self.memory_budget // (2 * 8 * d * d * len(self.means)))
        for first in range(0, len(self.filters), at_once):
            part = self.filters[first : first + at_once]
            own = {site: CrossMoments() for site in self.means}
            pairs = {(f, site, of): CrossMoments() for f in part for site in self.means for of in ("own", "clean")}
            into = (own, pairs, self.columns, self.counts, self.targets)
            for batch in progress_batches(data, batch_size, f"{self.name}: filtered pictures", into=into):
                pixels = self.model.preprocess(batch.images)
                logits, clean = read(batch, pixels)
                for site, x in clean.items():
                    own[site].update(x, x)
                if first == 0:
                    self._clean(batch, pixels, logits, clean, control(batch, pixels))
                for f in part:
                    self._filtered(f, pixels, batch, clean, pairs)
            for f, site in [(f, site) for f in part for site in self.means]:
                yy, xy = pairs[f, site, "own"], pairs[f, site, "clean"]
                for measure, debiased in (("cka", False), ("cka_debiased", True)):
                    value = linear_cka(own[site], yy, xy, debiased=debiased)
                    self.cka[measure, site, f] = value

    def _clean(self, batch: Any, pixels: Tensor, logits: Tensor, clean: Mapping[Site, Tensor], control: Read) -> None:
        self.counts += np.bincount(batch.labels.numpy(), minlength=self.n_classes)
        self._answer(("accuracy", None, None, None), logits, batch.labels)
        self._probe(clean, None, batch.labels)
        energies = self.energies(pixels).cpu()
        self.targets.append(energies.numpy())
        for key, x in self.spectral_sites(pixels, clean, control).items():
            self._add(("errors", key), (self.spectra[key].predict(x).cpu() - energies).square())
        for swap in self.swaps:
            what = (swap.variant, swap.seed, swap.position)
            with apply(self.answers.model, swap.intervention):
                answer, swapped = self.roles(self.answers.model, pixels, batch.index)
            self._answer(("swap_accuracy", None, None, what), answer, batch.labels)
            for site, x in swapped.items():
                if site.token in ("cls", "patches"):
                    self._add(("swap_cosine", site, None, what), self._centred_cosine(site, clean[site], x))

    def _filtered(self, f: Filter, pixels: Tensor, batch: Any, clean: Mapping[Site, Tensor], pairs: Mapping) -> None:
        if self.repro:
            shown = published_filter(shown_pixels(self.model, pixels), f.kind, f.radius)
            changed = normalised_pixels(self.model, shown)
        else:
            changed = f(pixels)
        logits, sites = self.roles(self.answers.model, changed, batch.index)
        self._answer(("accuracy", None, f, None), logits, batch.labels)
        self._probe(sites, f, batch.labels)
        for site, x in sites.items():
            pairs[f, site, "own"].update(x, x)
            pairs[f, site, "clean"].update(clean[site], x)
            self._add(("cosine", site, f, None), cosine(clean[site], x))
            self._add(("centred_cosine", site, f, None), self._centred_cosine(site, clean[site], x))

    def _centred_cosine(self, site: Site, x: Tensor, y: Tensor) -> Tensor:
        """Cosine about the site's mean; NaN where a token is the same in every image, and only rounding is left."""
        if not self.varies[site]:
            return torch.full((len(x),), torch.nan, dtype=torch.float64)
        mean = self.means[site]
        return cosine(x.cpu().double() - mean, y.cpu().double() - mean)

    def _answer(self, key: tuple, logits: Tensor, labels: Tensor) -> None:
        self._add(key, correct(rank(logits.cpu(), self.answers.labels(labels))).double())

    def _probe(self, sites: Mapping[Site, Tensor], f: Filter | None, labels: Tensor) -> None:
        for site, x in sites.items():
            self._add(("probe", site, f, None), correct(rank(self.probes[site].scores(x).cpu(), labels)).double())

    def _add(self, key: tuple, values: Tensor) -> None:
        self.columns[key].append(values.cpu().numpy())

    def rows(self) -> Iterator[dict[str, Any]]:
        """The frame's rows of this model, without its name."""
        columns = {key: np.concatenate(parts) for key, parts in self.columns.items()}
        n = int(self.counts.sum())
        means = {key: x for key, x in columns.items() if key[0] in ("cosine", "centred_cosine", "swap_cosine")}
        intervals = mean_intervals(means)
        for key, x in columns.items():
            if key in means:
                low, high = intervals[key]
                known = x[np.isfinite(x)]
                value = known.mean() if len(known) else float("nan")
                yield _row(key, {"value": value, "low": low, "high": high, "n": n})
            elif key[0] != "errors":
                yield _row(key, rate_row(int(x.sum()), n))
        for (measure, site, f), value in self.cka.items():
            yield _row((measure, site, f, None), {"value": value, "low": float("nan"), "high": float("nan"), "n": n})
        yield from self._spectral_rows(columns, n)
        yield from self._differences(columns, n)
        yield _row(("chance", None, None, None), rate_row(int(self.counts.max()), n))

    def _spectral_rows(self, columns: Mapping[tuple, np.ndarray], n: int) -> Iterator[dict[str, Any]]:
        targets = np.concatenate(self.targets)
        for (_, key), errors in [(k, x) for k, x in columns.items() if k[0] == "errors"]:
            variant, _, place = key.partition("|")
            token, _, layer = place.partition(" ")
            site = Site(token, int(layer)) if place else None
            found = r_squared(errors, targets)
            for band in range(len(self.edges) - 1):
                numbers = {part: float(getattr(found, part)[band]) for part in ("value", "low", "high")}
                yield _row(("r2", site, None, None), {**numbers, "n": n}) | {"variant": variant, "band": band}

    def _differences(self, columns: Mapping[tuple, np.ndarray], n: int) -> Iterator[dict[str, Any]]:
        """CLS minus mean patch, on the same images: what the rule of the summary is about."""
        if not self.model.cfg.has_cls:
            return
        targets, bands = np.concatenate(self.targets), len(self.edges) - 1
        halves = {"low": slice(0, bands // 2), "high": slice(bands - bands // 2, bands)}
        for layer in self.layers:
            cls, patches = Site("cls", layer), Site("patches", layer)
            for kind, half in halves.items():
                sides = np.stack([
                    np.mean([columns["centred_cosine", site, f, None] for f in self.filters if f.kind == kind], axis=0)
                    for site in (cls, patches)
                ])  # fmt: skip
                known = sides[:, np.isfinite(sides).all(0)]
                nothing = (float("nan"),) * 3
                value, low, high = paired_difference(*known) if known.size else nothing
                numbers = {"value": value, "low": low, "high": high, "n": n}
                yield _row(("cosine_gain", cls, None, None), numbers) | {"filter": kind}
                errors = [columns["errors", f"{TRAINED}|{site.key}"][:, half] for site in (cls, patches)]
                gain = r_squared_gain(errors[0], errors[1], targets[:, half])
                numbers = {"value": float(gain.value), "low": float(gain.low), "high": float(gain.high), "n": n}
                yield _row(("r2_gain", cls, None, None), numbers) | {"filter": kind}


def _row(key: tuple, numbers: Mapping[str, Any]) -> dict[str, Any]:
    measure, site, f, swap = key
    variant, seed, position = swap or (None, None, None)
    return {
        "measure": measure,
        "token": site.token if site else None,
        "layer": site.layer if site else None,
        "filter": f.kind if f else None,
        "radius": f.radius if f else None,
        "band": None,
        "variant": variant,
        "seed": seed,
        "position": position,
        **numbers,
    }
