"""What to put in the place of the learned CLS embedding, with and without its position embedding.

After Zou et al. 2024, who find that a CLS embedding left as initialised carries less of the training domain.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from hooked_vit import HookedViT
from interventions import Intervention, swap_cls_parameter

INITIAL_STD = 0.02


class Swap(NamedTuple):
    """A vector in the place of the CLS embedding; `seed` is that of a drawn one."""

    variant: str
    seed: int | None
    position: bool
    intervention: Intervention


def cls_swaps(model: HookedViT, mean_patch: Float[Tensor, "d"], *, seeds: int = 2) -> list[Swap]:
    """The swaps of methods §25 (d) that change something: N(0, 0.02²) for each seed, zeros, the data's mean patch.

    >>> [swap.variant for swap in cls_swaps(model, torch.zeros(96), seeds=1)]  # doctest: +SKIP
    ['learned', 'normal', 'normal', 'zeros', 'zeros', 'mean patch', 'mean patch']

    Each with and without the position embedding of CLS, where it has one; "learned" only without, as it is the model
    itself otherwise. Raises ValueError where the model has no CLS token.
    """
    learned = learned_cls(model)
    vectors: list[tuple[str, int | None, Tensor]] = [("learned", None, learned)]
    vectors += [("normal", seed, initial_cls(learned, seed)) for seed in range(seeds)]
    vectors += [("zeros", None, torch.zeros_like(learned)), ("mean patch", None, mean_patch.to(learned))]
    positions = (True, False) if _has_position(model) else (True,)
    return [
        Swap(variant, seed, position, swap_cls_parameter(vector, position=position))
        for variant, seed, vector in vectors
        for position in positions
        if not (variant == "learned" and position)
    ]


def learned_cls(model: HookedViT) -> Float[Tensor, "d"]:
    """The CLS embedding of a model.

    Raises ValueError where it has none.
    """
    if model.embed.cls is None:
        raise ValueError(f"there is no CLS embedding to swap; this model has {', '.join(model.tokens.roles)}")
    return model.embed.cls.detach().flatten()


def initial_cls(like: Float[Tensor, "d"], seed: int) -> Float[Tensor, "d"]:
    """A CLS embedding as training begins with it: a draw of N(0, 0.02²)."""
    generator = torch.Generator("cpu").manual_seed(seed)
    return (torch.randn(len(like), generator=generator, device="cpu") * INITIAL_STD).to(like)


def _has_position(model: HookedViT) -> bool:
    return model.pos_embed is not None and model.pos_embed.placed[model.cfg.prefix.index("cls")]
