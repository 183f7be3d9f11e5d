"""How identifiable the class is in tokens on the object and in tokens of its context, block by block (methods §13)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from analyses.activations.class_masks import CLASS, CONTEXT, counts_of
from analyses.processes.walking import numbered
from analyses.questions.class_space.context_tokens.logit_change import PUBLISHED_SHUFFLES, LogitChange
from analyses.questions.class_space.measures.image_means import ImageMeans, group_mean, interval_rows
from analyses.questions.class_space.measures.projection import AS_TRAINED, EMBEDDING, Rules, check_rules, token_ranks
from analyses.questions.class_space.measures.rank_counts import RankCounts
from analyses.questions.class_space.measures.updates import Scores, read_updates
from analyses.statistics.intervals import CHANGE
from analyses.statistics.ranks import correct, identifiability
from analyses.statistics.significance import holm, permutation_p, sign_flip_test
from hooked_vit import HookedViT

GROUPS = {"class": CLASS, "context": CONTEXT}
N_SHUFFLES = 999


class ContextTally:
    """Ranks of the true class in class and context tokens, and what dealing out the labels anew would give.

    >>> ContextTally(n_classes=10).n_shuffles
    999

    Labels are dealt out within each image, among its tokens that have one, so that neither an image's difficulty nor
    its number of class tokens makes a difference. `published` deals them out over all tokens of all images, 300 times.
    """

    def __init__(self, n_classes: int, *, n_shuffles: int = N_SHUFFLES, published: bool = False, seed: int = 0) -> None:
        if n_shuffles < 1:
            raise ValueError(f"a permutation test needs at least one shuffle; got n_shuffles={n_shuffles}")
        self.n_classes, self.n_shuffles, self.published = n_classes, n_shuffles, published
        self._seed = seed
        self._ranks: dict[tuple[int, str], RankCounts] = defaultdict(lambda: RankCounts(n_classes))
        self._means, self._rates = ImageMeans(), ImageMeans()
        self._null: dict[int, np.ndarray] = defaultdict(lambda: np.zeros(n_shuffles))
        self._labels: list[Tensor] = []

    def add(
        self, by_layer: Mapping[int, Float[Tensor, "b n"]], labels: Int[Tensor, "b n"], number: int | None = None
    ) -> None:
        """Ranks of the image tokens behind each layer (−1: at the embedding), and the labels of their patches.

        `number` is that of the batch's first image; where it is not given, as many images came before as were added.
        """
        number = sum(map(len, self._labels)) if number is None else number
        for layer, pos in by_layer.items():
            r, first = identifiability(pos, self.n_classes), correct(pos).double()
            for group, label in GROUPS.items():
                here = labels == label
                self._ranks[layer, group].add(pos[here])
                self._means.add((layer, group), group_mean(r, here))
                self._rates.add((layer, group), group_mean(first, here))
        self._labels.append(labels)
        if not self.published:
            each = identifiability(torch.stack([*by_layer.values()]), self.n_classes)
            self._deal_out([*by_layer], each.numpy(), labels.numpy(), number)

    def _deal_out(self, layers: Sequence[int], r: np.ndarray, labels: np.ndarray, number: int) -> None:
        """Add to the null distribution: the same labels at other tokens of the same image, each with its own draws."""
        for image, row in enumerate(labels):
            known = np.flatnonzero(row >= 0)
            k = int((row == CLASS).sum())
            if not 0 < k < len(known):
                continue
            dealt = (
                np.random.default_rng([self._seed, number + image]).random((self.n_shuffles, len(known))).argsort(1) < k
            )
            values = r[:, image, known]
            total, of_class = values.sum(1), values @ dealt.T
            difference = of_class / k - (total[:, None] - of_class) / (len(known) - k)
            for layer, layer_difference in zip(layers, difference, strict=True):
                self._null[layer] += layer_difference

    def rows(self, seed: int = 0) -> Iterator[dict[str, Any]]:
        """A row per measure, layer and group; `difference` is class minus context, with p-values."""
        for measure, means in (("identifiability", self._means), ("rate", self._rates)):
            for (layer, group), row in means.rows():
                yield {"measure": measure, "layer": layer, "tokens": group, **row}
        for (layer, group), counts in self._ranks.items():
            for name, value in counts.box(self.n_classes)._asdict().items():
                yield {"measure": name, "layer": layer, "tokens": group, "value": value, "n": counts.n}
        yield from self._tests(seed)
        for name, count in counts_of(torch.cat(self._labels)).items():
            yield {"measure": name, "value": float(count)}

    def _tests(self, seed: int) -> Iterator[dict[str, Any]]:
        columns = self._means.columns()
        layers = sorted({layer for layer, _ in columns})
        differences = {layer: columns[layer, "class"] - columns[layer, "context"] for layer in layers}
        found = np.isfinite(differences[layers[0]])
        if not found.any():
            return
        if self.published:
            for layer in layers:
                observed, tail = self._pooled(layer)
                yield {"measure": "difference", "layer": layer, "value": observed, "p": tail, "p_adjusted": tail}
            return
        p = [permutation_p(differences[la][found].mean(), self._null[la] / found.sum()) for la in layers]
        signs = [sign_flip_test(differences[la][found], seed=seed, bounds=CHANGE) for la in layers]
        for (layer, row), raw, held, sign in zip(
            interval_rows(differences, bounds=CHANGE), p, holm(p), signs, strict=True
        ):
            tests = {"p": raw, "p_adjusted": held, "p_sign_flip": sign}
            yield {"measure": "difference", "layer": layer, **row, **tests}

    def _pooled(self, layer: int) -> tuple[float, float]:
        """Difference of all class from all context tokens, and the share of shuffles that is strictly greater."""
        of_class, context = (self._ranks[layer, group].counts for group in GROUPS)
        if not of_class.sum() or not context.sum():
            return float("nan"), float("nan")
        values = 1 - np.arange(len(of_class)) / 2 / self.n_classes
        k, m = int(of_class.sum()), int(context.sum())
        # which ranks fall to the class tokens when labels are shuffled over all tokens
        drawn = np.random.default_rng(self._seed).multivariate_hypergeometric(
            of_class + context, k, size=PUBLISHED_SHUFFLES, method="marginals"
        )
        null = drawn @ values / k - (of_class + context - drawn) @ values / m
        observed = float(of_class @ values / k - context @ values / m)
        return observed, float((null > observed + 1e-12).mean())


def measure_context(
    model: HookedViT,
    batches: Iterable[tuple[Tensor, Tensor, Tensor]],
    *,
    rules: Rules = AS_TRAINED,
    layers: Sequence[int] | None = None,
    n_shuffles: int = N_SHUFFLES,
    published: bool = False,
    seed: int = 0,
) -> list[dict[str, Any]]:
    """Class against context tokens at the embedding and every block, or at these `layers` alone, from one pass.

    >>> rows = measure_context(model, [(pixels, labels, label_cells(maps, grid))])  # doctest: +SKIP

    `batches` are (pixels, classes of the head, labels of the patches [b, n]). Rows hold measure, layer (−1 for the
    embedding), tokens (class or context), value, low, high, n. An image without tokens of a group is left out of that
    group, and counted: without_class_tokens, without_context_tokens. `logit_change` rows are those of `LogitChange`.
    Raises ValueError for labels of another number of patches.
    """
    tally = ContextTally(check_rules(model, rules), n_shuffles=n_shuffles, published=published, seed=seed)
    changes = LogitChange(published)
    for _, first, (pixels, labels, patches) in numbered(batches, tally, changes):
        by_layer: dict[int, Tensor] = {}

        def see(
            layer: int,
            role: str,
            scores: Scores,
            by_layer: dict[int, Tensor] = by_layer,
            labels: Tensor = labels,
            patches: Tensor = patches,
        ) -> None:
            if role != "patches":
                return
            if scores.post.shape[:2] != patches.shape:
                raise ValueError(
                    f"every image token has one label; there are {tuple(scores.post.shape[:2])} tokens and labels for "
                    f"{tuple(patches.shape)}"
                )
            if layer == 0 and layers is None:
                by_layer[EMBEDDING] = token_ranks(scores.pre, labels)
            by_layer[layer] = token_ranks(scores.post, labels)
            changes.add(layer, scores, labels, patches)

        read_updates(model, pixels, see, rules, layers=layers, answers=False)
        tally.add(by_layer, patches, first)
    return [*tally.rows(seed), *changes.rows(seed)]
