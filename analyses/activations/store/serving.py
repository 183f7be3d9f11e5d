"""Which store answers for a pass of an analysis: one of the same model, images and tokens, or none, which is said."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from analyses.activations.sites import HEAD_INPUT, RANDOM_PATCH, Site, SiteReader, draws_of, role_vector
from analyses.activations.store.manifest import MANIFEST
from analyses.activations.store.plan import ALL, OF_THE_STORE, entry, hook_behind, stream_parts
from analyses.activations.store.reading import Store
from analyses.data import ImageData
from analyses.running.fingerprint import Fingerprint
from analyses.running.notice import remark
from analyses.running.registry import meanwhile
from hooked_vit import HookedViT, TokenLayout
from hooked_vit.components.watching import watched
from hooked_vit.config.showing import counted
from hooked_vit.loading.digests import pooling_digest

_USED: ContextVar[InUse | None] = ContextVar("activations an analysis reads", default=None)


def open_stores(folders: str | Path | Sequence[str | Path]) -> list[Store]:
    """The stores these folders are, or hold in folders of their own.

    Raises FileNotFoundError for a folder that is none and holds none, and what `Store` raises.
    """
    found: list[Store] = []
    for folder in [folders] if isinstance(folders, (str, Path)) else folders:
        place = Path(folder).expanduser()
        inside = sorted(path.parent for path in place.glob(f"*/{MANIFEST}"))
        found += [Store(place)] if (place / MANIFEST).exists() or not inside else map(Store, inside)
    if not found:
        raise FileNotFoundError("activations are read from a folder of store_activations; got none")
    return found


@contextmanager
def activations_in_use(folders: Any, models: Mapping[str, HookedViT]) -> Iterator[dict[str, Any]]:
    """Let the passes of an analysis over these models read from stores; gives what a result's `meta` says of them.

    Raises ValueError for a model that no store is of, saying what differs, and what `open_stores` raises.
    """
    used = InUse(open_stores(folders))
    for name, model in models.items():
        used.expect(name, model)
    token = _USED.set(used)
    try:
        yield used.about
    finally:
        _USED.reset(token)


meanwhile("activations", activations_in_use)


@dataclass(frozen=True)
class Serving:
    """A store that answers for images: `rows` are theirs in it, in their order."""

    store: Store
    model: HookedViT
    rows: Int64[Tensor, "n"]
    data: ImageData

    def sources(self, reader: SiteReader, answers: bool, index: Int64[np.ndarray, "n"]) -> dict[Any, str]:
        """The tensor each role and layer is read from, or made of; ValueError naming what is missing."""
        found: dict[Any, str] = {}
        held, lacks = self.store.shapes, []
        drawn = reader.seed == self.store.about["seed"] and np.array_equal(self.store.images["index"][self.rows], index)
        for site in reader.sites:
            if site.layer is None:
                continue
            own, whole = (entry(hook_behind(site.layer), role) for role in (site.role, ALL))
            own = own if site.role != RANDOM_PATCH or drawn else f"{own} drawn with seed {reader.seed} for these images"
            found[site] = own if own in held else whole
            lacks += [] if found[site] in held else [own]
        if answers or HEAD_INPUT in reader.roles:
            found[HEAD_INPUT] = self._pooled_from(reader.model)
            lacks += [] if found[HEAD_INPUT] else [_what_is_pooled(reader.model)]
        if lacks:
            more = f" and {len(lacks) - 1} more" if len(lacks) > 1 else ""
            raise ValueError(self._lacking(f"{lacks[0]}{more}", "store it with layers=…, roles=… (--layers, --roles)"))
        return found

    def pooled(self, model: HookedViT) -> Callable[[Int64[Tensor, "b"]], Float[Tensor, "b p"]]:
        """What gives the input of this model's head, of images by their numbers. Raises ValueError without that."""
        if not (name := self._pooled_from(model)):
            raise ValueError(self._lacking(_what_is_pooled(model), "store it with roles=('all',) (--roles all)"))
        tokens = Tokens(self, name)
        return lambda rows: self._pool(model, tokens[rows].to(model.device))

    def _pooled_from(self, model: HookedViT) -> str:
        """The tensor of what the readout pools, or of every token it pools from; "" where there is neither."""
        kept = {mark: name for name, mark in self.store.about["pooled"].items()}
        whole = entry(hook_behind(model.cfg.n_layers - 1), ALL)
        return kept.get(pooling_digest(model)) or (whole if whole in self.store.shapes else "")

    def _pool(self, model: HookedViT, x: Tensor) -> Float[Tensor, "b p"]:
        if x.ndim == 2:
            return x
        with torch.no_grad(), model.running(self._layout):
            return model.pool(x)

    def _lacking(self, what: str, remedy: str) -> str:
        return f"{self.store.folder} lacks {what}, which is read here; {remedy}, or leave activations out"

    def note(self) -> None:
        """Have the data remember what its images hold, as reading them does: none may be in a set kept apart."""
        marks = self.store.images["pixels"][self.rows].numpy().view(np.uint64)
        self.data.note_marks(self.data.positions.tolist(), marks.tolist())

    def whole(self, hook: str) -> tuple[str, TokenLayout]:
        """The tensor of every token at a hook, and which tokens they are.

        Raises ValueError for a store without it.
        """
        name = entry(hook, ALL)
        if name not in self.store.shapes:
            remedy = (
                "store that site with roles=('all',) (--roles all; what enters the first block is --sites embedding)"
            )
            raise ValueError(self._lacking(name, remedy))
        return name, self._layout

    @property
    def _layout(self) -> TokenLayout:
        return TokenLayout.native(tuple(self.store.about["prefix"]), tuple(self.store.about["grid"]))

    def read(
        self, reader: SiteReader, sources: Mapping[Any, str], part: slice, index: Int64[Tensor, "b"]
    ) -> tuple[Float[Tensor, "b p"] | None, dict[str, Float[Tensor, "b _"]]]:
        """What is pooled, where it was asked for, and the features by site, as `SiteReader.read` gives them."""
        device = self.model.device
        held = self.store.read(list(dict.fromkeys(sources.values())), self.rows[part])
        roles = [role for role in reader.roles if role != HEAD_INPUT]
        layout = self._layout
        draws = draws_of(layout, index, reader.seed) if RANDOM_PATCH in roles else None
        features: dict[str, Tensor] = {}
        for layer in reader.layers if roles else ():
            parts = []
            for role in roles:
                x = held[sources[Site(role, layer)]]
                parts.append(x if x.ndim == 2 else role_vector(x, layout, role, draws))
            side_by_side = torch.stack(parts, dim=1).to(device)  # as a run leaves them
            features |= {str(Site(role, layer)): side_by_side[:, i] for i, role in enumerate(roles)}
        features = {str(site): features[str(site)] for site in reader.sites if site.layer is not None}
        pooled = self._pool(reader.model, held[sources[HEAD_INPUT]].to(device)) if HEAD_INPUT in sources else None
        if pooled is not None and HEAD_INPUT in reader.roles:
            features[HEAD_INPUT] = pooled
        return pooled, features


def _what_is_pooled(model: HookedViT) -> str:
    return f"what is pooled by a readout of {' and '.join(model.cfg.sources)}"


@dataclass(frozen=True)
class Tokens:
    """A tensor of images that a store answers for, such as every token at a hook: their numbers pick [b t d]."""

    serving: Serving
    name: str

    def __getitem__(self, rows: Int64[Tensor, "b"]) -> Float[Tensor, "b ..."]:
        return self.serving.store.read([self.name], self.serving.rows[rows])[self.name]


def stored_tokens(model: HookedViT, data: ImageData, layers: Sequence[int]) -> dict[int, Tokens] | None:
    """What a run of the model holds of every token behind these blocks, where a store in use has all of that."""
    if (used := in_use()) is None or (serving := used.offered(model, data)) is None:
        return None
    names = {layer: entry(hook_behind(layer), ALL) for layer in layers}
    if any(name not in serving.store.shapes for name in names.values()):
        return None
    used.noted(serving)
    return {layer: Tokens(serving, name) for layer, name in names.items()}


def untouched(model: HookedViT) -> Fingerprint:
    """Of what a stream of the model as it is depends on, but for the images."""
    return Fingerprint({**stream_parts(model), "interventions": "none"})


def stream_differences(parts: Fingerprint, store: Store) -> str:
    """In what a store's streams are of another model than `untouched` says, in words; "" where they are its own."""
    return parts.differences({name: mark for name, mark in store.about["of"].items() if name not in OF_THE_STORE})


class InUse:
    """The stores an analysis was given, and what it has read from them."""

    def __init__(self, stores: list[Store]) -> None:
        self.stores = stores
        self.about: dict[str, Any] = {"read": []}
        self._names: dict[str, str] = {}
        self._parts: list[tuple[HookedViT, Fingerprint]] = []

    def expect(self, name: str, model: HookedViT) -> None:
        """Refuse a model no store is of. Raises ValueError."""
        if any(watched(point) for point in model.hook_points()):
            raise ValueError(
                f"hooks are attached to {name}, and stored activations know nothing of them; reset_hooks(), or leave "
                "activations out"
            )
        parts = self._of(model)
        if not self._fitting(parts):
            nearest = min((stream_differences(parts, store) for store in self.stores), key=len)
            raise ValueError(
                f"the activations in {self.stores[0].folder} are not those of {name}: they differ in {nearest}; store "
                "its own (hooked-vit cache), or leave activations out"
            )
        self._names[parts.key] = name

    def serving(self, model: HookedViT, data: ImageData) -> Serving | None:
        """The store that answers for all of the images; None for a model that was not given, such as a control.

        Raises ValueError for a given one whose images, or whose type of number, no store has.
        """
        parts = self._of(model)
        name = self._names.get(parts.key)
        if (found := self.offered(model, data)) is not None:
            self.noted(found)
            return found
        if name is None:
            remark("No activations are stored of a model of random weights, a control: it was run.")
            return None
        fitting, marks = self._fitting(parts), data.marks()
        right = [store for store in fitting if store.dtype == model.dtype]
        if not right:
            raise ValueError(
                f"{fitting[0].folder} holds activations as {fitting[0].about['dtype']}, and {name} runs in "
                f"{str(model.dtype).removeprefix('torch.')}: store them so (dtype=…), or leave activations out"
            )
        if not marks:
            raise ValueError(f"{data.name} is a stream, whose images no store knows; leave activations out")
        most, store = max(((sum(i >= 0 for i in s.places(marks)), s) for s in right), key=lambda pair: pair[0])
        raise ValueError(
            f"of the {len(marks)} images of {data.name}, {most} are in {store.folder}, which holds {store.n} of "
            f"{store.about['data']}; store these too, or leave activations out"
        )

    def offered(self, model: HookedViT, data: ImageData) -> Serving | None:
        """The store that answers for all of the images, if one does, for whom could run the model as well."""
        fitting = self._fitting(self._of(model))
        marks = data.marks() if fitting else []
        for store in fitting:
            if store.dtype == model.dtype and min(rows := store.places(marks), default=-1) >= 0:
                return Serving(store, model, torch.tensor(rows), data)
        return None

    def _of(self, model: HookedViT) -> Fingerprint:
        """The marks of a model, which does not change while an analysis runs."""
        for known, parts in self._parts:
            if known is model:
                return parts
        self._parts.append((model, untouched(model)))
        return self._parts[-1][1]

    def _fitting(self, parts: Fingerprint) -> list[Store]:
        return [store for store in self.stores if not stream_differences(parts, store)]

    def noted(self, serving: Serving) -> None:
        """Have the result say that these images were read from there."""
        store, rows = serving.store, len(serving.rows)
        what = f"{serving.data.name} ({counted(rows, 'image')}) from {store.folder}, {store.about['key']}"
        if what not in self.about["read"]:
            self.about["read"].append(what)


def in_use() -> InUse | None:
    """The stores of the analysis that runs; None where it was given none."""
    return _USED.get()
