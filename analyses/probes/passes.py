"""A pass over images with what is read at the sites of a model: from stored activations where an analysis has some."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int64, UInt64
from torch import Tensor

from analyses.activations.sites import SiteReader
from analyses.activations.store.plan import hook_behind
from analyses.activations.store.serving import Serving, Tokens, in_use
from analyses.activations.streams import Read, read_layers, read_stream
from analyses.data import ImageData
from analyses.data.batches import Batch
from analyses.data.contents import Apart
from analyses.data.sets import unread_batches
from analyses.probes.targets import TargetData
from analyses.running.notes import progress_batches
from hooked_vit import HookedViT
from hooked_vit.loading.progress import tqdm
from interventions import Intervention, apply

Edit = Intervention | Callable[[int, Tensor], Intervention]
BY_BATCH = 1_000_003  # a prime: seeds of two runs do not meet within a million batches


Features = dict[str, Float[Tensor, "b _"]]
ReadClean = Callable[[Any, Tensor], tuple[Float[Tensor, "b n"] | None, Features]]
"""Of a batch and its pixels, what the model answers and the features of every site."""
ReadStreams = Callable[[Tensor, int], tuple[Float[Tensor, "b n"] | None, list[Tensor]]]
"""Of pixels and the place of the first of their images, what the model answers and what is read of every layer."""


class Reading(NamedTuple):
    """A batch, what the model answers, where that was asked for, and the features [b, d] of every site by its name.

    Where activations are stored the batch has no pictures.
    """

    batch: Any
    answer: Float[Tensor, "b n"] | None
    features: dict[str, Float[Tensor, "b _"]]


def read_sites(
    reader: SiteReader,
    data: TargetData,
    batch_size: int,
    what: str,
    *,
    answers: bool = False,
    into: Sequence[Any] = (),
) -> Iterator[Reading]:
    """All images in order, with a progress bar that says `what` is being done, and what the reader reads of each.

    >>> for reading in read_sites(SiteReader(model, ("cls",)), data, 64, "reading"): ...  # doctest: +SKIP

    The model runs only where no store is in use (`activations` of an analysis), or where this is a control the stores
    do not have; the features are the same. A run ends behind the last layer that is read where no `answers` are asked
    for. `into` as in `progress_batches`; what is stored is read by every process.
    Raises ValueError where a store lacks what is read of a model it is of.
    """
    if (stored := _stored(reader, data.parts, answers)) is None:
        for batch in data.batches(batch_size, what, into=into):
            yield Reading(batch, *_run(reader, batch, answers))
    else:
        yield from stored.through(data.batches(batch_size, what, pictures=False))


def read_images(
    reader: SiteReader,
    data: ImageData,
    batch_size: int,
    what: str,
    *,
    answers: bool = False,
    into: Sequence[Any] = (),
) -> Iterator[Reading]:
    """`read_sites` of one set of images with their labels."""
    if (stored := _stored(reader, (data,), answers)) is None:
        for batch in progress_batches(data, batch_size, what, into=into):
            yield Reading(batch, *_run(reader, batch, answers))
    else:
        yield from stored.through(unopened(data, batch_size, what))


def unopened(data: ImageData, batch_size: int, what: str) -> Iterator[Batch]:
    """Every batch without its pictures, for whom what was kept of them is enough, with a progress bar.

    Raises what `unread_batches` raises.
    """
    total = -(-len(data) // batch_size)
    yield from tqdm(unread_batches(data, batch_size), total=total, desc=what, leave=False)


def clean_sites(reader: SiteReader, data: ImageData, *, answers: bool = False) -> ReadClean:
    """What reads the sites of a model without an edit, for a pass over all of `data` that looks at the pictures too.

    >>> read = clean_sites(SiteReader(model, ("cls",)), data, answers=True)  # doctest: +SKIP
    >>> for batch in progress_batches(data, 64, "reading"):  # doctest: +SKIP
    ...     answer, features = read(batch, model.preprocess(batch.images))

    Of a store in use it reads the batch's place there, and no pixels; the answer is None unless `answers` are asked
    for. Raises what `read_sites` does.
    """
    stored = _stored(reader, (data,), answers)
    return stored.at if stored is not None else lambda batch, pixels: _run(reader, batch, answers, pixels)


def clean_streams(
    model: HookedViT, data: ImageData, layers: Sequence[int], read: Read | None = None, *, answers: bool = False
) -> ReadStreams:
    """What reads every token behind some layers of a model without an edit, as `clean_sites` does one vector of them.

    >>> read = clean_streams(model, data, (2, 5))  # doctest: +SKIP
    >>> for batch in progress_batches(data, 64, "reading"):  # doctest: +SKIP
    ...     _, (early, late) = read(model.preprocess(batch.images), batch.first)

    The pixels may be of the first images of a batch alone. `read` is done to the stream of each layer, as in
    `read_stream`, so that no more of it is kept. Raises ValueError for a store without every token behind them.
    """
    used = in_use()
    if used is None or (serving := used.serving(model, data)) is None:
        if answers:
            return lambda pixels, first: read_stream(model, pixels, read, layers=layers)
        return lambda pixels, first: (None, read_layers(model, pixels, read, layers=layers))
    whole = [Tokens(serving, serving.whole(hook_behind(layer))[0]) for layer in layers]
    pooled = serving.pooled(model) if answers else None

    @torch.no_grad()
    def stored(pixels: Tensor, first: int) -> tuple[Tensor | None, list[Tensor]]:
        rows = torch.arange(first, first + len(pixels))
        kept = []
        for tokens in whole:
            resid = tokens[rows].to(model.device)
            kept.append(resid if read is None else read(resid))
        return None if pooled is None else model.answer_of(pooled(rows)), kept

    return stored


def edited_sites(
    reader: SiteReader,
    data: TargetData,
    batch_size: int,
    what: str,
    intervention: Edit | None,
    *,
    into: Sequence[Any] = (),
) -> Iterator[Reading]:
    """`read_sites` under an intervention, which nothing that is stored has seen."""
    for batch in data.batches(batch_size, what, into=into):
        edit = for_batch(intervention, batch.number, batch.labels[:, 0])
        with nullcontext() if edit is None else apply(reader.model, edit):
            yield Reading(batch, *_run(reader, batch, False))


def _run(
    reader: SiteReader, batch: Any, answers: bool, pixels: Float[Tensor, "b c h w"] | None = None
) -> tuple[Tensor | None, Features]:
    pixels = reader.model.preprocess(batch.images) if pixels is None else pixels
    return reader.read(pixels, batch.index) if answers else (None, reader.features(pixels, batch.index))


def apart_from_fit(seen: Sequence[UInt64[np.ndarray, "_"]]) -> Apart:
    """The images that sets of probes were fitted on, for `TargetData.refusing`, by the marks of their pixels."""
    told = "an image these probes were fitted on; give others, or by_heart=True to ask what they learned by heart"
    return Apart.fitted_on(np.unique(np.concatenate(seen)), told)


def for_batch(intervention: Edit | None, number: int, labels: Int64[Tensor, "b"]) -> Intervention | None:
    """The intervention for a batch, with a seed of its own wherever a part takes one.

    >>> from interventions import shuffle_cls
    >>> for_batch(shuffle_cls(layer=3, seed=2), 5, torch.zeros(1, dtype=torch.long)).params["seed"]
    2000011
    """
    if intervention is None or not isinstance(intervention, Intervention):
        return None if intervention is None else intervention(number, labels)
    first, *rest = [
        part.replace(seed=part.params["seed"] * BY_BATCH + number) if isinstance(part.params.get("seed"), int) else part
        for part in intervention.parts
    ]
    for part in rest:
        first = first + part
    return first


class _Stored:
    """The stores of the parts of a data set, and where in them everything is that is read."""

    def __init__(self, reader: SiteReader, servings: list[Serving], sources: list[dict]) -> None:
        self.reader, self.servings, self.sources = reader, servings, sources

    def through(self, batches: Iterable[Any]) -> Iterator[Reading]:
        part = done = 0
        for batch in batches:
            if done == len(self.servings[part].rows):
                part, done = part + 1, 0
            if not done:
                self.servings[part].note()
            yield Reading(batch, *self._read(part, done, batch))
            done += len(batch.labels)

    def at(self, batch: Any, pixels: Tensor) -> tuple[Tensor | None, Features]:
        """Of a batch of the only part."""
        return self._read(0, batch.first, batch)

    @torch.no_grad()
    def _read(self, part: int, first: int, batch: Any) -> tuple[Tensor | None, Features]:
        here = slice(first, first + len(batch.labels))
        pooled, features = self.servings[part].read(self.reader, self.sources[part], here, batch.index)
        return None if pooled is None else self.reader.model.answer_of(pooled), features


def _stored(reader: SiteReader, parts: tuple[ImageData, ...], answers: bool) -> _Stored | None:
    """Where all parts are stored; None where they have to be run."""
    if (used := in_use()) is None:
        return None
    servings = [used.serving(reader.model, part) for part in parts]
    found = [serving for serving in servings if serving is not None]
    if len(found) < len(parts):
        return None
    numbered = [(s, s.data.positions * len(parts) + number) for number, s in enumerate(found)]
    return _Stored(reader, found, [s.sources(reader, answers, index) for s, index in numbered])
