"""The control that has learned nothing: the same architecture with random weights and a random head of its own."""

from __future__ import annotations

import torch

from hooked_vit import HookedViT


def with_random_weights(model: HookedViT, seed: int) -> HookedViT:
    """An untrained model of the same architecture, width and classes, on the same device and in the same precision.

    >>> with_random_weights(model, seed=0).cfg == model.cfg  # doctest: +SKIP
    True

    Weights are truncated normal with standard deviation 0.02, the head's too, biases zero. The global random state
    stays what it was. Source: methods §10.
    """
    like = model.embed.patch.weight
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        with torch.device("cpu"):
            fresh = HookedViT(model.cfg)
    fresh.to(like.device, like.dtype)
    fresh.set_attention(model.run.attention)
    fresh.set_autocast(model.run.autocast)
    fresh.processor = model.processor
    return fresh
