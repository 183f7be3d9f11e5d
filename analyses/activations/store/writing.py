"""Writing a store, shard by shard: a killed process leaves whole ones, and the same call goes on behind them."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from analyses.activations.sites import RANDOM_PATCH, draws_of, role_vector
from analyses.activations.store.manifest import BEGUN, FIELDS, MANIFEST, read_manifest, write_manifest
from analyses.activations.store.plan import (
    ALL,
    DTYPES,
    FOR_A_HEAD,
    POOLED,
    Plan,
    digest_of_mark,
    entry,
    for_a_head,
    plan_store,
)
from analyses.activations.store.reading import Store, header_of
from analyses.data import ImageData, as_data
from analyses.data.contents import mark_of, pixel_digest
from analyses.data.digests import file_digest
from analyses.processes import group
from analyses.running.files import check_writable, clean, write_whole
from analyses.running.locks import hold_folder
from analyses.running.notice import notice
from analyses.running.places import check_room, size
from hooked_vit import HookedViT
from hooked_vit.config.showing import counted
from hooked_vit.loading.files import why_no_file
from hooked_vit.loading.progress import tqdm
from interventions import Intervention, apply

OURS = "hooked_vit"
"""Under which key the metadata of a shard says whose it is."""


def store_activations(
    model: HookedViT,
    data: Any,
    sites: Sequence[str] = ("resid_post",),
    roles: Sequence[str] = (),
    dtype: str = "float32",
    *,
    to: str | Path,
    layers: Sequence[int] | None = None,
    batch_size: int = 64,
    seed: int = 0,
    intervention: Intervention | None = None,
) -> Store:
    """Keep activations of a model over images in a folder, from one pass, for any number of later questions.

    >>> store = store_activations(model, load_data("imagefolder:photos"), to="activations")  # doctest: +SKIP
    >>> decodability({"vit": model}, load_data("imagefolder:photos"), activations="activations")  # doctest: +SKIP

    `sites` are hooks of a block without "hook_", such as "resid_post" or "mlp_out", of all `layers` or some, and
    "embedding"; `roles` those of `check_roles`, and "all" for every token (by default what `roles_of` says, one vector
    each). What the readout pools is kept too. `seed` draws the random patches. The layout is that of
    docs/activation_store.md.

    The room it takes is said, and looked for, before the model runs. The same call goes on where a killed one stopped,
    to the same bytes, and writes damaged shards anew. Raises ValueError for sites, roles and types there are not, a
    model with hooks attached, a stream, activations `dtype` cannot hold, and a folder with something else in it, naming
    what differs; OSError where the disk has no room, InUseError where another process writes there.
    """
    data = as_data(data)
    data = data.check_images() if data.skip_bad else data
    plan = plan_store(model, data, sites, roles, dtype, layers, batch_size, seed, intervention)
    folder = check_writable(to)
    fill(folder, plan, model, data, intervention)
    return Store(folder)


def fill(
    folder: Path,
    plan: Plan,
    model: HookedViT,
    data: ImageData,
    under: Intervention | None = None,
    *,
    what: str | None = None,
) -> list[str]:
    """Write what a folder lacks of a plan, in as many processes as there are; returns a note for each damaged shard.

    The first process holds the folder, settles what is missing and writes the manifest; each writes every so manieth
    of the missing shards. An orphan of a killed first process can only put a shard again that is the same to the byte.
    The progress bar says `what` is being done; without it the room is said. Parameters and errors are those of
    `store_activations`.
    """
    notes: list[str] = []
    with hold_folder(folder, "--to") if group.leads() else nullcontext():
        missing = group.done_once(lambda: _missing(folder, plan, notes, say=what is None))
        if mine := missing[group.rank() % group.count() :: group.count()]:
            _write(folder, plan, model, data, mine, under, what or "storing activations")
        group.gather(None)
        group.done_once(lambda: _finish(folder, plan, anew=bool(missing)))
    return notes


def _missing(folder: Path, plan: Plan, notes: list[str], *, say: bool) -> list[tuple[str, range]]:
    """The shards that are not there as they were written, for which there has to be room."""
    clean(folder)
    _begin(folder, plan)
    missing = [shard for shard in plan.shards() if not _is_whole(folder / shard[0], plan, shard[1], notes)]
    if missing:
        needed = sum(len(images) for _, images in missing) * plan.bytes_an_image
        check_room(folder, needed, "these activations")
        if say:
            images = counted(plan.n, "image")
            notice(f"activations of {images} take {size(plan.bytes)} in {folder}; {size(needed)} are missing")
    return missing


def _finish(folder: Path, plan: Plan, *, anew: bool) -> bool:
    """Say that a store is whole, once it is."""
    if anew or not (folder / MANIFEST).exists():
        shards = [{"file": n, "n": len(images), "sha256": file_digest(folder / n)} for n, images in plan.shards()]
        write_manifest(folder / MANIFEST, {**plan.about(), "shards": shards})
    (folder / BEGUN).unlink(missing_ok=True)
    return True


def _begin(folder: Path, plan: Plan) -> None:
    """Make sure that what the folder holds, if anything, is this store or the beginning of it."""
    for name in (MANIFEST, BEGUN):
        if (folder / name).exists():
            told = read_manifest(folder / name, FIELDS[:-1])
            if told["key"] != plan.of.key:
                raise ValueError(
                    f"{folder} holds other activations: these differ in {plan.of.differences(told['of'])}; choose "
                    "another folder"
                )
            return
    if strange := sorted(path.name for path in folder.iterdir() if not path.name.startswith(".")):
        raise ValueError(f"{folder} is no store of activations (it holds {strange[0]}); choose another folder")
    write_manifest(folder / BEGUN, plan.about())


def _is_whole(path: Path, plan: Plan, images: range, notes: list[str]) -> bool:
    """Whether a shard is there as it was written; one that is not is removed, which a note says."""
    if not os.path.lexists(path):
        return False
    if (why := why_no_file(path)) is not None:
        raise ValueError(f"{path} should be a file of activations: {why}; move it away")
    try:
        told, content = header_of(path)
        about = json.loads(told["__metadata__"][OURS])
        if about == _about(plan, images, _hashed(path, content)):
            return True
    except (ValueError, KeyError, TypeError, OSError, SafetensorError):
        pass
    notes.append(notice(f"{path.name} is damaged, or of something else; it is written anew"))
    path.unlink()
    return False


def _about(plan: Plan, images: range, content: str) -> dict[str, Any]:
    return {"key": plan.of.key, "first": images.start, "n": len(images), "sha256": content}


def _hashed(path: Path, start: int) -> str:
    with path.open("rb") as file:
        file.seek(start)
        return hashlib.file_digest(file, "sha256").hexdigest()


def _write(
    folder: Path, plan: Plan, model: HookedViT, data: ImageData, missing: list[tuple[str, range]], under: Any, what: str
) -> None:
    """Write these shards, one after another, each there whole or not at all; one of them is in memory at a time."""
    read = _Reads(model, plan, under)
    marks = data.marks()
    total = sum(len(images) for _, images in missing)
    with tqdm(total=total, desc=what, leave=False, disable=not group.leads()) as bar:
        for name, images in missing:
            parts: dict[str, list[Tensor]] = {}
            for tensors in read.batches(_at(data, images), [marks[i] for i in images]):
                for key, part in tensors.items():
                    parts.setdefault(key, []).append(part)
                bar.update(len(tensors["image.label"]))
            tensors = {key: torch.cat(parts.pop(key)).contiguous() for key in list(parts)}
            # what is written holds its own checksum: an unfinished store has no other
            plain = safetensors.torch.save(tensors)
            start = 8 + int.from_bytes(plain[:8], "little")
            about = json.dumps(_about(plan, images, hashlib.sha256(memoryview(plain)[start:]).hexdigest()))
            del plain
            content = safetensors.torch.save(tensors, {OURS: about})
            needed = sum(len(images) for each, images in missing if each >= name) * plan.bytes_an_image
            write_whole(folder / name, partial(_put, content), needed)


def _put(content: bytes, to: Path) -> None:
    to.write_bytes(content)


def _at(data: ImageData, images: range) -> ImageData:
    return data.without([*range(images.start), *range(images.stop, len(data))])


class _Reads:
    """Every tensor of a plan, batch by batch, from one run of the model each."""

    def __init__(self, model: HookedViT, plan: Plan, under: Intervention | None) -> None:
        self.model, self.plan, self.under = model, plan, under
        self.other = for_a_head(model) if FOR_A_HEAD in plan.pooled else None
        self.last = f"blocks.{model.cfg.n_layers - 1}.hook_resid_post"

    def batches(self, data: ImageData, marks: Sequence[str]) -> Iterator[dict[str, Tensor]]:
        """The tensors of images, in whole batches, and what tells which image each row is of."""
        done, dtype = 0, DTYPES[self.plan.dtype]
        for batch in data.batches(self.plan.batch_size):
            pixels = self.model.preprocess(batch.images)
            tensors = {}
            for name, x in self(pixels, batch.index).items():
                tensors[name] = x.cpu().to(dtype)
                if not tensors[name].isfinite().all():
                    most = f"{x.abs().max().item():.3g}"
                    raise ValueError(
                        f"{name} holds NaN, infinity, or values up to {most}, which {self.plan.dtype} cannot hold; use "
                        "float32, and look for NaN in weights or pixels"
                    )
            pictures = [mark_of(pixel_digest(image)) for image in batch.images]
            digests = np.frombuffer(b"".join(map(digest_of_mark, marks[done : done + len(batch)])), np.uint8)
            tensors |= {
                "image.label": batch.labels,
                "image.index": batch.index,
                "image.pixels": torch.from_numpy(np.array(pictures, np.uint64).view(np.int64)),
                "image.digest": torch.from_numpy(digests.copy()).view(len(batch), -1),
            }
            done += len(batch)
            yield tensors

    @torch.no_grad()
    def __call__(self, pixels: Tensor, index: Tensor) -> dict[str, Tensor]:
        plan, model = self.plan, self.model
        layout = model.layout_for(pixels)
        if tuple(layout.grid) != plan.grid:
            raise ValueError(f"all images have as many patches as the first, {plan.grid}; one has {tuple(layout.grid)}")
        draws = draws_of(layout, index, plan.seed) if RANDOM_PATCH in plan.roles else None
        kept: dict[str, Tensor] = {}

        def keep(x: Tensor, hook: Any) -> None:
            flat = x.flatten(2)
            for role in plan.roles if hook.name in plan.hooks else ():
                kept[entry(hook.name, role)] = flat if role == ALL else role_vector(flat, model.tokens, role, draws)
            if hook.name == self.last and self.other is not None:
                kept[FOR_A_HEAD] = flat

        def pool(x: Tensor, hook: Any) -> None:
            kept[POOLED] = x

        names = [*plan.hooks, *([] if self.last in plan.hooks or self.other is None else [self.last])]
        with nullcontext() if self.under is None else apply(model, self.under):
            model.run_with_hooks(pixels, fwd_hooks=[*((name, keep) for name in names), (POOLED, pool)])
        if self.other is not None:
            caught: list[Tensor] = []
            with self.other.hooks([(POOLED, lambda x, hook: caught.append(x))]):
                self.other(kept[FOR_A_HEAD], start_at_layer=model.cfg.n_layers, tokens=layout)
            kept[FOR_A_HEAD] = caught[0]
        return kept
