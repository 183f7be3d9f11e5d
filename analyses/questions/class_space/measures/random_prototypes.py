"""Class vectors that know nothing of the classes, as controls."""

from __future__ import annotations

import torch
from jaxtyping import Int
from torch import Tensor

from analyses.questions.class_space.measures.projection import Rules


def with_random_prototypes(rules: Rules, seed: int) -> Rules:
    """The same rules for a model that has learned nothing: it has no prototypes of classes either, so that they are
    drawn at random where there are any.
    """
    if rules.prototypes is None:
        return rules
    drawn = torch.randn(rules.prototypes.shape, generator=torch.Generator("cpu").manual_seed(seed))
    return Rules(rules.norm, rules.bias, rules.image_head, drawn.to(rules.prototypes))


def permuted_classes(n_classes: int, seed: int) -> Int[Tensor, "c"]:
    """Which row of the head stands for each class after its rows were permuted: the control with trained features.

    >>> sorted(permuted_classes(5, seed=0).tolist())
    [0, 1, 2, 3, 4]

    The rank of class y under the permuted head is the rank of class `permuted_classes(...)[y]` under the head itself,
    so that the control costs no projection. A class may keep its row. Source: methods §10.
    """
    return torch.randperm(n_classes, generator=torch.Generator("cpu").manual_seed(seed))
