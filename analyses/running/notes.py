"""What studies have in common: which images to fit on and which to measure on, how to go through them, what to note."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from analyses.data import ImageData
from analyses.data.batches import Batch, batch_sizes
from analyses.running.notice import notice
from hooked_vit import HookedViT
from hooked_vit.config.spoken import what_is_read
from hooked_vit.loading.digests import model_digests
from hooked_vit.loading.progress import tqdm


def progress_batches(
    data: ImageData, batch_size: int, what: str, *, extra: Sequence[str] = (), least: int = 1
) -> Iterator[Batch]:
    """`data.batches` with a progress bar that says `what` is being done."""
    batches = data.batches(batch_size, extra=extra, least=least)
    total = None if data.n is None else len(batch_sizes(data.n, batch_size, least))
    yield from tqdm(batches, total=total, desc=what, leave=False)


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
    cfg, weight = model.cfg, model.embed.patch.weight
    return {
        "architecture": cfg.architecture,
        "checkpoint": cfg.name,
        "class": cfg.hf_class,
        "n_layers": cfg.n_layers,
        "readout": " and ".join(cfg.sources),
        "reads": reads or what_is_read(cfg),
        "device": str(weight.device),
        "dtype": str(weight.dtype).removeprefix("torch."),
        "image_size": list(model.usual_size),
        **{what: mark[:16] for what, mark in model_digests(model).items() if what != "hooks"},
    }


def note_other_model(what: str, model: HookedViT, about: dict[str, Any]) -> None:
    """Say where weights, config or processor are not as `about_model` said; what was not said is believed."""
    now = about_model(model)
    differs = [part for part in ("weights", "config", "processor") if about.get(part, now[part]) != now[part]]
    if differs:
        notice(f"{what} another model: it differs in {' and '.join(differs)}")
