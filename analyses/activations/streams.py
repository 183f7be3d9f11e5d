"""The residual stream of a run, layer by layer, keeping of each layer only what is asked for."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from hooked_vit import HookedViT

Read = Callable[[Tensor], Tensor]


@torch.no_grad()
def read_stream(
    model: HookedViT,
    pixels: Float[Tensor, "b c h w"],
    read: Read | None = None,
    *,
    embedding: bool = False,
    site: str = "resid_post",
) -> tuple[Float[Tensor, "b n"], list[Tensor]]:
    """Logits, and `read` of the activation [b, t, d] at `site` of every layer; of nothing else anything is kept.

    >>> cls = model.tokens.cls  # doctest: +SKIP
    >>> logits, at_layer = read_stream(model, pixels, lambda resid: resid[:, cls].squeeze(1))  # doctest: +SKIP

    `embedding` puts the stream that enters block 0 in front. Without `read` whole activations are kept. `site` is a
    block's hook without "hook_", such as "resid_mid" or "attn_out". Runs under whatever is applied to the model.
    """
    kept: list[Tensor] = []

    def keep(x: Tensor, hook: object) -> None:
        kept.append(x if read is None else read(x))

    names = ["blocks.0.hook_resid_pre"] if embedding else []
    names += [f"blocks.{layer}.hook_{site}" for layer in range(model.cfg.n_layers)]
    return model.run_with_hooks(pixels, fwd_hooks=[(name, keep) for name in names]), kept


def cls_at_every_layer(
    model: HookedViT, pixels: Float[Tensor, "b c h w"], *, embedding: bool = False
) -> tuple[Float[Tensor, "b n"], list[Float[Tensor, "b d"]]]:
    """Logits, and CLS after every block (`embedding`: and in front of the first)."""
    return read_stream(model, pixels, lambda resid: resid[:, model.tokens.cls].squeeze(1), embedding=embedding)
