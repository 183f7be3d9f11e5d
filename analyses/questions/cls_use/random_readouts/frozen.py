"""One block of a model, run again on its own input with another token in the place of CLS or beside it.

Of the tokens that are not read the block takes keys and values and nothing else, and those do not depend on the token
that is placed. So they are found once (`look`), and an answer costs one token.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from hooked_vit import HookedViT, TokenLayout

Placement = Literal["null", "replace", "augment"]
READ = {"null": "cls", "replace": "cls", "augment": "inserted"}
"""The role of the token whose output is read, by what is done to the input."""


@dataclass(frozen=True)
class Looked:
    """What one block takes of the tokens entering it: keys (turned, where positions rotate) and values of all, and CLS
    itself.
    """

    keys: Float[Tensor, "b t h d_head"]
    values: Float[Tensor, "b t h d_head"]
    cls: Float[Tensor, "b d"]

    def __len__(self) -> int:
        return len(self.cls)

    def to(self, device: torch.device) -> Looked:
        """The same on another device."""
        return Looked(self.keys.to(device), self.values.to(device), self.cls.to(device))


class FrozenBlock:
    """Block `layer`, whose answer for one token is read: CLS as it is (`null`), replaced, or a token inserted at 0.

    >>> block = FrozenBlock(model, 8, "augment", tokens=model.tokens)  # doctest: +SKIP
    >>> with block.ready():  # doctest: +SKIP
    ...     read = block(x, s)  # [b d]: what block 8 makes of the inserted token s [b d] among the tokens x [b t d]
    ...     seen = block.look(x)  # of many tokens among the same x: block(seen, s) is the same and costs one token

    `tokens` says what the stream holds. An inserted token takes CLS's entries where the family biases attention by
    relative position. While it is `ready`, the model is in eval mode and its weights ask for no gradient.
    """

    def __init__(self, model: HookedViT, layer: int, placement: Placement, *, tokens: TokenLayout) -> None:
        self.model, self.layer, self.placement, self.tokens = model, layer, placement, tokens
        self._after = tokens.insert(0, 1, donor=0) if placement == "augment" else tokens
        (place,) = self._after.mask(READ[placement]).nonzero().flatten().tolist()
        (self._cls,) = tokens.mask("cls").nonzero().flatten().tolist()
        self._at, self._next = place, place if placement == "augment" else place + 1
        self._one = self._after.keep(torch.tensor([place]))
        self._looked: Looked | None = None
        self._found: dict[str, Tensor] = {}
        self._bias: Tensor | None = None

    @contextmanager
    def ready(self) -> Iterator[FrozenBlock]:
        """Freeze the model and attach the hooks, for the length of a `with`; afterwards it is as it was."""
        asked = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        training, attn = self.model.training, f"blocks.{self.layer}.attn.hook_"
        turned = self.model.cfg.rotary is not None
        hooks = [
            (f"blocks.{self.layer}.hook_resid_mid", self._leave_one),
            (f"{attn}{'rot_k' if turned else 'k'}", self._keys),
            (f"{attn}v", self._values),
        ]
        biased = f"{attn}rel_pos_bias" in self.model.hook_dict
        try:
            for parameter in asked:
                parameter.requires_grad_(False)
            self.model.eval()
            with self.model.hooks([*hooks, *[(f"{attn}rel_pos_bias", self._biases)] * biased]):
                if biased:
                    self._bias = self._of_the_read_token()
                yield self
        finally:
            self._bias = None
            self.model.train(training)
            for parameter in asked:
                parameter.requires_grad_(True)

    @torch.no_grad()
    def look(self, x: Float[Tensor, "b t d"]) -> Looked:
        """What the block takes of these tokens. The same for every placement."""
        x = x.to(self.model.device, self.model.dtype)
        self._run(x, self.tokens)
        return Looked(self._found.pop("k"), self._found.pop("v"), x[:, self._cls])

    def __call__(
        self, x: Float[Tensor, "b t d"] | Looked, token: Float[Tensor, "b d"] | None = None
    ) -> Float[Tensor, "b d"]:
        """The block's output [b d] for the token that is read. Gradients reach `token`, and nothing else."""
        looked = x if isinstance(x, Looked) else self.look(x)
        own = looked.cls.to(self.model.device)
        if self.placement != "null":
            assert token is not None
            own = token.to(own)
        self._looked = looked
        try:
            return self._run(own[:, None], self._one).squeeze(1)
        finally:
            self._looked = None

    def _run(self, x: Float[Tensor, "b t d"], tokens: TokenLayout) -> Float[Tensor, "b 1 d"]:
        return self.model(x, start_at_layer=self.layer, stop_at_layer=self.layer + 1, tokens=tokens)

    @torch.no_grad()
    def _of_the_read_token(self) -> Float[Tensor, "1 h 1 after"]:
        """What positions add to its scores."""
        self._run(
            torch.zeros(1, self._after.n_tokens, self.model.cfg.d_model).to(self.model.embed.patch.weight), self._after
        )
        return self._found.pop("bias")[:, :, self._at, None]

    def _keys(self, k: Float[Tensor, "b t h d_head"], hook: object) -> Float[Tensor, "b after h d_head"]:
        return self._seen("k", k)

    def _values(self, v: Float[Tensor, "b t h d_head"], hook: object) -> Float[Tensor, "b after h d_head"]:
        return self._seen("v", v)

    def _biases(self, bias: Float[Tensor, "#b h t t"], hook: object) -> Float[Tensor, "#b h #t after"]:
        if self._looked is None or self._bias is None:
            self._found["bias"] = bias
            return bias
        return self._bias

    def _seen(self, name: str, own: Tensor) -> Tensor:
        """While the block is looked at, what there is; while it answers, the token's own among all the others'."""
        if self._looked is None:
            self._found[name] = own
            return own
        others = (self._looked.keys if name == "k" else self._looked.values).to(own)
        return torch.cat([others[:, : self._at], own, others[:, self._next :]], dim=1)

    def _leave_one(self, resid: Float[Tensor, "b t d"], hook: object) -> Float[Tensor, "b 1 d"]:
        # behind attention no token sees another, and nobody reads what the rest of the block makes of these
        return self.model.keep_tokens(resid, torch.tensor([0])) if self._looked is None else resid
