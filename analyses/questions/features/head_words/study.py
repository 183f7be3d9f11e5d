"""One model: what its parts add to the answers, which words its heads speak in, and maps of the answers."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from analyses.activations.layers import measured_layers
from analyses.activations.token_groups import aligned_masks
from analyses.controls.random_weights import with_random_weights
from analyses.data import ImageData
from analyses.questions.features.head_words.joint import JointReading, Part, directions
from analyses.questions.features.head_words.text_span import text_span
from analyses.running.notes import progress_batches
from analyses.statistics.intervals import RATE, mean_intervals
from hooked_vit import HookedViT
from interventions.vocabulary import generator_of

TEXTS, RANDOM, UNTRAINED, OTHER = "texts", "random directions", "random weights", "another text"


class WordStudy:
    """The measurements of `head_words` on one model."""

    def __init__(
        self, name: str, model: HookedViT, texts: tuple[str, ...], *, layers: Sequence[int] | None, last_layers: int,
        top: int, examples: int, draws: int, seed: int,
    ) -> None:  # fmt: skip
        self.name, self.model, self.top, self.examples = name, model, top, examples
        self.draws, self.seed = draws, seed
        self.directions = directions(model)
        known = model.cfg.class_names or tuple(f"class {i}" for i in range(len(self.directions)))
        self.all_words = known
        chosen = [model.to_single_token(text) for text in texts] or list(range(len(known)))
        self.chosen, self.words = chosen, [known[i] for i in chosen]
        self.measured = measured_layers(model, layers)
        self.layers = self.measured[-last_layers:] if layers is None else self.measured
        self.untrained = with_random_weights(model, seed)
        self.parts: list[Part] = []
        self.outputs: dict[str, list[Tensor]] = defaultdict(list)
        self.margins: list[np.ndarray] = []
        self.maps: list[tuple[str, np.ndarray]] = []
        self.on_object: dict[str, list[np.ndarray]] = defaultdict(list)
        self.errors: list[float] = []

    @torch.no_grad()
    def measure(self, data: ImageData, batch_size: int) -> None:
        """Everything, in one pass."""
        extra = ("mask",) if "mask" in data.columns else ()
        into = (self.outputs, self.margins, self.maps, self.on_object, self.errors)
        for batch in progress_batches(data, batch_size, f"{self.name}: reading heads", extra=extra, into=into):
            pixels = self.model.preprocess(batch.images)
            mapped = not self.model.cfg.attn_inner_norm
            reading = JointReading(self.model, pixels, patterns=mapped, layers=self.measured)
            vectors = reading.vectors()
            self.parts = reading.parts
            self._check(vectors, reading.logits)
            answer = reading.logits.argmax(-1)
            margins = torch.einsum("bpe,be->bp", vectors, self._margin(self.directions, answer))
            margins[:, -1] += self._margin(self.model.b_U.double(), answer)  # the head's bias is a constant too
            self.margins.append(margins.cpu().numpy())
            untrained = JointReading(self.untrained, pixels, patterns=mapped, layers=self.measured)
            for variant, of_parts in ((TEXTS, vectors), (UNTRAINED, untrained.vectors())):
                self.outputs[variant].append(self._heads(of_parts))
            if mapped:
                objects = aligned_masks(self.model, batch.extra["mask"]) if extra else None
                self._maps(reading, untrained, answer, objects, batch.first)

    def _check(self, vectors: Tensor, logits: Tensor) -> None:
        found = vectors.sum(1) @ self.directions.T + self.model.b_U
        self.errors.append(float((found - logits).abs().max()))

    def _margin(self, of_texts: Tensor, answer: Tensor) -> Tensor:
        """Per image, what belongs to its own answer less the mean of the others."""
        own, n = of_texts[answer], len(of_texts)
        return own if n == 1 else own - (of_texts.sum(0) - own) / (n - 1)

    def _heads(self, vectors: Tensor) -> Tensor:
        """[b, layers described, heads, e]."""
        shape = len(self.measured), self.model.cfg.n_heads
        by_layer = vectors[:, : shape[0] * shape[1]].unflatten(1, shape)
        return by_layer[:, [self.measured.index(layer) for layer in self.layers]].float().cpu()

    def _maps(
        self, reading: JointReading, untrained: JointReading, answer: Tensor, objects: Tensor | None, first: int
    ) -> None:
        wanted = self.examples - first
        if objects is None and wanted <= 0:
            return
        other = self._others(answer, first)
        told = {TEXTS: (reading, answer), OTHER: (reading, other), UNTRAINED: (untrained, untrained.logits.argmax(-1))}
        layout = reading.layout
        for variant, (read, ids) in told.items():
            towards = directions(read.model)[ids]
            on_patches = read.by_source(towards).sum((1, 2))[:, layout.mask("patches")].cpu().numpy()
            if variant == TEXTS:
                shown = on_patches[: max(0, wanted)].reshape(-1, *layout.grid)
                self.maps += [(self.all_words[int(i)], one) for i, one in zip(ids, shown, strict=False)]
            if objects is not None:
                rows, cols = layout.grid
                there = objects.unflatten(1, (rows, -1)).unflatten(3, (cols, -1)).gt(0).any(4).any(2).flatten(1).numpy()
                self.on_object[variant].append(
                    np.array([_above(*pair) for pair in zip(on_patches, there, strict=True)])
                )

    @property
    def n(self) -> int:
        """Images read."""
        return sum(len(margins) for margins in self.margins)

    @property
    def error(self) -> float:
        """By how much, at most, the parts of an answer miss it."""
        return max(self.errors)

    def _others(self, answer: Tensor, first: int) -> Tensor:
        """For each image a text that is not its answer, at random."""
        n = len(self.directions)
        drawn = torch.randint(1, max(2, n), answer.shape, generator=generator_of(self.seed + first + len(answer)))
        return (answer + drawn.to(answer)) % n

    def rows(self) -> Iterator[dict[str, Any]]:
        """The frame's rows of this model, without its name."""
        columns = dict(zip(self.parts, np.concatenate(self.margins).T, strict=True))
        intervals = mean_intervals(columns)
        for part, values in columns.items():
            low, high = intervals[part]
            numbers = {"value": values.mean(), "low": low, "high": high, "n": len(values)}
            yield {"measure": "contribution", **part._asdict(), **numbers}
        yield from self._spans()
        for image, (text, values) in enumerate(self.maps):
            for (row, col), value in np.ndenumerate(values):
                yield {"measure": "map", "image": image, "text": text, "row": row, "col": col, "value": value}
        found = {variant: np.concatenate(parts) for variant, parts in self.on_object.items()}
        for variant, (low, high) in mean_intervals(found, bounds=RATE).items():
            known = found[variant][np.isfinite(found[variant])]
            if len(known):
                numbers = {"value": known.mean(), "low": low, "high": high, "n": len(known)}
                yield {"measure": "on_object", "variant": variant, **numbers}

    def _spans(self) -> Iterator[dict[str, Any]]:
        texts = self.directions[self.chosen].cpu()
        random = {}
        for draw in range(self.draws):
            standard = torch.randn(texts.shape, generator=generator_of(self.seed + draw), dtype=texts.dtype)
            random[draw] = standard * (texts.norm(dim=1) / standard.norm(dim=1))[:, None]
        for variant, parts in self.outputs.items():
            outputs = torch.cat(parts).double()
            sets: dict[int | None, tuple[str, Tensor]] = {None: (variant, texts)}
            if variant == TEXTS:
                sets |= {draw: (RANDOM, some) for draw, some in random.items()}
            for i, layer in enumerate(self.layers):
                for head in range(outputs.shape[2]):
                    for seed, (name, some) in sets.items():
                        span = text_span(outputs[:, i, head], some, self.top)
                        at = {"variant": name, "component": "attn", "layer": layer, "head": head, "seed": seed}
                        gains = np.diff([0.0, *span.explained])
                        for k, (text, share) in enumerate(zip(span.texts, span.explained, strict=True), start=1):
                            yield {"measure": "explained", **at, "k": k, "value": share, "n": len(outputs)}
                            if name == TEXTS:
                                spoken = {"k": k, "text": self.words[text], "value": gains[k - 1]}
                                yield {"measure": "word", **at, **spoken, "n": len(outputs)}


def _above(values: np.ndarray, there: np.ndarray) -> float:
    """Probability that a patch on the object has a larger value than one beside it; NaN where there is only one kind.

    >>> _above(np.array([3.0, 1.0, 2.0]), np.array([True, False, False]))
    1.0
    """
    on, beside = values[there], values[~there]
    if not len(on) or not len(beside):
        return float("nan")
    larger = (on[:, None] > beside).mean() + 0.5 * (on[:, None] == beside).mean()
    return float(larger)
