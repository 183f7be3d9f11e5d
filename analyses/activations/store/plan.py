"""What a store is to hold, settled before a model runs: which tensors, of which model and images, and how large."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import torch

from analyses.activations.sites import EMBEDDING, HEAD_INPUT, check_roles, roles_of
from analyses.data import ImageData
from analyses.running.fingerprint import LENGTH, Fingerprint
from analyses.running.results import environment
from hooked_vit import HookedViT, architectures
from hooked_vit.components.watching import watched
from hooked_vit.loading.digests import digest, pooling_digest, stream_digests
from interventions import Intervention
from interventions.vocabulary import TOKEN_SITES, check_choice, indices, site_hook, site_shape

DTYPES = {name: getattr(torch, name) for name in ("float32", "bfloat16", "float16")}
ALL = "all"
"""The role that is every token: what is kept of an image is [tokens, d] in place of one vector."""
EMBEDDING_SITE, EMBEDDING_HOOK = "embedding", "blocks.0.hook_resid_pre"
POOLED, FOR_A_HEAD = "hook_pooled", "hook_pooled.for_a_head"
IMAGE = {"label": 8, "index": 8, "pixels": 8, "digest": 32}
"""What is kept of every image beside its activations, as `image.…`, and its bytes."""
SHARD = 2**24
"""Bytes a shard holds at most, where a batch is not larger; processes share the work shard by shard."""
OF_THE_STORE = ("images", "labels", "tensors", "readout", "dtype", "batch size", "seed")
"""What the fingerprint of a store says beside what decides the stream of a model on an image."""


def entry(hook: str, role: str) -> str:
    """What the tensor of a role at a hook is called.

    >>> entry("blocks.3.hook_resid_post", "cls")
    'blocks.3.hook_resid_post.cls'
    """
    return f"{hook}.{role}"


def hook_behind(layer: int) -> str:
    """The hook of the stream behind a block, of the one that enters the first for -1.

    >>> hook_behind(3), hook_behind(-1)
    ('blocks.3.hook_resid_post', 'blocks.0.hook_resid_pre')
    """
    return EMBEDDING_HOOK if layer == EMBEDDING else f"blocks.{layer}.hook_resid_post"


def digest_of_mark(mark: str) -> bytes:
    """What a store holds for a mark of `ImageData.marks`: SHA-256 of a file or of pixels, or of the text of another.

    >>> digest_of_mark("0" * 64) == bytes(32), len(digest_of_mark("scenes test 0 3 image"))
    (True, 32)
    """
    if len(mark) == 64 and not set(mark) - set("0123456789abcdef"):
        return bytes.fromhex(mark)
    return hashlib.sha256(mark.encode()).digest()


@dataclass(frozen=True)
class Plan:
    """What is to be stored: per hook its width, the roles read there, and where the images lie in shards.

    `of` is what it depends on, `pooled` the digest of the readout by each tensor of what is pooled.
    """

    of: Fingerprint
    hooks: Mapping[str, int]
    roles: tuple[str, ...]
    pooled: Mapping[str, str]
    pooled_widths: Mapping[str, int]
    prefix: tuple[str, ...]
    grid: tuple[int, int]
    n: int
    dtype: str
    batch_size: int
    seed: int
    data: str

    @property
    def shapes(self) -> dict[str, list[int]]:
        """By the name of each tensor, the shape of one image's part of it."""
        n_tokens = len(self.prefix) + prod(self.grid)
        found = {
            entry(hook, role): [n_tokens, width] if role == ALL else [width]
            for hook, width in self.hooks.items()
            for role in self.roles
        }
        return {**found, **{name: [width] for name, width in self.pooled_widths.items()}}

    @property
    def bytes_an_image(self) -> int:
        """Room one image takes."""
        return DTYPES[self.dtype].itemsize * sum(map(prod, self.shapes.values())) + sum(IMAGE.values())

    @property
    def bytes(self) -> int:
        """Room all of it takes, but for a few kilobytes of names in every shard."""
        return self.n * self.bytes_an_image

    def shards(self) -> Iterator[tuple[str, range]]:
        """The name of every shard, and which images of the order are in it: whole batches."""
        batches = max(1, SHARD // (self.bytes_an_image * self.batch_size))
        size = batches * self.batch_size
        for number, first in enumerate(range(0, self.n, size)):
            yield f"activations-{number:05}.safetensors", range(first, min(first + size, self.n))

    def bytes_missing(self, folder: Path) -> int:
        """Room that is still needed for the shards that are not in a folder."""
        return self.bytes_an_image * sum(len(images) for name, images in self.shards() if not (folder / name).exists())

    def about(self) -> dict[str, Any]:
        """What the manifest says of it."""
        return {
            "key": self.of.key,
            "of": dict(self.of.parts),
            "data": self.data,
            "n": self.n,
            "dtype": self.dtype,
            "shapes": self.shapes,
            "pooled": dict(self.pooled),
            "prefix": list(self.prefix),
            "grid": list(self.grid),
            "seed": self.seed,
            "batch_size": self.batch_size,
        }


def plan_store(
    model: HookedViT,
    data: ImageData,
    sites: Sequence[str],
    roles: Sequence[str],
    dtype: str,
    layers: Sequence[int] | None,
    batch_size: int,
    seed: int,
    intervention: Intervention | None,
) -> Plan:
    """Settle it; reads one image, runs nothing. Parameters and errors are those of `store_activations`."""
    if dtype not in DTYPES:
        raise ValueError(f"activations are stored as {', '.join(DTYPES)}; got {dtype!r}")
    if batch_size < 1:
        raise ValueError(f"a batch holds at least one image; got batch_size={batch_size}")
    if any(watched(point) for point in model.hook_points()):
        raise ValueError("hooks are attached to the model; reset_hooks(), or give what is done to it as intervention")
    if not data.n or not (marks := data.marks()):
        raise ValueError(
            f"a store knows its images by their content, and {data.name} is a stream, or empty; save it as parquet or "
            "in folders first, or load images with n=…"
        )
    if intervention is not None:
        intervention.hooks(model)
    n_layers = model.cfg.n_layers
    chosen = indices(list(layers), n_layers, "layer") if layers is not None else list(range(n_layers))
    hooks: dict[str, int] = {}
    for site in sites:
        known = [known for known in TOKEN_SITES if known != "result"]
        check_choice(site, (*known, EMBEDDING_SITE), "a site")
        if site == EMBEDDING_SITE:
            hooks[EMBEDDING_HOOK] = model.cfg.d_model
        else:
            hooks |= {site_hook(model, site, layer, known): prod(site_shape(model, site)) for layer in chosen}
    if not hooks:
        raise ValueError("name at least one site to store, such as resid_post")
    read = _roles(model, roles)
    layout = model.check_pixels(model.preprocess(next(iter(data.batches(1))).images))
    pooled = {POOLED: model, **({} if (other := for_a_head(model)) is None else {FOR_A_HEAD: other})}
    readouts = {name: pooling_digest(m) for name, m in pooled.items()}
    of = stream_parts(model) | {
        "images": digest(marks)[:LENGTH],
        "labels": digest(data.labels)[:LENGTH],
        "interventions": "none" if intervention is None else digest([(p.key, p.made_by) for p in intervention.parts]),
        "tensors": digest(hooks, read, layout.grid)[:LENGTH],
        "readout": digest(readouts)[:LENGTH],
        "dtype": dtype,
        "batch size": str(batch_size),
        "seed": str(seed),
    }
    return Plan(
        Fingerprint(of), hooks, read, readouts,
        {name: m.cfg.d_pooled for name, m in pooled.items()}, tuple(layout.prefix), layout.grid, data.n, dtype,
        batch_size, seed, data.name,
    )  # fmt: skip


def stream_parts(model: HookedViT) -> dict[str, str]:
    """All that decides the residual stream of a model on an image, by name: what a store must have in common."""
    weight = model.embed.patch.weight
    return {
        **{what: mark[:LENGTH] for what, mark in stream_digests(model).items()},
        "device": f"{weight.device.type}, {str(weight.dtype).removeprefix('torch.')}",
        "float32_matmul_precision": torch.get_float32_matmul_precision(),
        **environment(),
    }


def for_a_head(model: HookedViT) -> HookedViT | None:
    """A copy that pools what a classifier of its family reads, where the model itself pools something else."""
    if not (readout := architectures.class_readout(model.cfg)):
        return None
    copy = model.shared_copy()
    copy.set_readout_(**readout)
    return None if pooling_digest(copy) == pooling_digest(model) else copy


def _roles(model: HookedViT, roles: Sequence[str]) -> tuple[str, ...]:
    """The roles as they are written out; what the head reads is kept of every store."""
    asked = [role for role in roles if role != ALL]
    found = check_roles(model, asked) if asked else () if ALL in roles else roles_of(model)
    return (*(role for role in found if role != HEAD_INPUT), *([ALL] if ALL in roles else []))
