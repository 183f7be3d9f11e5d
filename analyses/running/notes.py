"""What studies have in common: which images to fit on and which to measure on, how to go through them, what to note."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from analyses.data import ImageData
from analyses.data.batches import Batch, batch_sizes
from analyses.processes import group
from analyses.processes.merging import Gathering
from analyses.running.notice import notice
from hooked_vit import HookedViT
from hooked_vit.config.spoken import what_is_read
from hooked_vit.loading.digests import autocast_of, model_digests
from hooked_vit.loading.progress import steps


def progress_batches(
    data: ImageData,
    batch_size: int,
    what: str,
    *,
    extra: Sequence[str] = (),
    least: int = 1,
    into: Sequence[Any] = (),
) -> Iterator[Batch]:
    """`data.batches` with a progress bar that says `what` is being done, and moves on inside a batch where it is told.

    `into` are the accumulators (see `processes.merging`) that the batches fill. Where several processes run and those
    are given, each process is handed every so manieth batch, and behind the last all of them hold what one process
    would have gathered from all. Whoever goes through the batches then reads nothing else it has gathered from them,
    draws by the number of a batch or an image, and does not stop early. Without `into`, with fewer batches than
    processes, and where `data.can_be_shared` says no, every process goes through all of them.
    """
    sizes = None if data.n is None else batch_sizes(data.n, batch_size, least)
    n, mine = (group.count(), group.rank()) if into and data.can_be_shared else (1, 0)
    if sizes is None or n > len(sizes):
        n, mine = 1, 0
    total = None if sizes is None else len(sizes[mine::n])
    batches = data.batches(batch_size, extra=extra, least=least, share=(mine, n))
    bar = steps(batches, total=total, desc=what, leave=False, disable=not group.leads())
    yield from bar if n == 1 else _shared(bar, data, into)


def _shared(batches: Iterable[Batch], data: ImageData, into: Sequence[Any]) -> Iterator[Batch]:
    """One process's batches; behind the last, what all have gathered and what the others' images hold."""
    gathering, seen = Gathering(into, begins=group.leads()), []
    for batch in batches:
        yield batch
        gathering.note(batch.number)
        seen.append((batch.number, batch.index.tolist(), batch.pixels))
    told = group.gather((gathering.told(), seen))
    gathering.become([one for one, _ in told])
    mine = {number for number, _, _ in seen}
    for number, index, pixels in sorted((each for _, theirs in told for each in theirs), key=lambda each: each[0]):
        if number not in mine:
            data.note(index, pixels)


def about_data(data: ImageData, note: str | None = None) -> dict[str, Any]:
    """What a result's `meta` says of its images, once they have been read; `note` is where they came from.

    `duplicates`, of the images read, counts those with the pixels of another one.
    """
    about = {"name": data.name, "n": data.n, "fingerprint": data.fingerprint(), "skipped": data.skipped}
    about["duplicates"] = data.duplicates
    if data.drawn:
        about["drawn"] = data.drawn
    if data.content is not None:
        about["content"] = data.content
    return about if note is None else {**about, "note": note}


PROBES_READ = "its tokens, through probes and decoders fitted here; no readout of its own is asked"
"""What is read where an analysis asks no model for an answer."""


def about_model(model: HookedViT, reads: str | None = None) -> dict[str, Any]:
    """What a result's `meta` says of a model; `weights`, `config` and `processor` by their digests.

    `reads` says what was read of it where that are not its own answers.
    """
    cfg, weight, halved = model.cfg, model.embed.patch.weight, autocast_of(model)
    inside = "" if halved is None else f", inside autocast to {str(halved).removeprefix('torch.')}"
    return {
        "architecture": cfg.architecture,
        "checkpoint": cfg.name,
        "class": cfg.hf_class,
        "n_layers": cfg.n_layers,
        "readout": " and ".join(cfg.sources),
        "reads": reads or what_is_read(cfg),
        "device": str(weight.device),
        "dtype": str(weight.dtype).removeprefix("torch.") + inside,
        "image_size": list(model.usual_size),
        **{what: mark[:16] for what, mark in model_digests(model).items() if what != "hooks"},
    }


def note_other_model(what: str, model: HookedViT, about: dict[str, Any]) -> None:
    """Say where weights, config or processor are not as `about_model` said; what was not said is believed."""
    now = about_model(model)
    differs = [part for part in ("weights", "config", "processor") if about.get(part, now[part]) != now[part]]
    if differs:
        notice(f"{what} another model: it differs in {' and '.join(differs)}")
