"""Senders, receivers and the wires between them: the runs of path patching.

The residual stream has 2 L + 1 places: 2 l in front of block l, 2 l + 1 between its attention and its MLP, 2 L behind
the last block. A sender writes at one of them, a receiver reads at one; with everything in between frozen, what it
reads differs by exactly what the sender writes differently.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from hooked_vit import HookedViT, TokenLayout
from hooked_vit.errors import nearest
from interventions.vocabulary import heads_of

SENDERS = ("embed", "attn_out", "mlp_out")
RECEIVERS = ("q", "k", "v", "mlp_in", "resid_pre", "resid_mid", "resid_post", "logits")
_OFFSET = {"q": 0, "k": 0, "v": 0, "resid_pre": 0, "mlp_in": 1, "resid_mid": 1, "resid_post": 2}


@dataclass(frozen=True, eq=False)
class _End:
    """One end of a path: `tokens` is a role, indices, or a boolean mask [t] or [b, t]; None: all."""

    site: str
    layer: int = 0
    heads: Any = None
    tokens: Any = None
    mask: Bool[Tensor, "#b t"] | None = field(default=None, repr=False)

    @property
    def head(self) -> int | None:
        """The head, where it is a single one."""
        heads = (self.heads,) if isinstance(self.heads, int) else self.heads
        return heads[0] if heads is not None and len(heads) == 1 else None

    def _resolved(self, model: HookedViT, layout: TokenLayout, sites: Sequence[str], with_heads: Sequence[str]) -> Any:
        if self.site not in sites:
            raise ValueError(f"no path ends at {self.site!r}{nearest(self.site, sites)} There are {', '.join(sites)}")
        n = model.cfg.n_layers
        layer = 0 if self.site == "embed" else n - 1 if self.site == "logits" else self.layer
        if not -n <= layer < n:
            raise ValueError(f"layers are 0 to {n - 1} (or negative from the end): the model has {n}, got {layer}")
        if self.heads is not None and self.site not in with_heads:
            raise ValueError(f"{self.site} has no heads; {', '.join(with_heads)} has")
        tokens = "all" if self.tokens is None else self.tokens
        mask = tokens if isinstance(tokens, Tensor) else layout.mask(tokens)
        if mask.dtype != torch.bool or mask.shape[-1] != layout.n_tokens or mask.ndim > 2:
            raise ValueError(f"a mask of tokens is boolean, [{layout.n_tokens}] or [images, {layout.n_tokens}]")
        heads = None if self.heads is None else tuple(heads_of(model, self.heads))
        return replace(self, layer=layer % n, heads=heads, mask=mask.reshape(-1, layout.n_tokens))

    @property
    def name(self) -> str:
        """Short, for tables: L3.attn_out, L3H1, logits."""
        if self.site in ("embed", "logits"):
            where = self.site
        elif self.site == "attn_out" and self.head is not None:
            where = f"L{self.layer}H{self.head}"
        else:
            of = self.heads if self.head is None else self.head
            where = f"L{self.layer}.{self.site}" + ("" if of is None else f"[{of}]")
        if self.tokens is None:
            return where
        return f"{where}@{'mask' if isinstance(self.tokens, Tensor) else self.tokens}"


@dataclass(frozen=True, eq=False)
class Sender(_End):
    """What speaks: "embed" (the stream in front of block 0), "attn_out" (or some `heads` of it), "mlp_out".

    >>> Sender("attn_out", 3, heads=1).name
    'L3H1'
    """

    def on(self, model: HookedViT, layout: TokenLayout) -> Sender:
        """Checked against a model and its tokens.

        Raises ValueError for a site, layer, head or token there is not.
        """
        return self._resolved(model, layout, SENDERS, ("attn_out",))

    @property
    def writes_at(self) -> int:
        """The place in the stream from which on its words are there."""
        return {"embed": 0, "attn_out": 2 * self.layer + 1, "mlp_out": 2 * self.layer + 2}[self.site]


@dataclass(frozen=True, eq=False)
class Receiver(_End):
    """What listens: "q", "k", "v" (of some `heads`), "mlp_in", "logits", or the stream ("resid_pre", …) from there on.

    >>> Receiver("k", 5, heads=2, tokens="cls").name
    'L5.k[2]@cls'
    """

    def on(self, model: HookedViT, layout: TokenLayout) -> Receiver:
        """Checked against a model and its tokens.

        Raises ValueError for a site, layer, head or token there is not.
        """
        return self._resolved(model, layout, RECEIVERS, ("q", "k", "v"))

    @property
    def reads_at(self) -> int:
        """The place in the stream it reads; behind everything for the logits."""
        return 10**9 if self.site == "logits" else 2 * self.layer + _OFFSET[self.site]

    @property
    def is_stream(self) -> bool:
        """Whether it stands for everything that reads the stream from there on."""
        return self.site.startswith("resid") or self.site == "logits"


class Wires:
    """Pairs of runs, and the base run with messages delivered; every batch holds `fold` copies of the pairs."""

    def __init__(
        self,
        model: HookedViT,
        base: Tensor,
        donor: Tensor,
        sent: Sequence[tuple[Sender, ...]],
        receivers: Sequence[Receiver],
        fold: int,
        images: slice,
        *,
        recompute: bool,
    ) -> None:
        model.require_branches_are_sums("path patching")
        self.model, self.sent, self.receivers, self.fold = model, list(sent), list(receivers), fold
        self.n, self.images, self.recompute = len(base), images, recompute
        self.layout = model.layout_for(*base.shape[2:])
        self.places, self.base_logits = self._walk(base)
        self.donor_logits = self._walk(donor)[1]
        ours, theirs = (self._components(pixels) for pixels in (base, donor))
        self.written = {s: self._difference(s, ours, theirs) for group in self.sent for s in group}

    def runs(self) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """(logits with the message, base logits, donor logits), for every group of senders in turn."""
        for first in range(0, len(self.sent), self.fold):
            groups = self.sent[first : first + self.fold]
            logits = self._deliver(groups)
            for i in range(len(groups)):
                rows = slice(i * self.n, (i + 1) * self.n)
                yield logits[rows], self.base_logits[rows], self.donor_logits[rows]

    def _walk(self, pixels: Tensor) -> tuple[list[Tensor], Tensor]:
        """The stream at its 2 L + 1 places, and the logits, for `fold` copies."""
        places: list[Tensor] = []

        def keep(resid: Tensor, hook: object) -> None:
            places.append(resid)

        middles = [(f"blocks.{l}.hook_resid_mid", keep) for l in range(self.model.cfg.n_layers)]
        with self.model.running(self.layout), self.model.hooks(fwd_hooks=middles):
            x = self.model.embed_pixels(pixels.repeat(self.fold, 1, 1, 1))
            places.append(x)
            for block in self.model.blocks:
                x = block(x)
                places.append(x)
            return places, self.model.readout(x)

    def _components(self, pixels: Tensor) -> dict[str, Tensor]:
        """What the senders say in a run: head outputs before they are projected, MLP outputs, the embedding."""
        kinds = {"attn_out": "attn.hook_z", "mlp_out": "hook_mlp_out"}
        names = {f"blocks.{s.layer}.{kinds[s.site]}" for group in self.sent for s in group if s.site in kinds}
        seen: dict[str, Tensor] = {}

        def keep(act: Tensor, hook: Any) -> None:
            seen[hook.name] = act

        start = "blocks.0.hook_resid_pre"
        self.model.run_with_hooks(pixels, fwd_hooks=[(name, keep) for name in {*names, start}])
        return seen

    def _difference(self, sender: Sender, ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> Float[Tensor, "b t d"]:
        """What the sender writes differently in the donor run."""
        if sender.site == "embed":
            name = "blocks.0.hook_resid_pre"
        else:
            name = f"blocks.{sender.layer}.{'attn.hook_z' if sender.site == 'attn_out' else 'hook_mlp_out'}"
        change = theirs[name] - ours[name]
        if sender.site == "attn_out":
            heads = list(sender.heads) if sender.heads is not None else slice(None)
            weight = self.model.blocks[sender.layer].attn.W_O[heads]
            change = torch.einsum("bthe,hed->btd", change[:, :, heads].to(weight), weight)
        return change * self._of_images(sender)[..., None].to(change)

    def _of_images(self, end: Sender | Receiver) -> Bool[Tensor, "#b t"]:
        assert end.mask is not None
        return end.mask if len(end.mask) == 1 else end.mask[self.images]

    def _message(self, groups: list[tuple[Sender, ...]], place: int) -> Tensor:
        """What the stream holds differently at a place, for every group: what was written up to there."""
        nothing = torch.zeros_like(self.places[0][: self.n])
        parts = [sum((self.written[s] for s in group if s.writes_at <= place), nothing) for group in groups]
        return torch.cat([*parts, *[nothing] * (self.fold - len(groups))])

    def _messages(self, groups: list[tuple[Sender, ...]]) -> dict[int, Tensor]:
        """The message at every place a receiver reads."""
        last = 2 * self.model.cfg.n_layers
        read = sorted({min(r.reads_at, last) for r in self.receivers})
        if not self.recompute:
            return {place: self._message(groups, place) for place in read}
        found: dict[int, Tensor] = {}
        echo = torch.zeros_like(self.places[0])
        for place in range(read[-1] + 1):
            if place and place % 2 == 0:  # attention is frozen, this MLP hears the message, unless it is a sender
                layer, middle = place // 2 - 1, self.places[place - 1]
                block, heard = self.model.blocks[layer], self._message(groups, place - 1) + echo
                with self.model.running(self.layout):
                    said = [block.mlp(block.ln2(x)) for x in (middle + heard, middle)]
                echo = echo + torch.where(self._spoken_for(groups, layer), 0.0, said[0] - said[1])
            if place in read:
                found[place] = self._message(groups, place) + echo
        return found

    def _spoken_for(self, groups: list[tuple[Sender, ...]], layer: int) -> Bool[Tensor, "b t 1"]:
        """The tokens at which this layer's MLP is a sender itself."""
        spoken = torch.zeros(self.fold, self.n, self.layout.n_tokens, dtype=torch.bool)
        for at, group in enumerate(groups):
            for sender in group:
                if sender.site == "mlp_out" and sender.layer == layer:
                    spoken[at] |= self._of_images(sender)
        return spoken.flatten(0, 1)[..., None].to(self.base_logits.device)

    def _deliver(self, groups: list[tuple[Sender, ...]]) -> Tensor:
        """Logits of the base run in which the receivers read the message."""
        model, last = self.model, 2 * self.model.cfg.n_layers
        messages = self._messages(groups)
        hooks: list[tuple[str, Any]] = []
        at_the_end = torch.zeros_like(self.places[0])
        for receiver in self.receivers:
            place = min(receiver.reads_at, last)
            mask = self._of_images(receiver).expand(self.n, -1).repeat(self.fold, 1)[..., None]
            heard = messages[place] * mask.to(messages[place])
            if place < last:
                hooks += self._hooks(receiver, heard)
            else:
                at_the_end = at_the_end + heard
        start = min(messages) // 2
        with model.running(self.layout), model.hooks(fwd_hooks=hooks):
            x = self.places[2 * start]
            for block in model.blocks[start:]:
                x = block(x)
            return model.readout(x + at_the_end)

    def _hooks(self, receiver: Receiver, message: Tensor) -> list[tuple[str, Any]]:
        """Make a receiver in a block read the message beside what it reads anyway."""
        name = f"blocks.{receiver.layer}"
        if receiver.site == "resid_post":  # the run may start right behind it
            return [(f"blocks.{receiver.layer + 1}.hook_resid_pre", lambda act, hook: act + message)]
        if receiver.site not in ("q", "k", "v"):
            return [(f"{name}.hook_{receiver.site}", lambda act, hook: act + message)]
        block, seen = self.model.blocks[receiver.layer], []
        heads = torch.zeros(self.model.cfg.n_heads, dtype=torch.bool, device=message.device)
        heads[list(receiver.heads) if receiver.heads is not None else slice(None)] = True

        def listen(resid: Tensor, hook: object) -> None:
            seen.append(resid)

        def speak(act: Tensor, hook: object) -> Tensor:
            linear = getattr(block.attn, receiver.site)
            heard = linear(block.ln1(seen[-1] + message)).unflatten(-1, act.shape[2:])
            return torch.where(heads[None, None, :, None], heard.to(act), act)

        return [(f"{name}.hook_resid_pre", listen), (f"{name}.attn.hook_{receiver.site}", speak)]
