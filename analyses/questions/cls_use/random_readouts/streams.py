"""What enters each block over a set of images: stored activations that are there, or that one pass writes.

A folder to keep holds stores (docs/activation_store.md), each of one model, set of images and blocks, named by their
key; any other store in it that holds what is read serves as well.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from analyses.activations.store.manifest import MANIFEST
from analyses.activations.store.plan import ALL, EMBEDDING_SITE, entry, hook_behind, plan_store
from analyses.activations.store.plan import Plan as StorePlan
from analyses.activations.store.reading import Store
from analyses.activations.store.serving import Serving, Tokens, in_use, stream_differences, untouched
from analyses.activations.store.writing import fill
from analyses.data import ImageData
from analyses.running import places
from analyses.running.fingerprint import Fingerprint
from analyses.running.notice import notice
from analyses.running.places import size
from hooked_vit import HookedViT, TokenLayout
from hooked_vit.config.showing import counted
from hooked_vit.loading.digests import digest

CACHING = 64  # images at a time through the whole model
KEPT = ("float32", "float16")
FORMER = "*.stream"
"""What earlier versions kept in a folder."""
INSTEAD = (
    "take fewer images or layers, cache_dtype='float16' (half as much), or another folder with keep_in (--cache-dtype, "
    "--keep-in)"
)


class Stream(NamedTuple):
    """The stream entering one block over a data set, from which rows pick [b t d], and the labels [n]."""

    x: Any
    labels: Int[Tensor, "n"]
    layout: TokenLayout
    checksum: str

    def batch(self, rows: Int[Tensor, "b"]) -> tuple[Float[Tensor, "b t d"], Int[Tensor, "b"]]:
        """These images."""
        return self.x[rows], self.labels[rows]


@dataclass(frozen=True)
class Plan:
    """The streams of one model over one data set: the store of each block there is, and what is to be written."""

    data: ImageData
    found: Mapping[int, Store]
    layers: tuple[int, ...]
    missing: StorePlan | None
    folder: Path
    n_tokens: int
    notes: tuple[str, ...]

    @property
    def bytes_missing(self) -> int:
        """Room that is still needed."""
        return 0 if self.missing is None else self.missing.bytes_missing(self.folder)


def plan(
    model: HookedViT, data: ImageData, layers: Sequence[int], folder: Path, *, dtype: str = "float32", name: str
) -> Plan:
    """Which streams entering these blocks are in a folder, and how large the others get; runs nothing.

    A note says which stores of that name are damaged, or of something else. Raises ValueError for a stream of images,
    a model with hooks attached, another type than float32 or float16.
    """
    if dtype not in KEPT:
        raise ValueError(f"streams are kept as float32 or float16; got {dtype!r}")
    whole = _planned(model, data, layers, dtype)
    own, marks = untouched(model), data.marks()
    found: dict[int, Store] = {}
    notes: list[str] = []
    damaged: dict[Path, str] = {}
    for store in _stores(folder, notes):
        try:
            if stream_differences(own, store) or store.about["dtype"] != dtype or min(store.places(marks)) < 0:
                notes += _not_used(store, whole.of, name)
                continue
            if here := [at for at in layers if at not in found and entry(hook_behind(at - 1), ALL) in store.shapes]:
                store.check()
        except ValueError as error:
            damaged[store.folder] = str(error)
            continue
        found |= dict.fromkeys(here, store)
    left = tuple(at for at in layers if at not in found)
    missing = whole if left == tuple(layers) else _planned(model, data, left, dtype) if left else None
    target = folder if missing is None else folder / f"{name}-{missing.of.key}"
    # a damaged shard of what is written now is noted when it is written anew
    notes += [notice(f"{said}; it is not used") for where, said in damaged.items() if where != target]
    n_tokens = len(whole.prefix) + prod(whole.grid)
    return Plan(data, found, left, missing, target, n_tokens, tuple(notes))


def check_room(plans: Iterable[Plan], folder: Path, beside: int = 0) -> int:
    """The bytes these plans still need in `folder`, and what is needed `beside` them, which must be free there.

    Raises OSError (ENOSPC), naming both numbers, where they are not.
    """
    needed = sum(plan.bytes_missing for plan in plans) + beside
    places.check_room(folder, needed, "the inputs of the blocks", INSTEAD)
    return needed


def streams(
    plan: Plan, model: HookedViT, parts: Mapping[str, ImageData], *, what: str
) -> tuple[dict[str, dict[int, Stream]], list[str]]:
    """The streams of a plan for each part of its images, by layer, and a note for each file that was written anew.

    What is missing is written in one pass over all the images. Raises OSError where the disk is full: the same call
    goes on behind what was written.
    """
    stores, notes = dict(plan.found), list(plan.notes)
    if plan.missing is not None:
        doing = f"{what} ({size(plan.bytes_missing)})"
        notes += fill(plan.folder, plan.missing, model, plan.data, what=doing)
        stores |= dict.fromkeys(plan.layers, Store(plan.folder))
    found: dict[str, dict[int, Stream]] = {}
    for name, part in parts.items():
        marks = part.marks()
        served = {s.folder: Serving(s, model, torch.tensor(s.places(marks)), part) for s in stores.values()}
        found[name] = {layer: _stream(served[stores[layer].folder], layer) for layer in sorted(stores)}
        next(iter(served.values())).note()
    return found, notes


def stored_streams(model: HookedViT, data: ImageData, layers: Sequence[int]) -> dict[int, Stream]:
    """The streams that stored activations hold, by layer, where an analysis was given some; {} where it was not.

    Raises ValueError for stored activations of something else, or without every token in front of these blocks.
    """
    if (used := in_use()) is None or (serving := used.serving(model, data)) is None or data.labels is None:
        return {}
    serving.note()
    return {layer: _stream(serving, layer) for layer in layers}


def _stream(serving: Serving, layer: int) -> Stream:
    name, layout = serving.whole(hook_behind(layer - 1))
    labels = serving.data.labels
    assert labels is not None
    mark = digest(serving.store.about["shards"], name, serving.rows, labels)
    return Stream(Tokens(serving, name), labels, layout, mark)


def _planned(model: HookedViT, data: ImageData, layers: Sequence[int], dtype: str) -> StorePlan:
    """The store of every token in front of these blocks."""
    behind = [layer - 1 for layer in layers if layer]
    sites = [*(["resid_post"] if behind else []), *([EMBEDDING_SITE] if 0 in layers else [])]
    return plan_store(model, data, sites, (ALL,), dtype, behind or None, CACHING, 0, None)


def _stores(folder: Path, notes: list[str]) -> Iterator[Store]:
    for path in sorted(folder.glob(f"*/{MANIFEST}")):
        try:
            yield Store(path.parent)
        except ValueError as error:
            notes.append(notice(f"{error}; it is not used"))


def _not_used(store: Store, mark: Fingerprint, name: str) -> Iterator[str]:
    """A note for a store of that name which is of other weights, images or settings."""
    front, _, key = store.folder.name.rpartition("-")
    if front == name and key == store.about["key"]:
        # which blocks it holds, and who reads the images how, is no difference
        of = {**store.about["of"], **{part: mark.parts[part] for part in ("tensors", "readout", "labels")}}
        yield notice(f"{store.folder.name} is not used: it differs in {mark.differences(of)}")


def note_former(folder: Path) -> list[str]:
    """A note where an earlier version kept streams in a folder, which this one does not read."""
    former = sorted(folder.glob(FORMER))
    if not former:
        return []
    files = f"{counted(len(former), 'file')}, such as {former[0].name}," if len(former) > 1 else former[0].name
    return [notice(f"{files} in {folder} of an earlier version cannot be read; the streams are stored anew, remove it")]
