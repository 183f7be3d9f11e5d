"""Where activations are read: the tokens of a role at a layer, all from one forward pass, keeping nothing else."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from analyses.activations.streams import read_layers, read_stream
from hooked_vit import HookedViT, TokenLayout
from hooked_vit.errors import nearest

EMBEDDING = -1
"""The layer of the stream that enters block 0."""

HEAD_INPUT = "head_input"
RANDOM_PATCH = "random_patch"
REGISTER, PATCH = "register_", "patch_"
LABELS = {
    "cls": "CLS",
    "dist": "distillation token",
    "registers": "mean register",
    "patches": "mean patch",
    "random_patch": "one random patch",
}
"""What one vector of an image is called where it is drawn."""
EACH = {"each_register": REGISTER, "each_patch": PATCH}


class Site(NamedTuple):
    """A place a probe reads: a role, and the block behind which (-1: the embedding; None: what the head reads).

    >>> str(Site("cls", 3)), str(Site("patches", EMBEDDING)), str(Site("head_input", None))
    ('cls@3', 'patches@embedding', 'head_input')
    """

    role: str
    layer: int | None

    def __str__(self) -> str:
        if self.layer is None:
            return self.role
        return f"{self.role}@{'embedding' if self.layer == EMBEDDING else self.layer}"

    @classmethod
    def parse(cls, text: str) -> Site:
        """The site of that name.

        >>> Site.parse("registers@11")
        Site(role='registers', layer=11)
        """
        role, at, layer = text.partition("@")
        return cls(role, (EMBEDDING if layer == "embedding" else int(layer)) if at else None)


def roles_of(model: HookedViT) -> tuple[str, ...]:
    """The roles read where none are named: every kind of token the model has, and a patch drawn at random."""
    layout = model.tokens
    return (*(role for role in ("cls", "dist", "registers", "patches") if role in layout.roles), RANDOM_PATCH)


def check_roles(model: HookedViT, roles: Sequence[str], name: str = "the model") -> tuple[str, ...]:
    """The roles to read, with "each_register" and "each_patch" written out; of no role given, `roles_of(model)`.

    A role is "cls", "dist", "registers" (their mean), "register_0" and so on, "patches" (their mean), "patch_0" and so
    on in rows from the top left (of the images its processor makes), "random_patch" (another one in every image, the
    same at every layer), or "head_input", what the classifier reads. Raises ValueError for a role there is not, or one
    named twice.
    """
    layout = model.tokens
    n_registers, n_patches = layout.prefix.count("registers"), layout.grid[0] * layout.grid[1]
    single = {kind: [f"{kind}{i}" for i in range(n)] for kind, n in ((REGISTER, n_registers), (PATCH, n_patches))}
    whole = (*roles_of(model), HEAD_INPUT)
    known = {*whole, *single[REGISTER], *single[PATCH]}
    written: list[str] = []
    for role in roles or roles_of(model):
        found = single[EACH[role]] if role in EACH else [role] if role in known else []
        if not found:
            there = ", ".join([*whole, *(f"{names[0]} to {names[-1]}" for names in single.values() if names)])
            raise ValueError(f"{name} has no {role!r} to read{nearest(role, known)} (it has {there})")
        written += found
    if twice := sorted({role for role in written if written.count(role) > 1}):
        raise ValueError(f"every role is read once; {', '.join(twice[:5])} is named twice")
    return tuple(written)


class SiteReader:
    """Reads roles at layers of a model, batch by batch.

    >>> reader = SiteReader(model, ("cls", "patches"))  # doctest: +SKIP
    >>> logits, features = reader.read(pixels, index)  # doctest: +SKIP
    >>> features["cls@3"].shape  # doctest: +SKIP
    torch.Size([8, 768])

    `layers` are blocks, -1 for the embedding; all blocks where none are named. Runs under whatever is applied to the
    model: roles are looked up where the tokens are by then. `seed` draws the random patches, one for every image.
    Raises ValueError for roles and layers there are not.
    """

    def __init__(
        self, model: HookedViT, roles: Sequence[str] = (), *, layers: Sequence[int] | None = None, seed: int = 0
    ) -> None:
        self.model, self.seed = model, seed
        self.roles = check_roles(model, roles)
        n = model.cfg.n_layers
        self.layers = tuple(range(n) if layers is None else layers)
        if bad := [layer for layer in self.layers if not EMBEDDING <= layer < n]:
            raise ValueError(f"layers are 0 to {n - 1}, or -1 for the embedding; got {bad}")
        if not self.layers or len(set(self.layers)) < len(self.layers):
            raise ValueError(f"at least one layer is read, and each once; got {list(self.layers)}")
        self._in_stream = [role for role in self.roles if role != HEAD_INPUT]
        head = [Site(HEAD_INPUT, None)] if HEAD_INPUT in self.roles else []
        self.sites = [*(Site(role, layer) for role in self._in_stream for layer in self.layers), *head]
        read = sorted(self.layers) if self._in_stream else []
        self._embedding, self._blocks = EMBEDDING in read, [layer for layer in read if layer != EMBEDDING]

    @torch.no_grad()
    def read(
        self, pixels: Float[Tensor, "b c h w"], index: Int[Tensor, "b"]
    ) -> tuple[Float[Tensor, "b n"], dict[str, Float[Tensor, "b _"]]]:
        """Logits, and the features [b, d] of every site by its name; `index` numbers the images, for random patches."""
        read = self._roles(pixels, index)
        with self._pooled() as pooled:
            logits, kept = read_stream(self.model, pixels, read, layers=self._blocks, embedding=self._embedding)
        return logits, self._named(kept, pooled)

    @torch.no_grad()
    def features(self, pixels: Float[Tensor, "b c h w"], index: Int[Tensor, "b"]) -> dict[str, Float[Tensor, "b _"]]:
        """The features alone: the run ends behind the last layer that is read, unless a head's input is."""
        if HEAD_INPUT in self.roles:
            return self.read(pixels, index)[1]
        read = self._roles(pixels, index)
        kept = read_layers(self.model, pixels, read, layers=self._blocks, embedding=self._embedding)
        return self._named(kept, [])

    def _roles(self, pixels: Tensor, index: Tensor) -> Callable[[Tensor], Tensor]:
        """A function that takes a stream to one vector [b, roles, d] for each role."""
        draws = draws_of(self.model.layout_for(pixels), index, self.seed) if RANDOM_PATCH in self.roles else None

        def read_roles(resid: Tensor) -> Tensor:
            layout = self.model.tokens
            return torch.stack([role_vector(resid, layout, role, draws) for role in self._in_stream], dim=1)

        return read_roles

    def _named(self, kept: list[Tensor], pooled: list[Tensor]) -> dict[str, Tensor]:
        by_layer = dict(zip([*[EMBEDDING] * self._embedding, *self._blocks], kept, strict=True))
        features = {
            str(Site(role, layer)): by_layer[layer][:, i]
            for i, role in enumerate(self._in_stream)
            for layer in self.layers
        }
        return {**features, HEAD_INPUT: pooled[0]} if pooled else features

    @contextmanager
    def _pooled(self) -> Iterator[list[Tensor]]:
        kept: list[Tensor] = []

        def keep(pooled: Tensor, hook: object) -> None:
            kept.append(pooled)

        with self.model.hooks([("hook_pooled", keep)] if HEAD_INPUT in self.roles else []):
            yield kept


def role_vector(
    resid: Float[Tensor, "b t d"], layout: TokenLayout, role: str, draws: Float[Tensor, "b p"] | None
) -> Float[Tensor, "b d"]:
    """One vector of each image for a role of `check_roles`; `draws` (`draws_of`) for a random patch.

    Raises ValueError where an image of this run has no such token left, or several where there is to be one.
    """
    if role == RANDOM_PATCH:
        assert draws is not None
        return resid[torch.arange(len(resid)), _drawn(layout, draws).to(resid.device)]
    mask = layout.mask(_tokens(layout, role))
    found = mask.sum(-1)
    if role not in ("registers", "patches") and bool((found != 1).any()):
        raise ValueError(
            f"a probe reads one {role} in every image; this run has {int(found.min())} to {int(found.max())} of them"
        )
    if mask.ndim == 1:
        places = mask.nonzero().flatten()
        first, last = int(places[0]), int(places[-1])
        whole = last - first + 1 == len(places)
        return resid[:, first : last + 1].mean(1) if whole else resid[:, places].mean(1)
    if not bool(found.all()):
        raise ValueError(f"a probe reads {role}, and in {int((found == 0).sum())} images of this run none is left")
    weight = mask.to(resid.device, resid.dtype)
    return torch.einsum("btd,bt->bd", resid, weight) / weight.sum(1, keepdim=True)


def _tokens(layout: TokenLayout, role: str) -> str | int:
    """A role as the layout addresses it: by name, or by the index the token had."""
    if role.startswith(REGISTER):
        return layout.prefix.index("registers") + int(role.removeprefix(REGISTER))
    if role.startswith(PATCH):
        return len(layout.prefix) + int(role.removeprefix(PATCH))
    return role


def draws_of(layout: TokenLayout, index: Int[Tensor, "b"], seed: int) -> Float[Tensor, "b p"]:
    """A number for every patch of every image, whatever batch it is in: the patch with the least is the one drawn."""
    rows, cols = layout.grid
    drawn = [np.random.default_rng([seed, i]).random(rows * cols) for i in index.tolist()]
    return torch.from_numpy(np.stack(drawn))


def _drawn(layout: TokenLayout, draws: Float[Tensor, "b p"]) -> Int[Tensor, "b"]:
    """Where the drawn patch of each image is now; of patches that were removed the next one in line."""
    n_prefix = len(layout.prefix)
    ids = layout.ids.reshape(-1, layout.n_tokens).expand(len(draws), -1)
    patch: Bool[Tensor, "b t"] = layout.mask("patches").reshape(-1, layout.n_tokens).expand(len(draws), -1)
    if not bool(patch.any(1).all()):
        raise ValueError(f"a probe reads {RANDOM_PATCH}, and in {int((~patch.any(1)).sum())} images no patch is left")
    value = draws.gather(1, (ids - n_prefix).clamp(0, draws.shape[1] - 1))
    return value.masked_fill(~patch, torch.inf).argmin(1)
