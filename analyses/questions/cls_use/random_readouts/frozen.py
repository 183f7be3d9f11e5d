"""One block of a model, run again on its own input with another token in the place of CLS or beside it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from hooked_vit import HookedViT, TokenLayout

Placement = Literal["null", "replace", "augment"]
READ = {"null": "cls", "replace": "cls", "augment": "inserted"}
"""The role of the token whose output is read, by what is done to the input."""


class FrozenBlock:
    """Block `layer`, whose answer for one token is read: CLS as it is (`null`), replaced, or a token inserted at 0.

    >>> block = FrozenBlock(model, 8, "augment", tokens=model.tokens)  # doctest: +SKIP
    >>> with block.ready():  # doctest: +SKIP
    ...     read = block(x, s)  # [b d]: what block 8 makes of the inserted token s [b d] among the tokens x [b t d]

    `tokens` says what the stream holds. An inserted token takes CLS's entries where the family biases attention by
    relative position. While it is `ready`, the model is in eval mode and its weights ask for no gradient.
    """

    def __init__(self, model: HookedViT, layer: int, placement: Placement, *, tokens: TokenLayout) -> None:
        self.model, self.layer, self.placement, self.tokens = model, layer, placement, tokens
        self._token: Tensor | None = None

    @contextmanager
    def ready(self) -> Iterator[FrozenBlock]:
        """Freeze the model and attach the edits, for the length of a `with`; afterwards it is as it was."""
        asked = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        training = self.model.training
        name = f"blocks.{self.layer}.hook_resid_"
        hooks = [(f"{name}pre", self._place), (f"{name}mid", self._keep_read)]
        try:
            for parameter in asked:
                parameter.requires_grad_(False)
            self.model.eval()
            with self.model.hooks(hooks):
                yield self
        finally:
            self.model.train(training)
            for parameter in asked:
                parameter.requires_grad_(True)

    def __call__(self, x: Float[Tensor, "b t d"], token: Float[Tensor, "b d"] | None = None) -> Float[Tensor, "b d"]:
        """The block's output [b d] for the token that is read. Gradients reach `token`, and nothing else."""
        weight = self.model.embed.patch.weight
        self._token = token
        x = x.to(weight.device, weight.dtype)
        return self.model(x, start_at_layer=self.layer, stop_at_layer=self.layer + 1, tokens=self.tokens).squeeze(1)

    def _place(self, resid: Float[Tensor, "b t d"], hook: object) -> Float[Tensor, "b after d"]:
        if self.placement == "null":
            return resid
        assert self._token is not None
        token = self._token.to(resid)[:, None]
        if self.placement == "augment":
            return self.model.insert_tokens(resid, 0, token)
        is_cls = self.model.tokens.mask("cls")[:, None].to(resid.device)
        return torch.where(is_cls, token, resid)

    def _keep_read(self, resid: Float[Tensor, "b after d"], hook: object) -> Float[Tensor, "b 1 d"]:
        # behind attention no token sees another, so the rest of the block is run for the one that is read
        return self.model.keep_tokens(resid, self.model.tokens.mask(READ[self.placement]).nonzero().flatten())
