"""How identifiable each image's class is in each of its tokens, site by site, block by block: what is kept, and tested.

Of the tokens only counts of their ranks are kept, of the images one number per block and kind of token.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor

from analyses.questions.class_space.measures.image_means import ImageMeans, interval_rows
from analyses.questions.class_space.measures.projection import EMBEDDING, KINDS, token_ranks, true_scores
from analyses.questions.class_space.measures.random_prototypes import permuted_classes
from analyses.questions.class_space.measures.rank_counts import RankCounts, SignedRankCounts
from analyses.questions.class_space.measures.updates import Scores
from analyses.statistics.intervals import CHANGE, RATE, rate_row
from analyses.statistics.ranks import chance, correct, identifiability, rank
from analyses.statistics.significance import above_chance, holm, sign_flip_test
from hooked_vit import TokenLayout

SITES = {"post": "resid_post", "attn": "attn_out", "mlp": "mlp_out"}


TESTED = ("above_random", *(f"{x}_above_{y}" for x in ("rate", "at_least_one") for y in ("random", "chance")))
"""Measures that have a p-value."""


class Key(NamedTuple):
    """What a distribution is of: which weights and head, where, and which kind of token."""

    control: str
    seed: int | None
    site: str
    layer: int
    tokens: str


class Identifiability:
    """Tally of ranks: what `read_updates` shows, block by block and role by role.

    >>> Identifiability(n_classes=10).n_images
    0

    `permuted` are seeds of controls whose head has its rows permuted. `full_range` scales r from 0, not from 1/C.
    With `embedding` what enters block 0 counts as a layer, of which all others are told by `add`.
    `published` is the code of Vilas et al. 2023: of a model without CLS the first image token is left out, blocks are
    compared with the random model by Wilcoxon's test over tokens, uncorrected, and change starts at the second block.
    methods §7–11.
    """

    PASSING = ("_latest", "_n_tokens")

    def __init__(
        self,
        n_classes: int,
        *,
        has_cls: bool = True,
        permuted: Sequence[int] = (),
        published: bool = False,
        full_range: bool = False,
        embedding: bool = True,
    ) -> None:
        self.n_classes, self.published, self.embedding = n_classes, published, embedding
        self.scale = n_classes - 1 if full_range else n_classes
        self.n_images = 0
        self._drops_first = published and not has_cls
        self._permuted = {seed: permuted_classes(n_classes, seed) for seed in permuted}
        self._ranks: dict[Key, RankCounts] = defaultdict(lambda: RankCounts(n_classes))
        self._means, self._rates, self._changes = ImageMeans(), ImageMeans(), ImageMeans()
        self._pairs: dict[tuple[int, str], SignedRankCounts] = defaultdict(lambda: SignedRankCounts(n_classes))
        self._latest: dict[tuple[int, str], Tensor] = {}
        self._right: list[Tensor] = []
        self._n_tokens: dict[str, int] = {}

    def add(self, layer: int, role: str, scores: Scores, labels: Int[Tensor, "b"]) -> None:
        """Take in one block's scores of one batch's tokens of one role."""
        parts = {SITES[name]: (layer, getattr(scores, name)) for name in SITES}
        self._note_all(role, parts, labels)
        if layer == 0 and self.embedding:
            self._note_all(role, {"resid_post": (EMBEDDING, scores.pre)}, labels)
        if layer == 0 and self.published:
            return
        grown = true_scores(scores.post, labels) > true_scores(scores.pre, labels)
        key = Key("trained", None, "resid_post", layer, role)
        self._changes.add(key, self._counted(role, grown).double().mean(1))

    def _note_all(self, role: str, parts: dict[str, tuple[int, Tensor]], labels: Tensor) -> None:
        for site, (layer, scores) in parts.items():
            pos = self._counted(role, token_ranks(scores, labels))
            self._note(Key("trained", None, site, layer, role), pos)
            if site != "resid_post":
                continue
            self._latest[layer, role] = pos
            for seed, rows in self._permuted.items():
                pos = token_ranks(scores, rows[labels.cpu()])
                self._note(Key("permuted_head", seed, site, layer, role), self._counted(role, pos))

    def _counted(self, role: str, tokens: Tensor) -> Tensor:
        """Of the tokens of a role [b t] those that count."""
        return tokens[:, 1:] if self._drops_first and role == "patches" else tokens

    def _note(self, key: Key, pos: Float[Tensor, "b t"]) -> None:
        self._ranks[key].add(pos)
        self._means.add(key, identifiability(pos, self.scale).mean(1))
        self._rates.add(key, correct(pos).double().mean(1))
        self._n_tokens[key.tokens] = pos.shape[1]

    def add_answers(self, scores: Float[Tensor, "b c"], labels: Int[Tensor, "b"]) -> None:
        """Take in the model's own answers to a batch."""
        self._right.append(correct(rank(scores, labels.to(scores.device))).cpu())
        self.n_images += len(labels)

    def add_random(self, seed: int, by_layer: Mapping[int, Float64[Tensor, "b t"]], layout: TokenLayout) -> None:
        """Take in the ranks that random weights give all tokens of the batch that was read last."""
        for layer, pos in by_layer.items():
            for role in [role for role in layout.roles if role in KINDS]:
                counted = self._counted(role, pos[:, layout.mask(role)])
                self._note(Key("random", seed, "resid_post", layer, role), counted)
                if self.published:  # a higher rank number is less identifiable
                    self._pairs[layer, role].add(counted, self._latest[layer, role])

    def rows(self, seed: int = 0) -> Iterator[dict[str, Any]]:
        """A row per measure, site, layer, kind of token and control, with intervals over images."""
        yield from self._named("identifiability", self._means.rows())
        yield from self._named("rate", self._rates.rows())
        yield from self._named("change_rate", self._changes.rows())
        rates = self._rates.columns()
        for key, values in rates.items():
            if key.tokens == "patches" and key.site == "resid_post":
                yield {"measure": "at_least_one", **key._asdict(), **rate_row(int((values > 0).sum()), len(values))}
        for key, counts in self._ranks.items():
            for name, value in counts.box(self.scale)._asdict().items():
                yield {"measure": name, **key._asdict(), "value": value, "n": counts.n}
        yield from self._answers(rates)
        yield from self._chances()
        yield from self._tests(seed)

    @staticmethod
    def _named(measure: str, rows: Iterator[tuple[Key, dict[str, Any]]]) -> Iterator[dict[str, Any]]:
        for key, row in rows:
            yield {"measure": measure, **key._asdict(), **row}

    def _answers(self, rates: dict[Key, np.ndarray]) -> Iterator[dict[str, Any]]:
        """Accuracy, and how many images answered wrongly hold an image token with the right class."""
        if not self._right:
            return
        right = torch.cat(self._right).numpy()
        yield {"measure": "accuracy", "control": "trained", **rate_row(int(right.sum()), len(right))}
        last = max(key.layer for key in rates)
        key = Key("trained", None, "resid_post", last, "patches")
        wrong = ~right
        if key in rates and wrong.any():
            row = rate_row(int((rates[key][wrong] > 0).sum()), int(wrong.sum()))
            yield {"measure": "at_least_one_when_wrong", **key._asdict(), **row}

    def _chances(self) -> Iterator[dict[str, Any]]:
        c, n = self.n_classes, self._n_tokens.get("patches", 0)
        expected = {
            "identifiability": 1 - (c - 1) / 2 / self.scale,
            "rate": chance(c),
            "at_least_one": 1 - (1 - chance(c)) ** n,
            "change_rate": 0.5,
        }
        for measure, value in expected.items():
            yield {"measure": measure, "control": "chance", "value": value}

    def _tests(self, seed: int) -> Iterator[dict[str, Any]]:
        """Trained above random weights and above chance, block by block: per image, Holm over blocks; or as published.

        Each measure, kind of token and comparison is a family of its own.
        """
        means, rates = self._means.columns(), self._rates.columns()
        found = {key: (values > 0).astype(float) for key, values in rates.items() if key.tokens == "patches"}
        for name, columns in (("", means), ("rate_", rates), ("at_least_one_", found)):
            for role in dict.fromkeys(key.tokens for key in columns):
                trained = sorted((key for key in columns if _is_tested(key, role)), key=_layer_of)
                yield from self._above_random(f"{name}above_random", columns, trained, role, seed)
                if name and not self.published:
                    yield from self._above_chance(f"{name}above_chance", columns, trained, seed)

    def _above_random(
        self, measure: str, columns: dict[Key, np.ndarray], trained: Sequence[Key], role: str, seed: int
    ) -> Iterator[dict[str, Any]]:
        seeds = sorted({key.seed for key in columns if key.control == "random" and key.seed is not None})
        if not seeds or (self.published and measure != "above_random"):
            return
        above = {
            key: columns[key] - np.mean([columns[key._replace(control="random", seed=s)] for s in seeds], axis=0)
            for key in trained
        }
        if self.published:
            p = [self._pairs[key.layer, role].p_greater() for key in above]
        else:
            p = [sign_flip_test(difference, seed=seed, bounds=CHANGE) for difference in above.values()]
        adjusted = p if self.published else holm(p)
        for (key, row), raw, held in zip(interval_rows(above, bounds=CHANGE), p, adjusted, strict=True):
            yield {"measure": measure, **key._asdict(), **row, "p": raw, "p_adjusted": held}

    def _above_chance(
        self, measure: str, columns: dict[Key, np.ndarray], trained: Sequence[Key], seed: int
    ) -> Iterator[dict[str, Any]]:
        luck = chance(self.n_classes)
        if measure.startswith("at_least_one"):
            # tokens of one image agree, which only makes it rarer that one of them is right by luck
            luck = 1 - (1 - luck) ** self._n_tokens["patches"]
            p = [above_chance(int(columns[key].sum()), len(columns[key]), luck) for key in trained]
        else:
            p = [sign_flip_test(columns[key] - luck, seed=seed, bounds=CHANGE) for key in trained]
        rows = interval_rows({key: columns[key] for key in trained}, bounds=RATE)
        for (key, row), raw, held in zip(rows, p, holm(p), strict=True):
            shifted = {part: row[part] - luck for part in ("value", "low", "high")}
            yield {"measure": measure, **key._asdict(), **row, **shifted, "p": raw, "p_adjusted": held}


def _layer_of(key: Key) -> int:
    return key.layer


def _is_tested(key: Key, role: str) -> bool:
    return key.tokens == role and key.control == "trained" and key.site == "resid_post"
