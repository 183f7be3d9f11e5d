"""Residual streams on disk: written in one pass over the images, checked by checksum, read a batch at a time.

A file is one page of JSON, the stream [n t d] row by row, and the labels [n] as int64. Its name holds the key of
the fingerprint of model, images and settings, so that what is found under it is what would be written again.
"""

from __future__ import annotations

import errno
import glob
import hashlib
import json
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from analyses.activations.store.plan import hook_behind
from analyses.activations.store.serving import Serving, in_use
from analyses.data import ImageData
from analyses.running.files import clean
from analyses.running.fingerprint import Fingerprint, fingerprint
from analyses.running.notes import progress_batches
from analyses.running.notice import notice
from analyses.running.places import size
from hooked_vit import HookedViT, TokenLayout
from hooked_vit.components.watching import watched
from hooked_vit.loading.digests import digest
from hooked_vit.loading.files import why_no_file

MAGIC = "hooked-vit stream 1"
PAGE = 4096
UNFINISHED = ".unfinished"
CHUNK = 1 << 22
SAMPLE = 8  # images looked at beforehand, for the size of the stream


class DamagedError(RuntimeError):
    """A file of ours that does not hold what its checksum says."""


@dataclass(frozen=True)
class Plan:
    """The streams of one model over one data set: where each is kept, and how much room it takes."""

    paths: dict[int, Path]
    marks: dict[int, Fingerprint]
    grid: tuple[int, int]
    shape: tuple[int, int, int]
    dtype: str

    @property
    def bytes_each(self) -> int:
        """Size of one file."""
        return PAGE + self.shape[0] * (self.shape[1] * self.shape[2] * np.dtype(self.dtype).itemsize + 8)

    @property
    def bytes_missing(self) -> int:
        """Room that is still needed."""
        return self.bytes_each * sum(not path.exists() for path in self.paths.values())


class Stream(NamedTuple):
    """The stream entering one block over a data set, on disk [n t d], and the labels [n]."""

    x: Any
    labels: Int[Tensor, "n"]
    layout: TokenLayout
    checksum: str

    def batch(self, rows: Int[Tensor, "b"]) -> tuple[Float[Tensor, "b t d"], Int[Tensor, "b"]]:
        """These images, read from disk."""
        return torch.from_numpy(self.x[rows.numpy()]), self.labels[rows]


def plan(
    model: HookedViT, data: ImageData, layers: Sequence[int], folder: Path, *, dtype: str = "float32", name: str
) -> Plan:
    """Where the streams entering these blocks go, and how large they get; reads a few images, runs nothing.

    Raises ValueError for data whose number is not known, a model with hooks attached, another type than float32 or
    float16.
    """
    if dtype not in ("float32", "float16"):
        raise ValueError(f"streams are kept as float32 or float16; got {dtype!r}")
    if data.n is None:
        raise ValueError(
            f"{data.name} is a stream of unknown length, so the room it needs is unknown; load it with n=…"
        )
    if any(watched(point) for point in model.hook_points()):
        raise ValueError("the streams are those of the unaltered model, and hooks are attached to it; reset_hooks()")
    layout = model.check_pixels(model.preprocess(next(iter(data.batches(SAMPLE))).images))
    mark = fingerprint({"the model": model}, {"data": data}, {"format": MAGIC, "dtype": dtype})
    marks = {layer: Fingerprint({**mark.parts, "layer": str(layer)}) for layer in layers}
    paths = {layer: folder / f"{name}-layer{layer}-{each.key}.stream" for layer, each in marks.items()}
    return Plan(paths, marks, layout.grid, (data.n, layout.n_tokens, model.cfg.d_model), dtype)


def clear(folder: Path) -> None:
    """Remove what a killed process had begun in a folder that is held."""
    clean(folder)
    for path in folder.glob(f"*-layer*-{'[0-9a-f]' * 16}{UNFINISHED}"):
        path.unlink()


def check_room(plans: Iterable[Plan], folder: Path, beside: int = 0) -> int:
    """The bytes these plans still need in `folder`, and what is needed `beside` them, which must be free there.

    Raises OSError (ENOSPC), naming both numbers, where they are not.
    """
    needed, free = sum(plan.bytes_missing for plan in plans) + beside, shutil.disk_usage(folder).free
    if needed > free:
        raise _no_room(needed, f"{size(free)} are free", folder)
    return needed


def streams(
    plan: Plan, model: HookedViT, data: ImageData, *, batch_size: int, what: str
) -> tuple[dict[int, Stream], list[str]]:
    """The streams of a plan, by layer, and a note for each damaged file that was written anew.

    What is there and whole is used, the rest is written in one pass over the images.
    Raises ValueError for a file of that name that is not ours, OSError where the disk is full: then what was begun is
    removed.
    """
    notes: list[str] = []
    found = {}
    for layer, path in plan.paths.items():
        if not path.exists():
            notes += _others(path, plan.marks[layer])
            continue
        try:
            found[layer] = read(path, plan.marks[layer].key, model.cfg.prefix)
        except DamagedError as error:
            notes.append(notice(f"{error}; it was written anew"))
            path.unlink()
    missing = [layer for layer in plan.paths if layer not in found]
    if missing:
        _write(plan, model, data, missing, batch_size, what)
        found |= {layer: read(plan.paths[layer], plan.marks[layer].key, model.cfg.prefix) for layer in missing}
    return found, notes


@dataclass(frozen=True)
class _StoredRows:
    """A tensor of stored activations, indexed as the array of a stream's own file is."""

    serving: Serving
    name: str

    def __getitem__(self, rows: np.ndarray) -> np.ndarray:
        at = self.serving.rows[torch.from_numpy(rows)]
        return self.serving.store.read([self.name], at)[self.name].numpy()


def stored_streams(model: HookedViT, data: ImageData, layers: Sequence[int]) -> dict[int, Stream]:
    """The streams that stored activations hold, by layer, where an analysis was given some; {} where it was not.

    Raises ValueError for stored activations of something else, or without every token in front of these blocks.
    """
    if (used := in_use()) is None or (serving := used.serving(model, data)) is None or data.labels is None:
        return {}
    serving.note()
    found = {}
    for layer in layers:
        name, layout = serving.whole(hook_behind(layer - 1))
        mark = digest(serving.store.about["shards"], name, serving.rows)
        found[layer] = Stream(_StoredRows(serving, name), data.labels, layout, mark)
    return found


def _others(path: Path, mark: Fingerprint) -> Iterator[str]:
    """A note for each stream of the same name in the folder that was made of something else."""
    for other in sorted(path.parent.glob(f"{glob.escape(path.stem.removesuffix(mark.key))}*{path.suffix}")):
        with suppress(OSError, ValueError, AttributeError), other.open("rb") as file:
            told = json.loads(file.read(PAGE)[len(MAGIC) :])
            yield notice(f"{other.name} is not used: it differs in {mark.differences(told.get('of'))}")


def read(path: Path, key: str, prefix: tuple[Any, ...]) -> Stream:
    """Open a stream file whose content is what its checksum says.

    Raises ValueError for a file of something else, DamagedError for one of ours that is damaged or of another key.
    """
    if (why := why_no_file(path)) is not None:
        raise ValueError(f"{path} is not a file of hooked-vit ({why}); move it away, or choose another folder")
    with path.open("rb") as file:
        page = file.read(PAGE)
        if not page.strip(b"\0 "):
            raise DamagedError(f"{path.name} is empty")
        if not page.startswith(MAGIC.encode()):
            raise ValueError(f"{path} is not a file of hooked-vit; move it away, or choose another folder")
        try:
            header = json.loads(page[len(MAGIC) :])
            shape, dtype, grid = tuple(header["shape"]), np.dtype(header["dtype"]), tuple(header["grid"])
            key_seen, checksum = header["key"], header.pop("checksum")
        except (ValueError, KeyError, TypeError) as error:
            raise DamagedError(f"the header of {path.name} is damaged") from error
        if key_seen != key:
            raise DamagedError(f"{path.name} holds another stream than its name says")
        if checksum != _sealed(header, _hashed(iter(lambda: file.read(CHUNK), b""))):
            raise DamagedError(f"{path.name} is damaged: its checksum is not that of its content")
    x = np.memmap(path, dtype, "r", PAGE, shape)
    labels = np.fromfile(path, np.int64, offset=PAGE + x.nbytes)
    return Stream(x, torch.from_numpy(labels), TokenLayout.native(prefix, grid), checksum)


class _Writer:
    """One file being written: the stream, then the labels, then the page in front that says it is whole."""

    def __init__(self, file: BinaryIO, dtype: str) -> None:
        self.file, self.dtype, self.sha = file, dtype, hashlib.sha256()
        self.labels: list[Tensor] = []
        file.write(bytes(PAGE))

    def add(self, resid: Float[Tensor, "b t d"], labels: Int[Tensor, "b"]) -> None:
        rows = resid.detach().cpu()
        kept = rows.to(getattr(torch, self.dtype))
        if not kept.isfinite().all():
            worst = f"{rows.abs().max().item():.3g}"
            raise ValueError(f"the stream holds values up to {worst}, which {self.dtype} cannot hold; use float32")
        self._put(kept.numpy().tobytes())
        self.labels.append(labels)

    def finish(self, plan: Plan, layer: int) -> None:
        labels = torch.cat(self.labels)
        self._put(labels.numpy().tobytes())
        header = {
            "shape": [len(labels), *plan.shape[1:]],
            "dtype": self.dtype,
            "grid": list(plan.grid),
            "key": plan.marks[layer].key,
            "of": dict(plan.marks[layer].parts),
        }
        header["checksum"] = _sealed(header, self.sha.hexdigest())
        self.file.seek(0)
        self.file.write((MAGIC + json.dumps(header)).ljust(PAGE - 1).encode() + b"\n")

    def _put(self, content: bytes) -> None:
        self.file.write(content)
        self.sha.update(content)


@torch.no_grad()
def _write(plan: Plan, model: HookedViT, data: ImageData, layers: list[int], batch_size: int, what: str) -> None:
    """Write the streams entering some blocks, in one pass; each appears whole or not at all."""
    unfinished = {layer: plan.paths[layer].with_suffix(UNFINISHED) for layer in layers}
    try:
        with ExitStack() as stack:
            files = {layer: stack.enter_context(path.open("wb")) for layer, path in unfinished.items()}
            writers = {layer: _Writer(file, plan.dtype) for layer, file in sorted(files.items())}
            for batch in progress_batches(data, batch_size, f"{what} ({size(plan.bytes_each * len(layers))})"):
                x, at = model.preprocess(batch.images), None
                for layer, writer in writers.items():
                    x, at = model(x, start_at_layer=at, stop_at_layer=layer), layer
                    if x.shape[1:] != plan.shape[1:]:
                        raise ValueError(f"all images need {plan.shape[1]} tokens, as the first has; got {x.shape[1]}")
                    writer.add(x, batch.labels)
            for layer, writer in writers.items():
                writer.finish(plan, layer)
        for layer, path in unfinished.items():
            path.replace(plan.paths[layer])
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        folder = plan.paths[layers[0]].parent
        raise _no_room(plan.bytes_each * len(layers), "the disk is full", folder) from error
    finally:
        for path in unfinished.values():
            path.unlink(missing_ok=True)


def _no_room(needed: int, seen: str, folder: Path) -> OSError:
    return OSError(
        errno.ENOSPC,
        f"caching the streams needs {size(needed)} in {folder}, and {seen}; take fewer images or layers, "
        "cache_dtype='float16' (half as much), or another folder with keep_in",
    )


def _sealed(header: dict[str, Any], content: str) -> str:
    """One checksum of what a file holds and of what its first page says about it."""
    return _hashed([json.dumps(header, sort_keys=True).encode(), content.encode()])


def _hashed(parts: Iterable[bytes]) -> str:
    total = hashlib.sha256()
    for part in parts:
        total.update(part)
    return total.hexdigest()
