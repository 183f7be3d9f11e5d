"""What is left of the class in some image tokens when the others are taken out behind the embedding (methods §14)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from analyses.activations.class_masks import CLASS, CONTEXT
from analyses.processes.walking import filling
from analyses.questions.class_space.measures.image_means import ImageMeans, interval_rows
from analyses.questions.class_space.measures.last_block import Ending, read_ending
from analyses.questions.class_space.measures.projection import AS_TRAINED, Rules, check_rules
from analyses.statistics.comparisons import ratio_interval
from analyses.statistics.intervals import CHANGE, RATE, rate_row
from analyses.statistics.ranks import correct
from analyses.statistics.significance import holm, mcnemar, sign_flip_test
from hooked_vit import HookedViT, TokenLayout
from interventions import apply, get

KEPT = {"class": CLASS, "context": CONTEXT}


class Run(NamedTuple):
    """Which group is kept, and what was done: "clean", "removed", or "random" with a seed."""

    kept: str
    control: str
    seed: int | None = None


def random_removal(removed: Bool[Tensor, "b n"], seed: int, index: Int[Tensor, "b"]) -> Bool[Tensor, "b n"]:
    """As many patches of each image as are removed, drawn from all of them; for image `index` the same in any batch.

    >>> random_removal(torch.tensor([[True, False, True, False]]), 0, torch.tensor([7])).sum().item()
    2
    """
    drawn = torch.zeros_like(removed)
    for row, (k, image) in enumerate(zip(removed.sum(1).tolist(), index.tolist(), strict=True)):
        drawn[row, np.random.default_rng([seed, image]).permutation(removed.shape[1])[:k].copy()] = True
    return drawn


def at_tokens(patches: Bool[Tensor, "b n"], layout: TokenLayout) -> Bool[Tensor, "b t"]:
    """Where patches, given in their native order, stand after others were removed."""
    native = TokenLayout.native(layout.prefix, layout.grid)
    full = torch.zeros(len(patches), native.n_tokens, dtype=torch.bool)
    full[:, native.mask("patches")] = patches
    ids = layout.ids.expand(len(patches), -1)
    return full.gather(1, ids.clamp(min=0)) & (ids >= 0)


def run_without(
    model: HookedViT,
    pixels: Float[Tensor, "b c h w"],
    labels: Int[Tensor, "b"],
    removed: Bool[Tensor, "b n"],
    rules: Rules = AS_TRAINED,
    layers: Sequence[int] | None = None,
) -> Ending:
    """Run with these patches of each image taken out of the stream that enters block 0.

    >>> run_without(model, pixels, labels, patches == CONTEXT)  # doctest: +SKIP

    The others keep their positions. Nothing removed is the untouched run, to the bit. `layers` as in `read_ending`.
    """
    if not removed.any():
        return read_ending(model, pixels, labels, rules, layers)
    with apply(model, get("remove_tokens", tokens="patches", where=removed)):
        return read_ending(model, pixels, labels, rules, layers)


class RemovalTally:
    """Hits and tokens per image, from which come the mean over images and the rate over all tokens."""

    def __init__(self) -> None:
        self._hits, self._tokens = ImageMeans(), ImageMeans()
        self._right: dict[Run, list[Tensor]] = defaultdict(list)

    def add(self, run: Run, ending: Ending, counted: Bool[Tensor, "b t"]) -> None:
        """What came of a run, at the tokens that count."""
        for layer, pos in ending.pos.items():
            self._hits.add((run, layer), (correct(pos) & counted).sum(1).double())
            self._tokens.add((run, layer), counted.sum(1).double())
        self._right[run].append(ending.right)

    def rows(self, seed: int = 0) -> Iterator[dict[str, Any]]:
        """rate (mean over images), rate_micro (over all tokens), accuracy, and paired changes to the clean run."""
        hits, tokens = self._hits.columns(), self._tokens.columns()
        with np.errstate(invalid="ignore"):
            rates = {key: hits[key] / tokens[key] for key in hits}
        for (run, layer), row in interval_rows(rates, bounds=RATE):
            yield {"measure": "rate", **run._asdict(), "layer": layer, **row}
        for run, layer in hits:
            pooled = pooled_rate(hits[run, layer], tokens[run, layer])
            yield {"measure": "rate_micro", **run._asdict(), "layer": layer, **pooled}
        right = {run: torch.cat(parts).numpy() for run, parts in self._right.items()}
        for run, answers in right.items():
            yield {"measure": "accuracy", **run._asdict(), **rate_row(int(answers.sum()), len(answers))}
        tested: list[dict[str, Any]] = []
        for run in right:
            clean = Run(run.kept, "clean")
            if run == clean or clean not in right or len(right[clean]) != len(right[run]):
                continue
            for layer in [layer for of, layer in hits if of == run]:
                change = rates[run, layer] - rates[clean, layer]
                known = change[np.isfinite(change)]
                options: dict[str, Any] = {"alternative": "two-sided", "bounds": CHANGE}
                p = sign_flip_test(known, seed=seed, **options) if len(known) else float("nan")
                (_, row), *_ = interval_rows({run: change}, bounds=CHANGE)
                tested.append({"measure": "rate_change", **run._asdict(), "layer": layer, **row, "p": p})
            lost = right[run].astype(float) - right[clean]
            (_, row), *_ = interval_rows({run: lost}, bounds=CHANGE)
            p = mcnemar(right[run], right[clean])
            tested.append({"measure": "accuracy_change", **run._asdict(), **row, "p": p})
        for together in dict.fromkeys((row["measure"], row.get("layer")) for row in tested):
            mine = [row for row in tested if (row["measure"], row.get("layer")) == together and np.isfinite(row["p"])]
            for row, held in zip(mine, holm([row["p"] for row in mine]), strict=True):
                row["p_adjusted"] = held
        yield from tested


def pooled_rate(hits: np.ndarray, tokens: np.ndarray) -> dict[str, Any]:
    """Share of all tokens of all images that are hits, with the 95 % interval of a ratio over images.

    >>> pooled_rate(np.array([1.0, 0.0]), np.array([1.0, 3.0]))["value"]
    0.25
    """
    if not tokens.sum():
        return {"value": float("nan"), "low": float("nan"), "high": float("nan"), "n": 0}
    value, *ends, _ = ratio_interval(hits, tokens)
    low, high = np.clip(ends, *RATE)
    return {"value": value, "low": float(low), "high": float(high), "n": len(hits)}


def measure_removal(
    model: HookedViT,
    batches: Iterable[tuple[Tensor, Tensor, Tensor, Tensor]],
    *,
    rules: Rules = AS_TRAINED,
    layers: Sequence[int] | None = None,
    draws: int = 3,
    published: bool = False,
    seed: int = 0,
) -> list[dict[str, Any]]:
    """Rate of the tokens kept, and accuracy, with all other image tokens removed, or as many at random.

    >>> rows = measure_removal(model, [(pixels, labels, patch_labels, index)])  # doctest: +SKIP

    `batches` are (pixels, classes of the head, labels of the patches [b, n], numbers of the images). `kept` is the
    group whose tokens stay and are counted: "class" or "context"; patches of neither go with the other group. `control`
    is clean (the same tokens of the untouched image), removed, or random: as many patches drawn from all, of what stays
    those of the group count. Images that lack a group, or have nothing else, are skipped and counted as "skipped".
    Tokens are read behind `layers` (as in `read_ending`).

    `published` is the code of Vilas et al. 2023: the tokens of the removed run include CLS and are averaged per image,
    and those of the clean run are pooled over images; images left whole or with CLS alone count.
    """
    check_rules(model, rules)
    tally, skipped = RemovalTally(), dict.fromkeys(KEPT, 0)
    for pixels, labels, patches, index in filling(batches, tally, skipped):
        for kept, label in KEPT.items():
            keep = patches == label
            usable = keep.any(1) & ~keep.all(1)
            if published:  # every image counts that leaves an answer: CLS does, where it is all that is read
                usable = keep.any(1) | (model.cfg.sources == ("cls",))
            skipped[kept] += int((~usable).sum())
            if not usable.any():
                continue
            chosen, keep = usable.to(pixels.device), keep[usable]
            for run, gone in _plans(kept, keep, index[usable], draws, seed):
                ending = run_without(model, pixels[chosen], labels[usable], gone, rules, layers)
                counted = at_tokens(keep & ~gone, ending.layout)
                if published and run.control == "removed":
                    counted = ending.layout.mask("all").expand(len(keep), -1)
                tally.add(run, ending, counted)
    rows = list(tally.rows(seed))
    if published:
        rows = _as_published(rows)
    return rows + [{"measure": "skipped", "kept": kept, "value": float(n)} for kept, n in skipped.items()]


def _plans(
    kept: str, keep: Bool[Tensor, "b n"], index: Int[Tensor, "b"], draws: int, seed: int
) -> Iterator[tuple[Run, Bool[Tensor, "b n"]]]:
    """What is done to a batch, and which patches that takes away."""
    yield Run(kept, "clean"), torch.zeros_like(keep)
    yield Run(kept, "removed"), ~keep
    for drawn in range(seed, seed + draws):
        yield Run(kept, "random", drawn), random_removal(~keep, drawn, index)


def _as_published(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Clean runs pooled over images, removed ones averaged per image, under the one name of rate."""
    published = []
    for row in rows:
        clean, measure = row["control"] == "clean", row["measure"]
        if measure == "rate_micro" and clean:
            published.append(row | {"measure": "rate"})
        elif measure == "accuracy" or (measure == "rate" and not clean):
            published.append(row)
    return published
