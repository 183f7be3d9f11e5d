"""How much an update raises the class on the object against its context: the side analysis of methods §15."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from analyses.activations.class_masks import CLASS, CONTEXT
from analyses.questions.class_space.measures.image_means import ImageMeans, group_mean, interval_rows
from analyses.questions.class_space.measures.projection import true_scores
from analyses.questions.class_space.measures.updates import PARTS, Scores
from analyses.statistics.significance import holm, sign_flip_test

PUBLISHED_SHUFFLES = 300


class LogitChange:
    """Score of the true class in an update alone minus that in what its sub-layer read: class against context tokens.

    >>> LogitChange().published
    False

    Per image the mean over class tokens minus the mean over context tokens; images without one of them are left out.
    `published` is the code of Vilas et al. 2023: attention only, not in the first block, tokens of all images pooled
    and their labels shuffled 300 times; it keeps one number per token.
    """

    def __init__(self, published: bool = False) -> None:
        self.published = published
        self._differences = ImageMeans(bounds=None)
        self._changes: dict[int, list[Tensor]] = defaultdict(list)
        self._labels: list[Tensor] = []

    def add(self, layer: int, scores: Scores, labels: Int[Tensor, "b"], patches: Int[Tensor, "b n"]) -> None:
        """One block's scores of the image tokens of a batch, with the labels of its patches."""
        true = Scores(*(true_scores(s, labels).double() for s in scores))
        changes = {"attn": true.attn - true.pre, "mlp": true.mlp - true.mid}
        if self.published:
            self._changes[layer].append(changes["attn"].float())
            if layer == next(iter(self._changes)):  # once a batch
                self._labels.append(patches)
            return
        for part, change in changes.items():
            apart = group_mean(change, patches == CLASS) - group_mean(change, patches == CONTEXT)
            self._differences.add((layer, part), apart)

    def rows(self, seed: int = 0) -> Iterator[dict[str, Any]]:
        """A row per layer and part: the mean over images, p of two-sided sign flips of images, Holm over layers."""
        if self.published:
            yield from self._pooled(seed)
            return
        columns = self._differences.columns()
        if not columns or not np.isfinite(next(iter(columns.values()))).any():
            return
        for part in PARTS:
            mine = {key: values for key, values in columns.items() if key[1] == part}
            known = [values[np.isfinite(values)] for values in mine.values()]
            p = [sign_flip_test(values, seed=seed, alternative="two-sided") for values in known]
            for ((layer, _), row), raw, held in zip(interval_rows(mine), p, holm(p), strict=True):
                yield {"measure": "logit_change", "layer": layer, "part": part, **row, "p": raw, "p_adjusted": held}

    def _pooled(self, seed: int) -> Iterator[dict[str, Any]]:
        labels = torch.cat(self._labels).flatten().numpy() == CLASS
        layers = [layer for layer in sorted(self._changes) if layer > 0]
        if not layers or not 0 < labels.sum() < len(labels):
            return
        values = torch.stack([torch.cat(self._changes[layer]).flatten() for layer in layers]).double().numpy()
        k, total = int(labels.sum()), values.sum(1)

        def apart(of_class: np.ndarray) -> np.ndarray:
            inside = values @ of_class
            return np.asarray(inside / k - (total - inside) / (len(labels) - k))

        rng, observed = np.random.default_rng(seed), apart(labels)
        above = np.mean([apart(rng.permutation(labels)) > observed + 1e-12 for _ in range(PUBLISHED_SHUFFLES)], axis=0)
        for layer, value, p in zip(layers, observed.tolist(), above.tolist(), strict=True):
            yield {"measure": "logit_change", "layer": layer, "part": "attn", "value": value, "p": p, "p_adjusted": p}
