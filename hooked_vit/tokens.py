"""Which token is which: roles that survive insertion, removal and other image sizes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from threading import Lock, local
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from hooked_vit.config import Role
from hooked_vit.config.showing import Displayed
from hooked_vit.errors import token_indices

ROLES: tuple[Role, ...] = ("cls", "dist", "registers", "patches", "inserted")
ABSENT = -1
Tokens = str | int | Sequence[int]


@dataclass(frozen=True, eq=False, repr=False)
class TokenLayout(Displayed):
    """The tokens at one point of a run: what each one is, and which original token it came from.

    >>> layout = TokenLayout.native(("cls",), grid=(2, 2))
    >>> layout.cls, layout.patches, layout.n_prefix, layout.n_tokens
    (slice(0, 1, None), slice(1, 5, None), 1, 5)
    >>> layout.insert(0, 1).cls
    slice(1, 2, None)

    `codes` holds an index into ROLES per token (ABSENT for padding), `ids` the index the token had in the native
    layout (-1 for an inserted one), `donors` the id whose positional entries it uses (-1 for none). All are [t], or
    [b, t] once a removal has differed from image to image, and stay on the CPU, wherever the model is. Positions are
    looked up by id, never by place. `pixels` is the (height, width) of the images it is of, where that is known.
    """

    prefix: tuple[Role, ...]
    grid: tuple[int, int]
    codes: Int[Tensor, "*b t"]
    ids: Int[Tensor, "*b t"]
    donors: Int[Tensor, "*b t"]
    pixels: tuple[int, int] | None = None

    @classmethod
    def native(cls, prefix: Sequence[Role], grid: tuple[int, int], pixels: Any = None) -> TokenLayout:
        """The layout before any edit: prefix tokens, then rows x columns patches in row-major order."""
        roles = [*prefix, *["patches"] * (grid[0] * grid[1])]
        codes = torch.tensor([ROLES.index(role) for role in roles], device="cpu")
        ids = torch.arange(len(codes), device="cpu")
        return cls(tuple(prefix), grid, codes, ids, ids, pixels)

    @property
    def n_tokens(self) -> int:
        """Tokens in the sequence now, padding included."""
        return self.codes.shape[-1]

    @property
    def n_patches(self) -> int:
        """Patches in the sequence now, of the image that has most."""
        return self.counts.get("patches", 0)

    @property
    def n_native(self) -> int:
        """Tokens before any edit."""
        return len(self.prefix) + self.grid[0] * self.grid[1]

    @cached_property
    def is_native(self) -> bool:
        """True where no token was inserted, removed or moved."""
        return not self.ragged and torch.equal(self.ids, torch.arange(self.n_native, device="cpu"))

    @property
    def ragged(self) -> bool:
        """True where images of one batch hold different tokens."""
        return self.codes.ndim == 2

    @property
    def n_prefix(self) -> int:
        """Tokens that are not patches."""
        return self.n_tokens - self.n_patches

    @property
    def cls(self) -> slice | list[int] | None:
        """Where CLS is; None where there is none."""
        return self.where("cls")

    @property
    def dist(self) -> slice | list[int] | None:
        """Where the distillation token is."""
        return self.where("dist")

    @property
    def registers(self) -> slice | list[int] | None:
        """Where the register tokens are."""
        return self.where("registers")

    @property
    def patches(self) -> slice | list[int] | None:
        """Where the patches are."""
        return self.where("patches")

    @property
    def inserted(self) -> slice | list[int] | None:
        """Where inserted tokens without another role are."""
        return self.where("inserted")

    @property
    def roles(self) -> tuple[str, ...]:
        """The roles that occur, in the order of ROLES."""
        return tuple(role for code, role in enumerate(ROLES) if bool((self.codes == code).any()))

    def where(self, tokens: Tokens) -> slice | list[int] | None:
        """Positions of a role or of original indices: a slice where they are contiguous, None where there are none."""
        if self.ragged:
            raise ValueError("positions differ from image to image after this removal; use mask(tokens)")
        places = self.mask(tokens, missing_ok=True).nonzero().flatten().tolist()
        if not places:
            return None
        first, last = places[0], places[-1]
        return slice(first, last + 1) if last - first + 1 == len(places) else places

    def mask(self, tokens: Tokens, *, missing_ok: bool = False) -> Bool[Tensor, "*b t"]:
        """True at the tokens addressed: a role, "all", or original indices (negative from the end).

        Raises ValueError for a role or an index there is not, or one that was removed; TypeError for a slice or a mask.
        """
        if isinstance(tokens, str):
            return self._role_mask(tokens, missing_ok)
        wanted = token_indices(tokens)
        n = self.n_native
        if bad := [t for t in wanted if not -n <= t < n]:
            raise ValueError(f"token indices {bad} are out of range: there are {n} tokens, 0 to {n - 1}")
        if not missing_ok and (gone := [t % n for t in wanted if not (self.ids == t % n).any(-1).all()]):
            raise ValueError(f"tokens {gone} were removed earlier in this run; address tokens that are still there")
        return torch.isin(self.ids, torch.tensor([t % n for t in wanted], dtype=self.ids.dtype, device="cpu"))

    def _role_mask(self, role: str, missing_ok: bool) -> Tensor:
        if role == "all":
            return self.codes != ABSENT
        if role not in ROLES:
            raise ValueError(f"unknown token role {role!r}; roles are {', '.join(ROLES)}, 'all', or explicit indices")
        found = self.codes == ROLES.index(role)
        if not missing_ok and not found.any():
            raise ValueError(f"there is no {role!r} token here; this model has {', '.join(self.roles)}")
        return found

    @cached_property
    def present(self) -> Bool[Tensor, "b t"] | None:
        """True at real tokens, None where no image is padded."""
        real = self.codes != ABSENT
        return None if real.all() else real

    def insert(self, at: int, n: int, *, role: str = "inserted", donor: int | None = None) -> TokenLayout:
        """The layout with `n` new tokens of a role in front of position `at`.

        Their positional entries are those of the token with id `donor`; None means none.

        Raises ValueError where `at` is outside 0..n_tokens (negative counts from the end, -1 being the very end), and
        for a role or a donor there is not.
        """
        if role not in ROLES:
            raise ValueError(f"unknown token role {role!r}; roles are {', '.join(ROLES)}")
        if donor is not None and not 0 <= donor < self.n_native:
            raise ValueError(f"a donor is an original token, 0 to {self.n_native - 1}, got {donor}")
        if not -self.n_tokens - 1 <= at <= self.n_tokens:
            raise ValueError(f"cannot insert at {at}: positions are 0 to {self.n_tokens}, or negative from the end")
        at = at % (self.n_tokens + 1)

        def spliced(old: Tensor, value: int) -> Tensor:
            new = old.new_full((*old.shape[:-1], n), value)
            return torch.cat([old[..., :at], new, old[..., at:]], dim=-1)

        return replace(
            self,
            codes=spliced(self.codes, ROLES.index(role)),
            ids=spliced(self.ids, -1),
            donors=spliced(self.donors, -1 if donor is None else donor),
        )

    def keep(self, places: Int[Tensor, "*b k"]) -> TokenLayout:
        """The layout after keeping the tokens at these positions, in this order; a position of -1 pads.

        It is ragged only where images really keep different tokens.
        """
        real = places >= 0
        batch = torch.broadcast_shapes(places.shape[:-1], self.codes.shape[:-1])
        places, real = places.expand(*batch, -1), real.expand(*batch, -1)

        def taken(old: Tensor, pad: int) -> Tensor:
            return old.expand(*batch, -1).gather(-1, places.clamp(min=0)).where(real, pad)

        kept: dict[str, Any] = {"codes": taken(self.codes, ABSENT), "ids": taken(self.ids, -1)}
        kept["donors"] = taken(self.donors, -1)
        if batch and all((rows == rows[0]).all() for rows in kept.values()):
            kept = {name: rows[0] for name, rows in kept.items()}
        return replace(self, **kept)

    def part(self, rows: slice) -> TokenLayout:
        """The layout of the tokens in these places alone."""
        return replace(self, codes=self.codes[..., rows], ids=self.ids[..., rows], donors=self.donors[..., rows])

    def same_as(self, other: TokenLayout) -> bool:
        """True where both describe the same tokens in the same order."""
        mine, theirs = (self.codes, self.ids, self.donors), (other.codes, other.ids, other.donors)
        return (self.prefix, self.grid) == (other.prefix, other.grid) and all(map(torch.equal, mine, theirs))

    def _rows(self) -> dict[str, object]:
        return {"pixels": self.pixels or "", "grid": self.grid, **self.counts}

    @property
    def counts(self) -> dict[str, int]:
        """Tokens of each role that occurs, of the image that has most."""
        return {role: int((self.codes == ROLES.index(role)).sum(-1).max()) for role in self.roles}


class Run:
    """What the parts of one model share during a forward pass: the tokens as they are now, kernel and autocast.

    `depth` counts the runs in progress: a hook may start another one. All this belongs to one run at a time, and so do
    the hooks of a model: while a thread runs it or has hooks attached, another one is refused by `held`.
    `lookalikes` remembers a layout of as many tokens as the native one that was another: ever since, a stream that
    does not say which tokens it holds could be either.
    """

    def __init__(self, native: TokenLayout) -> None:
        self.native = native
        self.depth, self.n_forwards = 0, 0
        self.attention = "auto"
        self.autocast: torch.dtype | None = None
        self.lookalikes: list[TokenLayout] = []
        self._tokens = native
        self._holder: object = None
        self._holds = 0

    @property
    def tokens(self) -> TokenLayout:
        """The tokens of the run in progress, the native ones where there is none."""
        return self._tokens

    @tokens.setter
    def tokens(self, layout: TokenLayout) -> None:
        if layout is not self.native and layout.n_tokens == self.native.n_tokens and not self.lookalikes:
            self.lookalikes += [] if layout.same_as(self.native) else [layout]
        self._tokens = layout

    @contextmanager
    def held(self) -> Iterator[None]:
        """For this thread alone, as long as this lasts; a thread may hold it several times over.

        Raises RuntimeError where another thread does.
        """
        me = _THREAD.mark
        with _TURN:
            if self._holder not in (None, me):
                raise RuntimeError(
                    "another thread is running this model or has hooks attached to it, and a run has the hooks and "
                    "the tokens of its model; give each thread a model.shared_copy(), which costs no memory"
                )
            self._holder, self._holds = me, self._holds + 1
        try:
            yield
        finally:
            with _TURN:
                self._holds -= 1
                self._holder = me if self._holds else None

    def refuse_recomputation(self) -> None:
        """Raise RuntimeError where a part of the graph is run again by the backward pass, its run being over."""
        if not (self.depth or torch.compiler.is_compiling()) and torch._C._current_graph_task_id() >= 0:
            raise RuntimeError(RECOMPUTED)

    def __getstate__(self) -> dict[str, Any]:
        """A copy is in no run, and nobody's."""
        return self.__dict__ | {"_tokens": self.native, "depth": 0, "_holder": None, "_holds": 0}


class _Thread(local):
    """What one thread is told from another by."""

    def __init__(self) -> None:
        self.mark = object()


_THREAD, _TURN = _Thread(), Lock()
RECOMPUTED = (
    "gradient checkpointing runs blocks again in the backward pass, when the tokens and hooks of their run are gone; "
    "use smaller batches, or checkpoint a function that calls the whole model"
)


def tokens_changed(known: int, seen: int) -> str:
    """What to say when a hook changed the number of tokens behind the layout's back."""
    return (
        f"a hook changed the number of tokens from {known} to {seen}, so roles and positions are no longer known; "
        "use model.insert_tokens(...) or model.keep_tokens(...) inside the hook"
    )
