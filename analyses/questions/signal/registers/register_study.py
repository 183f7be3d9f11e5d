"""One model: its census of norms, what outliers hold beside other patches, prefix tokens as readout and as target."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from analyses.activations.token_groups import aligned_masks
from analyses.controls.random_weights import with_random_weights
from analyses.controls.shuffle_floors import batch_seed, exchange_batches
from analyses.data import ImageData
from analyses.data.batches import Batch
from analyses.probes.classifier_heads import Answers, head_of_probe, ready_for_head
from analyses.probes.passes import ReadStreams, clean_streams
from analyses.probes.ridge import GramRidge, RidgeProbe
from analyses.questions.signal.norms import NormRule, token_norms
from analyses.questions.signal.registers.norm_census import NormCensus, patch_contents, patch_traits
from analyses.questions.signal.regression import GramRegression, LinearMap, r_squared_gain
from analyses.questions.signal.spectrum import shown_pixels
from analyses.running.notes import progress_batches
from analyses.statistics.intervals import rate_row
from analyses.statistics.ranks import correct, rank
from hooked_vit import HookedViT
from hooked_vit.tokens import TokenLayout
from interventions import shuffle_tokens, sweep

CONTROL = "as many patches"
KINDS = ("outlier", "other")


class RegisterStudy:
    """The measurements of `registers` on one model."""

    def __init__(
        self, name: str, model: HookedViT, own: Answers | None, *, n_classes: int, layers: Sequence[int], z: float,
        cutoff: float | None, calibration: int, min_images: int, seeds: int, seed: int,
    ) -> None:  # fmt: skip
        self.name, self.model, self.own = name, model, own
        self.n_classes, self.z, self.cutoff, self.calibration = n_classes, z, cutoff, calibration
        self.min_images, self.seeds, self.seed = min_images, seeds, seed
        self.layers = layers
        self.targets: dict[str, Any] = {}
        self.untrained = with_random_weights(model, seed)
        self.hits: dict[tuple, int] = defaultdict(int)
        self.counts = np.zeros(n_classes, int)
        self.kind_hits: dict[tuple[str, int], np.ndarray] = defaultdict(lambda: np.zeros(2, int))
        self.errors: dict[tuple[str, int], list[np.ndarray]] = defaultdict(list)
        self.contents: dict[tuple[str, int], list[np.ndarray]] = defaultdict(list)

    def calibrate(self, data: ImageData, batch_size: int) -> None:
        """Set the rule by the first images of those that probes are fitted on, for the model and its control."""
        kept: dict[str, list[Tensor]] = defaultdict(list)
        read = {variant: self.norms(model, data) for variant, model in self.variants().items()}
        seen = 0
        for batch in progress_batches(data, batch_size, f"{self.name}: norms"):
            pixels = self.model.preprocess(batch.images[: self.calibration - seen])
            layout = self.model.layout_for(*pixels.shape[2:])
            for variant, norms in read.items():
                of_patches = [x[:, layout.where("patches")].flatten() for x in norms(pixels, batch.first)[1]]
                kept[variant].append(torch.stack(of_patches))
            seen += len(pixels)
            if seen >= self.calibration:
                break
        self.census: dict[str, NormCensus] = {}
        for variant, parts in kept.items():
            rule = NormRule(torch.cat(parts, dim=1), self.z, self.cutoff, self.layers)
            self.census[variant] = NormCensus(rule, layout.grid)
        self.rule = self.census["trained"].rule
        self.targets = shuffle_targets(layout, self.seed)

    def variants(self) -> dict[str, HookedViT]:
        """The model, and its control."""
        return {"trained": self.model, "random weights": self.untrained}

    def norms(self, model: HookedViT, data: ImageData) -> ReadStreams:
        """What reads the norm of every token behind every layer that is measured."""
        return clean_streams(model, data, self.layers, token_norms)

    def fit(self, data: ImageData, batch_size: int) -> None:
        """Probes of the class on every readout, and on outliers and other patches; of the patch's content as well."""
        pooling = self.model if self.own is not None else ready_for_head(self.model)
        classes = GramRidge(self.n_classes, name=self.name)
        by_kind = {i: GramRidge(self.n_classes, name=f"{self.name}, layer {i}") for i in self.layers}
        local = {layer: GramRegression() for layer in self.layers}
        into = (classes, by_kind, local)
        read = clean_streams(pooling, data, self.layers, answers=self.own is None)
        for batch in progress_batches(data, batch_size, f"{self.name}: fitting probes", into=into):
            pixels = self.model.preprocess(batch.images)
            pooled, found = read(pixels, batch.first)
            streams = dict(zip(self.layers, found, strict=True))
            layout = self.model.layout_for(*pixels.shape[2:])
            sites = {f"{s} {i}": x for i, resid in streams.items() for s, x in readouts(resid, layout).items()}
            classes.update(sites if pooled is None else {**sites, "head": pooled}, batch.labels)
            contents = patch_contents(self.model.covered(shown_pixels(self.model, pixels)), layout)
            for layer, resid in streams.items():
                images, tokens, held = self.pairs(resid, layer, layout, contents, batch)
                if len(images):
                    by_kind[layer].update(tokens, batch.labels[images])
                    # one regression for both kinds: they then differ in what they hold, not in what was fitted
                    local[layer].update({"patch": torch.cat([*tokens.values()])}, torch.cat([*held.values()]))
        probes = classes.fit()
        self.probes = {site: probe for site, probe in probes.items() if site != "head"}
        self.answers = self.own or head_of_probe(pooling, probes["head"], data)
        self.kind_probes: dict[int, dict[str, RidgeProbe]] = {}
        self.local: dict[int, LinearMap] = {}
        for layer, ridge in by_kind.items():
            if ridge.n >= self.min_images and (ridge.counts > 0).sum() > 1:
                self.kind_probes[layer] = ridge.fit()
                self.local[layer] = local[layer].fit()["patch"]

    def pairs(
        self, resid: Tensor, layer: int, layout: TokenLayout, contents: Tensor, batch: Batch
    ) -> tuple[Tensor, dict[str, Tensor], dict[str, Tensor]]:
        """Of each image with an outlier, its highest token and one other patch at random, and what they lie on."""
        patches = resid[:, layout.where("patches")]
        norms = token_norms(patches)
        outliers = self.rule.outliers(norms, layer)
        images = (outliers.any(1) & ~outliers.all(1)).nonzero().flatten()
        chosen = {"outlier": norms[images].argmax(1), "other": torch.zeros(len(images), dtype=torch.long)}
        for i, image in enumerate(images.tolist()):
            free = (~outliers[image]).nonzero().flatten()
            rng = np.random.default_rng([self.seed, int(batch.index[image])])
            chosen["other"][i] = free[int(rng.integers(len(free)))]
        tokens = {kind: patches[images.to(patches.device), k.to(patches.device)] for kind, k in chosen.items()}
        return images, tokens, {kind: contents[images, k] for kind, k in chosen.items()}

    def measure(self, data: ImageData, batch_size: int) -> None:
        """The census, the probes and the shuffles."""
        extra = ("mask",) if "mask" in data.columns else ()
        what = f"{self.name}: census and shuffles"
        into = (self.census, self.counts, self.hits, self.kind_hits, self.errors, self.contents)
        read = clean_streams(self.answers.model, data, self.layers, answers=True)
        untrained = self.norms(self.untrained, data)
        for batch in exchange_batches(data, batch_size, what, extra=extra, into=into):
            pixels = self.model.preprocess(batch.images)
            layout = self.model.layout_for(*pixels.shape[2:])
            logits, streams = read(pixels, batch.first)
            assert logits is not None
            shown = self.model.covered(shown_pixels(self.model, pixels))
            objects = aligned_masks(self.model, batch.extra["mask"]) if extra else None
            traits = patch_traits(shown, layout, objects)
            self.census["trained"].update([token_norms(x) for x in streams], layout, traits)
            self.census["random weights"].update(untrained(pixels, batch.first)[1], layout)
            self.counts += np.bincount(batch.labels.numpy(), minlength=self.n_classes)
            self._hit(("accuracy", None, None, None), logits, self.answers.labels(batch.labels))
            contents = patch_contents(shown, layout)
            for layer, resid in zip(self.layers, streams, strict=True):
                for token, x in readouts(resid, layout).items():
                    self._hit(("probe", token, layer, None), self.probes[f"{token} {layer}"].scores(x), batch.labels)
                if layer in self.kind_probes:
                    self._kinds(resid, layer, layout, contents, batch)
            self._shuffle(pixels, batch, batch.number)

    def _kinds(self, resid: Tensor, layer: int, layout: TokenLayout, contents: Tensor, batch: Batch) -> None:
        images, tokens, held = self.pairs(resid, layer, layout, contents, batch)
        for kind in KINDS if len(images) else ():
            scores = self.kind_probes[layer][kind].scores(tokens[kind]).cpu()
            self.kind_hits[kind, layer] += [int(correct(rank(scores, batch.labels[images])).sum()), len(images)]
            predicted = self.local[layer].predict(tokens[kind]).cpu()
            self.errors[kind, layer].append((predicted - held[kind]).square().numpy())
            self.contents[kind, layer].append(held[kind].numpy())

    def _shuffle(self, pixels: Tensor, batch: Batch, i: int) -> None:
        variants = {
            (token, layer, seed): shuffle_tokens(layer, tokens, seed=batch_seed(seed, i))
            for token, tokens in self.targets.items()
            for layer in self.layers
            for seed in range(self.seeds)
        }
        labels = self.answers.labels(batch.labels)
        for key, (_, out) in zip(variants, sweep(self.answers.model, pixels, variants.values()), strict=True):
            self._hit(("shuffled", *key), out, labels)

    def _hit(self, key: tuple, scores: Tensor, labels: Tensor) -> None:
        self.hits[key] += int(correct(rank(scores.cpu(), labels)).sum())

    def rows(self) -> Iterator[dict[str, Any]]:
        """The frame's rows of this model, without its name."""
        n = int(self.counts.sum())
        for variant, census in self.census.items():
            for row in census.rows(self.seed):
                yield {**row, "variant": variant}
        yield from self.census["trained"].histogram_rows()
        for (measure, token, layer, seed), hits in self.hits.items():
            yield {"measure": measure, "token": token, "layer": layer, "seed": seed, **rate_row(hits, n)}
        for (kind, layer), (hits, seen) in ((key, found.tolist()) for key, found in self.kind_hits.items()):
            if seen >= self.min_images:
                yield {"measure": "class_probe", "token": kind, "layer": layer, **rate_row(hits, seen)}
                errors, held = (np.concatenate(x[kind, layer]) for x in (self.errors, self.contents))
                # what is gained over errors of 0 is the mean R² less 1
                value, low, high = (1 + float(x) for x in r_squared_gain(errors, 0 * errors, held))
                numbers = {"value": value, "low": low, "high": high, "n": seen}
                yield {"measure": "content_r2", "token": kind, "layer": layer, **numbers}
        yield {"measure": "chance", **rate_row(int(self.counts.max()), n)}

    def describe(self) -> dict[str, Any]:
        """What the summary needs beside the rows."""
        undefined = [layer for layer, bad in zip(self.layers, self.rule.undefined.tolist(), strict=True) if bad]
        return {
            "prefix": list(self.model.cfg.prefix),
            "targets": {
                token: tokens if isinstance(tokens, str) else list(tokens) for token, tokens in self.targets.items()
            },
            "undefined": undefined if self.cutoff is None else [],
            "compared": sorted(self.kind_probes),
        }


def readouts(resid: Float[Tensor, "b t d"], layout: TokenLayout) -> dict[str, Float[Tensor, "b d"]]:
    """CLS, the distillation token, every register and their mean, and the mean patch: what a probe reads."""
    found: dict[str, Tensor] = {}
    for role in layout.roles:
        tokens = resid[:, layout.where(role)]
        if role == "registers":
            found |= {f"register {k}": tokens[:, k] for k in range(tokens.shape[1])}
        found[role] = tokens.mean(1)
    return found


def shuffle_targets(layout: TokenLayout, seed: int) -> dict[str, Any]:
    """What is exchanged between images: each prefix role, all of them at once, and as many patches at random places."""
    roles = [role for role in layout.roles if role != "patches"]
    if not roles:
        return {}
    targets: dict[str, Any] = {role: role for role in roles}
    if len(roles) > 1:
        targets[" + ".join(roles)] = list(range(layout.n_prefix))
    patches = layout.mask("patches").nonzero().flatten().numpy()
    drawn = np.random.default_rng(seed).permutation(patches)[: layout.n_prefix]
    return {**targets, CONTROL: sorted(int(place) for place in drawn)}
